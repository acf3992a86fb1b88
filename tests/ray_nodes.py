#!/usr/bin/env python3
"""Ray nodes on this machine, for tests. `RayNodes` runs this file as a process, so that pytest imports no Ray.

    python tests/ray_nodes.py GPUS CORES...

Starts a head without cores and a node with GPUS for each number of CORES, prints a line of JSON with its address and
the processes of the nodes, and then kills the node whose number it reads from each line of standard input. At the end
of that it stops everything.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import psutil
import pytest

STORE_BYTES = 80 * 2**20  # the least that Ray accepts
# A node is taken for dead after some seconds without an answer, rather than half a minute.
HEALTH = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 4}


def needs_ray() -> None:
    """Skips a test where Ray is not installed."""
    for package in ("ray", "pyarrow"):
        if find_spec(package) is None:
            pytest.skip(f"needs the package {package}: pip install 'dr_keras[ray]'")


class RayNodes:
    """A cluster on this machine while the block lasts.

    Args:
        cores: Of each node.
        gpus: Of each node; only numbers to Ray.

    Attributes:
        address: HOST:PORT.
    """

    def __init__(self, *cores: int, gpus: int = 0) -> None:
        self._cores, self._gpus = cores, gpus

    def __enter__(self) -> Self:
        needs_ray()
        self._folder = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)  # short
        complaints_file = Path(self._folder.name) / "complaints.txt"
        with complaints_file.open("w") as complaints:
            # RAY_TMPDIR rather than temp_dir: with temp_dir, Ray still writes the cluster's address to its default
            # folder, and fails where no other cluster has made that.
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", __file__, str(self._gpus), *map(str, self._cores)],
                env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": self._folder.name},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
            )
        assert self._process.stdout
        said = self._process.stdout.readline()
        if not said:
            reason = complaints_file.read_text()[-2000:]
            self.__exit__()
            raise AssertionError(f"the cluster has not started: {reason}")
        about = json.loads(said)
        self.address: str = about["address"]
        self._nodes: list[int] = about["nodes"]
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        try:
            ours = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            ours = []
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
        for process in psutil.wait_procs(ours, timeout=5)[1]:
            process.kill()
        assert self._process.stdout
        self._process.stdout.close()
        self._folder.cleanup()

    def workers(self, node: int) -> list[psutil.Process]:
        """The processes of a node that work on blocks, oldest first."""
        try:
            below = psutil.Process(self._nodes[node]).children(recursive=True)
            found = [process for process in below if process.cmdline()[:1] and "MapWorker" in process.cmdline()[0]]
        except psutil.NoSuchProcess:
            return []
        return sorted(found, key=psutil.Process.create_time)

    def wait_for_workers(self, seconds: float = 60) -> None:
        """Waits until each node has a worker."""
        end = time.monotonic() + seconds
        while not all(self.workers(node) for node in range(len(self._nodes))):
            assert time.monotonic() < end, "no worker has started"
            time.sleep(0.1)

    def kill(self, node: int) -> None:
        """Kills a node with all its processes."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{node}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == f"{node}\n"


def main() -> None:
    from ray.cluster_utils import Cluster

    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    gpus, *cores = sys.argv[1:]
    about = {"object_store_memory": STORE_BYTES, "_system_config": HEALTH, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0} | about)
    more = {"num_gpus": int(gpus), "object_store_memory": STORE_BYTES}
    nodes = [cluster.add_node(num_cpus=int(number), **more) for number in cores]
    raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
    print(json.dumps({"address": cluster.address, "nodes": raylets}), file=out, flush=True)
    for line in sys.stdin:
        number = int(line)
        for process in psutil.Process(raylets[number]).children(recursive=True):
            process.send_signal(signal.SIGKILL)
        cluster.remove_node(nodes[number], allow_graceful=False)
        print(number, file=out, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
