"""Maintains an index of images: adds, removes, synchronizes with a folder, verifies, and finds duplicates.

dr-keras index add my-pictures --run tiny-imagenet-64 --index my-index
dr-keras index sync my-pictures --remove-missing --index my-index
dr-keras index move /new/place/my-pictures --index my-index
dr-keras index remove 'cats/*.png' --index my-index
dr-keras index migrate --run better --index my-index
dr-keras index calibrate --index my-index
dr-keras index stats --index my-index
dr-keras index verify --repair --index my-index
dr-keras index export my-index.parquet --index my-index
dr-keras index map --index my-index
dr-keras index copy my-index milvus://localhost:19530/photos
dr-keras index cluster --groups 50 --export my-groups --index my-index
dr-keras index duplicates my-pictures --html duplicates.html
dr-keras retrieve --index my-index --query ./my-photo.jpg

Without --index, the run's own index is used, but not by migrate. Only one process at a time may change an index in a
folder; searches may continue.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dr_keras.cli import duplicates, groups, migrate
from dr_keras.cli.opening import place, reader_of, writable
from dr_keras.cli.parser import add_head, add_runtime, command_parser
from dr_keras.cli.ray_flags import add_ray, cluster_of, through_cluster, with_address
from dr_keras.data.parts import FINEST
from dr_keras.errors import InputError
from dr_keras.heads import GENERAL_DIM
from dr_keras.invocation import program

if TYPE_CHECKING:
    from dr_keras.index.index import Index
    from dr_keras.index.sync_report import SyncReport

PARTS = 3  # a middle way between what is found and what it takes (docs/measurements.md)
ENGINES = ("auto", "flat", "hnsw", "ivfpq")
STOPPED = "stopped; the work so far is kept, and the same command resumes it"  # what Ctrl-C prints


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `dr-keras index` with `arguments`; returns the exit status."""
    parser = command_parser("index", __doc__)
    add_arguments(parser)
    options = parser.parse_args(with_address(arguments))
    return options.action(options)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this subcommand to `parser`."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    which = argparse.ArgumentParser(add_help=False)
    which.add_argument(
        "--index",
        metavar="PATH",
        help="the index's folder, or milvus://HOST:PORT/COLLECTION (default: the run's own index)",
    )
    which.add_argument("--run", metavar="NAME", help="the run to embed with (default: the index's, else the latest)")
    head = argparse.ArgumentParser(add_help=False)
    add_head(head)
    add_runtime(head)
    engine = argparse.ArgumentParser(add_help=False)
    engine.add_argument("--engine", choices=ENGINES, help="the search engine (auto: chosen by the number of images)")

    def action(name: str, function: Any, about: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=about, description=about, parents=list(parents))
        made.set_defaults(action=function)
        return made

    made = action("add", add, "add images; unchanged images of the index are skipped", which, head, engine)
    add_arguments_of_add(made)
    about = "make the index match a folder: add new images, embed changed ones, report missing ones"
    made = action("sync", sync, about, which, head, engine)
    made.add_argument("folder", metavar="FOLDER")
    made.add_argument("--remove-missing", action="store_true", help="remove images whose file is missing")
    add_exif(made)
    made = action("move", move, "tell the index where the images are now; nothing is embedded again", which)
    made.add_argument("root", metavar="NEWROOT", help="the folder that the images were moved to")
    made = action("remove", remove, "remove images by id, by unique base name, or by a pattern with * and ?", which)
    made.add_argument("names", nargs="+", metavar="ID|NAME|GLOB")
    made = action("stats", stats, "show what the index holds", which)
    made.add_argument("--json", action="store_true", help="print JSON and nothing else")
    made = action("verify", verify, "check every vector and file; exit status 1 if anything is wrong", which)
    repair = "embed damaged images again; remove those whose file is missing"
    made.add_argument("--repair", action="store_true", help=repair)
    made = action("calibrate", calibrate, "find how near is near enough, for --max-distance auto", which)
    made.add_argument(
        "--precision", type=float, default=0.9, metavar="P", help="the share of results to be right (default: 0.9)"
    )
    about = "right is the same picture, altered, not another one of its class; for images without classes"
    made.add_argument("--copies", action="store_true", help=about)
    made = action("build", build, "build the search engine", which)
    made.add_argument("engine", choices=ENGINES)
    made = action("export", export, "write vectors and names as FILE.npy (with FILE.json) or FILE.parquet", which)
    made.add_argument("file", metavar="FILE")
    about = f"lay the images out by UMAP for the map of {program('serve')}, which otherwise uses PCA"
    action("map", lay_out, about, which)
    made = action("copy", copy, "copy an index from a folder to Milvus, or back, and compare; resumable")
    made.add_argument("source", metavar="FROM", help="the index: its folder, or milvus://HOST:PORT/COLLECTION")
    made.add_argument("target", metavar="TO", help="where to copy it, likewise")
    made = action("migrate", migrate.main, migrate.ABOUT, which, head, engine)
    migrate.add_arguments(made)
    made = action("cluster", groups.main, groups.ABOUT, which)
    groups.add_arguments(made)
    made = action("duplicates", duplicates.main, "find duplicates, near-duplicates, and leaks between splits")
    duplicates.add_arguments(made)


def add_arguments_of_add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="FOLDER|FILE", help="also on an object store: s3://bucket/folder")
    parser.add_argument("--label", help="the class of all these images (default: from their folders)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an attribute of all these images, for --where; a value that is not JSON is text",
    )
    add_exif(parser)
    parser.add_argument(
        "--parts",
        nargs="?",
        type=int,
        const=PARTS,
        choices=range(2, FINEST + 1),
        metavar="N",
        help="for a new index: also embed overlapping parts of each image, down to 1/N of its sides, so that a search "
        f"finds small things in it; 9, 34 or 83 parts for N of 2, 3 or 4 (default: {PARTS})",
    )
    parser.add_argument(
        "--fit-head",
        action="store_true",
        help="for a new index by a network as it is (trained for 0 epochs): fit a general head on these images",
    )
    parser.add_argument(
        "--general-dim",
        type=int,
        default=GENERAL_DIM,
        metavar="D",
        help=f"with --fit-head: the length of its vectors (default: {GENERAL_DIM})",
    )
    add_ray(parser, "read and embed")


def add_exif(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-exif",
        action="store_true",
        help="do not keep sizes, dates, cameras and places of photos, which --where could name",
    )


def add(options: argparse.Namespace) -> int:
    from dr_keras.data.image_ids import url_of
    from dr_keras.index.sync import add_files
    from dr_keras.progress import stderr

    console = stderr()
    cluster = cluster_of(options, console)
    if options.fit_head and any(map(url_of, options.paths)):
        raise InputError("--fit-head reads files of this machine; make the index of some that are here, and add others")
    attributes: dict[str, Any] = {}
    for text in options.set:
        set_attribute(attributes, text)
    folders = [path for path in options.paths if Path(path).is_dir()]
    root = Path(folders[0] if folders else ".")
    reader, index = writable(options, root)
    with index:
        report = add_files(
            index,
            options.paths,
            reader,
            label=options.label,
            attributes=attributes,
            console=console,
            through=through_cluster(cluster, options, index, reader),
        )
        index.engine.update(options.engine)
        tell(report, index)
    return 0


def sync(options: argparse.Namespace) -> int:
    from dr_keras.index.sync import sync_folder
    from dr_keras.progress import stderr

    reader, index = writable(options, Path(options.folder))
    with index:
        report = sync_folder(index, options.folder, reader, console=stderr(), remove_missing=options.remove_missing)
        index.engine.update(options.engine)
        tell(report, index)
    return 0


def tell(report: "SyncReport", index: "Index") -> None:
    """Prints a summary, and the problems on standard error."""
    print(f"{report}; {len(index):,} images in {index.place}")
    for line in report.details():
        print(line, file=sys.stderr)


def move(options: argparse.Namespace) -> int:
    from dr_keras.index.index import Index
    from dr_keras.index.relocate import move_index
    from dr_keras.progress import stderr

    with Index.open(place(options), write=True) as index:
        before = index.root
        found = move_index(index, options.root, console=stderr())
        print(f"{found}; {index.place} was of {before} and is of {index.root} now")
        if found.missing or found.changed:
            command = f"{program('index')} sync {options.root}"
            print(f"{command} embeds what has changed, and with --remove-missing removes the rest")
    return 0


def lay_out(options: argparse.Namespace) -> int:
    from dr_keras.index.index import Index
    from dr_keras.index.umap_layout import fit_umap

    with Index.open(place(options)) as index:
        layout = fit_umap(index)
        layout.save(index)
        print(f"{len(index):,} images are laid out by {len(layout.vectors):,} of them in {index.place}")
    return 0


def remove(options: argparse.Namespace) -> int:
    from dr_keras.index.index import Index

    with Index.open(place(options), write=True) as index:
        chosen = {id for name in options.names for id in index.records.matching(name)}
        count = index.remove(chosen)
        print(f"{count:,} removed; {len(index):,} images in {index.place}")
    return 0


def stats(options: argparse.Namespace) -> int:
    from dr_keras.index.index import Index

    with Index.open(place(options)) as index:
        found = index.stats()
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    engine = found["engine"]
    how = "exact" if engine["exact"] else f"recall@30 {engine['recall']:.3f}, over the first {engine['rows']:,} rows"
    shown = {
        "index": found["path"],
        "run": found["run"] or "-",
        "head": found["head"],
        "root": found["root"],
        "images": f"{found['images']:,} ({', '.join(f'{count:,} {name}' for name, count in found['splits'].items())})",
        "searched": f"{found['searched']:,}",
        "classes": f"{found['classes']:,}",
        "unreadable": f"{found['skipped']:,} files",
        "vectors": f"{found['dim']} values each, {found['gaps']:,} gaps",
        "parts": f"{found['parts']} of each image" if found["parts"] else "-",
        "engine": f"{engine['name']} ({how}), chosen: {engine['chosen']}",
        "on disk": "on the server" if found["bytes"] is None else f"{found['bytes'] / 2**20:,.1f} MiB",
    }
    for name, value in shown.items():
        print(f"{name:<11} {value}")
    return 0


def verify(options: argparse.Namespace) -> int:
    from dr_keras.index.index import Index

    if not options.repair:
        with Index.open(place(options), repair=True) as index:
            damage = index.verify()
            for one in damage:
                print(f"{one.id}: {one.what}" if one.id else one.what)
            print(f"{len(damage)} problems" if damage else f"{len(index):,} images, nothing wrong")
        return 1 if damage else 0

    from dr_keras.index.repair import repair_index
    from dr_keras.progress import stderr

    with Index.open(place(options), write=True, repair=True) as index:
        report = repair_index(index, lambda: reader_of(options, index), console=stderr())
        print(
            f"{report}; {len(index):,} images, nothing wrong"
            if str(report)
            else f"{len(index):,} images, nothing wrong"
        )
    return 0


def calibrate(options: argparse.Namespace) -> int:
    from dr_keras.index.cutoff import calibrate, calibrate_copies
    from dr_keras.index.index import Index

    with Index.open(place(options), write=True) as index:
        if options.copies:
            found = calibrate_copies(index, reader_of(options, index), options.precision)
        else:
            found = calibrate(index, options.precision)
        found.save(index)
    print(
        f"precision {found.found:.3f} over {found.queries:,} queries, each with and without its "
        f"{'picture' if options.copies else 'class'} in the gallery: {found.recall:.3f} of what is right is kept; "
        f"{found.answered:.3f} of them have an answer, without {found.unknown_answered:.3f}"
    )
    return 0


def build(options: argparse.Namespace) -> int:
    from dr_keras.index.index import Index

    with Index.open(place(options), write=True) as index:
        index.engine.build(options.engine)
        engine = index.stats()["engine"]
        print(f"{engine['name']}" + ("" if engine["exact"] else f", recall@30 {engine['recall']:.4f}"))
    return 0


def export(options: argparse.Namespace) -> int:
    from dr_keras.index.export import export_index
    from dr_keras.index.index import Index

    with Index.open(place(options)) as index:
        export_index(index, options.file)
    print(f"saved {options.file}")
    return 0


def copy(options: argparse.Namespace) -> int:
    from dr_keras.index.copying import copy_index
    from dr_keras.progress import stderr

    print(f"{copy_index(options.source, options.target, console=stderr())} in {options.target}")
    return 0


def set_attribute(attributes: dict[str, Any], text: str) -> None:
    """Adds NAME=VALUE; dots in the name nest the value, as in --where."""
    name, sign, value = text.partition("=")
    *outer, last = name.split(".")
    if not sign or not last:
        raise InputError(f"--set takes NAME=VALUE; {text!r} was given")
    for part in outer:
        attributes = attributes.setdefault(part, {})
        if not isinstance(attributes, dict):
            raise InputError(f"--set {text} nests a value under {part}, but another --set gives {part} a value")
    if isinstance(attributes.get(last), dict):
        raise InputError(f"--set {text} gives {last} a value, but another --set nests a value under it")
    try:
        attributes[last] = json.loads(value)
    except (ValueError, RecursionError):
        attributes[last] = value
