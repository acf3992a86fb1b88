#!/usr/bin/env python3
"""Groups found without labels, compared with classes: `index.py cluster` against k-means on raw pixels.

    python benchmarks/groups.py --run NAME --folder FOLDER

The folder has classes that the run was not trained on; there are as many groups as classes. Adjusted Rand index (0 by
chance, 1 if equal) and normalized mutual information.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from machine import machine
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from dr_keras import load
from dr_keras.data.decoding import decode_files
from dr_keras.data.folders import Walker
from dr_keras.index.groups import cluster

PIXELS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--images", type=int, default=10_000, help="drawn at random (default: 10000)")
    parser.add_argument("--head", default="general")
    options = parser.parse_args()
    files = sorted(Walker().pictures(options.folder))
    chosen = np.sort(np.random.default_rng(0).permutation(len(files))[: options.images])
    files = [files[number] for number in chosen]
    of = np.array([file.removeprefix(options.folder).strip("/").split("/")[0] for file in files])
    groups = len(set(of))
    vectors = load(options.run, head=options.head).embed(files)
    pixels = decode_files(files, PIXELS)[0].reshape(len(files), -1).astype(np.float32)
    pixels /= np.linalg.norm(pixels, axis=1, keepdims=True)
    print(f"{machine()}; {len(files):,} images of {groups} classes\n")
    print("| vectors | method | groups | in a group | adjusted Rand index | NMI | seconds |")
    print("|---|---|---|---|---|---|---|")
    for name, values, methods in (
        ("raw pixels, 32 x 32", pixels, ("kmeans",)),
        (f"{Path(options.run).name}, {options.head} head", vectors, ("agglomerative", "kmeans", "hdbscan")),
    ):
        for method in methods:
            started = time.perf_counter()
            found = cluster(values, method=method, groups=groups)
            seconds = time.perf_counter() - started
            rand, information = adjusted_rand_score(of, found), normalized_mutual_info_score(of, found)
            print(
                f"| {name} | {method} | {found.max() + 1} | {(found >= 0).mean():.3f} | {rand:.4f} | "
                f"{information:.4f} | {seconds:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
