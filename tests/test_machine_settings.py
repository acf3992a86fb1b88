"""Settings in keras.json, the environment or the process change neither networks nor results, and are preserved."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import ROOT, draw_encoded, script

from dr_keras.backend import import_framework, keras_defaults
from dr_keras.config import Config
from dr_keras.errors import InputError
from dr_keras.model.network import initial_network
from dr_keras.training.compile import training_precision

ODD = {"floatx": "float16", "epsilon": 0.5, "backend": "tensorflow", "image_data_format": "channels_first"}

TRAINS = """
import json, sys
import dr_keras
assert not {"keras", "tensorflow", "numpy"} & {name.partition(".")[0] for name in sys.modules}
import keras
from dr_keras import Config, train
from dr_keras.data.images import decode
from dr_keras.embedders import NetworkEmbedder
from dr_keras.training import run as run
run._export = lambda *_: {}  # runs in its own process; not under test here

def settings():
    names = ("floatx", "epsilon", "image_data_format", "max_epochs", "max_steps_per_epoch")
    return [getattr(keras.config, name)() for name in names]

before = settings()
model = train(Config(**json.loads(sys.argv[1])), runs=".")
file = sys.argv[2]
ours = model.embed([file])
network = keras.models.load_model("r/embedding.keras")  # as a user would, with their own settings
theirs = network.predict_on_batch(decode(file, 16)[None])
assert settings() == before
policy = keras.config.dtype_policy().name
history = open("r/history.csv").read().splitlines()
loss = history[0].split(",").index("loss")
print(json.dumps({
    "settings": before,
    "policy": policy,
    "shapes": [list(w.shape) for w in network.weights],
    "types": sorted({w.dtype for w in network.weights}),
    "losses": [float(row.split(",")[loss]) for row in history[1:]],
    "vectors": [ours.tolist(), [list(map(float, theirs[0]))]],
}))
"""


def machine(home: Path, settings: object = None, **variables: str) -> dict[str, str]:
    """The environment variables of a machine with this keras.json."""
    (home / ".keras").mkdir(parents=True)
    if settings:
        (home / ".keras" / "keras.json").write_text(json.dumps(settings))
    left_out = ("KERAS_BACKEND", "KERAS_HOME")
    return {name: value for name, value in os.environ.items() if name not in left_out} | {
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        **variables,
    }


@pytest.mark.nightly
@pytest.mark.usefixtures("jax_programs")
@pytest.mark.parametrize("backend", ["tensorflow", pytest.param("jax", marks=pytest.mark.jax)])
def test_the_machine_changes_neither_network_nor_training(backend, tmp_path, folders):
    network = {"image_size": 16, "backbone": "resnet10", "width": 4, "embedding_dim": 8, "precision": "float32"}
    steps = {"epochs": 2, "steps_per_epoch": 3, "batch_size": 8, "shift": 1, "pretrain_epochs": 0}
    config = {"data": str(folders), "run": "r"} | network | steps
    picture = tmp_path / "picture.png"
    picture.write_bytes(draw_encoded())
    odd = {"KERAS_MAX_STEPS_PER_EPOCH": "1", "KERAS_MAX_EPOCHS": "1"}
    found = []
    for name, settings, variables in (("plain", None, {}), ("odd", ODD, odd)):
        env = machine(tmp_path / name, settings, KERAS_BACKEND=backend, **variables)
        result = subprocess.run(
            [sys.executable, "-c", TRAINS, json.dumps(config), str(picture)],
            cwd=tmp_path / name,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        found.append(json.loads(result.stdout.splitlines()[-1]))
    plain, changed = found
    assert plain["settings"] == ["float32", 1e-7, "channels_last", None, None]
    assert changed["settings"] == ["float16", 0.5, "channels_first", 1, 1]
    assert (plain["policy"], changed["policy"]) == ("float32", "float16")
    assert changed["shapes"] == plain["shapes"]
    assert changed["types"] == plain["types"] == ["float32"]
    assert len(plain["losses"]) == 6
    assert changed["losses"] == pytest.approx(plain["losses"], rel=1e-4)
    for vectors in (*plain["vectors"], changed["vectors"][1]):
        np.testing.assert_allclose(vectors, changed["vectors"][0], atol=2e-3)


def said(place: Path, env: dict[str, str]) -> str:
    """The single line printed by train.py, which must exit with status 2."""
    result = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--data", "digits", "--run", "r"],
        cwd=place,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr


@pytest.mark.parametrize("name", ["nonsense", "openvino", "numpy"])
def test_a_backend_that_cannot_train_is_one_line(name, tmp_path):
    line = said(tmp_path, machine(tmp_path / "home", KERAS_BACKEND=name))
    assert f"KERAS_BACKEND is '{name}', with which nothing can be trained" in line
    assert "tensorflow, jax, torch (installed here: tensorflow" in line


@pytest.mark.parametrize("by", ["HOME", "KERAS_HOME"])
def test_a_backend_of_keras_json_is_named_with_its_place(by, tmp_path):
    env = machine(tmp_path / "home", ODD | {"backend": "theano"})
    if by == "KERAS_HOME":
        (tmp_path / "home" / ".keras").rename(tmp_path / "elsewhere")
        env["KERAS_HOME"] = str(tmp_path / "elsewhere")
    file = tmp_path / ("elsewhere" if by == "KERAS_HOME" else "home/.keras") / "keras.json"
    assert f"\"backend\" in {file} is 'theano'" in said(tmp_path, env)


def test_a_backend_that_is_not_installed_is_one_line(tmp_path, refuse):
    env = machine(tmp_path / "home", KERAS_BACKEND="torch")
    hook = refuse("torch")["PYTHONPATH"]
    line = said(tmp_path, env | {"PYTHONPATH": f"{hook}{os.pathsep}{ROOT}"})
    assert "torch is refused" in line
    assert "KERAS_BACKEND=torch" in line


@pytest.mark.parametrize(
    ("settings", "variables", "words"),
    [
        ({"floatx": "float8"}, {}, ("floatx=float8", "keras.json")),
        ({"epsilon": 1}, {}, ("epsilon=1", "keras.json")),
        ({"image_data_format": "sideways"}, {}, ("image_data_format=sideways", "keras.json")),
        (None, {"KERAS_MAX_EPOCHS": "many"}, ("KERAS_MAX_EPOCHS=many",)),
        (["a list"], {}, ("keras.json",)),
    ],
)
def test_another_bad_setting_is_one_line(settings, variables, words, tmp_path):
    line = said(tmp_path, machine(tmp_path / "home", settings, **variables))
    assert all(word in line for word in words), line


IMPORTS = """
import json, os, sys, threading, time
from dr_keras.errors import InputError
from dr_keras.backend import import_framework
import_failed = False
os.environ["KERAS_BACKEND"] = "nonsense"
try:
    import_framework()
except InputError:
    import_failed = True
assert import_failed
del os.environ["KERAS_BACKEND"]
before = dict(os.environ)
wrong = []

def one():
    try:
        import_framework("tensorflow")
        import keras
        keras.layers.Dense  # all of it is there
    except BaseException as error:
        wrong.append(error)

threads = [threading.Thread(target=one) for _ in range(4)]
for thread in threads:
    thread.start()
while any(thread.is_alive() for thread in threads):
    os.write(2, b"a line of another thread\\n")
    time.sleep(0.05)
assert not wrong, wrong
changed = {name for name in set(before) | set(os.environ) if before.get(name) != os.environ.get(name)}
print(json.dumps(sorted(changed)))
os.write(2, b"end\\n")
"""


def test_threads_import_it_together_and_lose_no_line(tmp_path):
    env = machine(tmp_path / "home")
    env.pop("TF_CPP_MIN_LOG_LEVEL", None)
    result = subprocess.run(
        [sys.executable, "-c", IMPORTS], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    assert lines[-1] == "end"
    assert len(lines) > 2
    assert set(lines[:-1]) == {"a line of another thread"}
    ours = {"KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL"}
    assert not ours & set(json.loads(result.stdout))


def test_nothing_is_done_where_keras_is_imported_already(monkeypatch):
    touched = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "dup2", lambda *descriptors: touched.append(descriptors))
        patch.setenv("KERAS_BACKEND", "nonsense")  # too late to matter
        import_framework()
        patch.setattr(keras.config, "backend", lambda: "openvino")
        with pytest.raises(InputError, match="Keras runs on openvino, which cannot train"):
            import_framework()
    assert not touched


@pytest.fixture
def odd_process():
    """User settings in this process."""
    keras.config.set_floatx("float64")
    keras.config.set_image_data_format("channels_first")
    keras.config.set_max_steps_per_epoch(3)
    yield
    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_last")
    keras.config.set_max_steps_per_epoch(None)


def shared():
    return keras.config.floatx(), keras.config.image_data_format(), keras.config.max_steps_per_epoch()


@pytest.mark.usefixtures("odd_process")
def test_the_last_thread_to_leave_restores_settings():
    both_in, first_out = threading.Barrier(2, timeout=30), threading.Event()
    seen = []

    def first():
        with keras_defaults():
            both_in.wait()
        first_out.set()

    def last():
        with keras_defaults():
            both_in.wait()
            assert first_out.wait(30)
            seen.append(shared())

    threads = [threading.Thread(target=target) for target in (first, last)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [("float32", "channels_last", None)]
    assert shared() == ("float64", "channels_first", 3)


@pytest.mark.usefixtures("odd_process")
def test_settings_are_restored_after_an_error_and_later_changes_are_kept():
    with pytest.raises(ZeroDivisionError):
        with keras_defaults():
            keras.config.set_max_steps_per_epoch(8)
            raise ZeroDivisionError
    assert shared() == ("float64", "channels_first", 8)


@pytest.mark.usefixtures("odd_process")
def test_the_training_policy_is_local_to_the_training():
    keras.config.set_dtype_policy("float64")
    try:
        with training_precision(Config(precision="mixed_bfloat16")):
            with keras_defaults():
                assert keras.config.dtype_policy().name == "mixed_bfloat16"
        assert keras.config.dtype_policy().name == "float64"
        network = initial_network(Config(image_size=16, width=4, embedding_dim=8))
        assert keras.config.dtype_policy().name == "float64"
        assert {weight.dtype for weight in network.weights} == {"float32"}
        assert network.get_layer("stem_conv").data_format == "channels_last"
    finally:
        keras.config.set_dtype_policy("float32")


READS = """
import sys
sys.path.insert(0, {root!r})
{imports}
network = keras.models.load_model(sys.argv[1])
print(network.name)
"""


@pytest.mark.parametrize("imports", ["import dr_keras\nimport keras", "import keras\nimport dr_keras"])
def test_a_person_reads_the_network_by_keras_itself(imports, workplace):
    code = READS.format(root=str(ROOT), imports=imports)
    result = subprocess.run(
        [sys.executable, "-c", code, "runs/small/embedding.keras"],
        cwd=workplace,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "embedding_network\n"


@pytest.mark.nightly
def test_evaluating_on_an_odd_machine_gives_the_same_figures(workplace, tmp_path):
    arguments = ("evaluate.py", "--run", workplace / "runs" / "small", "--json")
    plain, odd = (
        script(workplace, *arguments, env=machine(tmp_path / name, settings))
        for name, settings in (("plain", None), ("odd", ODD))
    )
    assert odd.returncode == 0, odd.stderr
    figures = [json.loads(result.stdout) for result in (plain, odd)]
    for found in figures:
        del found["ranking_seconds"]
    assert figures[0] == figures[1]
