#!/usr/bin/env python3
"""How often does a network agree with people on which material looks more like another, before and after training?

    python benchmarks/material_triplets.py --materials FOLDER --choose "--epochs 1" "--epochs 1 --margin 0.5"
    python benchmarks/material_triplets.py --materials FOLDER --folds 5 --recipe "--epochs 2 --margin 0.2"

FOLDER has images/, triplets_train.csv and triplets_test.csv with the columns of `train.py --triplets`. With `--choose`,
each set of flags of train.py is trained on four fifths of the training judgments and judged by the last fifth; the test
judgments are not used. Otherwise the recipe is trained on all training judgments and judged by those of the test.

The pictures of both files are the same. So with `--folds N`, the materials are also divided into N parts (pictures that
differ in a number at the end of their names count as one material), each of which is left out of a training of its own.
Judged are the test judgments whose query was left out, and those of both files whose three pictures were all left out.
"""

import argparse
import csv
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine

ROOT = Path(__file__).parent.parent
START = "tiny-imagenet-64"
IMAGES = ("query", "positive", "negative")

Line = dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--materials", type=Path, required=True)
    parser.add_argument("--choose", nargs="+", default=[], metavar="FLAGS", help="compare sets of flags of train.py")
    parser.add_argument("--recipe", default="", metavar="FLAGS", help="flags of train.py")
    parser.add_argument("--folds", type=int, default=0, metavar="N")
    options = parser.parse_args()
    folder = options.materials.resolve()
    known, test = (lines_of(folder / f"triplets_{name}.csv") for name in ("train", "test"))
    print(f"{machine()}; {len(known):,} training judgments, {len(test):,} test judgments\n")
    if options.choose:
        choose(folder, known, options.choose)
        return
    print("| judged by | agreement | votes | judgments |\n|---|---|---|---|")
    found = judged(START, folder, test)
    show("raw pixels, 64 x 64", found["baselines"]["pixels"])
    show("untrained", found["baselines"]["untrained"])
    show(f"{START}, general head", found)
    show(f"{START}, trained head", judged(START, folder, test, "--head", "trained", "--no-baselines"))
    print(f"| what the votes allow | | {found['vote_ceiling']:.4f} | |")
    trained(folder, known, "materials", options.recipe)
    show("tuned on the training judgments", judged("materials", folder, test, "--no-baselines"))
    if options.folds:
        leave_out(folder, known, test, options.folds, options.recipe)


def choose(folder: Path, known: list[Line], recipes: list[str]) -> None:
    """Compares recipes on a fifth of the training judgments."""
    order = np.random.default_rng(0).permutation(len(known))
    rest, held = ([known[row] for row in rows] for rows in np.split(order, [len(known) * 4 // 5]))
    print("| flags | agreement | votes | judgments |\n|---|---|---|---|")
    for recipe in recipes:
        trained(folder, rest, "materials-choice", recipe)
        show(f"`{recipe}`", judged("materials-choice", folder, held, "--no-baselines"))


def leave_out(folder: Path, known: list[Line], test: list[Line], folds: int, recipe: str) -> None:
    """Trains without each part of the materials; shows the agreement on them, over all parts."""
    names = sorted({line[column] for line in (*known, *test) for column in IMAGES})
    materials = sorted({material(name) for name in names})
    parts = np.array_split(np.random.default_rng(0).permutation(materials), folds)
    queries: list[dict[str, Any]] = []
    strangers: list[dict[str, Any]] = []
    before: dict[str, list[dict[str, Any]]] = {"query": [], "all": []}
    for part in parts:
        out = {name for name in names if material(name) in set(part)}
        trained(folder, [one for one in known if not out & pictures(one)], "materials-fold", recipe)
        of_query = [one for one in test if one["query"] in out]
        of_all = [one for one in (*known, *test) if pictures(one) <= out]
        queries.append(judged("materials-fold", folder, of_query, "--no-baselines"))
        strangers.append(judged("materials-fold", folder, of_all, "--no-baselines"))
        before["query"].append(judged(START, folder, of_query, "--no-baselines"))
        before["all"].append(judged(START, folder, of_all, "--no-baselines"))
    for title, found in (
        (f"{START}, queries that are left out in turn", before["query"]),
        (f"tuned without the query, {folds} parts of the materials in turn", queries),
        (f"{START}, three pictures that are left out in turn", before["all"]),
        (f"tuned without all three, {folds} parts in turn", strangers),
    ):
        pooled(title, found)


def material(name: str) -> str:
    """The material of a picture: its name without the number at its end."""
    return re.sub(r"\d*$", "", Path(name).stem)


def pictures(line: Line) -> set[str]:
    """The three pictures of a judgment."""
    return {line[column] for column in IMAGES}


def trained(folder: Path, lines: Iterable[Line], run: str, recipe: str) -> None:
    """Trains a run on judgments, from the released model."""
    with written(folder, lines) as file:
        call(
            *("train.py", "--data", str(folder), "--triplets", str(file), "--run", run, "--overwrite"),
            *("--initial-weights", START, *recipe.split()),
        )


def judged(run: str, folder: Path, lines: Iterable[Line], *flags: str) -> dict[str, Any]:
    """The figures of a run on judgments."""
    with written(folder, lines) as file:
        return json.loads(call("evaluate.py", "--run", run, "--triplets", str(file), "--json", *flags))


def show(title: str, found: dict[str, Any]) -> None:
    """Prints a row of the table."""
    cells = [
        f"{found[name]:.4f} ({found['intervals'][name][0]:.4f} to {found['intervals'][name][1]:.4f})"
        for name in ("agreement", "vote_agreement")
    ]
    print(f"| {title} | {cells[0]} | {cells[1]} | {found['judgments']:,} |", flush=True)


def pooled(title: str, parts: list[dict[str, Any]]) -> None:
    """Prints a row for several parts together, with the lowest and the highest part."""
    counts = np.array([part["judgments"] for part in parts])
    votes = np.array([part["votes"] for part in parts])
    cells = []
    for name, weights in (("agreement", counts), ("vote_agreement", votes)):
        values = np.array([part[name] for part in parts])
        cells.append(f"{values @ weights / weights.sum():.4f} ({values.min():.4f} to {values.max():.4f})")
    print(f"| {title} | {cells[0]} | {cells[1]} | {counts.sum():,} |", flush=True)


def lines_of(file: Path) -> list[Line]:
    """The judgments of a file."""
    with open(file, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@contextmanager
def written(folder: Path, lines: Iterable[Line]) -> Iterator[Path]:
    """A temporary file of judgments, beside the images that it names."""
    with tempfile.NamedTemporaryFile("w", suffix=".csv", dir=folder, encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, (*IMAGES, "votes", "votes_against"))
        writer.writeheader()
        writer.writerows(lines)
        file.flush()
        yield Path(file.name)


def call(script: str, *arguments: str) -> str:
    """Runs a script of this repository and returns what it prints."""
    command = [sys.executable, str(ROOT / script), *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout


if __name__ == "__main__":
    main()
