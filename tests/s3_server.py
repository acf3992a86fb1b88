"""An object store on this machine for tests: the S3 of moto, in a process of its own."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest

BUCKET = "photos"
SIGNED = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"


def needs_s3() -> None:
    """Skips a test where the packages s3fs and moto are not installed."""
    for package in ("s3fs", "moto", "flask"):
        if find_spec(package) is None:
            pytest.skip(f"needs the package {package}: pip install s3fs 'moto[server]'")


class Store:
    """A store with one bucket.

    Attributes:
        environment: What tells clients where it is, and how to log in.
    """

    def __init__(self, port: int) -> None:
        self._address = f"http://127.0.0.1:{port}"
        self.environment = {
            "AWS_ENDPOINT_URL": self._address,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def put(self, key: str, content: bytes) -> None:
        """Writes a file, or replaces it."""
        self._ask("PUT", f"{BUCKET}/{key}", content)

    def put_folder(self, folder: Path, prefix: str) -> None:
        """Writes all files below a folder."""
        for file in sorted(folder.rglob("*.*")):
            self.put(f"{prefix}/{file.relative_to(folder).as_posix()}", file.read_bytes())

    def delete(self, key: str) -> None:
        """Deletes a file."""
        self._ask("DELETE", f"{BUCKET}/{key}")

    def wait(self) -> None:
        """Waits until it answers, and makes the bucket."""
        for _ in range(300):
            try:
                self._ask("PUT", BUCKET)
                return
            except (URLError, ConnectionError):
                time.sleep(0.1)
        raise AssertionError("the store does not answer")

    def _ask(self, method: str, path: str, content: bytes | None = None) -> None:
        about = {"Content-Type": "application/octet-stream", "Authorization": SIGNED}  # by default urllib says a form
        urlopen(Request(f"{self._address}/{quote(path)}", content, about, method=method), timeout=20).close()


@contextmanager
def store() -> Iterator[Store]:
    """Runs a store."""
    needs_s3()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ,
    )
    try:
        made = Store(port)
        made.wait()
        yield made
    finally:
        process.kill()
        process.wait()
