"""Objects of dr_keras are shared between threads, and each thread gets its own results."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import ROOT, needs_openvino, write_folders
from PIL import Image

from dr_keras import load
from dr_keras.atomic_files import new_file, new_folder
from dr_keras.data.judgments import Judgments, JudgmentSampler
from dr_keras.data.relevance import FeatureRelevance
from dr_keras.data.relevance_sampler import RelevanceSampler
from dr_keras.errors import RunError
from dr_keras.index.index import Entry, Index
from dr_keras.server.judging import JudgmentFile

THREADS = 8


def in_threads(work, calls, threads=THREADS):
    """The result of `work(number)` for each number, called by several threads at once."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, range(calls)))


def pictures(count, side=32):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


@pytest.mark.parametrize("runtime", ["litert", "openvino", "saved_model", "keras", "auto"])
def test_each_caller_gets_the_vectors_of_its_own_pictures(workplace, runtime):
    if runtime == "openvino":
        needs_openvino()
    given = pictures(40)
    want = load(workplace / "runs" / "small", runtime=runtime).embed(given)
    model = load(workplace / "runs" / "small", runtime=runtime)  # loads lazily, so the threads race there too

    def embed(number):
        rows = (np.arange(1 + number % 21) + number) % 40
        return np.abs(model.embed(given[rows]) - want[rows]).max()

    assert max(in_threads(embed, 200)) < 1e-5


@pytest.mark.parametrize("runtime", ["litert", "openvino", "openvino_bfloat16", "auto"])
def test_both_heads_of_a_model_are_used_at_once(workplace, monkeypatch, runtime):
    if runtime.startswith("openvino"):
        needs_openvino()
    monkeypatch.setattr("dr_keras.run_embedder.OPENVINO_MIN_SECONDS", 1e-3)  # so that auto changes its runtime, too
    given, heads = pictures(40), ("trained", "general")
    alone = load(workplace / "runs" / "small", runtime="litert" if runtime == "auto" else runtime)
    want = {head: alone.vectors(given, head) for head in heads}
    model = load(workplace / "runs" / "small", runtime=runtime)

    def embed(number):
        rows, head = (np.arange(1 + number % 21) + number) % 40, heads[number % 2]
        return np.abs(model.vectors(given[rows], head) - want[head][rows]).max()

    assert max(in_threads(embed, 200)) < 1e-4


@pytest.mark.parametrize("runtime", ["litert", "keras"])
def test_each_caller_gets_the_explanation_of_its_own_pictures(workplace, runtime):
    run = workplace / "runs" / "small"
    given = pictures(24)
    alone = load(run, runtime=runtime)
    want = [alone.explain_pixels(given[n], given[n - 1]) for n in range(len(given))]
    model = load(run, runtime=runtime)  # prepares its maps lazily, so the threads race there too
    found = in_threads(lambda n: model.explain_pixels(given[n], given[n - 1]), len(given))
    for one, other in zip(found, want, strict=True):
        np.testing.assert_allclose(one.pairs, other.pairs, atol=1e-6)
        assert one.cosine == pytest.approx(other.cosine, abs=1e-6)


def test_judgments_of_several_visitors_are_whole_lines(tmp_path):
    file = JudgmentFile(tmp_path / "judgments.csv")
    counts = in_threads(lambda n: file.append(f"q{n}", f"p{n}", f"n{n}"), 200)
    assert sorted(counts) == list(range(1, 201))
    lines = (tmp_path / "judgments.csv").read_text().splitlines()
    assert sorted(lines[1:]) == sorted(f"q{n},p{n},n{n},1,0" for n in range(200))


@pytest.mark.parametrize("kind", ["relevance", "judgments"])
def test_samplers_give_each_thread_the_batch_of_its_step(kind):
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 40)
    vectors = random.random((120, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    images = np.stack([random.permutation(120)[:3] for _ in range(100)])

    def sampler():
        if kind == "judgments":
            return JudgmentSampler(Judgments(images, np.ones(100), np.zeros(100)), labels, 8, seed=0)
        relevance = FeatureRelevance([vectors], labels, seed=0)
        return RelevanceSampler(labels, relevance, 8, seed=0, out_of_class=0.5, buffer=10)

    want = [sampler().batch(step) for step in range(40)]  # several epochs, or rounds of buffers
    shared = sampler()
    for one, other in zip(in_threads(lambda step: shared.batch(step), 40), want, strict=True):
        for name in ("query", "positive", "negative"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_openvino_sends_no_telemetry():
    needs_openvino()
    code = (
        "import os, sys\n"
        "forks = []\n"
        "os.register_at_fork(before=lambda: forks.append(1))\n"
        "import numpy as np\n"
        "from dr_keras import load\n"
        "load('tiny-imagenet-64', runtime='openvino').embed(np.zeros((20, 64, 64, 3), np.uint8))\n"
        "import time; time.sleep(1)\n"
        "print(forks, 'openvino_telemetry' in sys.modules)\n"
    )
    env = {name: value for name, value in os.environ.items() if name != "CI"}  # OpenVINO sends none in CI
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.stdout == "[] False\n", done.stderr


def test_threads_get_their_own_searches(workplace):
    model = load(workplace / "runs" / "small")
    given = pictures(24)
    want = [[result.id for result in found] for found in model.search(given, 5)]
    names = [entry.id for entry in model.index.records.entries(range(24))]
    kept = {name: [result.id for result in model.retrieve(name, 5).results] for name in names}

    def search(number):
        row = number % 24
        if number % 3:
            return [result.id for result in model.search(given[row : row + 1], 5)[0]] == want[row]
        return [result.id for result in model.retrieve(names[row], 5).results] == kept[names[row]]

    assert all(in_threads(search, 300))


def test_encoded_images_and_pictures_of_pillow_come_from_threads_too(workplace, tmp_path):
    model = load(workplace / "runs" / "small")
    write_folders(tmp_path / "files", each=6)
    files = sorted((tmp_path / "files").rglob("*.png"))
    want = model.embed(files)

    def embed(number):
        row = number % len(files)
        if number % 3 == 2:
            with Image.open(files[row]) as image:
                return np.abs(model.embed([image])[0] - want[row]).max()
        source = files[row].read_bytes() if number % 3 else files[row]
        return np.abs(model.embed([source])[0] - want[row]).max()

    assert max(in_threads(embed, 120)) < 1e-6


def unit(count, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_an_index_is_searched_while_another_writes_and_all_refresh(tmp_path):
    """Each image's number determines its vector, so a result from another state or row is detected."""
    vectors = unit(600)
    with Index.create(tmp_path / "index", 8, root=tmp_path) as writer:
        writer.add([Entry(f"{number}.png", f"c{number % 3}") for number in range(200)], vectors[:200])
        reader = Index.open(tmp_path / "index")
        stop, wrong = threading.Event(), []

        def write():
            random = np.random.default_rng(1)
            for start in range(200, 600, 20):
                numbers = range(start, start + 20)
                writer.add(
                    [Entry(f"{number}.png", f"c{number % 3}") for number in numbers], vectors[start : start + 20]
                )
                some = random.choice(np.arange(start - 100, start), 5, replace=False)
                writer.remove([id for id in (f"{number}.png" for number in some) if writer.records.row(id) is not None])
                if start % 100 == 0:
                    writer.compact()
            stop.set()

        def read(number):
            random = np.random.default_rng(number)
            while not stop.is_set():
                if number % 4 == 0:
                    reader.refresh()
                with reader.held():
                    wanted = int(random.integers(0, 200))
                    rows, distances = reader.search(vectors[wanted][None], 3, where=f"label = c{wanted % 3}")
                    entries = reader.records.entries(rows[0])
                    own = reader.records.row(f"{wanted}.png")
                for entry, distance in zip(entries, distances[0], strict=True):
                    other = int(entry.id.removesuffix(".png"))
                    right = np.linalg.norm(vectors[wanted] - vectors[other])
                    if abs(distance - right) > 1e-5 or other % 3 != wanted % 3:
                        wrong.append((wanted, entry, distance))
                if own is not None and entries[0].id != f"{wanted}.png":
                    wrong.append((wanted, entries))
                len(reader), reader.searched_rows(), reader.stats(), reader.records.class_counts()

        with ThreadPoolExecutor(THREADS + 1) as pool:
            waiting = [pool.submit(write), *(pool.submit(read, number) for number in range(THREADS))]
            for one in waiting:
                one.result(timeout=120)
        assert wrong == []
        reader.close()
        reader.close()
        with pytest.raises(RunError, match="is closed"):
            reader.search(vectors[:1], 1)


def test_closing_from_several_threads_closes_nobody_elses_file(tmp_path):
    for number in range(30):
        index = Index.create(tmp_path / str(number), 8, root=tmp_path)
        opened = []

        def close_and_open(_, index=index, opened=opened):
            index.close()
            opened.append(os.open(tmp_path, os.O_RDONLY))  # would reuse a descriptor that is closed twice

        in_threads(close_and_open, 8)
        for descriptor in opened:
            os.fstat(descriptor)
            os.close(descriptor)


def test_files_that_threads_write_have_the_permissions_of_the_process(tmp_path):
    """The umask is process-wide: changing it temporarily affects all threads."""
    before = os.umask(0o027)
    stop = threading.Event()
    modes = set()

    def make_others():
        while not stop.is_set():
            file = tmp_path / f"{threading.get_ident()}"
            file.touch()
            modes.add(file.stat().st_mode & 0o777)
            file.unlink()
            time.sleep(0)

    try:
        other = threading.Thread(target=make_others)
        other.start()

        def make(number):
            with new_file(tmp_path / f"file-{number}") as temporary:
                temporary.write_text("x")
            with new_folder(tmp_path / f"folder-{number}"):
                pass
            modes.add((tmp_path / f"file-{number}").stat().st_mode & 0o777)
            return (tmp_path / f"folder-{number}").stat().st_mode & 0o777

        folders = set(in_threads(make, 200))
    finally:
        stop.set()
        other.join()
        os.umask(before)
    assert (modes, folders) == ({0o640}, {0o750})
