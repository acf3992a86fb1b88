#!/usr/bin/env python3
"""Kills a process at random times while it changes an index, and compares the index with the expected state.

    python tests/kill_index.py FOLDER ROUNDS SEED

In odd rounds a child adds, updates, removes and compacts, reports each change that has returned, and is killed: the
index must hold exactly the reported changes, or those plus the one in progress, in full. In even rounds files are
added, changed and deleted, and a child is killed while it syncs: each image is in its old or its new state, and a
second sync brings all of them up to date. Prints a summary of the kills.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from dr_keras.index import local_index
from dr_keras.index import sync as sync_module
from dr_keras.index.index import Entry, Index
from dr_keras.index.sync import Reader, sync_folder
from dr_keras.progress import stderr

DIM = 8
Truth = dict[str, bytes]


def vector(chance: random.Random) -> np.ndarray:
    values = np.array([chance.gauss(0, 1) for _ in range(DIM)], np.float32)
    return values / np.linalg.norm(values)


def embed(pixels: np.ndarray) -> np.ndarray:
    values = pixels.reshape(len(pixels), -1)[:, :DIM].astype(np.float32) + 1
    return values / np.linalg.norm(values, axis=1, keepdims=True)


READER = Reader(embed, 2, "stretch")


def change(seed: str, truth: Truth) -> tuple[str, list[str], np.ndarray]:
    """A change determined by the seed and the current state: its kind, the ids, and their vectors."""
    chance = random.Random(seed)
    ours = sorted(id for id in truth if id.startswith("own/"))
    what = chance.choice(["add", "add", "put", "remove", "compact"]) if ours else "add"
    count = chance.randint(1, 30)
    ids = [f"own/{seed}/{n}" for n in range(count)] if what in ("add", "put") else []
    if what in ("put", "remove"):
        ids += chance.sample(ours, min(len(ours), count))
    return what, ids, np.array([vector(chance) for _ in ids], np.float32).reshape(-1, DIM)


def apply(truth: Truth, what: str, ids: list[str], vectors: np.ndarray) -> Truth:
    if what == "remove":
        return {id: value for id, value in truth.items() if id not in set(ids)}
    return truth | {id: value.tobytes() for id, value in zip(ids, vectors, strict=True)}


def change_until_killed(place: Path, seed: str, truth: Truth, said: int) -> None:
    with Index.open(place, write=True) as index:
        os.write(said, b".")
        for step in range(10_000):
            what, ids, vectors = change(f"{seed}.{step}", truth)
            if what == "add":
                index.add([Entry(id) for id in ids], vectors)
            elif what == "put":
                index.put([Entry(id) for id in ids], vectors)
            elif what == "remove":
                index.remove(ids)
            else:
                index.compact()
            os.write(said, b".")
            truth = apply(truth, what, ids, vectors)


def sync_until_killed(place: Path, files: Path, said: int) -> None:
    with Index.open(place, write=True) as index:
        os.write(said, b".")
        sync_folder(index, files, READER, remove_missing=True, console=stderr())
        os.write(said, b"!")
        time.sleep(60)


def killed_after(seconds: float, work: object, *arguments: object, changes: int = 0) -> bytes:
    """Runs `work` in a child, kills it `seconds` after `changes` changes, and returns what it reported."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.close(ours)
        work(*arguments, theirs)  # type: ignore[operator]
        os._exit(0)
    os.close(theirs)
    said = b""
    while len(said) <= changes:  # the first byte reports that the index is open
        more = os.read(ours, 1)
        assert more, "the child has ended"
        said += more
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(ours, 65536):
        said += more
    os.close(ours)
    return said


def found_in(place: Path) -> Truth:
    with Index.open(place) as index:
        problems = index.verify()
        assert not problems, problems
        rows = index.records.listing()
        # The searchable rows are those with an image: none without one, and none twice.
        assert sorted(row for row, *_ in rows) == index.searched_rows().tolist()
        return {id: index.vectors[row].tobytes() for row, id, *_ in rows}


def draw(files: Path, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 20)):
        file = files / f"{chance.randrange(40)}.png"
        if file.exists() and chance.random() < 0.4:
            file.unlink()
        else:
            pixels = [chance.randrange(256) for _ in range(12)]
            Image.fromarray(np.array(pixels, np.uint8).reshape(2, 2, 3)).save(file)
            time_ns = chance.randrange(10**18)
            os.utime(file, ns=(time_ns, time_ns))
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(files / "always.png")


def contents(files: Path) -> Truth:
    names = sorted(file.name for file in files.iterdir())
    vectors = embed(np.stack([np.asarray(Image.open(files / name)) for name in names]))
    return {f"{files.name}/{name}": value.tobytes() for name, value in zip(names, vectors, strict=True)}


def main() -> None:
    place, rounds, seed = Path(sys.argv[1]) / "index", int(sys.argv[2]), sys.argv[3]
    files = Path(sys.argv[1]) / "files"
    files.mkdir()
    sync_module.CHUNK_IMAGES = 4
    local_index.MIN_GAPS = 20  # removals compact too
    Index.create(place, DIM, root=files.parent).close()
    truth: Truth = {}
    chance = random.Random(seed)
    under_way = finished = between = done = 0
    takes = 0.04  # seconds of a sync on this machine
    for number in range(rounds):
        if number % 2:
            work = (change_until_killed, place, f"{seed}.{number}", truth)
            said = killed_after(chance.uniform(0, 0.02), *work, changes=chance.randint(0, 4))
            for step in range(len(said) - 1):
                truth = apply(truth, *change(f"{seed}.{number}.{step}", truth))
            found = found_in(place)
            if found != truth:
                truth = apply(truth, *change(f"{seed}.{number}.{len(said) - 1}", truth))
                under_way += 1
            assert found == truth, f"round {number}: not what was acknowledged"
            done += len(said) - 1
        else:
            before = {id: value for id, value in truth.items() if not id.startswith("own/")}
            own = {id: value for id, value in truth.items() if id.startswith("own/")}
            draw(files, chance)
            after = contents(files)
            said = killed_after(chance.uniform(0, takes), sync_until_killed, place, files)
            found = found_in(place)
            assert {id: value for id, value in found.items() if id.startswith("own/")} == own
            for id in before.keys() | after.keys() | (found.keys() - own.keys()):
                assert found.get(id) in (before.get(id), after.get(id)), f"round {number}: {id}"
            if said.endswith(b"!"):
                finished += 1
                assert found == own | after
            elif found != own | before:
                between += 1
            with Index.open(place, write=True) as index:
                starts = time.monotonic()
                sync_folder(index, files, READER, remove_missing=True, console=stderr())
                if said.endswith(b".") and found == own | before:  # the sync had not started
                    takes = 1.2 * (time.monotonic() - starts)
            found, wanted = found_in(place), own | after
            differing = [id for id in found.keys() | wanted.keys() if found.get(id) != wanted.get(id)]
            assert not differing, f"round {number}: {differing} after a second sync"
            truth = own | after
    print(
        f"{rounds} kills; {done} changes acknowledged, {under_way} kept that were under way; {between} syncs in parts"
    )
    print(f"{finished} syncs finished; {len(truth)} images")


if __name__ == "__main__":
    main()
