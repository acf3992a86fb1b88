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
import json
import math
import operator
import re
import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

from dr_keras.index.approximate_search import LISTS_PER_ROOT_ROW, MAX_LISTS, MAX_TAIL_SHARE
from dr_keras.index.milvus import engine as milvus_engine
from dr_keras.index.milvus.server import SECONDS

INPUTS = Path(__file__).parent.parent / "docs" / "scale.json"
MEASURED_DIM = 256  # of the vectors of all measurements
TARGET_RECALL = 0.98
NEIGHBORS = 30
PROPOSALS = 150  # of the lists in a folder, for 30 neighbors
FLOAT_BYTES = LINK_BYTES = 4
ID_BYTES = 8  # of an image, in lists and graphs
ROW_BYTES = 57  # of an image in Milvus besides vector and texts: seven numbers of 8 bytes, and whether it is searched
BLOCK_BYTES = 4096  # of a disk
KMEANS_ROUNDS = 10  # FAISS's, over up to 256 vectors for each list
BUILD_BREADTH = 100  # at which `graph_build_s_1e6` was measured
LEAST_SHARE = 0.1  # of a measured time that is surely not the way to the server and back
DAY_SECONDS, MONTH_HOURS = 86400, 730
NETWORKS = ("tiny-imagenet-64", "mobilenet-224", "dinov2-s-224")
ABSENT = "unmeasured"


# Numbers that know what they rest on


@dataclass(frozen=True)
class Amount:
    """A number, and the names of the unmeasured inputs that it rests on."""

    value: float
    guesses: frozenset[str] = frozenset()

    def _with(self, other: "Amount | float", compute: Callable[[float, float], float]) -> "Amount":
        other = amount(other)
        return Amount(compute(self.value, other.value), self.guesses | other.guesses)

    def __add__(self, other: "Amount | float") -> "Amount":
        return self._with(other, operator.add)

    def __sub__(self, other: "Amount | float") -> "Amount":
        return self._with(other, operator.sub)

    def __mul__(self, other: "Amount | float") -> "Amount":
        return self._with(other, operator.mul)

    def __truediv__(self, other: "Amount | float") -> "Amount":
        return self._with(other, operator.truediv)

    def __rtruediv__(self, other: float) -> "Amount":
        return amount(other) / self

    __radd__, __rmul__ = __add__, __mul__

    def ceil(self) -> "Amount":
        return Amount(math.ceil(self.value), self.guesses)

    def text(self, show: Callable[[float], str]) -> str:
        """The number as `show` writes it, with a star if it rests on anything unmeasured."""
        return show(self.value) + "*" * bool(self.guesses)


def amount(value: Amount | float) -> Amount:
    return value if isinstance(value, Amount) else Amount(value)


def largest(*amounts: Amount | float) -> Amount:
    """The largest; it rests on whatever any of them rests on, as another one might be the largest."""
    known = [amount(one) for one in amounts]
    return Amount(max(one.value for one in known), frozenset().union(*(one.guesses for one in known)))


# What is known, and what is wanted


@dataclass(frozen=True)
class Input:
    """A number that was measured, is assumed, or is missing.

    Attributes:
        value: The number; None if it is missing.
        unit: Of what.
        source: "measured: ", "assumed: " or "unmeasured: ", and where it is from, or how it could be measured.
        measured: Whether it was measured.
    """

    value: float | None
    unit: str
    source: str
    measured: bool


class Inputs:
    """All inputs.

    Args:
        known: The inputs, by name.

    Raises:
        ValueError: An input contradicts itself.
    """

    def __init__(self, known: dict[str, Input]) -> None:
        self.known = known
        for name, one in known.items():
            kind = "measured" if one.measured else ABSENT if one.value is None else "assumed"
            if not one.source.startswith(f"{kind}: ") or (one.measured and one.value is None):
                raise ValueError(f"{name} is {kind}, but its value is {one.value} and its source {one.source!r}")
            if one.value is not None and not 0 < one.value < math.inf:
                raise ValueError(f"{name} is {one.value}, which is not positive")

    @classmethod
    def read(cls, file: Path) -> "Inputs":
        """Reads a JSON file: by name, {value, unit, source, measured}."""
        return cls({name: Input(**about) for name, about in json.loads(file.read_text(encoding="utf-8")).items()})

    def get(self, name: str) -> Amount | None:
        """An input; None if it is missing."""
        one = self.known.get(name)
        if one is None or one.value is None:
            return None
        return Amount(one.value, frozenset() if one.measured else frozenset([name]))

    def __getitem__(self, name: str) -> Amount:
        found = self.get(name)
        assert found is not None, f"{name} has no formula to take its place"
        return found

    def at_most_rows(self, name: str) -> tuple[float, Amount] | None:
        """What was measured with most images, and how many they were: the last of NAME_1e5 to NAME_1e8."""
        found = {10.0**power: self.get(f"{name}_1e{power}") for power in (8, 7, 6, 5)}
        return next(((rows, value) for rows, value in found.items() if value is not None), None)

    def recall(self, name: str, images: float) -> Amount | None:
        """The recall that was measured with most images, which stands for that of more."""
        measured = self.at_most_rows(name)
        if measured is None:
            return None
        rows, found = measured
        return found if images <= rows else found * Amount(1.0, frozenset([f"{name}_1e{math.log10(rows) + 1:.0f}"]))

    def bandwidth(self) -> Amount:
        """Bytes a second at which one query reads vectors."""
        rows, ms = self.at_most_rows("exact_ms") or (1e6, self["exact_ms_1e6"])
        return rows * MEASURED_DIM * FLOAT_BYTES * 1000 / ms

    def operations(self) -> Amount:
        """Multiplications and additions a second of many queries together."""
        return 2 * MEASURED_DIM * 1e6 * 1000 * 1000 / self["exact_1000_ms_1e6"]


@dataclass(frozen=True)
class Plan:
    """What is wanted, and of which machines.

    Attributes:
        dim: Numbers in a vector.
        queries_per_second: How many are asked.
        days: In which all images are to be embedded and added.
        replicas: Machines of a Milvus cluster that hold an image.
        seconds_per_query: At most.
        network: One of `NETWORKS`.
        machine_gib, machine_cores: Memory of a machine, and cores that embed and decode.
        usable: The share of its memory, and of its time, that is planned for.
        speed: How many times as fast as the two cores of the measurements a machine searches.
        most_machines: That one is ready to run.
        machine_per_hour, gpu_per_hour, disk_per_gb_month: Prices.
    """

    dim: int = 256
    queries_per_second: float = 10.0
    days: float = 7.0
    replicas: int = 1
    seconds_per_query: float = 1.0
    network: str = "mobilenet-224"
    machine_gib: float = 256.0
    machine_cores: int = 16
    usable: float = 0.7
    speed: float = 1.0
    most_machines: int = 100
    machine_per_hour: float | None = None
    gpu_per_hour: float | None = None
    disk_per_gb_month: float | None = None

    @property
    def room(self) -> float:
        """Bytes of a machine's memory that are planned for."""
        return self.usable * self.machine_gib * 2**30


# Engines


class Engine(ABC):
    """An engine. Bytes and seconds are those of an index of so many `images`.

    Args:
        inputs: What it is computed from.
        plan: What is wanted.
    """

    title: ClassVar[str]
    about: ClassVar[str]
    one_machine: ClassVar[bool] = True

    def __init__(self, inputs: Inputs, plan: Plan) -> None:
        self.inputs, self.plan, self.dim = inputs, plan, plan.dim

    @abstractmethod
    def memory(self, images: float) -> Amount:
        """Bytes that have to be in memory, once."""

    @abstractmethod
    def disk(self, images: float) -> Amount:
        """Bytes on disks."""

    @abstractmethod
    def work(self, images: float) -> Amount:
        """Seconds of a machine for each of many queries."""

    @abstractmethod
    def answer(self, images: float, machines: float) -> tuple[Amount, Amount]:
        """Seconds until a query is answered, at best and at worst."""

    @abstractmethod
    def adding(self, images: float) -> Amount:
        """Seconds to add all images, once they are embedded."""

    @abstractmethod
    def building(self, images: float, machines: float) -> Amount:
        """Seconds to build the engine."""

    @abstractmethod
    def recall(self, images: float) -> Amount | None:
        """The share of the true neighbors that are found; None if that was not measured."""

    def row_bytes(self) -> Amount:
        """Bytes of an image on its way into the index."""
        return amount(FLOAT_BYTES * self.dim)

    def reply_bytes(self) -> float:
        """Bytes of an answer on their way from the server."""
        return 0.0


class LocalFlat(Engine):
    title = "A folder, `flat` (exact)"
    about = "All vectors have to stay in the memory of one machine, as a query reads all of them."

    def memory(self, images: float) -> Amount:
        return amount(FLOAT_BYTES * self.dim * images)

    def disk(self, images: float) -> Amount:
        return images * (FLOAT_BYTES * self.dim + self.inputs["database_bytes"])

    def work(self, images: float) -> Amount:
        return 2 * self.dim * images / self.inputs.operations() / self.plan.speed

    def answer(self, images: float, machines: float) -> tuple[Amount, Amount]:
        seconds = FLOAT_BYTES * self.dim * images / self.inputs.bandwidth() / self.plan.speed
        return seconds, seconds

    def adding(self, images: float) -> Amount:
        return images * self.inputs["create_s_1e7"] / 1e7

    def building(self, images: float, machines: float) -> Amount:
        return Amount(0.0)

    def recall(self, images: float) -> Amount | None:
        return Amount(1.0)


class LocalLists(LocalFlat):
    title = "A folder, `ivfpq` (lists)"
    about = (
        "The codes have to stay in memory, and so do the vectors that are newer than the lists, up to a tenth; the "
        "others may be read from the disk. A query takes the first time right after the lists were built, and the "
        "second right before they are built again."
    )

    def lists(self, images: float) -> float:
        return min(MAX_LISTS, 2.0 ** max(4, round(math.log2(LISTS_PER_ROOT_ROW * images**0.5))))

    def engine_bytes(self, images: float) -> Amount:
        return amount(images * (self.dim / 4 + ID_BYTES) + self.lists(images) * FLOAT_BYTES * self.dim)

    def together(self, images: float, probed: Amount) -> Amount:
        """Seconds for each of many queries, whose distances to the centers are a matrix product."""
        centers = 2 * self.dim * self.lists(images) / self.inputs.operations()
        return (centers + self._probed_bytes(images, probed) / self.inputs.bandwidth()) / self.plan.speed

    def alone(self, images: float, probed: Amount) -> Amount:
        """Seconds of a single query, with all vectors in memory."""
        read = self.lists(images) * FLOAT_BYTES * self.dim + self._probed_bytes(images, probed)
        return read / self.inputs.bandwidth() / self.plan.speed

    def _probed_bytes(self, images: float, probed: Amount) -> Amount:
        return probed * (images / self.lists(images) * self.dim / 4) + PROPOSALS * FLOAT_BYTES * self.dim

    def _reads(self, images: float) -> int:
        """How many proposals are read from the disk."""
        return PROPOSALS * (self.engine_bytes(images).value + FLOAT_BYTES * self.dim * images > self.plan.room)

    def memory(self, images: float) -> Amount:
        return self.engine_bytes(images) + super().memory(MAX_TAIL_SHARE * images)

    def disk(self, images: float) -> Amount:
        return super().disk(images) + self.engine_bytes(images)

    def work(self, images: float) -> Amount:
        seconds = self.together(images, self.inputs["lists_probed"]) + super().work(MAX_TAIL_SHARE * images)
        reads = self._reads(images)
        return seconds + reads / self.inputs["disk_reads_s"] if reads else seconds

    def answer(self, images: float, machines: float) -> tuple[Amount, Amount]:
        seconds = self.alone(images, self.inputs["lists_probed"])
        if reads := self._reads(images):
            seconds = seconds + reads * self.inputs["disk_read_ms"] / 1000
        return seconds, seconds + super().answer(MAX_TAIL_SHARE * images, machines)[0]

    def building(self, images: float, machines: float) -> Amount:
        return images * self.inputs["lists_build_s_1e7"] / 1e7 / self.plan.speed

    def recall(self, images: float) -> Amount | None:
        return self.inputs.recall("lists_recall", images)


class Milvus(Engine):
    """An index in Milvus. Formulas are for any `dim`, so that what was measured with one scales them."""

    one_machine = False
    kind: ClassVar[str]
    segment_input: ClassVar[str] = "milvus_segment_bytes"

    @abstractmethod
    def index_bytes(self, images: float, dim: int) -> Amount:
        """Bytes that are in memory for the vectors, by formula."""

    @abstractmethod
    def work_formula(self, images: float, dim: int) -> Amount:
        """`work` of a machine as fast as the measured ones."""

    def build_formula(self, images: float, dim: int) -> Amount:
        """Seconds of one machine to build the engine."""
        return Amount(0.0)

    def memory_formula(self, images: float, dim: int) -> Amount:
        return self.index_bytes(images, dim) + images * self.field_bytes()

    def disk_bytes(self, images: float) -> Amount:
        """Bytes on disks besides the images as they were added."""
        return self.index_bytes(images, self.dim)

    def field_bytes(self) -> Amount:
        """Bytes of an image besides its vector."""
        return ROW_BYTES + self.inputs["milvus_text_bytes"]

    def segments(self, images: float, dim: int) -> Amount:
        return largest(1.0, images * (FLOAT_BYTES * dim + self.field_bytes()) / self.inputs[self.segment_input])

    def _scaled(
        self, formula: Callable[[float, int], Amount], images: float, measured: tuple[float, Amount] | None, name: str
    ) -> Amount:
        """What a formula says, scaled to what was measured; `name` is the input that is missing if nothing was."""
        said = formula(images, self.dim)
        if measured is None:
            return Amount(said.value, said.guesses | {name})
        rows, found = measured
        ratio = said / formula(rows, MEASURED_DIM)
        same = self.dim == MEASURED_DIM and math.isclose(ratio.value, images / rows)
        return found * (images / rows if same else ratio)

    def call(self) -> Amount:
        """Seconds of a query that takes no work."""
        small, large = (self.inputs.get(f"milvus_flat_ms_{rows}") for rows in ("1e5", "1e6"))
        if small is None or large is None:
            return self.inputs["milvus_call_ms"] / 1000
        return largest(0.0, small - (large - small) / 9) / 1000

    def memory(self, images: float) -> Amount:
        name = f"milvus_{self.kind}_bytes"
        each = self.inputs.get(name)
        return self._scaled(self.memory_formula, images, None if each is None else (1e6, each * 1e6), name)

    def disk(self, images: float) -> Amount:
        return images * self.row_bytes() + self.disk_bytes(images)

    def work(self, images: float) -> Amount:
        measured = self.inputs.at_most_rows(f"milvus_{self.kind}_ms")
        if measured is not None:
            seconds = measured[1] / 1000
            measured = measured[0], largest(seconds - self.call(), seconds * LEAST_SHARE)
        return self._scaled(self.work_formula, images, measured, f"milvus_{self.kind}_ms_1e6") / self.plan.speed

    def answer(self, images: float, machines: float) -> tuple[Amount, Amount]:
        seconds = self.call() + self.work(images) / max(1.0, machines / self.plan.replicas)
        return seconds, seconds

    def adding(self, images: float) -> Amount:
        rate = self.inputs.get("milvus_rows_per_s")
        if rate is None:
            rate = self.inputs["milvus_write_bytes_s"] / self.row_bytes() * Amount(1, frozenset(["milvus_rows_per_s"]))
        return images / rate

    def building(self, images: float, machines: float) -> Amount:
        name = f"milvus_{self.kind}_build_s"
        alone = self._scaled(self.build_formula, images, self.inputs.at_most_rows(name), f"{name}_1e6")
        read = FLOAT_BYTES * self.dim * images / self.inputs["milvus_client_bytes_s"]
        return alone / self.plan.speed / machines + read

    def recall(self, images: float) -> Amount | None:
        return self.inputs.recall(f"milvus_{self.kind}_recall", images)

    def row_bytes(self) -> Amount:
        return FLOAT_BYTES * self.dim + self.field_bytes()

    def reply_bytes(self) -> float:
        return NEIGHBORS * (FLOAT_BYTES * self.dim + 2 * ID_BYTES)


class MilvusFlat(Milvus):
    title = "Milvus, `flat` (exact)"
    about = "Each machine compares a query with all vectors that it holds."
    kind = "flat"

    def index_bytes(self, images: float, dim: int) -> Amount:
        return amount(FLOAT_BYTES * dim * images)

    def disk_bytes(self, images: float) -> Amount:
        return Amount(0.0)

    def work_formula(self, images: float, dim: int) -> Amount:
        return FLOAT_BYTES * dim * images / self.inputs.bandwidth()

    def building(self, images: float, machines: float) -> Amount:
        return Amount(0.0)

    def recall(self, images: float) -> Amount | None:
        return Amount(1.0)


class MilvusHnsw(Milvus):
    title = "Milvus, `hnsw` (graph)"
    about = "Vectors and links have to stay in memory. Each segment has its own graph, and a query visits all of them."
    kind = "hnsw"

    def index_bytes(self, images: float, dim: int) -> Amount:
        links = 2 * milvus_engine.GRAPH["M"]
        return amount(images * (FLOAT_BYTES * dim + LINK_BYTES * links + ID_BYTES))

    def work_formula(self, images: float, dim: int) -> Amount:
        segments = self.segments(images, dim)  # each as FAISS's graph of a million, but for the logarithm
        steps = math.log(max(2.0, images / segments.value)) / math.log(1e6)
        return segments * steps * self.inputs["graph_1000_ms_1e6"] / 1e6 * (dim / MEASURED_DIM)

    def build_formula(self, images: float, dim: int) -> Amount:
        wider = milvus_engine.GRAPH["efConstruction"] / BUILD_BREADTH
        return images * wider * self.inputs["graph_build_s_1e6"] / 1e6 * (dim / MEASURED_DIM)


class MilvusLists(Milvus):
    title = "Milvus, `ivfpq` (lists)"
    about = (
        "Codes have to stay in memory; vectors are on the machines' disks. The number of lists follows from the number "
        "of all images, but each segment has that many, so a query is compared with very many centers."
    )
    kind = "ivfpq"

    def lists(self, images: float) -> float:
        return min(milvus_engine.MAX_LISTS, max(16.0, milvus_engine.LISTS_PER_ROOT_ROW * images**0.5))

    def _center_bytes(self, images: float, dim: int) -> Amount:
        return self.segments(images, dim) * (self.lists(images) * FLOAT_BYTES * dim)

    def _code_bytes(self, dim: int) -> float:
        return dim / milvus_engine.CODE_VALUES * milvus_engine.BITS / 8

    def index_bytes(self, images: float, dim: int) -> Amount:
        return images * (self._code_bytes(dim) + ID_BYTES) + self._center_bytes(images, dim)

    def disk_bytes(self, images: float) -> Amount:
        return super().disk_bytes(images) + self.plan.replicas * FLOAT_BYTES * self.dim * images

    def work_formula(self, images: float, dim: int) -> Amount:
        codes = self.inputs["milvus_ivfpq_probed"] / self.lists(images) * images * self._code_bytes(dim)
        return (self._center_bytes(images, dim) + codes) / self.inputs.bandwidth()

    def build_formula(self, images: float, dim: int) -> Amount:
        return (1 + KMEANS_ROUNDS) * images * self.lists(images) * 2 * dim / self.inputs.operations()


class MilvusDiskAnn(Milvus):
    title = "Milvus, DiskANN (graph on disks)"
    about = (
        "`--engine` does not offer it, so nothing of it can be measured yet. Vectors and links are on NVMe disks of "
        "the machines; codes and a cache are in memory."
    )
    kind = "diskann"
    segment_input = "milvus_disk_segment_bytes"

    def index_bytes(self, images: float, dim: int) -> Amount:
        share = self.inputs["diskann_code_share"] + self.inputs["diskann_cache_share"]
        return FLOAT_BYTES * dim * images * share

    def disk_bytes(self, images: float) -> Amount:
        node = FLOAT_BYTES * self.dim + LINK_BYTES * (1 + self.inputs["diskann_links"])
        together = math.floor(BLOCK_BYTES / node.value)
        each = BLOCK_BYTES / together if together else BLOCK_BYTES * math.ceil(node.value / BLOCK_BYTES)
        return Amount(images * each * (1 + self.plan.replicas), node.guesses)

    def work_formula(self, images: float, dim: int) -> Amount:
        return self.segments(images, dim) * self.inputs["diskann_reads"] / self.inputs["disk_reads_s"]

    def answer(self, images: float, machines: float) -> tuple[Amount, Amount]:
        reads = self.inputs["diskann_reads"] * self.inputs["disk_read_ms"] / 1000  # one after the other
        seconds = super().answer(images, machines)[0] + reads
        return seconds, seconds

    def build_formula(self, images: float, dim: int) -> Amount:
        return images * self.inputs["graph_build_s_1e6"] / 1e6 * (dim / MEASURED_DIM)


ENGINES: tuple[type[Engine], ...] = (LocalFlat, LocalLists, MilvusFlat, MilvusHnsw, MilvusLists, MilvusDiskAnn)


# What is needed


@dataclass(frozen=True)
class Need:
    """What an index takes.

    Attributes:
        memory, disk: Bytes in all.
        machines: How many.
        fastest, slowest: Seconds until a query is answered.
        adding, building: Seconds.
        network: Bytes a second, of images added in the wanted days and of answers.
        recall: The share of the true neighbors that are found, if that was measured.
        cost: A month, as far as there are prices.
        stops: Why it cannot be done.
    """

    memory: Amount
    disk: Amount
    machines: Amount
    fastest: Amount
    slowest: Amount
    adding: Amount
    building: Amount
    network: Amount
    recall: Amount | None
    cost: Amount | None
    stops: tuple[str, ...]


def need(engine: Engine, images: float, plan: Plan) -> Need:
    """What an index takes."""
    alone = engine.one_machine
    memory, work = engine.memory(images) * (1 if alone else plan.replicas), engine.work(images)
    by_memory = (memory / plan.room).ceil()
    by_work = (plan.queries_per_second * work / plan.usable).ceil()
    machines = Amount(1.0) if alone else largest(by_memory, by_work, plan.replicas)
    fastest, slowest = engine.answer(images, machines.value)
    adding, recall, disk = engine.adding(images), engine.recall(images), engine.disk(images)
    stops = []
    if alone and by_memory.value > 1:
        stops.append(f"{memory.text(byte_text)} of memory")
    if slowest.value > (plan.seconds_per_query if alone else min(plan.seconds_per_query, SECONDS)):
        stops.append(f"{slowest.text(second_text)} a query")
    if alone and by_work.value > 1:
        stops.append(f"{(plan.usable / work).text(number_text)} queries/s")
    if machines.value > plan.most_machines:
        cause = "memory" if by_memory.value >= by_work.value else "a query's work"
        if isinstance(engine, Milvus):
            cause += f", {engine.segments(images, plan.dim).ceil().text(count_text)} segments"
        stops.append(f"{machines.text(count_text)} machines: {cause}")
    if adding.value > DAY_SECONDS * plan.days:
        stops.append(f"one {'writer' if alone else 'shard'}: {(adding / DAY_SECONDS).text(number_text)} days to add")
    if recall is not None and recall.value < TARGET_RECALL:
        stops.append(f"recall {recall.text(recall_text)}")
    return Need(
        memory=memory,
        disk=disk,
        machines=machines,
        fastest=fastest,
        slowest=slowest,
        adding=adding,
        building=engine.building(images, machines.value),
        network=images * engine.row_bytes() / DAY_SECONDS / plan.days + plan.queries_per_second * engine.reply_bytes(),
        recall=recall,
        cost=cost(machines, disk, plan),
        stops=tuple(stops),
    )


def cost(machines: Amount, disk: Amount, plan: Plan) -> Amount | None:
    """What machines and disks cost a month, as far as there are prices."""
    if plan.machine_per_hour is None and plan.disk_per_gb_month is None:
        return None
    return machines * (MONTH_HOURS * (plan.machine_per_hour or 0)) + disk / 1e9 * (plan.disk_per_gb_month or 0)


def refused_ids(images: float) -> float:
    """How many ids Milvus is expected to refuse, because another image has the same 63 bits: pairs / 2^63."""
    return images**2 / 2**64


@dataclass(frozen=True)
class Embedding:
    """What it takes to embed all images.

    Attributes:
        files: Bytes of the images.
        reading: Bytes a second that are read, if it takes the wanted days.
        cores, gpus: How many of either take the wanted days.
        machine_seconds, gpu_seconds: Of one machine, or one GPU.
    """

    files: Amount
    reading: Amount
    cores: Amount
    gpus: Amount
    machine_seconds: Amount
    gpu_seconds: Amount


def embedding(inputs: Inputs, images: float, plan: Plan) -> Embedding:
    """What it takes to embed all images."""
    linear = inputs.get("ray_share_of_linear") or Amount(1.0, frozenset(["ray_share_of_linear"]))
    one_core = images / (inputs[f"{plan.network}_core_images_s"] * linear)
    one_gpu = images / (gpu_rate(inputs, plan) * linear)
    files, seconds = images * inputs[f"{plan.network}_file_bytes"], DAY_SECONDS * plan.days
    return Embedding(
        files=files,
        reading=files / seconds,
        cores=(one_core / seconds).ceil(),
        gpus=(one_gpu / seconds).ceil(),
        machine_seconds=one_core / plan.machine_cores,
        gpu_seconds=one_gpu,
    )


def gpu_rate(inputs: Inputs, plan: Plan) -> Amount:
    """Images a second of a GPU: as many as it embeds, or as the cores beside it decode."""
    name = f"{plan.network}_gpu_images_s"
    measured = inputs.get(name)
    if measured is not None:
        return measured
    embeds = inputs["gpu_images_s"] * inputs["gpu_multiply_adds"] / inputs[f"{plan.network}_multiply_adds"]
    decodes = plan.machine_cores * 1000 / inputs[f"{plan.network}_decode_ms"]
    return Amount(min(embeds.value, decodes.value), embeds.guesses | decodes.guesses | {name})


# Text


def number_text(value: float) -> str:
    """Two digits, or all of those before the point."""
    if value == 0 or value >= 10:
        return f"{value:,.0f}"
    return f"{value:.2g}" if value >= 1e-4 else f"{value:.1e}".replace("e-0", "e-")


def count_text(value: float) -> str:
    return f"{value:,.0f}"


def recall_text(value: float) -> str:
    return f"{value:.4g}"


def image_text(value: float) -> str:
    """A number of images, such as 2.5e7."""
    power = math.floor(math.log10(value) + 1e-9)
    return f"{value / 10**power:.3g}e{power}"


def hour_text(seconds: float) -> str:
    return number_text(seconds / 3600)


def second_text(value: float) -> str:
    return f"{number_text(value)} s" if value >= 0.9995 else f"{number_text(value * 1000)} ms"


def byte_text(value: float) -> str:
    """Bytes in units of thousands."""
    power = max(0, min(5, math.floor(math.log10(max(value, 1.0)) / 3 + 1e-4)))
    return f"{number_text(value / 1000**power)} {('B', 'kB', 'MB', 'GB', 'TB', 'PB')[power]}"


def rate_text(value: float) -> str:
    return f"{byte_text(value)}/s"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown with aligned columns."""
    widths = [max(3, *(len(row[column]) for row in [head, *rows])) for column in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in lines
    )


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
