"""`dr-keras index cluster`: groups the images of an index without labels."""

import argparse
from pathlib import Path

from dr_keras.errors import InputError

ABOUT = "group the images by what they look like; the group of each becomes its attribute 'group'"
SHOWN = 20  # groups that are listed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags to `parser`."""
    parser.add_argument(
        "--method",
        choices=("kmeans", "agglomerative", "hdbscan"),
        help="agglomerative and hdbscan (scikit-learn) compare all pairs of up to 20,000 images (default: kmeans)",
    )
    parser.add_argument(
        "--groups", type=int, metavar="N", help="how many (default: the square root of half the number of images)"
    )
    parser.add_argument(
        "--min-images", type=int, default=5, metavar="N", help="of hdbscan: the least for a group (default: 5)"
    )
    parser.add_argument(
        "--rename",
        nargs=2,
        action="append",
        default=[],
        metavar=("OLD", "NEW"),
        help="rename a group instead of grouping anew, or join it to another; may be given several times",
    )
    parser.add_argument("--replace", action="store_true", help="group anew although groups have been named")
    parser.add_argument("--export", metavar="FOLDER", help="make class folders of the groups, with links to the images")


def main(options: argparse.Namespace) -> int:
    """Groups, renames and exports; returns the exit status."""
    from dr_keras.cli.opening import place
    from dr_keras.index.groups import export_groups, group_images, groups_of, rename_group
    from dr_keras.index.index import Index

    with Index.open(place(options), write=True) as index:
        known = [group for group, _ in groups_of(index)]
        if options.rename:
            for old, new in options.rename:
                print(f"{rename_group(index, old, new):,} images of {old} are in {new} now")
        elif options.method or options.groups or not known or not options.export:
            if not options.replace and any(not group.name.isdecimal() for group in known):
                raise InputError("the index has groups with names, which grouping anew would discard; see --replace")
            known = group_images(
                index, method=options.method or "kmeans", groups=options.groups, min_images=options.min_images
            )
            print(f"{sum(group.count for group in known):,} of {len(index):,} images are in {len(known):,} groups")
            for group in known[:SHOWN]:
                print(f"{group.name:>6} {group.count:>8,}  {group.center}")
        if options.export:
            print(f"{export_groups(index, Path(options.export)):,} links in {options.export}")
    return 0
