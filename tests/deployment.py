"""The files of deploy/, for the tests of them."""

from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"


def documents(text: str) -> list[dict[str, Any]]:
    """The documents of a text in YAML."""
    return [document for document in yaml.safe_load_all(text) if document]


def read(path: Path) -> list[dict[str, Any]]:
    """The documents of a YAML file."""
    return documents(path.read_text())


def compose_services() -> dict[str, dict[str, Any]]:
    """The services of the compose file."""
    return read(DEPLOY / "compose.yaml")[0]["services"]
