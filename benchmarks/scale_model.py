#!/usr/bin/env python3
"""What an index of ten million to ten billion images takes, by engine: machines, memory, disks, hours and cost.

    python benchmarks/scale_model.py --images 1e7 1e8 1e9 1e10 --dim 256 --queries-per-second 10 --days 7
    python benchmarks/scale_model.py --images 1e9 --machine-per-hour PRICE --disk-per-gb-month PRICE
    python benchmarks/scale_model.py --inputs               # what it is computed from
    python benchmarks/scale_model.py --write docs/scale.md  # computes the tables there again

The inputs are in docs/scale.json: what was measured, by which command, and what is assumed. A value that is null is
unmeasured: a formula takes its place until somebody fills it in. A measurement replaces the formula where it was made,
and scales it elsewhere. Every number that rests on something unmeasured is followed by a star.

The models are simple. A machine searches as fast as the two cores that were measured, times --speed:

    flat     a query reads all vectors at the speed of the memory; in a folder, many at a time are a matrix product
    ivfpq    a query reads the centers of the lists, the codes of the lists it probes, and the vectors of its proposals;
             in a folder, images added since the lists were built, up to a tenth, are compared as by flat
    hnsw     a query visits a number of vectors that grows with the logarithm of how many there are
    diskann  a query reads blocks of a disk, a number of times that does not depend on how many vectors there are

A Milvus collection consists of segments of a fixed size, each with a graph or lists of its own. So a query's work grows
with the number of images for every engine there, and the machines share it.
"""

import argparse
import math
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path

from scale_engines import ENGINES, NETWORKS, Plan
from scale_inputs import ABSENT, Inputs
from scale_needs import Embedding, Need, embedding, need, refused_ids
from scale_text import (
    byte_text,
    count_text,
    hour_text,
    image_text,
    number_text,
    rate_text,
    recall_text,
    second_text,
    table,
)

INPUTS = Path(__file__).parent.parent / "docs" / "scale.json"


def input_table(inputs: Inputs) -> str:
    """All inputs."""
    rows = [
        (f"`{name}`", "" if one.value is None else f"{one.value:,.10g}", one.unit, one.source)
        for name, one in inputs.known.items()
    ]
    return table(("input", "value", "unit", "source"), rows)


def report(inputs: Inputs, images: Sequence[float], plan: Plan) -> str:
    """All tables, and what the stars in them rest on."""
    embeddings = [embedding(inputs, count, plan) for count in images]
    parts = [f"### Embedding by `{plan.network}`", embedding_table(embeddings, images, plan)]
    guesses = guessed(embeddings)
    for kind in ENGINES:
        engine = kind(inputs, plan)
        needs = [need(engine, count, plan) for count in images]
        guesses |= guessed(needs)
        parts += [f"### {kind.title}", kind.about, need_table(needs, images)]
    stars = ", ".join(f"`{name}`" for name in inputs.known if name in guesses)
    return "\n\n".join([*parts, "### What the stars rest on", f"Unmeasured: {stars}."])


def guessed(results: Iterable[object]) -> set[str]:
    """The names of the unmeasured inputs that results rest on."""
    return {name for one in results for value in vars(one).values() for name in getattr(value, "guesses", ())}


def embedding_table(embeddings: Sequence[Embedding], images: Sequence[float], plan: Plan) -> str:
    days = f"{number_text(plan.days)} days"
    prices = {"machines": plan.machine_per_hour, "GPUs": plan.gpu_per_hour}
    head = ["images", "files", f"read in {days}", f"cores for {days}", f"hours of {plan.machine_cores} cores"]
    head += [f"GPUs for {days}", "hours of a GPU", *(f"cost by {name}" for name, price in prices.items() if price)]
    rows = []
    for count, one in zip(images, embeddings, strict=True):
        cells = [image_text(count), one.files.text(byte_text), one.reading.text(rate_text)]
        cells += [one.cores.text(count_text), one.machine_seconds.text(hour_text)]
        cells += [one.gpus.text(count_text), one.gpu_seconds.text(hour_text)]
        for seconds, price in zip((one.machine_seconds, one.gpu_seconds), prices.values(), strict=True):
            cells += [(seconds / 3600 * price).text(number_text)] if price else []
        rows.append([*cells, number_text(refused_ids(count))])
    return table([*head, "ids that Milvus refuses"], rows)


def need_table(needs: Sequence[Need], images: Sequence[float]) -> str:
    head = ["images", "memory", "machines", "disk", "network", "a query", "hours to add", "to build", "recall"]
    rows = []
    for count, one in zip(images, needs, strict=True):
        cells = [image_text(count), one.memory.text(byte_text), one.machines.text(count_text)]
        cells += [one.disk.text(byte_text), one.network.text(rate_text), one.fastest.text(second_text)]
        if one.slowest.value != one.fastest.value:
            cells[-1] += f" to {one.slowest.text(second_text)}"
        cells += [one.adding.text(hour_text), one.building.text(hour_text)]
        cells += [ABSENT if one.recall is None else one.recall.text(recall_text)]
        cells += [] if one.cost is None else [one.cost.text(number_text)]
        rows.append([*cells, "; ".join(one.stops)])
    return table([*head, *["cost a month"] * (needs[0].cost is not None), "stops here"], rows)


# Documents, and the command line

PART = re.compile(r"(<!-- scale_model\.py (?P<options>[^\n]*) -->\n).*?(\n<!-- end -->)", re.DOTALL)


def with_tables(text: str) -> str:
    """A document in which every part that this script has written is written again, with the options that it names."""
    return PART.sub(lambda part: f"{part[1]}\n{output(parsed(shlex.split(part['options'])))}\n{part[3]}", text)


def output(options: argparse.Namespace) -> str:
    """What the script prints."""
    inputs = Inputs.read(options.data)
    if options.inputs:
        return input_table(inputs)
    plan = Plan(**{one.name: getattr(options, one.name) for one in fields(Plan)})
    return report(inputs, sorted(options.images), plan)


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def share(text: str) -> float:
    value = positive(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text} is more than 1")
    return value


def whole(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=positive, nargs="+", default=[1e7, 1e8, 1e9, 1e10], metavar="N")
    for name, kind, about in (
        ("dim", whole, "numbers in a vector"),
        ("queries_per_second", positive, "how many are asked"),
        ("days", positive, "in which all images are embedded and added"),
        ("replicas", whole, "machines of a Milvus cluster that hold an image"),
        ("seconds_per_query", positive, "that an answer may take"),
        ("machine_gib", positive, "memory of a machine"),
        ("machine_cores", whole, "cores of a machine, or beside a GPU, that embed and decode"),
        ("usable", share, "share of a machine's memory and time that is planned for"),
        ("speed", positive, "how many times as fast as the measured machine one searches"),
        ("most_machines", whole, "that you are ready to run"),
        ("machine_per_hour", positive, "price of a machine; without prices there is no cost"),
        ("gpu_per_hour", positive, "price of a GPU, with its machine"),
        ("disk_per_gb_month", positive, "price of 10^9 bytes on a disk"),
    ):
        default = getattr(Plan, name)
        also = "" if default is None else f" (default: {default:g})"
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, metavar="N", help=about + also)
    parser.add_argument("--network", choices=NETWORKS, default=Plan.network, help="default: %(default)s")
    parser.add_argument("--data", type=Path, default=INPUTS, metavar="FILE", help="inputs (default: docs/scale.json)")
    parser.add_argument("--inputs", action="store_true", help="print the inputs instead")
    parser.add_argument("--write", type=Path, metavar="FILE", help="compute the tables of a document again instead")
    return parser.parse_args(arguments)


def main() -> None:
    options = parsed(sys.argv[1:])
    if options.write:
        options.write.write_text(with_tables(options.write.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
    else:
        print(output(options))


if __name__ == "__main__":
    main()
