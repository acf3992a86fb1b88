#!/usr/bin/env python3
"""What is each part of the recipe worth? Trains several networks, all on the same number of images, and makes a table.

    python benchmarks/quality.py --data tiny-imagenet-200            # all arms; picks up where it left off
    python benchmarks/quality.py --data tiny-imagenet-200 --arms softmax "two stages" --seeds 0 1 2
    python benchmarks/quality.py --table                             # docs/quality.json as a table

Each arm is one call of train.py, and its row names what sets it apart. Recipes are chosen by the `monitor` column; the
validation queries are ranked only once, when the arm is done. Results are stored in docs/quality.json.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from machine import machine

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "quality.json"

# 1,500 steps of 192 images, 288,000 images, 32 px.
COMMON = (
    "--image-size 32 --backbone resnet10 --width 32 --embedding-dim 128 --epochs 5 --steps-per-epoch 300 "
    "--eval-every 0 --optimizer adamw --learning-rate 2e-3 --scale 16"
)
MUON = "--optimizer muon --learning-rate 6e-3"
TRIPLETS = "--pretrain-epochs 0 --classifier-weight 0"
ARMS = {
    "softmax": "--pretrain-epochs 5",
    "two stages": "--pretrain-epochs 4",
    "random triplets, squared": f"{TRIPLETS} --mining none --distance squared",
    "random triplets, Euclidean": f"{TRIPLETS} --mining none --distance euclidean",
    "semi-hard": f"{TRIPLETS} --mining semi-hard --margin 0.2",
    "hard": f"{TRIPLETS} --mining hard --margin 0.2 --images-per-class 4",
    "distance-weighted": f"{TRIPLETS} --mining distance-weighted --margin 0.2",
    "proxies": f"{TRIPLETS} --mining semi-hard --proxies 1",
    "two stages, random triplets": "--pretrain-epochs 4 --mining none",
    "two stages, no classifier": "--pretrain-epochs 4 --classifier-weight 0",
    "softmax, single-scale": "--pretrain-epochs 5 --no-multiscale",
    "softmax, 64-d": "--pretrain-epochs 5 --embedding-dim 64",
    "softmax, 256-d": "--pretrain-epochs 5 --embedding-dim 256",
    "softmax, 512-d": "--pretrain-epochs 5 --embedding-dim 512",
    "softmax, Muon": f"--pretrain-epochs 5 {MUON}",
    "softmax, Muon, scale 10": f"--pretrain-epochs 5 {MUON} --scale 10",
    "two stages, Muon, scale 10": f"--pretrain-epochs 4 {MUON} --scale 10",
}
COLUMNS = ("precision@30", "recall@1", "map@r", "similarity_precision")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="tiny-imagenet")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    results: list[dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    done = {(row["arm"], row["seed"]) for row in results}
    for arm in [] if options.table else options.arms:
        for seed in options.seeds:
            if (arm, seed) not in done:
                results += measure(arm, seed, options.data, baselines=not done)
                done.add((arm, seed))
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


def measure(arm: str, seed: int, data: str, *, baselines: bool) -> list[dict[str, Any]]:
    """Trains and evaluates an arm; with `baselines`, rows for raw pixels and the untrained network come first."""
    run = "quality-" + "".join(c if c.isalnum() else "-" for c in arm) + f"-{seed}"
    flags = [*COMMON.split(), *ARMS[arm].split(), "--seed", str(seed)]
    started = time.monotonic()
    call("train.py", "--data", data, "--run", run, "--overwrite", *flags)
    minutes = (time.monotonic() - started) / 60
    found = json.loads(call("evaluate.py", "--run", run, "--json", *([] if baselines else ["--no-baselines"])))
    monitor = json.loads((Path("runs") / run / "metrics.json").read_text())["monitor"]["precision@30"]
    shared = {"seed": seed, "machine": machine()}
    rows = [
        {"arm": {"pixels": "raw pixels"}.get(name, name), "flags": "", "monitor": None, "minutes": 0.0}
        | shared
        | figures
        for name, figures in found.get("baselines", {}).items()
    ]
    row = {"arm": arm, "flags": ARMS[arm], "monitor": monitor, "minutes": round(minutes, 1)} | shared
    rows.append(row | {name: found[name] for name in (*COLUMNS, "intervals")})
    print(f"{arm}, seed {seed}: monitor {monitor:.4f}, validation {found['precision@30']:.4f}, {minutes:.1f} min")
    return rows


def call(script: str, *arguments: str) -> str:
    """Runs a script of this repository and returns what it prints; its progress goes to standard error."""
    command = [sys.executable, str(ROOT / script), *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def table(results: list[dict[str, Any]]) -> str:
    """The results in Markdown, one arm per line: the mean over the seeds, with the lowest and the highest."""
    lines = [
        "| arm | what is different | monitor | precision@30 | recall@1 | MAP@R | similarity precision | min | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in dict.fromkeys(row["arm"] for row in results):
        rows = [row for row in results if row["arm"] == arm]
        cells = [spread([row[name] for row in rows]) for name in ("monitor", *COLUMNS)]
        minutes = f"{sum(row['minutes'] for row in rows) / len(rows):.1f}"
        flags = f"`{rows[0]['flags']}`" if rows[0]["flags"] else ""
        lines.append("| " + " | ".join([arm, flags, *cells, minutes, str(len(rows))]) + " |")
    return "\n".join(lines)


def spread(values: list[float | None]) -> str:
    """A single value, or the mean of several with their range."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = f"{sum(known) / len(known):.4f}"
    return mean if len(known) == 1 else f"{mean} ({min(known):.4f} to {max(known):.4f})"


if __name__ == "__main__":
    main()
