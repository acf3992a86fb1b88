"""Downloads a file of known size and checksum with pooch.

pooch checks the SHA-256 and gives the file its final name only once the checksum matches. It does not retry a single
URL and passes on the errors of `requests`, so retries and error messages are handled here; see docs/decisions/012.
"""

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from dr_keras.atomic_files import cache_folder
from dr_keras.data.sources.archives import unpack
from dr_keras.errors import InputError
from dr_keras.progress import bar, stderr

CONNECT_SECONDS = 20.0
STALL_SECONDS = 60.0
MAX_TRIES = 3
CHUNK_BYTES = 64 * 2**10
ABANDONED_SECONDS = 24 * 3600
STAGING_PREFIX = ".download-"


class _Hopeless(InputError):
    """A download that would fail the same way if it were tried again."""


@dataclass(frozen=True)
class Download:
    """A file on the internet.

    Attributes:
        url: Its address.
        size: Its size in bytes, for the progress bar.
        sha256: The checksum that it must have, in hexadecimal.
    """

    url: str
    size: int
    sha256: str


TINY_IMAGENET = Download(
    "https://cs231n.stanford.edu/tiny-imagenet-200.zip",
    248_100_043,
    "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
)


def tiny_imagenet(console: Console | None = None) -> Path:
    """Returns the folder of Tiny ImageNet in the cache, which is downloaded and unpacked on the first call.

    Args:
        console: Shows the progress; standard error by default.

    Raises:
        InputError: The data set cannot be downloaded or unpacked; no partial data set is left behind.
    """
    folder = cache_folder() / "tiny-imagenet-200"
    if folder.is_dir():
        return folder
    console = console or stderr()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f"{STAGING_PREFIX}*"):  # left behind by a killed process
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=STAGING_PREFIX) as staging:
            file = fetch(TINY_IMAGENET, Path(staging), console)
            console.print(f"unpacking to {folder}", highlight=False)
            unpack(file, folder)
    except InputError as error:
        raise InputError(
            f"Tiny ImageNet is not in {folder.parent} and cannot be fetched: {error}. Try again, or unpack "
            f"tiny-imagenet-200.zip to {folder}, or use your own images (--data FOLDER, a zip or tar file, or a "
            "manifest FILE.csv), or use --data digits, which needs no download"
        ) from error
    except OSError as error:
        raise InputError(
            f"{cache_folder()} cannot be written: {error.strerror}; set DR_KERAS_CACHE to another folder"
        ) from error
    return folder


def fetch(
    download: Download,
    folder: Path,
    console: Console,
    *,
    stall_seconds: float = STALL_SECONDS,
    tries: int = MAX_TRIES,
) -> Path:
    """Downloads a file.

    If the connection breaks or stalls, or if the checksum differs, the download starts over.

    Args:
        download: The file.
        folder: An existing folder that the file is written to.
        console: Shows the progress.
        stall_seconds: How long the server may send nothing before an attempt fails.
        tries: The number of attempts.

    Returns:
        The path of the file.

    Raises:
        InputError: No attempt succeeded; the message gives the reason for the last failure.
    """
    for left in range(tries - 1, -1, -1):
        try:
            with bar(f"downloading {download.url}", download.size, console) as advance:
                return _fetch_once(download, folder, advance, stall_seconds)
        except _Hopeless:
            raise
        except InputError as error:
            if not left:
                raise
            console.print(f"{error}; trying again", highlight=False)
    raise ValueError(f"tries is {tries}; it must be at least 1")


def _fetch_once(download: Download, folder: Path, advance: Callable[[int], None], stall_seconds: float) -> Path:
    import pooch
    import requests

    received = _Received(download.size, advance)
    downloader = pooch.HTTPDownloader(
        progressbar=received, chunk_size=CHUNK_BYTES, timeout=(CONNECT_SECONDS, stall_seconds)
    )
    url, name = download.url, download.url.rpartition("/")[2]
    try:
        with _silent(pooch.get_logger()):
            return Path(pooch.retrieve(url, f"sha256:{download.sha256}", name, folder, downloader=downloader))
    except requests.HTTPError as error:
        raise _Hopeless(f"{url} cannot be downloaded, HTTP code: {error.response.status_code}") from error
    except requests.RequestException as error:
        if _timed_out_reading(error):
            raise InputError(f"{url} sent nothing for {stall_seconds:g} s") from error
        if received.any or isinstance(error, requests.exceptions.ChunkedEncodingError):
            raise InputError(f"the connection to {url} broke off") from error
        raise _Hopeless(f"{url} cannot be reached") from error
    except ValueError as error:
        raise InputError(f"{url} is not the expected file: its checksum differs") from error
    except OSError as error:
        raise _Hopeless(f"{url} cannot be saved: {error.strerror}") from error


class _Received:
    """Passes pooch's progress on to a progress bar, through the interface of its `progressbar`."""

    def __init__(self, size: int, advance: Callable[[int], None]) -> None:
        self.total = size
        self.any = False
        self._left, self._advance = size, advance

    def update(self, count: int) -> None:
        """Counts `count` more bytes; pooch counts whole chunks, and the whole file once more at the end."""
        self.any = True
        count = min(count, self._left)
        self._left -= count
        self._advance(count)

    def reset(self) -> None:
        """Does nothing: `update` ignores what is counted twice."""

    def close(self) -> None:
        """Does nothing: the bar belongs to `fetch`."""


def _timed_out_reading(error: BaseException) -> bool:
    """Whether the server sent nothing for too long; while the body is read, requests wraps urllib3's error."""
    from requests import ReadTimeout
    from urllib3.exceptions import ReadTimeoutError

    return isinstance(error, ReadTimeout) or any(isinstance(cause, ReadTimeoutError) for cause in error.args)


@contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    """Silences pooch's note about where it downloads to, which is a temporary folder."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
