"""Kills a Milvus server while three processes change an index, and checks that nothing acknowledged is lost or doubled.

    python tests/kill_milvus.py FOLDER KILLS SEED

One writer adds images, one adds and removes, one syncs a folder of files that come, change and go. Each notes what a
call has acknowledged. Whenever a call fails, it is made again until it succeeds.
"""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from milvus_server import MilvusProcess
from PIL import Image

from dr_keras.errors import RunError
from dr_keras.index.index import Entry, Index
from dr_keras.index.sync import Reader, sync_folder
from dr_keras.progress import stderr

DIM = 16
BATCH = 40
WRITERS = ("add", "remove", "sync")
SIDE = 4


def vector(text: str) -> np.ndarray:
    """A vector of unit length for a text."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
    made = np.random.default_rng(seed).normal(size=DIM).astype(np.float32)
    return made / np.linalg.norm(made)


def embed(pixels: np.ndarray) -> np.ndarray:
    return np.stack([vector(str(one[0, 0].tolist())) for one in pixels])


def until_done(place: str, change: Callable[[Index], object]) -> None:
    """Makes a change until it succeeds, with a connection of its own whenever it fails."""
    while True:
        try:
            with Index.open(place, write=True) as index:
                change(index)
            return
        except RunError:
            if os.getppid() == 1:  # the test was killed
                sys.exit("nobody waits for this writer")
            time.sleep(0.3)


def write(place: str, kind: str, folder: Path, seed: int) -> None:
    """A writer; the state that it has been told of is in FOLDER/KIND.json when it ends."""
    randomly = random.Random(seed)
    state: dict[str, str] = {}
    files = folder / "files"
    step = 0
    while not (folder / "stop").exists():
        step += 1
        if kind == "sync":
            for number in range(5):
                file = files / f"{randomly.randrange(60)}.png"
                if number == 0 and file.exists():
                    file.unlink()
                else:
                    color = [randomly.randrange(256) for _ in range(3)]
                    Image.fromarray(np.full((SIDE, SIDE, 3), color, np.uint8)).save(file)
                    os.utime(file, (step * 1000 + number, step * 1000 + number))
            reader = Reader(embed, SIDE, "stretch", exif=False)
            until_done(
                place,
                lambda index: sync_folder(index, files, reader, console=stderr(), remove_missing=True, empty=True),  # noqa: B023
            )
            state = {
                file.relative_to(folder).as_posix(): str(np.asarray(Image.open(file))[0, 0].tolist())
                for file in sorted(files.iterdir())
            }
        else:
            new = {f"{kind}/{step}-{number}.png": f"{kind} {step} {number}" for number in range(BATCH)}
            entries = [Entry(id, attributes={"step": step}) for id in new]
            vectors = np.stack([vector(text) for text in new.values()])
            until_done(place, lambda index: index.put(entries, vectors))  # noqa: B023
            state |= new
            if kind == "remove":
                gone = randomly.sample(sorted(state), min(len(state), BATCH - 2))
                until_done(place, lambda index: index.remove(list(index.records.rows_of(gone))))  # noqa: B023
                for id in gone:
                    del state[id]
    (folder / f"{kind}.json").write_text(json.dumps(state))


def check(place: str, folder: Path) -> int:
    """Compares the index with what the writers were told; returns the number of images."""
    expected: dict[str, str] = {}
    for kind in WRITERS:
        expected |= json.loads((folder / f"{kind}.json").read_text())
    with Index.open(place) as index:
        assert index.verify() == []
        listing = index.records.listing()
        ids = [id for _, id, *_ in listing]
        assert len(ids) == len(set(ids)), "an image is there twice"
        lost, extra = sorted(set(expected) - set(ids)), sorted(set(ids) - set(expected))
        assert not lost, f"{len(lost)} acknowledged images are lost: {lost[:3]}"
        assert not extra, f"{len(extra)} removed images are back: {extra[:3]}"
        vectors = index.vectors[[row for row, *_ in listing]]
        for id, found in zip(ids, vectors, strict=True):
            assert np.array_equal(found, vector(expected[id])), f"{id} has another vector"
        _, distances = index.search(np.stack([vector(expected[id]) for id in ids[:50]]), 1)
        assert np.allclose(distances, 0)
    return len(ids)


def main(folder: Path, kills: int, seed: int) -> None:
    randomly = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "files").mkdir()
    with MilvusProcess(folder / "milvus") as server:
        place = f"{server.address}/crash"
        Index.create(place, DIM, root=folder).close()
        writers = [
            subprocess.Popen([sys.executable, __file__, "writer", place, kind, str(folder), str(seed + number)])
            for number, kind in enumerate(WRITERS)
        ]
        seconds = []
        for _ in range(kills):
            time.sleep(randomly.uniform(0.5, 4))
            server.kill()
            started = time.monotonic()
            server.start()
            until_done(place, len)
            seconds.append(time.monotonic() - started)
        time.sleep(2)
        (folder / "stop").touch()
        for writer in writers:
            assert writer.wait(120) == 0, "a writer failed"
        count = check(place, folder)
        print(
            f"{kills} kills, each followed by {np.mean(seconds):.1f} s without an index; {count:,} images, none lost "
            "and none there twice"
        )


if __name__ == "__main__":
    if sys.argv[1] == "writer":
        write(sys.argv[2], sys.argv[3], Path(sys.argv[4]), int(sys.argv[5]))
    else:
        main(Path(sys.argv[1]).absolute(), int(sys.argv[2]), int(sys.argv[3]))
