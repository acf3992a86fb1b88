"""What workers embed with: a run, named so that each machine can open it."""

import os
from dataclasses import dataclass, replace

from dr_keras.errors import RunError
from dr_keras.heads import FITTED, TRAINED, GeneralHead
from dr_keras.index.index import HEAD_FILE, Index
from dr_keras.index.reader import Reader
from dr_keras.ray_jobs.cluster import FIRST_ITEMS
from dr_keras.run_embedder import RunEmbedder
from dr_keras.runs import Run, open_run
from dr_keras.runtimes import share_cores

FIRST_PIXELS, MOST_FIRST = 1 << 20, 256
ON_GPU = ("saved_model", "keras")  # the runtimes that use a GPU


@dataclass(frozen=True)
class SharedModel:
    """A run, with how it embeds.

    Attributes:
        run: Its path, which has to be the same on all machines, or the name of a released model.
        runtime: One of `dr_keras.runtimes.RUNTIMES`.
        head: TRAINED or GENERAL.
        fingerprint: Of the run with this head.
        fitted: A packed general head that is applied to the vectors, or None.
        exif, parts: As in `dr_keras.index.reader.Reader`.
    """

    run: str
    runtime: str
    head: str
    fingerprint: str
    fitted: bytes | None = None
    exif: bool = False
    parts: int = 0

    @classmethod
    def of(cls, run: Run, runtime: str, head: str) -> "SharedModel":
        """How a run embeds by one of its own heads."""
        return cls(run.lasting_name(), runtime, head, run.fingerprint(head))

    @classmethod
    def of_index(cls, run: Run, runtime: str, index: Index, *, exif: bool) -> "SharedModel":
        """How a run embeds for an index."""
        own = index.head != FITTED
        model = cls.of(run, runtime, index.head if own else TRAINED)
        return replace(model, fitted=None if own else index.read_file(HEAD_FILE), exif=exif, parts=index.parts)

    @property
    def gpu(self) -> bool:
        """Whether it embeds on a GPU where there is one."""
        return self.runtime in ON_GPU

    def reader(self, cores: int) -> Reader:
        """How files become vectors in a worker.

        Args:
            cores: How many cores it may use.

        Raises:
            RunError: There is no such run on this machine, or it is another one.
        """
        share_cores(max(1, (os.cpu_count() or 1) // cores))
        embedder = RunEmbedder(open_run(self.run), self.runtime)
        if embedder.fingerprint(self.head) != self.fingerprint:
            raise RunError(f"{self.run} is another run there than where the command runs")
        after = None if self.fitted is None else GeneralHead.of_index(self.fitted)
        return replace(embedder.reader(self.head, after), exif=self.exif, parts=self.parts)


def first_files(size: int) -> int:
    """How many files a worker gets at a time, until it is known how long one takes: more of small images.

    Args:
        size: Side of the images in pixels.
    """
    return min(MOST_FIRST, max(FIRST_ITEMS, FIRST_PIXELS // size**2))


def decoding_processes(cores: int) -> int:
    """How many processes decode files for a worker: none besides it if it has a single core."""
    return cores if cores > 1 else 0
