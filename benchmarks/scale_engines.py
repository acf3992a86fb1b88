"""The engines of an index as formulas: memory, disk, time and recall, see scale_model.py."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from scale_inputs import FLOAT_BYTES, MEASURED_DIM, Amount, Inputs, amount, largest

from dr_keras.index.approximate_search import LISTS_PER_ROOT_ROW, MAX_LISTS, MAX_TAIL_SHARE
from dr_keras.index.milvus import engine as milvus_engine

NEIGHBORS = 30
PROPOSALS = 150  # of the lists in a folder, for 30 neighbors
ID_BYTES = 8  # of an image, in lists and graphs
LINK_BYTES = 4  # of an image, in a graph
ROW_BYTES = 57  # of an image in Milvus besides vector and texts: seven numbers of 8 bytes, and whether it is searched
BLOCK_BYTES = 4096  # of a disk
KMEANS_ROUNDS = 10  # FAISS's, over up to 256 vectors for each list
BUILD_BREADTH = 100  # at which `graph_build_s_1e6` was measured
LEAST_SHARE = 0.1  # of a measured time that is surely not the way to the server and back
NETWORKS = ("tiny-imagenet-64", "mobilenet-224", "dinov2-s-224")


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
