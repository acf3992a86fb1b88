#!/usr/bin/env python3
"""How long does a user wait for the first step, where does the time go, and how much memory does a run take?

    python benchmarks/bench_start.py --data FOLDER

Start: all of train.py, from launch until history.csv has its first step, with the decoded images cached by an earlier
run; and again as in an environment that has nothing but dr_keras[train], as Keras and TensorFlow import some packages
only because they are there. Parts: the same calls in one process, timed. Memory: the peak of train.py over a run of
--steps steps.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import machine, record, spread

ROOT = Path(__file__).parent.parent
SHORT = ("--epochs", "1", "--steps-per-epoch", "1", "--eval-every", "0")
# What Keras, TensorFlow and tensorboardX import if it is installed, as it is on a machine that runs all benchmarks.
OTHERS = ("jax", "matplotlib", "pandas", "scipy", "sklearn", "torch")
WITHOUT_OTHERS = f"sys.modules.update(dict.fromkeys({OTHERS}))"

PARTS = """
import json, sys, time
sys.path.insert(0, sys.argv[2])
marks, last = {}, time.perf_counter()
def mark(name):
    global last
    now = time.perf_counter(); marks[name] = now - last; last = now
from dr_keras.backend import import_framework
import_framework()
mark("loading Keras and TensorFlow")
from dr_keras.config import Config
from dr_keras.data.splits import TRAIN
from dr_keras.data.augmentation_draws import Augmentation
from dr_keras.data.catalog import load_catalog
from dr_keras.data.batches import TripletSource
from dr_keras.data.pixel_store import load_pixels
from dr_keras.data.batches import batches
from dr_keras.data.samplers import TripletSampler
from dr_keras.training.compile import compiled_model
from dr_keras.training.run import build_network
config = Config(data=sys.argv[1])
mark("loading the rest")
network = build_network(config)
mark("building the network")
catalog = load_catalog(config.data, monitor=config.monitor, validation=config.validation, seed=0)
mark("listing the files")
catalog, pixels, _ = load_pixels(catalog, config.image_size, store=config.store)
mark("opening the store (comparing sizes and times)")
rows = catalog.rows(TRAIN)
sampler = TripletSampler(catalog.labels[rows], config.batch_size, 0)
source = TripletSource(pixels, rows, sampler, Augmentation(config.flip, config.shift))
model = compiled_model(network, ranking=config, optimizer=config, steps=100)
model.fit(batches(source, 0, 1), steps_per_epoch=1, verbose=0, shuffle=False)
mark("tracing and the first step")
print(json.dumps(marks))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60, help="length of the run whose memory is measured; 0 to skip")
    options = parser.parse_args()
    data = str(Path(options.data).resolve())
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        first_step(place, data, "warm-up")
        seconds = [first_step(place, data, str(n)) for n in range(options.rounds)]
        print(f"start to first step: {spread(seconds, 's', 1)}")
        alone = [first_step(place, data, f"alone-{n}", WITHOUT_OTHERS) for n in range(options.rounds)]
        print(f"  without what dr_keras[train] does not need: {spread(alone, 's', 1)}")
        record("start to first step", seconds, "s", goal="<= 8")
        record("start to first step, dr_keras[train] alone", alone, "s", goal="<= 8")
        child = subprocess.run([sys.executable, "-c", PARTS, data, str(ROOT)], stdout=subprocess.PIPE, check=True)
        for name, seconds in json.loads(child.stdout.splitlines()[-1]).items():
            print(f"  {name}: {seconds:.1f} s (n = 1)")
        if not options.steps:
            return
        print(f"peak memory of a run, its exports included: {memory(place, data, options.steps)}")


def first_step(place: Path, data: str, run: str, before: str = "") -> float:
    """Seconds from the start of train.py, after some Python, until its first step is in history.csv; then stops it."""
    arguments = [str(ROOT / "train.py"), "--data", data, "--run", run, *SHORT]
    code = f"import runpy, sys; {before}; sys.argv = {arguments}; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code] if before else [sys.executable, *arguments]
    started = time.perf_counter()
    child = subprocess.Popen(command, cwd=place, stderr=subprocess.DEVNULL)
    history = place / "runs" / run / "history.csv"
    while child.poll() is None:
        if history.exists() and len(history.read_text().splitlines()) > 1:
            break
        time.sleep(0.02)
    seconds = time.perf_counter() - started
    child.kill()
    child.wait()
    return seconds


def memory(place: Path, data: str, steps: int) -> str:
    """The peak memory of train.py itself and of its largest child process."""
    command = [sys.executable, str(ROOT / "train.py"), "--data", data, "--run", "memory", "--epochs", "1"]
    child = subprocess.Popen(
        [*command, "--steps-per-epoch", str(steps)], cwd=place, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    own = anonymous = 0
    while child.poll() is None:
        try:
            lines = Path(f"/proc/{child.pid}/status").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            break
        values = {
            name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines) if "kB" in value
        }
        own = max(own, values.get("VmHWM", 0))
        anonymous = max(anonymous, values.get("RssAnon", 0))
        time.sleep(0.2)
    if child.wait():
        sys.exit("the run failed")
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return (
        f"{own / 2**20:.2f} GiB resident, of it {anonymous / 2**20:.2f} GiB its own and the rest pages of the store, "
        f"which the system takes back when it needs them; the largest child process {largest / 2**20:.2f} GiB (n = 1)"
    )


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main()
