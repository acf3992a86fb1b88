"""A Milvus server of its own for tests, by the package milvus, on ports of this machine."""

import os
import random
import signal
import socket
import subprocess
import time
import warnings
from contextlib import suppress
from pathlib import Path
from types import TracebackType

READY_SECONDS = 120


PORTS = range(20_000, 32_000)  # below those that systems give to outgoing connections, one of which may come between


def free_port() -> int:
    """A port that nothing uses."""
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("0.0.0.0", random.choice(PORTS)))
            return probe.getsockname()[1]


class MilvusProcess:
    """A server that can be killed and started again with the same data; a context manager that ends it.

    Args:
        folder: Where it keeps its program and its data.
    """

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import milvus

        names = ("proxy", "proxy_internal", "root_coord", "query_coord", "query_node", "index_coord", "index_node")
        ports = {f"{name}_port": free_port() for name in (*names, "data_coord", "data_node", "etcd")}
        config = milvus.MilvusServerConfig()
        # The etcd inside would listen on its usual ports, so a second server on the machine could not start.
        folder.mkdir(parents=True, exist_ok=True)
        settings = folder / "etcd.yaml"
        client, peer = f"http://127.0.0.1:{ports['etcd_port']}", f"http://127.0.0.1:{free_port()}"
        settings.write_text(
            f"name: default\nlisten-client-urls: {client}\nadvertise-client-urls: {client}\nlisten-peer-urls: {peer}\n"
            f"initial-advertise-peer-urls: {peer}\ninitial-cluster: default={peer}\n"
            f"data-dir: {folder / 'data' / 'etcd.data'}\nlog-level: error\n"
        )
        config.template_text = config.template_text.replace("etcd:\n", f"etcd:\n  config:\n    path: {settings}\n", 1)
        config.update(data_dir=str(folder), **ports)
        config.resolve()
        milvus._initialize_data_files(str(folder))
        self._folder = folder
        self._metrics_port = free_port()
        self.port: int = ports["proxy_port"]
        self.address = f"milvus://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        environment = os.environ | {
            "DEPLOY_MODE": "STANDALONE",
            "METRICS_PORT": str(self._metrics_port),
            "MILVUS_RUN_DIR": str(self._folder / "run"),
            "LD_LIBRARY_PATH": str(self._folder / "bin"),
        }
        with open(self._folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                [self._folder / "bin" / "milvus", "run", "standalone"],
                cwd=self._folder,
                env=environment,
                stdout=log,
                stderr=log,
            )
        self.wait()

    def wait(self) -> None:
        """Waits until it answers."""
        from dr_keras.errors import RunError
        from dr_keras.index.milvus.server import Address, Server

        end = time.monotonic() + READY_SECONDS
        while True:
            try:
                server = Server(Address.of(f"{self.address}/any"))
                server.call("list_collections")
                server.close()
                return
            except RunError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    def kill(self) -> None:
        """Ends it as a power failure of its program would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ends it."""
        self._end(signal.SIGTERM)

    def _end(self, signal: signal.Signals) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(signal)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def __enter__(self) -> "MilvusProcess":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
