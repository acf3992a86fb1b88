#!/usr/bin/env python3
"""Writes a manifest of emoji: those of one vendor are queries, those of another are searched. The same emoji is right.

    npm pack emoji-datasource-google emoji-datasource-twitter       # and unpack each into a folder
    python benchmarks/emoji.py google/package/img/google/64 twitter/package/img/twitter/64 --save emoji.csv
    python evaluate.py --run NAME --data emoji.csv --protocol class-disjoint

Instance retrieval: one right answer for each query, in another drawing. Nothing is left for training.
"""

import argparse
import csv
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("queries", type=Path)
    parser.add_argument("gallery", type=Path)
    parser.add_argument("--save", type=Path, default=Path("emoji.csv"))
    options = parser.parse_args()
    folders = {"query": options.queries.resolve(), "gallery": options.gallery.resolve()}
    names = [{file.name for file in folder.glob("*.png")} for folder in folders.values()]
    both = sorted(set.intersection(*names))
    with options.save.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for name in both:
            for split, folder in folders.items():
                writer.writerow([folder / name, Path(name).stem, split])
    print(f"{len(both):,} emoji of both vendors in {options.save}")


if __name__ == "__main__":
    main()
