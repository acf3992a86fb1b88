"""`dr-keras index duplicates`: finds duplicates, near-duplicates, and leaks between splits."""

import argparse
from pathlib import Path
from typing import Any

from dr_keras.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags to `parser`."""
    parser.add_argument("folder", metavar="FOLDER")
    parser.add_argument("--json", metavar="FILE", help="write the groups as JSON")
    parser.add_argument("--html", metavar="FILE", help="write an HTML page that shows the groups")
    parser.add_argument("--run", metavar="NAME", help="also compare embeddings by this run")
    parser.add_argument(
        "--max-distance",
        type=float,
        metavar="D",
        help="with --run: embeddings within this distance are near-duplicates",
    )


def main(options: argparse.Namespace) -> int:
    """Finds and reports them; returns the exit status."""
    from dr_keras.atomic_files import write_json
    from dr_keras.duplicates.find import find_duplicates
    from dr_keras.duplicates.report import save_report
    from dr_keras.progress import stderr
    from dr_keras.search_model import load

    if not Path(options.folder).exists():
        raise InputError(f"there is no folder {options.folder}")
    more: dict[str, Any] = {}
    if options.run:
        reader = load(options.run).reader
        more = {"embed": reader.embed, "size": reader.size, "resize": reader.resize}
    if options.max_distance is not None:
        more["max_distance"] = options.max_distance
    found = find_duplicates(options.folder, console=stderr(), **more)
    if options.json:
        write_json(Path(options.json), found.to_dict())
    if options.html:
        save_report(found, options.html)
    for name, meaning in (
        ("exact", "of equal files"),
        ("near", "of nearly equal images"),
        ("cross_class", "over several classes"),
        ("leaks", "over several splits"),
    ):
        count = len(getattr(found, name))
        print(f"{count:>7,} {'group' if count == 1 else 'groups'} {meaning}")
    for file in (options.json, options.html):
        if file:
            print(f"saved {file}")
    return 0
