"""Finds the images most like a query: an image of the run by its name, or any image file.

dr-keras retrieve --query n01443537_0.JPEG
dr-keras retrieve --query ./my-photo.jpg --top 10 --save neighbors.png
dr-keras retrieve --run tiny-imagenet-64 --gallery my-pictures --query ./my-photo.jpg
dr-keras retrieve --run tiny-imagenet-64 --gallery my-pictures --query ./my-photo.jpg --why why.png
dr-keras retrieve --query a.jpg --query b.jpg --negative c.jpg --where 'label = n01443537' --max-distance auto

Exit status: 0; 2 if the query cannot be answered; 3 if no image is near enough.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dr_keras.cli.parser import add_head, add_runtime, command_parser
from dr_keras.errors import InputError
from dr_keras.invocation import program
from dr_keras.loading import load
from dr_keras.search_results import check_picture_name

if TYPE_CHECKING:
    from dr_keras.data.images import ImageInput
    from dr_keras.explanation import Explanation
    from dr_keras.search_model import Model
    from dr_keras.search_results import Answer

NO_MATCH = 3
SHOWN = 12  # neighbors in the picture that explains them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this subcommand to `parser`."""
    parser.add_argument(
        "--query",
        required=True,
        action="append",
        metavar="NAME|FILE",
        help="an image of the run by id or unique base name, or any file; repeat it to find images like all of them",
    )
    parser.add_argument(
        "--negative",
        action="append",
        default=[],
        metavar="NAME|FILE",
        help="an image that the results should be unlike; may be given several times",
    )
    parser.add_argument("--run", metavar="NAME", help="run in runs/, or its path (default: the latest finished run)")
    parser.add_argument(
        "--gallery",
        metavar="FOLDER",
        help="search this folder instead of the run's images; after the first time, only changes are embedded",
    )
    add_head(parser)
    parser.add_argument("--index", metavar="PATH", help=f"search this index, made by {program('index')}")
    parser.add_argument(
        "--where",
        metavar="CONDITION",
        help="search only images that meet this condition: 'label = cat AND year >= 2020'",
    )
    parser.add_argument(
        "--max-distance",
        type=distance,
        metavar="D|auto",
        help=f"leave out results farther than this; auto: what {program('index')} calibrate says for the query, or the "
        f"distance that {program('evaluate')} --calibrate found",
    )
    parser.add_argument(
        "--crop",
        metavar="LEFT,TOP,WIDTH,HEIGHT",
        help="search for this part of the query: in pixels, or in shares of the picture from 0 to 1",
    )
    parser.add_argument("--distinct", action="store_true", help="fold copies of a result into it")
    parser.add_argument(
        "--diverse",
        type=float,
        metavar="LAMBDA",
        help="results unlike each other: the weight of nearness, from 0 to 1, against being unlike those before",
    )
    parser.add_argument(
        "--whole",
        action="store_true",
        help=f"search by whole pictures alone, in an index that keeps parts of them ({program('index')} add --parts)",
    )
    parser.add_argument("--top", type=int, default=30, metavar="K", help="how many neighbors (default: 30)")
    parser.add_argument("--include-self", action="store_true", help="let a query from the gallery find itself")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    parser.add_argument("--save", metavar="PICTURE", help="save a picture of the query and its neighbors")
    parser.add_argument(
        "--why",
        metavar="PICTURE",
        help="save a picture that shows where the query and each neighbor are alike; with --json, add the numbers",
    )
    add_runtime(parser)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `dr-keras retrieve` with `arguments`; returns the exit status."""
    parser = command_parser("retrieve", __doc__)
    add_arguments(parser)
    options = parser.parse_args(arguments)
    if options.gallery and options.index:
        raise InputError("--gallery and --index both say what to search; give only one of them")
    for picture in filter(None, (options.save, options.why)):
        check_picture_name(picture)  # before the search, which may take a while
    if options.why and (len(options.query) > 1 or options.negative):
        raise InputError("--why explains the search for a single query")
    model = load(options.run, runtime=options.runtime, head=options.head, index=options.index)
    if options.gallery:
        model.use_gallery(options.gallery)
    answer = model.retrieve(
        options.query,
        options.top,
        include_self=options.include_self,
        negatives=options.negative,
        where=options.where,
        max_distance=options.max_distance,
        crop=options.crop,
        distinct=options.distinct,
        diverse=options.diverse,
        whole=options.whole,
    )
    if options.save:
        answer.save(Path(options.save))
    explained = len(answer.results) if options.json else SHOWN
    explanations = explain(model, answer, Path(options.why), explained) if options.why else []
    if options.json:
        found = answer.to_dict()
        for result, explanation in zip(found["results"], explanations, strict=False):
            result["explanation"] = explanation.to_dict() if explanation else None
        print(json.dumps(found))
    else:
        show(answer, options.where)
        for picture in filter(None, (options.save, options.why if any(explanations) else None)):
            print(f"saved {picture}")
    return 0 if answer.results else NO_MATCH


def explain(model: "Model", answer: "Answer", picture: Path, count: int) -> "list[Explanation | None]":
    """Explains the first `count` results, and saves a picture of the first of them. Those that are gone have None."""
    from dr_keras.data.crop import cropped
    from dr_keras.search_results import save_picture
    from dr_keras.why_picture import why_picture

    query: ImageInput = answer.path if answer.crop is None else cropped(answer.path, answer.crop)
    found: list[Explanation | None] = []
    for result in answer.results[:count]:
        try:
            found.append(model.explain(query, result.path))
        except InputError as error:
            print(f"{result.id} is not explained: {error}", file=sys.stderr)
            found.append(None)
    shown = [
        (result.path, result.class_name, explanation)
        for result, explanation in zip(answer.results, found, strict=False)
        if explanation is not None
    ][:SHOWN]
    if shown:
        save_picture(why_picture(query, shown, model.config.resize), picture)
    return found


def distance(text: str) -> float | str:
    """A distance, or 'auto'."""
    if text == "auto":
        return text
    value = float(text)
    if not 0 <= value < float("inf"):  # JSON has no infinity
        raise ValueError
    return value


def show(answer: "Answer", where: str | None) -> None:
    """Prints the neighbors as a table."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, emoji=False)
    known = f", {answer.class_name}" if answer.class_name else ""
    unlike = f", unlike {', '.join(answer.negatives)}" if answer.negatives else ""
    title = f"{', '.join(answer.queries)}{known}{unlike}"
    if not answer.results:
        near = "" if answer.max_distance is None else f" within a distance of {answer.max_distance:.4f}"
        console.print(f"{title}: no match{near}" + (f" among the images that meet {where!r}" if where else ""))
        return
    table = Table(title=title, title_justify="left")
    for name, justify in (("rank", "right"), ("name", "left"), ("class", "left"), ("distance", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    folded = any(result.copies for result in answer.results)
    if folded:
        table.add_column("copies", justify="right")
    parts = any(result.part for result in answer.results)
    if parts:
        table.add_column("part")
    for result in answer.results:
        style = "green" if result.label == answer.label else None
        copies = [f"and {len(result.copies)} like it" if result.copies else ""] if folded else []
        part = [f"{result.part or 'whole'}"] if parts else []
        more = (*copies, *part)
        table.add_row(str(result.rank), result.name, result.class_name, f"{result.distance:.4f}", *more, style=style)
    console.print(table)
