#!/usr/bin/env python3
"""Queries of unknown kinds: one distance for all, against a limit for each query.

    python benchmarks/open_set.py --run NAME --unknown FOLDER [--curves docs/images/open-set.png]

The gallery are the training images of the run; queries of known kinds are its held-out images, queries of unknown kinds
those of a folder with other classes, on which the run was not trained. Limits are fitted on the run's monitor images
alone (`index.py calibrate`), searched for with and without their own class. For the precisions 0.8 and 0.9, measured
over queries of known and unknown kinds alike, as many of each: what precision was reached, which share of what is
right among the 30 nearest was kept, and which share of queries of known and of unknown kinds had an answer. And,
whatever the limit, which share of unknown queries is refused where 90% of known ones have an answer.

Rows: a single distance; distances minus the mean distance to the nearest images of a cohort, and these divided by their
standard deviation (adaptive score normalization); limits by the incoherence of the neighbors, without labels; and by
the entropy of their labels, which `index.py calibrate` uses.
"""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from machine import machine

from dr_keras import load
from dr_keras.data.folders import Walker
from dr_keras.index.cutoff import KEPT, NEIGHBORS, SLOPES, Cutoff, Searched, entropy, fit, incoherence, nearest_places

COHORT, ADAPTIVE = 2000, (50, 200)
UNKNOWN = -1
FEWEST = 100  # results: the precision of fewer is left to chance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--unknown", required=True, metavar="FOLDER")
    parser.add_argument("--queries", type=int, default=2500, help="of each kind (default: 2500)")
    parser.add_argument("--curves", metavar="PICTURE", help="draw precision against recall")
    options = parser.parse_args()
    model = load(options.run, head="trained")
    index, random = model.index, np.random.default_rng(0)
    listing = index.records.listing()
    names, numbers = np.unique([label for _, _, label, _ in listing], return_inverse=True)
    splits = np.array([split for *_, split in listing])
    vectors = index.vectors[[row for row, *_ in listing]]
    train = splits == "train"
    gallery, labels = np.ascontiguousarray(vectors[train]), numbers[train]
    files = sorted(Walker().pictures(options.unknown))
    files = [files[number] for number in np.sort(random.permutation(len(files))[: options.queries])]
    held = np.flatnonzero(splits == "validation")
    held = np.sort(random.permutation(held)[: options.queries])
    watched = np.flatnonzero(splits == "monitor")
    asked = {
        "fitted": (vectors[watched], numbers[watched]),
        "known": (vectors[held], numbers[held]),
        "unknown": (model.embed(files), np.full(len(files), UNKNOWN)),
    }
    print(
        f"{machine()}; {len(gallery):,} images of {len(names)} classes; {len(watched):,} monitor images, "
        f"{len(held):,} queries of known and {len(files):,} of unknown kinds\n"
    )
    found = {name: nearest_places(queries, gallery, 1000) for name, (queries, _) in asked.items()}
    cohort = gallery[random.permutation(len(gallery))[:COHORT]]

    def measured(name: str, measure: Callable[[np.ndarray, np.ndarray], float], *, without: bool = False) -> Searched:
        searches = []
        for (near, far), (query, own) in zip(found[name], zip(*asked[name], strict=True), strict=True):
            keep = labels[near] != own if without else np.ones(len(near), bool)
            near, far = near[keep][:NEIGHBORS], far[keep][:NEIGHBORS]
            searches.append((far[:KEPT], labels[near[:KEPT]] == own, measure(near, query)))
        return Searched.joined(searches)

    def to_cohort(count: int) -> Callable[[np.ndarray, np.ndarray], tuple[float, float]]:
        def measure(_: np.ndarray, query: np.ndarray) -> tuple[float, float]:
            away = np.sqrt(np.maximum(2 - 2 * (cohort @ query), 0))
            near = np.partition(away, count)[:count]
            return float(near.mean()), float(near.std())

        return measure

    rows: dict[str, tuple[Any, Any, bool]] = {"one distance for all": (lambda *_: 0.0, lambda one: one, False)}
    for count in ADAPTIVE:
        rows[f"minus the mean to {count} of a cohort"] = (to_cohort(count), shifted, False)
        rows[f"that, divided by the deviation, {count}"] = (to_cohort(count), scaled, False)
    rows["by the incoherence of 100 neighbors"] = (lambda near, _: incoherence(gallery[near]), lambda one: one, True)
    rows["**by the entropy of their labels**"] = (lambda near, _: entropy(labels[near]), lambda one: one, True)
    curves: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    print("| limit | asked for | precision | recall | known answered | unknown answered | refused at 90% |")
    print("|---|---|---|---|---|---|---|")
    for title, (measure, change, sloped) in rows.items():
        own, none = (change(measured("fitted", measure, without=without)) for without in (False, True))
        known, unknown = (change(measured(name, measure)) for name in ("known", "unknown"))
        curves[title.strip("*")] = curve(known, unknown, 0.0)
        for wanted in (0.8, 0.9):
            try:
                line = fit(own, none, wanted, "", "", SLOPES if sloped else np.zeros(1))
            except ValueError as error:
                print(f"| {title} | {wanted} | {error} | | | | |")
                continue
            if sloped:
                curves[f"{title.strip('*')}, {wanted} asked for"] = curve(known, unknown, line.slope)
            print(row(title, wanted, line, known, unknown), flush=True)

    if options.curves:
        chosen = ("one distance for all", f"minus the mean to {ADAPTIVE[0]} of a cohort")
        draw({name: line for name, line in curves.items() if name in chosen or "asked for" in name}, options.curves)


def row(title: str, wanted: float, line: Cutoff, known: Searched, unknown: Searched) -> str:
    """A row of the table: what a cutoff does to queries of known and of unknown kinds."""
    scores = [one.distances + line.slope * one.disagreement[:, None] for one in (known, unknown)]
    kept = [score <= line.intercept for score in scores]
    right = int((kept[0] & known.right).sum())
    refused = float((scores[1].min(axis=1) > np.quantile(scores[0].min(axis=1), 0.9)).mean())
    return (
        f"| {title} | {wanted} | {right / max(1, sum(int(one.sum()) for one in kept)):.3f} | "
        f"{right / known.right.sum():.3f} | {kept[0].any(axis=1).mean():.3f} | "
        f"{kept[1].any(axis=1).mean():.3f} | {refused:.3f} |"
    )


def curve(known: Searched, unknown: Searched, slope: float) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision over queries of both kinds, as the limit at full agreement rises."""
    scores = np.concatenate([(one.distances + slope * one.disagreement[:, None]).ravel() for one in (known, unknown)])
    right = np.concatenate([known.right.ravel(), unknown.right.ravel()])[np.argsort(scores, kind="stable")]
    hits = np.cumsum(right)
    return hits / max(1, hits[-1]), hits / np.arange(1, len(hits) + 1)


def draw(curves: dict[str, tuple[np.ndarray, np.ndarray]], file: str) -> None:
    """Draws precision against recall."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot(xlabel="recall of what is right among the 30 nearest", ylabel="precision", ylim=(0, 1))
    for name, (recall, precision) in curves.items():
        enough = np.arange(len(recall)) >= FEWEST
        axes.plot(recall[enough], precision[enough], label=name)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120)


def shifted(searched: Searched) -> Searched:
    """Distances minus the mean distance to the cohort."""
    mean = searched.disagreement[:, :1]
    return dataclasses.replace(searched, distances=searched.distances - mean, disagreement=np.zeros(len(mean)))


def scaled(searched: Searched) -> Searched:
    """`shifted`, divided by the standard deviation."""
    moved = shifted(searched)
    return dataclasses.replace(moved, distances=moved.distances / searched.disagreement[:, 1:])


if __name__ == "__main__":
    main()
