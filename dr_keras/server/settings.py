"""The settings of a server."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from dr_keras.errors import InputError

MIN_TOKEN_LENGTH = 16  # characters: 64 bits in hexadecimal, which nobody guesses over a network
TOKEN_VARIABLE = "DR_KERAS_TOKEN"
ROOT_PATH = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)+")  # no segment is . or ..
OWN_PATHS = frozenset(
    {"v1", "static", "judge", "groups", "healthz", "readyz", "metrics", "openapi.json", "favicon.ico"}
)  # the first segments of the server's own paths
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Settings:
    """The settings of a server.

    Attributes:
        writable: Whether clients with the token may add and remove images.
        token: What they send as `Authorization: Bearer TOKEN`.
        uploads: The folder that stores added images; it is created when the server starts.
        hosts: The names that the Host header may have, to prevent DNS rebinding; if empty, any name.
        root_path: The path below which a reverse proxy serves the application, such as /photos.
        judge: The CSV file that visitors' judgments are added to; None to not ask for any.
        metadata: Whether answers contain what files say of themselves, such as when and where a photo was taken.
        show_paths: Whether search results contain the paths of files on this machine.
        concurrency: Limit of requests in progress; further clients are told to try again.
        body_bytes: Limit of an upload: twice the largest JPEG that a phone takes.
        json_bytes: Limit of a request without an image: more than 64 ids of 1,024 characters.
        pixels: Limit of an uploaded image: 0.15 GB as RGB, and more than a phone takes.
        body_seconds: Limit for a body to arrive.
        send_seconds: Limit for a client to receive each chunk of a response.
    """

    writable: bool = False
    token: str | None = field(default=None, repr=False)
    uploads: Path | None = None
    hosts: tuple[str, ...] = ()
    root_path: str = ""
    judge: Path | None = None
    metadata: bool = True
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
        if len(self.token) < MIN_TOKEN_LENGTH or not self.token.isascii() or not self.token.isprintable():
            raise InputError(
                f"the token has {len(self.token)} characters; at least {MIN_TOKEN_LENGTH} printable ASCII ones are "
                "expected, such as the output of: openssl rand -hex 16"
            )
        if self.uploads is None:
            raise InputError("--writable needs a folder for the images that are added: --uploads FOLDER")


def _check_root_path(path: str) -> None:
    if not path:
        return
    if not ROOT_PATH.fullmatch(path):
        raise InputError(f"--root-path is {path!r}; a path such as /photos is expected, of letters, digits and -._~")
    if path.split("/")[1] in OWN_PATHS:
        raise InputError(f"--root-path is {path!r}; the server's own paths begin so, choose another")


def read_token(file: str | None) -> str | None:
    """Reads the token from a file, or else from the environment. A flag would be visible to other users.

    Args:
        file: The file, or None.

    Returns:
        The token, or None.

    Raises:
        InputError: The file cannot be read.
    """
    if file is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--token-file {file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
