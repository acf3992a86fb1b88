"""What a server is started with."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from dr_keras.errors import InputError

TOKEN_LENGTH = 16  # characters of a token at least: 64 bits in hexadecimal, beyond guessing over a network
TOKEN_VARIABLE = "DR_KERAS_TOKEN"
ROOT_PATH = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)+")  # no segment is . or ..
OWN = frozenset({"v1", "static", "healthz", "readyz", "metrics", "openapi.json", "favicon.ico"})  # begin its paths
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Settings:
    """How a server behaves.

    Attributes:
        writable: whether clients with the token may add and remove images.
        token: what they send as `Authorization: Bearer TOKEN`.
        uploads: the folder that added images are stored in; it is made when the server starts.
        hosts: the names by which clients may address the server (the Host header), against DNS rebinding; all names
            where there are none.
        root_path: the path below which a reverse proxy offers the server, such as /photos; none by default.
        show_paths: whether a search answers with the paths of files on this machine.
        concurrency: requests answered at the same time; further ones are told to come again.
        body_bytes: of an upload, at most: twice the largest JPEG that a phone takes.
        json_bytes: of a request without an image, at most: 64 ids of 1,024 characters and more.
        pixels: of an upload, at most: 0.15 GB as RGB, and more than a phone takes.
        body_seconds: a body has to arrive within this time.
        send_seconds: a client has to take each piece of a response within this time.
    """

    writable: bool = False
    token: str | None = field(default=None, repr=False)
    uploads: Path | None = None
    hosts: tuple[str, ...] = ()
    root_path: str = ""
    show_paths: bool = False
    concurrency: int = 64
    body_bytes: int = 20 * 2**20
    json_bytes: int = 2**18
    pixels: int = 50_000_000
    body_seconds: float = 15.0
    send_seconds: float = 30.0

    def __post_init__(self) -> None:
        _check_root_path(self.root_path)
        if not self.writable:
            return
        if not self.token:
            raise InputError(f"--writable needs a token: set {TOKEN_VARIABLE}, or give --token-file FILE")
        if len(self.token) < TOKEN_LENGTH or not self.token.isascii() or not self.token.isprintable():
            raise InputError(
                f"the token has {len(self.token)} characters; at least {TOKEN_LENGTH} printable ASCII ones are "
                "expected, such as those of: openssl rand -hex 16"
            )
        if self.uploads is None:
            raise InputError("--writable needs a folder for the images that are added: --uploads FOLDER")


def _check_root_path(path: str) -> None:
    if not path:
        return
    if not ROOT_PATH.fullmatch(path):
        raise InputError(f"--root-path is {path!r}; a path such as /photos is expected, of letters, digits and -._~")
    if path.split("/")[1] in OWN:
        raise InputError(f"--root-path is {path!r}; the server's own paths begin so, choose another")


def read_token(file: str | None) -> str | None:
    """The token of a file, else of the environment, else none. It is no flag: other users could read that.

    Raises:
        InputError: the file cannot be read.
    """
    if file is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--token-file {file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
