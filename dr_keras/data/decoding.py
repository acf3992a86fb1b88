"""Decodes many files at once, in child processes, because threads would wait for the GIL."""

import json
import math
import os
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from dr_keras import subprocesses
from dr_keras.data.images import decode, decode_with_facts
from dr_keras.data.parts import decode_parts, windows
from dr_keras.errors import ImageError, InputError

BLOCK_IMAGES = 256  # decoded by a process between two progress reports, if they fit in BLOCK_BYTES
BLOCK_BYTES = 16 * 2**20
# Less is decoded without child processes, which take 0.3 s to start:
MIN_PARALLEL_IMAGES = 512
MIN_PARALLEL_BYTES = 24 * 2**20  # of files; a core decodes photographs at 30 to 60 MB/s

Files = Sequence[str | os.PathLike[str]]
Advance = Callable[[int], None]
"""Takes the number of images done since its last call."""


@dataclass(frozen=True)
class Block:
    """A few files, decoded.

    Attributes:
        pixels: (N, size, size, 3) uint8, or with parts (N, 1 + P, size, size, 3); black where a file failed.
        failures: The reason for each failure, by row.
        facts: What each file says of itself, see `dr_keras.data.exif`; by row, without rows of which nothing is known.
    """

    pixels: np.ndarray
    failures: dict[int, str]
    facts: dict[int, dict[str, Any]]


def decode_block(files: Files, size: int, resize: str, facts: bool, parts: int = 0) -> Block:
    """Decodes a few files one by one.

    Args:
        files: N paths.
        size, resize: As for `dr_keras.data.images.decode`.
        facts: Whether to look at what they say of themselves.
        parts: Which parts of each, see `dr_keras.data.parts.windows`; 0 for none.
    """
    block = Block(np.zeros((len(files), *pixels_shape(size, parts)), np.uint8), {}, {})
    for row, file in enumerate(files):
        try:
            if parts:
                block.pixels[row], known = decode_parts(file, size, resize, parts)
                if facts:
                    block.facts[row] = known
            elif facts:
                block.pixels[row], block.facts[row] = decode_with_facts(file, size, resize)
            else:
                block.pixels[row] = decode(file, size, resize)
        except ImageError as error:
            block.failures[row] = str(error)
    return block


def pixels_shape(size: int, parts: int) -> tuple[int, ...]:
    """The shape of a decoded file: (size, size, 3), or with parts (1 + P, size, size, 3)."""
    pieces = 1 + len(windows(parts))
    return (pieces, size, size, 3) if parts else (size, size, 3)


def decode_files(
    files: Files,
    size: int,
    resize: str = "stretch",
    *,
    out: np.ndarray | None = None,
    processes: int | None = None,
    advance: Advance | None = None,
) -> tuple[np.ndarray, dict[int, str]]:
    """Decodes files in parallel.

    Args:
        files: N paths.
        size, resize: As for `dr_keras.data.images.decode`.
        out: (N, size, size, 3) uint8 to write to; a new array by default. An array without rows discards the pixels.
        processes: The number of child processes; by default one per core, or none for few images that are not large.
        advance: Called after each block with the number of images done.

    Returns:
        The pixels, unspecified for files that failed, and the reason for each failure by row.

    Raises:
        InputError: A child process died, for example because memory ran out.
    """
    pixels = np.empty((len(files), size, size, 3), np.uint8) if out is None else out
    decoded = _Decoding(files, size, resize, pixels, advance, processes, facts=False).done()
    return pixels, decoded.failures


def decode_with_parts(
    files: Files,
    size: int,
    resize: str = "stretch",
    *,
    facts: bool = True,
    parts: int = 0,
    processes: int | None = None,
) -> Block:
    """Decodes files in parallel, as `decode_files` does, with their parts and with what they say of themselves.

    Args:
        files: N paths.
        size, resize: As for `dr_keras.data.images.decode`.
        facts: Whether to look at what they say of themselves.
        parts: Which parts of each, see `dr_keras.data.parts.windows`; 0 for none.
        processes: As for `decode_files`.
    """
    pixels = np.empty((len(files), *pixels_shape(size, parts)), np.uint8)
    return _Decoding(files, size, resize, pixels, None, processes, facts=facts, parts=parts).done()


def _worth_processes(files: Files) -> bool:
    if len(files) >= MIN_PARALLEL_IMAGES:
        return True
    total = 0
    for file in files:
        with suppress(OSError):  # decoding it says why
            total += os.stat(file).st_size
    return total >= MIN_PARALLEL_BYTES


class _Decoding:
    """One call of `decode_files`: its files, in blocks, and their pixels and failures."""

    def __init__(
        self,
        files: Files,
        size: int,
        resize: str,
        pixels: np.ndarray,
        advance: Advance | None,
        processes: int | None,
        *,
        facts: bool,
        parts: int = 0,
    ) -> None:
        if processes is None:
            processes = (os.cpu_count() or 1) if _worth_processes(files) else 0
        self._files, self._size, self._resize, self._facts, self._parts = files, size, resize, facts, parts
        self._pixels, self._advance, self._processes = pixels, advance, processes
        share = -(-len(files) // (4 * max(processes, 1)))  # small enough for processes to finish together
        self._shape = pixels_shape(size, parts)
        self._block = max(1, min(BLOCK_IMAGES, BLOCK_BYTES // math.prod(self._shape), share))
        starts = range(0, len(files), self._block)
        self._blocks = [(start, min(start + self._block, len(files))) for start in starts]
        self._children: list[subprocess.Popen[bytes]] = []
        self._failures: dict[int, str] = {}
        self._known: dict[int, dict[str, Any]] = {}

    def done(self) -> Block:
        """Decodes all files."""
        if self._processes:
            self._in_children(self._processes)
        else:
            for start, stop in self._blocks:
                files = self._files[start:stop]
                self._keep(start, decode_block(files, self._size, self._resize, self._facts, self._parts))
        return Block(self._pixels, dict(sorted(self._failures.items())), self._known)

    def _in_children(self, processes: int) -> None:
        with ThreadPoolExecutor(processes) as pool:  # each thread only waits for its child
            try:
                list(pool.map(self._in_child, (self._blocks[worker::processes] for worker in range(processes))))
            except BaseException:  # such as Ctrl-C
                for process in self._children:
                    process.kill()
                raise

    def _in_child(self, blocks: list[tuple[int, int]]) -> None:
        with subprocess.Popen(
            subprocesses.command("dr_keras.data.decoding_worker"),
            env=subprocesses.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            self._children.append(process)
            assert process.stdout
            try:
                self._talk(process, blocks)
            except (OSError, ValueError, EOFError) as error:
                process.stdout.close()  # so that a child that is still writing exits, too
                raise InputError(
                    f"a process that decodes images died with exit status {process.wait()}; is there enough memory?"
                ) from error
            finally:
                process.kill()

    def _talk(self, process: "subprocess.Popen[bytes]", blocks: list[tuple[int, int]]) -> None:
        """Requests blocks from a child and keeps its answers; see `dr_keras.data.decoding_worker`."""
        assert process.stdin
        assert process.stdout
        names = [[os.fspath(file) for file in self._files[start:stop]] for start, stop in blocks]
        what = {"size": self._size, "resize": self._resize, "facts": self._facts, "parts": self._parts}
        request = {"blocks": names} | what
        process.stdin.write(json.dumps(request).encode())
        process.stdin.close()
        buffer = np.empty((self._block, *self._shape), np.uint8)
        for start, stop in blocks:
            head = json.loads(process.stdout.readline())
            images = buffer[: stop - start]
            if process.stdout.readinto(images.data) != images.nbytes:  # type: ignore[attr-defined]
                raise EOFError
            self._keep(start, Block(images, *(by_row(head[name]) for name in ("failures", "facts"))))

    def _keep(self, start: int, block: Block) -> None:
        """Keeps a block that starts at row `start`, from which its own rows count."""
        count = len(block.pixels)
        if len(self._pixels):
            self._pixels[start : start + count] = block.pixels
        self._failures.update({start + row: reason for row, reason in block.failures.items()})
        self._known.update({start + row: facts for row, facts in block.facts.items()})
        if self._advance:
            self._advance(count)


def by_row(values: dict[str, Any]) -> dict[int, Any]:
    """Values by row, from JSON, whose keys are text."""
    return {int(row): value for row, value in values.items()}
