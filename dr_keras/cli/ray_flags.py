"""The flags --ray and --ray-patience, and the cluster that they name."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from dr_keras.index.batch import Through
    from dr_keras.index.index import Index
    from dr_keras.index.reader import Reader
    from dr_keras.ray_jobs.cluster import RayCluster

LOCAL = "local"
PATIENCE_SECONDS = 600.0


def add_ray(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds the flags to a parser; `what` is done by the cluster."""
    parser.add_argument(
        "--ray",
        nargs="?",
        const=LOCAL,
        type=_address,
        metavar="ADDRESS",
        help=f"{what} on a Ray cluster: HOST:PORT of its head, auto for the one that this machine is part of, or "
        "without an ADDRESS the one of RAY_ADDRESS, or else the cores of this machine; files need the same paths on "
        "all machines, or to be on an object store",
    )
    parser.add_argument(
        "--ray-patience",
        type=float,
        default=PATIENCE_SECONDS,
        metavar="SECONDS",
        help="with --ray: end when nothing has come from the cluster for so long (default: %(default)g); the same "
        "command resumes",
    )


def with_address(arguments: Sequence[str] | None) -> list[str]:
    """Returns a command line, by default that of the process, in which --ray does not take a folder for its ADDRESS."""
    from dr_keras.ray_jobs.cluster import parse_address

    given = list(sys.argv[1:] if arguments is None else arguments)
    after = [*given[1:], ""]
    return [
        f"--ray={LOCAL}" if one == "--ray" and parse_address(following) is None else one
        for one, following in zip(given, after, strict=True)
    ]


def cluster_of(options: argparse.Namespace, console: "Console") -> "RayCluster | None":
    """The cluster that the flags name, if any."""
    from dr_keras.ray_jobs.cluster import RayCluster

    return None if options.ray is None else RayCluster(options.ray, console, options.ray_patience)


def through_cluster(
    cluster: "RayCluster | None", options: argparse.Namespace, index: "Index", reader: "Reader"
) -> "Through | None":
    """How files are taken into an index by a cluster; None without one."""
    from dr_keras.ray_jobs.adding import on_ray
    from dr_keras.ray_jobs.model import SharedModel
    from dr_keras.runs import open_run

    if cluster is None:
        return None
    run = open_run(options.run or index.run or None)
    return on_ray(cluster, SharedModel.of_index(run, options.runtime, index, exif=reader.exif), reader)


def _address(text: str) -> str:
    from dr_keras.ray_jobs.cluster import parse_address

    found = parse_address(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no address of a Ray cluster; give HOST:PORT, auto or local")
    return found
