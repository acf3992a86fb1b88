"""What an index takes in machines, hours and cost, and where an engine stops; what it takes to embed all images."""

from dataclasses import dataclass

from scale_engines import Engine, Milvus, Plan
from scale_inputs import Amount, Inputs, largest
from scale_text import byte_text, count_text, number_text, recall_text, second_text

from dr_keras.index.milvus.server import SECONDS

TARGET_RECALL = 0.98
DAY_SECONDS, MONTH_HOURS = 86400, 730


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
