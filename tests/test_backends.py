"""Training, evaluation and the library on every Keras backend, in child processes, as a process has only one."""

import csv
import importlib.util
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, ids_of, script, vectors_of

from dr_keras.config import Config
from dr_keras.data.catalog import load_catalog
from dr_keras.data.pixel_store import load_pixels
from dr_keras.loading import load
from dr_keras.runs import Run


def backend(name):
    marks = getattr(pytest.mark, name) if name != "tensorflow" else ()
    return pytest.param(name, marks=marks)


pytestmark = pytest.mark.usefixtures("jax_programs")
BACKENDS = [backend(name) for name in ("tensorflow", "jax", "torch")]


@pytest.fixture(autouse=True)
def installed(request):
    for name in ("jax", "torch"):
        if request.node.get_closest_marker(name) and importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")


def flags(folders, run, *more):
    return [
        *("--data", folders, "--run", run, "--image-size", 16, "--backbone", "resnet10", "--width", 4),
        *("--embedding-dim", 8, "--epochs", 2, "--steps-per-epoch", 3, "--batch-size", 8, "--shift", 1),
        *("--monitor", 0.1, "--validation", 0.2, *more),
    ]


ONLY_TRIPLETS = ("--pretrain-epochs", 0, "--classifier-weight", 0, "--precision", "float32")


def history(run):
    with open(run.history_file, newline="") as file:
        return list(csv.DictReader(file))


def losses_by_hand(folders, backend_name, tmp_path):
    """The losses of the same steps from `train_on_batch` on the same batches, without pipeline or `fit`."""
    code = (
        "import json, sys, numpy as np\n"
        "from dr_keras.config import Config\n"
        "from dr_keras.data.splits import TRAIN\n"
        "from dr_keras.data.augmentation_draws import Augmentation\n"
        "from dr_keras.data.catalog import load_catalog\n"
        "from dr_keras.data.batches import TripletSource\n"
        "from dr_keras.data.pixel_store import load_pixels\n"
        "from dr_keras.data.samplers import TripletSampler\n"
        "from dr_keras.training.compile import compiled_model\n"
        "from dr_keras.model.network import initial_network\n"
        "config = Config(**json.loads(sys.argv[1]))\n"
        "catalog = load_catalog(config.data, monitor=config.monitor, validation=config.validation, seed=0)\n"
        "catalog, pixels, _ = load_pixels(catalog, config.image_size)\n"
        "rows = catalog.rows(TRAIN)\n"
        "sampler = TripletSampler(catalog.labels[rows], config.batch_size, 0)\n"
        "source = TripletSource(pixels, rows, sampler, Augmentation(True, 1))\n"
        "model = compiled_model(initial_network(config), ranking=config, optimizer=config, steps=6)\n"
        "losses = [float(model.train_on_batch(source.batch(s), return_dict=True)['loss']) for s in range(6)]\n"
        "print(json.dumps(losses))\n"
    )
    config = Config(
        data=str(folders),
        image_size=16,
        backbone="resnet10",
        width=4,
        embedding_dim=8,
        epochs=2,
        steps_per_epoch=3,
        batch_size=8,
        shift=1,
        monitor=0.1,
        validation=0.2,
        pretrain_epochs=0,
        classifier_weight=0.0,
        precision="float32",
    )
    result = subprocess.run(
        [sys.executable, "-c", code, json.dumps(config.to_dict())],
        env=os.environ | {"KERAS_BACKEND": backend_name, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.nightly
@pytest.mark.parametrize("name", BACKENDS)
def test_the_whole_line_runs_on(name, tmp_path, folders):
    env = {"KERAS_BACKEND": name}
    result = script(tmp_path, "train.py", *flags(folders, "r", *ONLY_TRIPLETS), env=env)
    assert result.returncode == 0, result.stderr
    run = Run(tmp_path / "runs" / "r")
    assert [row["step"] for row in history(run)] == list("012345")
    losses = [float(row["loss"]) for row in history(run)]
    assert losses == pytest.approx(losses_by_hand(folders, name, tmp_path), rel=1e-4)
    for file in (run.network_file, run.saved_model, run.litert_file, run.index, run.metrics_file):
        assert file.exists()
    evaluated = script(tmp_path, "evaluate.py", "--run", "r", "--json", env=env)
    assert evaluated.returncode == 0, evaluated.stderr
    figures = json.loads(evaluated.stdout)
    assert 0 < figures["precision@30"] <= 1
    assert 0 < figures["baselines"]["untrained"]["precision@30"] <= 1
    # A model trained on this backend embeds the same with LiteRT.
    model = load(tmp_path / "runs" / "r")
    rows = [0, 30, 60]
    found = model.embed([model.index.root / ids_of(model.index)[row] for row in rows])
    assert np.abs(found - model.index.vectors[rows]).max() < 1e-4


@pytest.mark.nightly
@pytest.mark.parametrize("name", [backend("jax"), backend("torch")])
@pytest.mark.usefixtures("export_here")
def test_without_tensorflow_it_trains_and_says_how_to_export(name, tmp_path, folders, refuse):
    env = {"KERAS_BACKEND": name} | refuse("tensorflow", "tensorflow_datasets")
    result = script(tmp_path, "train.py", *flags(folders, "r", *ONLY_TRIPLETS, "--epochs", 1), env=env)
    assert result.returncode == 0, result.stderr
    assert "where it is installed: python train.py --export-only --run r" in result.stderr
    run = Run(tmp_path / "runs" / "r")
    assert run.network_file.is_file()
    assert not run.saved_model.exists()
    assert not run.litert_file.exists()

    # Keras embeds a new image; an indexed one needs no framework.
    query = str(folders / "disc" / "disc_3.png")
    copy = tmp_path / "copy.png"
    copy.write_bytes((folders / "disc" / "disc_3.png").read_bytes())
    answers = [
        script(tmp_path, "retrieve.py", "--query", q, "--json", "--include-self", env=env) for q in (query, copy)
    ]
    by_name, by_file = (json.loads(answer.stdout)["results"] for answer in answers)
    assert by_name[0]["name"] == by_file[0]["name"] == "disc_3.png"
    assert by_file[0]["distance"] < 1e-3

    # Run the command it printed, with TensorFlow available.
    exported = script(tmp_path, "train.py", "--export-only", "--run", "r")
    assert exported.returncode == 0, exported.stderr
    assert run.litert_file.is_file()


def parallel(tmp_path, folders, run, without_tensorflow, devices, hosts=1):
    """Runs train.py on JAX with `devices` CPU devices per host; returns the history of the first host."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = (
        os.environ
        | without_tensorflow
        | {
            "KERAS_BACKEND": "jax",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        }
    )
    children = []
    for host in range(hosts):
        place = ("--hosts", hosts, "--host-index", host, "--coordinator", address) if hosts > 1 else ()
        command = [sys.executable, str(ROOT / "train.py"), *map(str, flags(folders, run, *place))]
        children.append(subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True))
    messages = [child.communicate(timeout=300)[1] for child in children]
    assert [child.returncode for child in children] == [0] * hosts, messages
    assert (f"computing on {devices * hosts} devices of {hosts} hosts" in messages[0]) == (devices * hosts > 1)
    return Run(tmp_path / "runs" / run)


@pytest.mark.jax
@pytest.mark.nightly
def test_several_devices_and_several_hosts_compute_what_one_does(tmp_path, folders, refuse):
    env = refuse("tensorflow")  # skips the export
    one = parallel(tmp_path, folders, "one", env, devices=1)
    for run in (
        parallel(tmp_path, folders, "devices", env, devices=2),
        parallel(tmp_path, folders, "hosts", env, devices=1, hosts=2),
    ):
        for row, expected in zip(history(run), history(one), strict=True):
            assert float(row["loss"]) == pytest.approx(float(expected["loss"]), rel=2e-4), row["step"]
        vectors = [vectors_of(each) for each in (run, one)]
        assert np.abs(vectors[0] - vectors[1]).max() < 0.01
        assert run.finished
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["devices", "hosts", "one"]


def test_hosts_need_jax_and_a_batch_that_can_be_shared(tmp_path, folders):
    more = ("--hosts", 2, "--host-index", 0, "--coordinator", "127.0.0.1:1")
    result = script(tmp_path, "train.py", *flags(folders, "r", *more), env={"KERAS_BACKEND": "tensorflow"})
    assert result.returncode == 2
    assert "needs JAX" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_parts_of_hosts_make_up_the_batch(folders):
    from dr_keras.data.augmentation_draws import Augmentation
    from dr_keras.data.batches import Share, TripletSource
    from dr_keras.data.samplers import TripletSampler

    catalog, pixels, _ = load_pixels(load_catalog(folders, monitor=0, validation=0, seed=0), 16)
    rows = np.arange(len(catalog))
    sampler = TripletSampler(catalog.labels, 10, 0)

    def source(**place):
        return TripletSource(pixels, rows, sampler, Augmentation(True, 2), share=Share(**place))

    for step in (0, 9):  # 10 triplets, padded to 12; the last 6 of an epoch of 96, padded to 8
        whole = source(multiple=4).batch(step)
        parts = [source(host=host, hosts=2, multiple=4).batch(step) for host in range(2)]
        for name, values in whole.items():
            assert len(values) == (12, 8)[step // 9]
            assert np.array_equal(np.concatenate([part[name] for part in parts]), values)
            if step == 0:
                assert np.array_equal(values[10:], values[:2]) == (name == "classes")
