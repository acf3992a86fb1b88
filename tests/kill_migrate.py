#!/usr/bin/env python3
"""Kills a process at random times while it moves an index to another model.

    python tests/kill_migrate.py FOLDER KILLS SEED

After each kill, every image must have its vector by the old model, or every one by the new model, and nothing else may
have changed. A migration that has come to its end is followed by one in the other direction. Prints how many kills
there were, how many migrations came to their end, and how many of these went on where a killed one had stopped.
"""

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np
from PIL import Image

from dr_keras.data.decoding import decode_files
from dr_keras.index import sync as sync_module
from dr_keras.index.index import Index
from dr_keras.index.local_index import MIGRATION
from dr_keras.index.migrate import Target, embed_anew, switch
from dr_keras.index.sync import Reader, add_files
from dr_keras.progress import stderr

IMAGES = 60


def embed(length: int) -> Reader:
    """A model whose vectors have this length."""

    def vectors(pixels: np.ndarray) -> np.ndarray:
        time.sleep(0.001 * len(pixels))
        values = pixels.reshape(len(pixels), -1)[:, :length].astype(np.float32) + 1
        return values / np.linalg.norm(values, axis=1, keepdims=True)

    return Reader(vectors, 2, "stretch")


TARGETS = {name: Target(embed(dim), dim, name, f"runs/{name}", "trained") for name, dim in (("one", 4), ("two", 9))}


def migrate_to(folder: Path, target: Target) -> None:
    with embed_anew(folder, target, console=stderr()) as fresh, Index.open(folder, write=True) as index:
        switch(index, fresh, target, console=stderr())


def check(folder: Path, files: list[Path], known: dict[str, tuple[str, dict[str, object]]]) -> str:
    """Returns the model that the index is of; raises AssertionError if anything is not as it should be."""
    with Index.open(folder) as index:
        assert index.verify() == [], index.verify()
        target = TARGETS[index.model]
        assert (index.dim, index.run) == (target.dim, target.run)
        pixels, _ = decode_files(files, 2)
        expected = dict(
            zip((f"{file.parent.name}/{file.name}" for file in files), target.reader.embed(pixels), strict=True)
        )
        listing = index.records.listing()
        assert {id for _, id, *_ in listing} == set(expected)
        for row, id, *_ in listing:
            assert np.array_equal(index.vectors[row], expected[id]), id
        assert {
            entry.id: (entry.label, dict(entry.attributes)) for entry in index.records.entries([r for r, *_ in listing])
        } == known
        return index.model


def main(place: Path, kills: int, seed: int) -> None:
    sync_module.FIRST_CHUNK_IMAGES = sync_module.CHUNK_IMAGES = 8  # so that there is much to be interrupted
    chance, random_pixels = random.Random(seed), np.random.default_rng(seed)
    files = []
    for number in range(IMAGES):
        file = place / "pictures" / f"class{number % 3}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_pixels.integers(0, 256, (2, 2, 3), np.uint8)).save(file)
        files.append(file)
    folder, first = place / "index", TARGETS["one"]
    with Index.create(folder, first.dim, root=place / "pictures", model="one", run=first.run) as index:
        add_files(index, [place / "pictures"], first.reader, attributes={"year": 2020}, console=stderr())
        entries = index.records.entries([row for row, *_ in index.records.listing()])
        known = {entry.id: (entry.label, dict(entry.attributes)) for entry in entries}
    killed = ended = resumed = 0
    longest = 0.5
    while killed < kills:
        model = check(folder, files, known)
        target = TARGETS["two" if model == "one" else "one"]
        begun = (folder / MIGRATION / "index.sqlite").exists()
        started = time.monotonic()
        child = os.fork()
        if not child:
            try:
                migrate_to(folder, target)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        time.sleep(chance.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            killed += 1
        else:
            assert os.WEXITSTATUS(status) == 0
            longest = max(0.05, 0.9 * (time.monotonic() - started))
        if check(folder, files, known) != model:
            ended += 1
            resumed += begun
    migrate_to(folder, TARGETS["two" if check(folder, files, known) == "one" else "one"])
    check(folder, files, known)
    assert not (folder / MIGRATION).exists()
    print(f"{killed} kills, {ended} migrations came to their end, {resumed} of them after a kill")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
