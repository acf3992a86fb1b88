"""The model of large indexes: near what was measured, honest about what was not, and its document up to date."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import scale_model
from scale_engines import (
    ENGINES,
    Engine,
    LocalFlat,
    LocalLists,
    MilvusDiskAnn,
    MilvusFlat,
    MilvusHnsw,
    MilvusLists,
    Plan,
)
from scale_inputs import Amount, Input, Inputs, largest
from scale_needs import embedding, gpu_rate, need, refused_ids
from scale_text import byte_text, hour_text, image_text, number_text, second_text

DOCUMENT = Path(__file__).parent.parent / "docs" / "scale.md"
INPUTS = Inputs.read(scale_model.INPUTS)
PLAN = Plan()
FACTOR = 2.0  # by which the models may be off
SIZES = [10 ** (power / 2) for power in range(8, 22)]
# Names of inputs that somebody may measure and fill in at any time.
LATER = r"milvus_(flat|hnsw|ivfpq)_(bytes|ms|recall|build_s).*|milvus_rows_per_s|ray_share_of_linear|.*_gpu_images_s"


def inputs_with(**values: float) -> Inputs:
    """The inputs, of which only these were measured among those that can be measured later."""
    known = dict(INPUTS.known)
    known |= {name: Input(None, "", "unmeasured: here", False) for name in known if re.fullmatch(LATER, name)}
    known |= {name: Input(value, "", "measured: here", True) for name, value in values.items()}
    return Inputs(known)


UNMEASURED = inputs_with()


def measured(name: str) -> float:
    value = INPUTS.known[name].value
    assert value is not None
    assert INPUTS.known[name].measured
    return value


def near(said: Amount, found: float, factor: float = FACTOR) -> bool:
    return found / factor <= said.value <= found * factor


# Against measurements


@pytest.mark.parametrize("rows", [5, 6])
def test_exact_search_is_near_what_was_measured(rows):
    engine = LocalFlat(INPUTS, PLAN)
    assert near(engine.answer(10**rows, 1)[0], measured(f"exact_ms_1e{rows}") / 1000)
    assert near(engine.work(10**rows), measured(f"exact_1000_ms_1e{rows}") / 1e6)


def test_lists_are_near_what_was_measured():
    engine = LocalLists(INPUTS, PLAN)
    few = Amount(8)  # lists that the synthetic vectors of the larger measurements needed
    for rows, probed in ((5, INPUTS["lists_probed"]), (6, few), (7, few)):
        assert near(engine.together(10**rows, probed), measured(f"lists_1000_ms_1e{rows}") / 1e6)
    assert near(engine.alone(1e7, few), measured("lists_ms_1e7") / 1000)
    for rows in (6, 7):
        assert near(engine.engine_bytes(10**rows), measured(f"lists_bytes_1e{rows}"), 1.1)
        assert near(engine.building(10**rows, 1), measured(f"lists_build_s_1e{rows}"))
        assert near(engine.adding(10**rows), measured(f"create_s_1e{rows}"))


def test_each_measured_input_names_a_command():
    for name, one in INPUTS.known.items():
        if one.measured:
            assert "docs/" in one.source or "bench_" in one.source, name


# Formulas


@pytest.mark.parametrize("kind", ENGINES)
def test_more_images_never_take_less(kind):
    engine = kind(INPUTS, PLAN)
    alone = [engine.answer(images, 1)[1] for images in SIZES]
    needs = [need(engine, images, PLAN) for images in SIZES]
    building = [engine.building(images, 1) for images in SIZES]
    columns = [alone, building, *([getattr(one, name) for one in needs] for name in ("memory", "disk", "machines"))]
    columns += [
        [engine.work(images) for images in SIZES],
        [one.adding for one in needs],
        [one.network for one in needs],
    ]
    for column in columns:
        values = [one.value for one in column]
        assert values == sorted(values)
        assert all(value >= 0 for value in values)
    stopped = [bool(one.stops) for one in needs]
    assert stopped == sorted(stopped)  # no larger index is possible where a smaller one is not


def test_bytes_of_an_image():
    assert LocalFlat(INPUTS, PLAN).memory(1).value == 4 * 256
    assert LocalFlat(INPUTS, PLAN).disk(1).value == 4 * 256 + measured("database_bytes")
    lists = LocalLists(INPUTS, PLAN)
    assert lists.engine_bytes(1e9).value == 1e9 * (64 + 8) + 8192 * 1024
    fields = 57 + INPUTS["milvus_text_bytes"].value
    assert MilvusFlat(UNMEASURED, PLAN).memory(1e6).value == 1e6 * (1024 + fields)
    assert MilvusHnsw(UNMEASURED, PLAN).memory(1e6).value == 1e6 * (1024 + 2 * 32 * 4 + 8 + fields)
    assert MilvusLists(UNMEASURED, PLAN).memory(1e6).value > 1e6 * (64 + 8 + fields)
    assert MilvusDiskAnn(INPUTS, PLAN).memory(1e6).value == pytest.approx(1e6 * (0.225 * 1024 + fields))


def test_machines_follow_memory_queries_and_replicas():
    engine = MilvusHnsw(UNMEASURED, PLAN)
    by_memory = need(engine, 1e9, PLAN)
    assert by_memory.machines.value == -(-by_memory.memory.value // PLAN.room)
    twice = replace(PLAN, replicas=2)
    assert need(MilvusHnsw(UNMEASURED, twice), 1e9, twice).memory.value == 2 * by_memory.memory.value
    busy = replace(PLAN, queries_per_second=1000.0)
    by_work = need(engine, 1e9, busy)
    assert by_work.machines.value >= 1000 * engine.work(1e9).value / PLAN.usable > by_memory.machines.value
    faster = replace(busy, speed=8.0)
    assert need(MilvusHnsw(UNMEASURED, faster), 1e9, faster).machines.value < by_work.machines.value


def test_shorter_vectors_take_less():
    short = replace(PLAN, dim=64)
    for kind in ENGINES:
        assert kind(INPUTS, short).memory(1e8).value < kind(INPUTS, PLAN).memory(1e8).value
        assert kind(INPUTS, short).work(1e8).value <= kind(INPUTS, PLAN).work(1e8).value


def test_the_limits_stop_an_index():
    def stops(
        kind: type[Engine],
        images: float,
        plan: Plan = PLAN,
        inputs: Inputs = INPUTS,
    ) -> str:
        return "; ".join(need(kind(inputs, plan), images, plan).stops)

    assert stops(LocalFlat, 1e6) == ""
    assert "a query" in stops(LocalFlat, 1e8)
    assert "of memory" in stops(LocalFlat, 1e9)
    assert "queries/s" in stops(LocalFlat, 1e7, replace(PLAN, queries_per_second=1000.0))
    assert "one writer" in stops(LocalFlat, 1e7, replace(PLAN, days=0.001))
    assert "one shard" in stops(MilvusHnsw, 1e9, replace(PLAN, days=0.001))
    assert "machines: a query's work" in stops(MilvusFlat, 1e10, inputs=UNMEASURED)
    assert "machines: memory" in stops(MilvusHnsw, 1e10, replace(PLAN, most_machines=2), UNMEASURED)
    assert "recall 0.91" in stops(MilvusLists, 1e6, inputs=inputs_with(milvus_ivfpq_recall_1e6=0.91))
    slow = replace(PLAN, seconds_per_query=100.0, most_machines=10**6)
    assert "a query" in stops(MilvusFlat, 1e8, slow, inputs_with(milvus_flat_ms_1e5=5000, milvus_flat_ms_1e6=5000))


def test_ids_that_are_refused():
    assert refused_ids(1e9) == pytest.approx(0.054, rel=0.01)  # the 5 % of docs/milvus.md
    assert refused_ids(2e10) == pytest.approx(4 * refused_ids(1e10))


def test_embedding():
    plan = replace(PLAN, network="mobilenet-224", machine_cores=16, days=1.0)
    linear = inputs_with(ray_share_of_linear=1.0)
    one = embedding(linear, 1e8, plan)
    rate = measured("mobilenet-224_core_images_s")
    assert one.cores.value == -(-1e8 // (rate * 86400))
    assert one.machine_seconds.value == pytest.approx(1e8 / rate / 16)
    assert not one.cores.guesses
    assert one.reading.value == pytest.approx(1e8 * measured("mobilenet-224_file_bytes") / 86400)
    half = embedding(inputs_with(ray_share_of_linear=0.5), 1e8, plan)
    assert half.machine_seconds.value == pytest.approx(2 * one.machine_seconds.value)
    # A GPU embeds no more than the cores beside it decode, unless somebody has measured it.
    assert gpu_rate(UNMEASURED, plan).value == pytest.approx(16 * 1000 / measured("mobilenet-224_decode_ms"))
    assert "mobilenet-224_gpu_images_s" in gpu_rate(UNMEASURED, plan).guesses
    known = gpu_rate(inputs_with(**{"mobilenet-224_gpu_images_s": 5000.0}), plan)
    assert known == Amount(5000.0)


def test_cost_is_that_of_the_prices_given():
    images = 1e9
    engine = MilvusHnsw(INPUTS, PLAN)
    assert need(engine, images, PLAN).cost is None
    priced = replace(PLAN, machine_per_hour=2.0, disk_per_gb_month=0.1)
    one = need(engine, images, priced)
    assert one.cost is not None
    assert one.cost.value == pytest.approx(one.machines.value * 2 * 730 + one.disk.value / 1e9 * 0.1)
    assert "cost" not in scale_model.report(INPUTS, [images], PLAN)
    assert "cost a month" in scale_model.report(INPUTS, [images], priced)
    assert "cost by GPUs" in scale_model.report(INPUTS, [images], replace(PLAN, gpu_per_hour=3.0))


# What is unmeasured


def test_a_number_knows_what_it_rests_on():
    sure, guess = Amount(2.0), Amount(3.0, frozenset(["a"]))
    assert (sure + guess * 2 - 1) == Amount(7.0, frozenset(["a"]))
    assert (12 / guess) == Amount(4.0, frozenset(["a"]))
    assert largest(5.0, guess) == Amount(5.0, frozenset(["a"]))
    assert (guess.text("{:g}".format), sure.text("{:g}".format)) == ("3*", "2")


def test_without_measurements_there_are_formulas_and_stars():
    for kind in (
        MilvusFlat,
        MilvusHnsw,
        MilvusLists,
        MilvusDiskAnn,
    ):
        one = need(kind(UNMEASURED, PLAN), 1e8, PLAN)
        for value in (one.memory, one.machines, one.fastest, one.adding):
            assert value.value > 0
            assert value.guesses
    text = scale_model.report(UNMEASURED, [1e8], PLAN)
    assert "unmeasured" in text
    assert "`milvus_hnsw_bytes`" in text.rpartition("### What the stars rest on")[2]


def test_a_measurement_takes_the_place_of_the_formula():
    names = {"milvus_hnsw_bytes": 2000, "milvus_hnsw_ms_1e6": 30, "milvus_hnsw_build_s_1e6": 500}
    names |= {"milvus_flat_ms_1e5": 16, "milvus_flat_ms_1e6": 106, "milvus_rows_per_s": 4000}
    known = inputs_with(**names, milvus_hnsw_recall_1e6=0.987)
    engine = MilvusHnsw(known, PLAN)
    assert engine.memory(1e6) == Amount(2e9)  # no star: it was measured
    assert engine.memory(1e7) == Amount(2e10)
    assert engine.call().value == pytest.approx(0.006)  # of the two exact times, 1 ms for 10,000 images
    assert engine.answer(1e6, 1)[0].value == pytest.approx(0.030)
    assert engine.adding(1e6) == Amount(250.0)
    recall = engine.recall(1e6)
    assert recall == Amount(0.987)
    more = engine.recall(1e8)
    assert more is not None
    assert more.guesses == {"milvus_hnsw_recall_1e7"}
    short = MilvusHnsw(known, replace(PLAN, dim=64))
    assert short.memory(1e6).value < 2e9
    flat = MilvusFlat(known, PLAN)
    assert flat.answer(1e5, 1)[0].value == pytest.approx(0.016)
    assert flat.answer(1e6, 1)[0].value == pytest.approx(0.106)


def test_inputs_must_be_consistent(tmp_path):
    file = tmp_path / "scale.json"
    for value, source, is_measured in (
        (1.0, "assumed: so", True),
        (None, "measured: so", True),
        (1.0, "unmeasured: so", False),
        (-1.0, "assumed: so", False),
    ):
        one = {"value": value, "unit": "s", "source": source, "measured": is_measured}
        file.write_text(json.dumps({"one": one}), encoding="utf-8")
        with pytest.raises(ValueError, match="one is"):
            Inputs.read(file)


# Text


def test_units():
    assert [byte_text(value) for value in (0, 999, 1e3, 1.024e9, 2.5e13, 1.4e15)] == [
        "0 B",
        "999 B",
        "1 kB",
        "1 GB",
        "25 TB",
        "1.4 PB",
    ]
    assert [second_text(value) for value in (0.00062, 0.0575, 0.9999, 5.8, 575)] == [
        "0.62 ms",
        "58 ms",
        "1 s",
        "5.8 s",
        "575 s",
    ]
    assert hour_text(5400) == "1.5"
    assert [number_text(value) for value in (0, 5.4e-6, 0.0123, 1234)] == ["0", "5.4e-6", "0.012", "1,234"]
    assert [image_text(value) for value in (1e7, 2.5e7, 1e10, 1000)] == ["1e7", "2.5e7", "1e10", "1e3"]


def test_the_script_prints_what_was_asked(capsys, monkeypatch):
    arguments = ["scale_model.py", "--images", "1e8", "1e7", "--dim", "128", "--network", "dinov2-s-224"]
    monkeypatch.setattr(sys, "argv", arguments)
    scale_model.main()
    text = capsys.readouterr().out
    assert text.index("| 1e7 ") < text.index("| 1e8 ")
    assert "### Embedding by `dinov2-s-224`" in text
    assert text.count("stops here") == len(ENGINES)
    for wrong in (["--images", "0"], ["--usable", "1.5"], ["--replicas", "0"], ["--dim", "x"]):
        with pytest.raises(SystemExit):
            scale_model.parsed(wrong)
        capsys.readouterr()


def test_the_document_is_up_to_date(tmp_path, monkeypatch):
    text = DOCUMENT.read_text(encoding="utf-8")
    assert len(scale_model.PART.findall(text)) == 2
    assert scale_model.with_tables(text) == text, "run: python benchmarks/scale_model.py --write docs/scale.md"
    old = tmp_path / "scale.md"
    old.write_text(text.replace("| 1e9 ", "| 1e5 "), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["scale_model.py", "--write", str(old)])
    scale_model.main()
    assert old.read_text(encoding="utf-8") == text
