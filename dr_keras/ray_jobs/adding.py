"""Adds files to an index by a Ray cluster.

Workers write to a Milvus collection themselves. An index in a folder has one writer, which is the command: vectors and
facts come back to it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dr_keras.index.batch import Done, Known, Looked, Through, keep, look
from dr_keras.index.index import Index
from dr_keras.index.places import is_milvus
from dr_keras.index.reader import Reader
from dr_keras.index.sync import chunk_images
from dr_keras.ray_jobs.cluster import Lost, RayCluster
from dr_keras.ray_jobs.model import SharedModel, decoding_processes, first_files

MOST_FILES = 256  # in a block
KEPT_FILES = 1024  # written to a folder in one transaction, or those that come within
KEPT_SECONDS = 5.0

Block = tuple[Known, list[str]]
"""What is known of some files, and the files."""


@dataclass(frozen=True)
class LookAtFiles:
    """Reads and embeds files."""

    model: SharedModel

    @property
    def gpu(self) -> bool:
        return self.model.gpu

    def start(self, cores: int) -> Callable[[Block], Looked]:
        reader, processes = self.model.reader(cores), decoding_processes(cores)
        return lambda block: look(block[1], block[0], reader, processes)


@dataclass(frozen=True)
class TakeFiles:
    """Reads and embeds files, and writes them to the index at a place."""

    model: SharedModel
    place: str

    @property
    def gpu(self) -> bool:
        return self.model.gpu

    def start(self, cores: int) -> Callable[[Block], Done]:
        reader, processes = self.model.reader(cores), decoding_processes(cores)
        index = Index.open(self.place, write=True)

        def take(block: Block) -> Done:
            known, files = block
            looked = look(files, known, reader, processes)
            index.refresh()
            return keep(index, known, looked)

        return take


def on_ray(cluster: RayCluster, model: SharedModel, reader: Reader) -> Through:
    """How files are taken into an index by a cluster, for `dr_keras.index.sync.add_files`.

    Args:
        cluster: The cluster.
        model: What its workers embed with.
        reader: How that reads files.
    """
    most = min(MOST_FILES, chunk_images(reader))
    first = first_files(reader.size)

    def take(index: Index, known: Known, files: Sequence[str]) -> Iterator[Done]:
        if is_milvus(index.place):
            results = cluster.results(TakeFiles(model, index.place), files, _packed(known), most, first=first)
            for some, done in results:
                yield _lost(some, known, done) if isinstance(done, Lost) else done
            index.refresh()
            return
        yield from _kept(index, known, cluster.results(LookAtFiles(model), files, _packed(known), most, first=first))

    return take


def _kept(index: Index, known: Known, results: Iterator[tuple[Sequence[str], Looked | Lost]]) -> Iterator[Done]:
    """Writes what comes from workers to an index, many files at a time; also if it ends early."""
    waiting: list[Looked] = []
    files, since = 0, time.monotonic()

    def write() -> Iterator[Done]:
        nonlocal files, since
        if waiting:
            found = Looked.together(waiting)
            waiting.clear()
            yield keep(index, known, found)
        files, since = 0, time.monotonic()

    try:
        for some, looked in results:
            if isinstance(looked, Lost):
                yield _lost(some, known, looked)
                continue
            waiting.append(looked)
            files += len(some)
            if files >= KEPT_FILES or time.monotonic() - since >= KEPT_SECONDS:
                yield from write()
    except BaseException:
        list(write())
        raise
    yield from write()


def _packed(known: Known) -> Callable[[Sequence[str]], Block]:
    return lambda files: (known.of(files), list(files))


def _lost(files: Sequence[str], known: Known, lost: Lost) -> Done:
    """Files that kill their reader; the index does not keep that, so that they are tried again the next time."""
    return Done(len(files), unread={known.ids[file]: lost.reason for file in files})
