"""Downloads a file of known size and checksum, by TFDS's download machinery in a child process that is watched.

TFDS checks size and SHA-256 and renames the file when they agree. It waits without end for a server that falls silent,
so the parent measures what arrives and stops it.
"""

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from dr_keras import subprocesses as child
from dr_keras.atomic_files import cache_folder
from dr_keras.data.sources.archives import unpack
from dr_keras.errors import InputError
from dr_keras.progress import bar, stderr

STALL_SECONDS = 60.0
TRIES = 3
STAGING = ".download-"


@dataclass(frozen=True)
class Download:
    """A file on the internet with the size (bytes) and the SHA-256 (hex) that it must have."""

    url: str
    size: int
    sha256: str


TINY_IMAGENET = Download(
    "https://cs231n.stanford.edu/tiny-imagenet-200.zip",
    248_100_043,
    "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
)


def tiny_imagenet(console: Console | None = None) -> Path:
    """The folder of Tiny ImageNet in the cache; downloaded and unpacked where it is not there yet.

    Raises:
        InputError: it cannot be downloaded or unpacked; nothing is left half-made.
    """
    folder = cache_folder() / "tiny-imagenet-200"
    if folder.is_dir():
        return folder
    console = console or stderr()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f"{STAGING}*"):  # by a process that was killed
            if time.time() - left.stat().st_mtime > 24 * 3600:
                shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=STAGING) as staging:
            file = fetch(TINY_IMAGENET, Path(staging), console)
            console.print(f"unpacking to {folder}", highlight=False)
            unpack(file, folder)
    except InputError as error:
        raise InputError(
            f"Tiny ImageNet is not in {folder.parent} and cannot be fetched: {error}. Try again, or unpack "
            f"tiny-imagenet-200.zip to {folder}, or name your own images (--data FOLDER, a zip or tar file, or a "
            "manifest FILE.csv), or take --data digits, which needs no download"
        ) from error
    except OSError as error:
        raise InputError(
            f"{cache_folder()} cannot be written: {error.strerror}; DR_KERAS_CACHE names another"
        ) from error
    return folder


def fetch(
    download: Download,
    folder: Path,
    console: Console,
    *,
    stall_seconds: float = STALL_SECONDS,
    tries: int = TRIES,
) -> Path:
    """Downloads a file into `folder` and returns where it lies.

    A connection that breaks or falls silent, and a file of another checksum, are tried again from the start.

    Args:
        download: what.
        folder: an existing folder for this download only; it is emptied before each try.
        console: shows the progress.
        stall_seconds: how long nothing may arrive.
        tries: how often, in all.

    Raises:
        InputError: no try succeeded; the message is the last one's reason.
    """
    reason = ""
    for attempt in range(tries):
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        with bar(f"downloading {download.url}", download.size, console) as advance:
            try:
                return _fetch_once(download, folder, advance, stall_seconds)
            except InputError as error:
                reason = str(error)
        if any(word in reason for word in ("cannot be reached", "HTTP code", "cannot be kept")):  # the same again
            break
        if attempt + 1 < tries:
            console.print(f"{reason}; trying again", highlight=False)
    raise InputError(reason)


def _fetch_once(download: Download, folder: Path, advance: Callable[[int], None], stall_seconds: float) -> Path:
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        what = (str(folder), download.url, str(download.size), download.sha256)
        process = subprocess.Popen(
            child.command("dr_keras.data.sources.download_child", *what),
            env=child.environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
        )
        try:
            arrived, last = 0, time.monotonic()
            started = False  # importing TFDS is no silence of the server's
            while process.poll() is None:
                time.sleep(0.1)
                now = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                started = started or any(folder.iterdir())
                if now != arrived or not started:
                    advance(max(0, now - arrived))
                    arrived, last = now, time.monotonic()
                elif arrived < download.size and time.monotonic() - last > stall_seconds:
                    raise InputError(f"{download.url} sent nothing for {stall_seconds:g} s")
        finally:
            process.kill()
            process.wait()
        errors.seek(0)
        output.seek(0)
        if process.returncode:
            lines = errors.read().decode(errors="replace").strip().splitlines()
            raise InputError(lines[-1] if lines else f"the download ended with exit status {process.returncode}")
        return Path(json.loads(output.read().splitlines()[-1]))
