#!/usr/bin/env python3
"""Does the recipe hold for classes it was never trained on? Trains on some classes and searches among the others.

    python benchmarks/unseen_classes.py --data tiny-imagenet-200 [--hold-out 50] [flags of train.py]
    python benchmarks/unseen_classes.py --data tiny-imagenet-200 --tune 5 [flags of train.py]

The held-out classes are every fourth in alphabetical order (for 50 of 200). Prints the metrics on them, next to raw
pixels and the untrained network: a tenth of their images are the queries, the rest the gallery. With `--tune N`,
training then continues for N epochs on the gallery images of those classes (`--initial-weights`), and a network of the
same kind is trained on them for N epochs from scratch; the queries stay the same. `--resume` goes on with a run that
was stopped.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import machine

ROOT = Path(__file__).parent.parent
COLUMNS = ("precision@30", "recall@1", "map@r", "similarity_precision")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of class folders, or one with them in train/")
    parser.add_argument("--hold-out", type=int, default=50)
    parser.add_argument("--run", default="unseen-classes")
    parser.add_argument("--tune", type=int, default=0, metavar="N", help="epochs on the held-out classes")
    parser.add_argument("--resume", action="store_true", help="go on with the run on the other classes")
    options, flags = parser.parse_known_args()
    train = options.data / "train" if (options.data / "train").is_dir() else options.data
    classes = sorted(folder for folder in train.resolve().iterdir() if folder.is_dir())
    held = set(classes[:: max(2, len(classes) // options.hold_out)][: options.hold_out])
    with tempfile.TemporaryDirectory() as place:
        for folder in classes:
            link = Path(place) / ("held" if folder in held else "trained") / folder.name
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(folder, target_is_directory=True)
        print(f"{machine()}; {len(classes) - len(held)} classes trained on, {len(held)} held out; {' '.join(flags)}")
        how = "--resume" if options.resume else "--overwrite"
        call("train.py", "--data", f"{place}/trained", "--run", options.run, how, *flags)
        found = evaluated(options.run, f"{place}/held")
        rows = {"trained on other classes": found, **found["baselines"]}
        if options.tune:
            few = ("--data", f"{place}/held", "--overwrite", *without_length(flags), "--epochs", str(options.tune))
            for name, run, start in (
                (f"tuned for {options.tune} epochs", f"{options.run}-tuned", ("--initial-weights", options.run)),
                (f"{options.tune} epochs from nothing", f"{options.run}-scratch", ()),
            ):
                call("train.py", "--run", run, *few, *start)
                rows[name] = evaluated(run)
    print(f"{found['queries']:,} queries against {found['gallery']:,} images, all of classes held out")
    print("| ranked by | " + " | ".join(COLUMNS) + " |\n|---|" + "---|" * len(COLUMNS))
    for name, figures in rows.items():
        cells = [
            f"{figures[c]:.4f} ({figures['intervals'][c][0]:.4f} to {figures['intervals'][c][1]:.4f})" for c in COLUMNS
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")


def evaluated(run: str, data: str | None = None) -> dict[str, Any]:
    """The metrics of a run on its own held-out images, or with baselines on another dataset."""
    more = ("--no-baselines",) if data is None else ("--data", data)
    return json.loads(call("evaluate.py", "--run", run, "--json", *more))


def without_length(flags: list[str]) -> list[str]:
    """The flags without those that set the training length."""
    length = ("--epochs", "--pretrain-epochs", "--steps-per-epoch")
    return [
        flag
        for previous, flag in zip(["", *flags], flags, strict=False)
        if flag not in length and previous not in length
    ]


def call(script: str, *arguments: str) -> str:
    """Runs a script of this repository and returns what it prints."""
    command = [sys.executable, str(ROOT / script), *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    main()
