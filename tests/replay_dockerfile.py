#!/usr/bin/env python3
"""Replays the steps of the Dockerfile without a container engine, then uses the result as its user would.

    python tests/replay_dockerfile.py --target cpu
    python tests/replay_dockerfile.py --target gpu

Each step runs in a clean folder that stands in for the image's root, with a new virtual environment as its Python. The
build context is what git has committed or staged, minus .dockerignore. ENV, WORKDIR, COPY, RUN, USER and CMD are
executed; absolute paths are moved below the folder. Creating a user would change this machine, so `useradd` does
nothing, `chown` gives files to the user's ID, and after USER, commands run under that ID (only if started as root).
"""

import argparse
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
UID = 1000  # of the user that the Dockerfile creates
MOVED = ("/app", "/data", "/cache", "/usr/local/bin")  # the places that the Dockerfile writes to
INSTRUCTIONS = {"FROM", "ENV", "WORKDIR", "COPY", "RUN", "VOLUME", "EXPOSE", "CMD", "USER"}


def steps(target: str) -> list[tuple[str, str]]:
    """The instructions of a stage and the stages it builds on, in order."""
    text = re.sub(
        r"\\\n",
        " ",
        "\n".join(line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")),
    )
    stages: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for line in filter(str.strip, text.splitlines()):
        name, _, rest = line.strip().partition(" ")
        assert name in INSTRUCTIONS, f"{name} is not supported yet"
        if name == "FROM":
            base, _, alias = rest.split()
            current = stages[alias] = list(stages.get(base, []))
        else:
            current.append((name, re.sub(r"\s+", " ", rest.strip())))
    return stages[target]


@dataclass
class Image:
    """The folder that stands in for an image's root."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: int | None = None
    command: list[str] = field(default_factory=list)

    def inside(self, path: str) -> Path:
        """Where an absolute path of the image is on this machine."""
        return self.root / os.path.join(self.workdir, path).lstrip("/")

    def run(self, command: list[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a command as the image would."""
        binaries = self.inside("/usr/local/bin")
        path = os.pathsep.join(
            [str(self.root / "stubs"), str(binaries), str(self.root / "venv/bin"), os.environ["PATH"]]
        )
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "DR_KERAS", "VIRTUAL"))
        }
        environment |= {name: self.move(value) for name, value in self.environment.items()}
        changes = self.user and os.geteuid() == 0 and "REPLAYED_AS" not in self.environment
        as_user: dict[str, Any] = {"user": self.user, "group": self.user, "extra_groups": []} if changes else {}
        return subprocess.run(
            [self.move(part) for part in command],
            cwd=self.inside("."),
            env=environment | {"PATH": path, "HOME": str(self.root / "home")},
            text=True,
            capture_output=True,
            check=check,
            **as_user,
        )

    def move(self, text: str) -> str:
        """The text with the image's paths moved below the root."""
        places = "|".join(map(re.escape, MOVED))
        return re.sub(rf"(?<![\w./-])({places})(?=[/\s\"':]|$)", lambda match: str(self.root) + match[1], text)


def context() -> list[str]:
    """The files of the build context: those tracked by git, minus those in .dockerignore."""
    names = subprocess.run(["git", "ls-files", "--cached"], cwd=ROOT, capture_output=True, text=True, check=True)
    ignored = (ROOT / ".dockerignore").read_text().split()
    return [
        name
        for name in names.stdout.splitlines()
        if (ROOT / name).is_file()
        and not any(fnmatch.fnmatch(name, pattern) or name.startswith(f"{pattern}/") for pattern in ignored)
    ]


def copy(image: Image, sources: list[str], target: str) -> None:
    """COPY: files go into the target; a folder's contents are copied, not the folder itself."""
    known = context()
    for source in sources:
        below = [name for name in known if name == source or name.startswith(f"{source}/")]
        assert below, f"COPY {source}: there is no such file in the build context"
        for name in below:
            inner = name.removeprefix(f"{source}/") if name != source else Path(name).name
            file = image.inside(target) / inner
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, file)


def build(target: str, root: Path, python: str) -> Image:
    """Executes the steps of a target."""
    image = Image(root)
    for name in ("stubs", "home", "usr/local/bin"):
        (root / name).mkdir(parents=True)
    (root / "home").chmod(0o777)
    root.chmod(0o755)
    subprocess.run([python, "-m", "venv", str(root / "venv")], check=True)
    for name, body in (("useradd", "true"), ("chown", f'shift; exec /bin/chown {UID}:{UID} "$@"')):
        (root / "stubs" / name).write_text(f"#!/bin/sh\n{body}\n")
        (root / "stubs" / name).chmod(0o755)
    for instruction, rest in steps(target):
        print(f"{instruction} {rest}", flush=True)
        if instruction == "ENV":
            image.environment |= dict(pair.split("=", 1) for pair in shlex.split(rest))
        elif instruction == "WORKDIR":
            image.workdir = rest
            image.inside(".").mkdir(parents=True, exist_ok=True)
        elif instruction == "COPY":
            *sources, to = rest.split()
            copy(image, sources, to)
        elif instruction == "RUN":
            result = image.run(["/bin/sh", "-c", rest], check=False)
            if result.returncode:
                sys.exit(f"{result.stdout}{result.stderr}RUN failed with exit status {result.returncode}")
        elif instruction == "USER":
            image.user = int(rest)
            try:
                image.run(["python", "-c", "import numpy"])
            except (OSError, subprocess.CalledProcessError):
                print(f"  this machine's Python cannot be run by user {rest}; what follows runs as {os.geteuid()}")
                image.environment["REPLAYED_AS"] = str(os.geteuid())
        elif instruction == "CMD":
            image.command = json.loads(rest)
    return image


def use(image: Image) -> None:
    """Runs the image's command and each entry point as the image's user."""
    assert image.user == UID, f"the image runs as user {image.user or 0}"
    small = (
        "--image-size 16 --backbone resnet10 --width 4 --embedding-dim 8 --epochs 1 --steps-per-epoch 3 --batch-size 8"
    )
    for command in (
        image.command,
        ["train", "--data", "digits", "--run", "first", "--shift", "1", *small.split()],
        ["retrieve", "--query", "digit_0110.png", "--top", "3"],
        ["evaluate", "--no-baselines", "--json"],
        ["tensorboard", "--version_tb"],
    ):
        result = image.run(command, check=False)
        print(f"$ {shlex.join(command)}\n  exit status {result.returncode}", flush=True)
        if result.returncode:
            sys.exit(result.stdout + result.stderr)
    assert (image.inside("/app/runs") / "first" / "metrics.json").is_file()
    assert (image.inside("/cache") / "digits").is_dir()
    if os.geteuid() == 0 and "REPLAYED_AS" not in image.environment:
        owner = (image.inside("/app/runs") / "first").stat().st_uid
        assert owner == UID, f"the run belongs to {owner}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--python", default=sys.executable, help="Python interpreter of the image (default: this one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="image-") as folder:
        use(build(options.target, Path(folder), options.python))
        print(f"{options.target}: every step passed")


if __name__ == "__main__":
    main()
