"""Measures how well a run ranks: its held-out images are the queries, its training and monitor images the gallery.

If whole classes were held out, the gallery is the other held-out images.

dr-keras evaluate --run first
dr-keras evaluate --run first --data other-folders --no-baselines --json
dr-keras evaluate --run first --flip-average --query-expansion 5 --gallery-average 10
dr-keras evaluate --run first --calibrate 0.95
dr-keras evaluate --run first --report report.html
dr-keras evaluate --run first --triplets judgments.csv
"""

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dr_keras.cli.parser import add_head, command_parser
from dr_keras.cli.ray_flags import add_ray, cluster_of
from dr_keras.config import PROTOCOLS
from dr_keras.errors import InputError
from dr_keras.invocation import program
from dr_keras.options import flags

if TYPE_CHECKING:
    import numpy as np

    from dr_keras.evaluation.evaluate import EmbedFiles
    from dr_keras.ray_jobs.cluster import RayCluster
    from dr_keras.search_model import Model

FIGURES = (
    *("precision@1", "precision@10", "precision@30", "recall@1", "recall@10", "recall@30"),
    *("map@r", "similarity_precision", "score_at_top_30"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this subcommand to `parser`."""
    parser.add_argument("--run", metavar="NAME", help="run in runs/, or its path (default: the latest finished run)")
    parser.add_argument("--data", metavar="DATA", help=f"evaluate on another data set, named as for {program('train')}")
    parser.add_argument(
        "--index",
        metavar="PATH",
        help=f"evaluate a copy of the run's own index, by {program('index')} copy: a folder, or "
        "milvus://HOST:PORT/COLLECTION",
    )
    parser.add_argument(
        "--triplets",
        metavar="FILE.csv",
        help=f"compare with people's judgments instead: a file as for {program('train')} --triplets, whose paths are "
        "relative to its folder or name images of --data",
    )
    add_head(parser)
    parser.add_argument(
        "--baselines",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also rank by raw pixels and by the untrained network",
    )
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="standard",
        help="class-disjoint: also show the figures of metric learning, for classes that were not trained on",
    )
    parser.add_argument(
        "--flip-average", action="store_true", help="also rank by the mean embedding of each image and its mirror image"
    )
    parser.add_argument(
        "--query-expansion", type=int, default=0, metavar="N", help="also rank with queries averaged with N neighbors"
    )
    parser.add_argument(
        "--gallery-average",
        type=int,
        default=0,
        metavar="N",
        help="also rank with gallery vectors averaged with N neighbors",
    )
    parser.add_argument(
        "--calibrate",
        type=float,
        metavar="PRECISION",
        help="find the distance within which this share of the neighbors is correct, "
        f"for {program('retrieve')} --max-distance auto",
    )
    parser.add_argument(
        "--report",
        metavar="FILE.html",
        help="write a page with the figures, curves, confused classes, and the best and the worst queries",
    )
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    add_ray(parser, "embed the images of --data (or of another --head; the run's own are embedded)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `dr-keras evaluate` with `arguments`; returns the exit status."""
    parser = command_parser("evaluate", __doc__)
    add_arguments(parser)
    options = parser.parse_args(arguments)
    from dr_keras.evaluation.evaluate import SearchOptions, evaluate_run
    from dr_keras.loading import load
    from dr_keras.progress import stderr

    if options.triplets:
        from dr_keras.evaluation.judgments import evaluate_judgments

        wrong = [
            name
            for name in ("flip_average", "query_expansion", "gallery_average", "calibrate", "report", "index", "ray")
            if getattr(options, name)
        ]
        if wrong or options.protocol != "standard":
            raise InputError(f"--triplets cannot be combined with {flags(wrong) if wrong else '--protocol'}")
        found = evaluate_judgments(
            load(options.run), options.triplets, data=options.data, head=options.head, baselines=options.baselines
        )
        print(json.dumps(found, indent=2)) if options.json else show_judgments(found)
        return 0
    if options.data and options.index:
        raise InputError("--data and --index both say what to evaluate on; give only one of them")
    search = SearchOptions(options.flip_average, options.query_expansion, options.gallery_average)
    model, console = load(options.run, index=options.index), stderr()
    cluster = cluster_of(options, console)
    result = evaluate_run(
        model,
        data=options.data,
        head=options.head,
        baselines=options.baselines,
        options=search,
        calibrate_to=options.calibrate,
        protocol=options.protocol,
        report=options.report,
        embed_files=None if cluster is None else on_cluster(cluster, model),
        console=console,
    )
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)
        if options.report:
            print(f"saved {options.report}")
    return 0


def on_cluster(cluster: "RayCluster", model: "Model") -> "EmbedFiles":
    """Embeds files by a cluster."""
    from dr_keras.ray_jobs.collection import embed_files
    from dr_keras.ray_jobs.model import SharedModel

    def embed(files: Sequence[str], head: str) -> "tuple[np.ndarray, dict[int, str]]":
        return embed_files(cluster, SharedModel.of(model.run, model.runtime, head), files)

    return embed


def show_judgments(result: dict[str, Any]) -> None:
    """Prints the figures of judgments as a table."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, emoji=False)
    rankers = {"this run": result, **result.get("baselines", {})}
    table = Table(title=f"{result['judgments']:,} judgments, {result['votes']:,} votes", title_justify="left")
    table.add_column("")
    for name in rankers:
        table.add_column(name, justify="right")
    for figure in ("agreement", "vote_agreement"):
        cells = ((found[figure], *found["intervals"][figure]) for found in rankers.values())
        shown = (f"{value:.4f} ({low:.4f} to {high:.4f})" for value, low, high in cells)
        table.add_row(figure.replace("_", " "), *shown)
    console.print(table)
    console.print(
        f"{result['vote_ceiling']:.4f} of the votes are with the majority; {result['ties']:,} judgments have none",
        highlight=False,
    )


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def show(result: dict[str, Any]) -> None:
    """Prints the figures as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, emoji=False)
    rankers = {"this run": result, **result.get("search_options", {}), **result.get("baselines", {})}
    table = Table(title=f"{result['queries']:,} queries against {result['gallery']:,} images", title_justify="left")
    table.add_column("")
    for name in rankers:
        table.add_column(name, justify="right")
    for figure in FIGURES:
        values = (found[figure] for found in rankers.values())
        table.add_row(figure.replace("_", " "), *map(_shown, values))
    console.print(table)
    console.print(f"ranking took {result['ranking_seconds']:.1f} s", highlight=False)
    if result.get("leave_one_out"):
        console.print("whole classes were held out: each held-out image is ranked against the other held-out images")
    if result["queries_without_positive"]:
        console.print(f"{result['queries_without_positive']} queries left out: the gallery has no image of their class")

    if "metric_learning" in result:
        table = Table("", "", title="metric learning", title_justify="left", show_header=False)
        for name, value in result["metric_learning"].items():
            table.add_row(name.replace("_", " "), f"{value:.4f}")
        console.print(table)

    if "calibration" in result:
        found = result["calibration"]
        console.print(
            f"within a distance of {found['max_distance']:.4f}, of the {found['k']} nearest: "
            f"precision {found['precision']:.3f}, recall {found['recall']:.3f}, coverage {found['coverage']:.3f} on "
            f"{found['queries']:,} monitor images; on the held-out ones "
            + ", ".join(f"{name} {value:.3f}" for name, value in found["held_out"].items()),
            highlight=False,
        )

    table = Table(title="precision@30 of each class, worst first", title_justify="left", show_header=False)
    cells = [f"{row['class_name']} {row['precision@30']:.3f}" for row in result["classes"]]
    columns = max(1, min(len(cells), console.width // (max(map(len, cells)) + 3)))
    for start in range(0, len(cells), columns):
        table.add_row(*cells[start : start + columns])
    console.print(table)

    for title, rows in (
        ("ten worst classes", [(row["class_name"], row["precision@30"]) for row in result["worst_classes"]]),
        (
            "most confused pairs (share of the 30 nearest)",
            [(f"{pair['query']} -> {pair['neighbor']}", pair["share"]) for pair in result["confused_pairs"]],
        ),
    ):
        table = Table("", "", title=title, title_justify="left", show_header=False)
        for name, value in rows:
            table.add_row(name, f"{value:.3f}")
        console.print(table)
