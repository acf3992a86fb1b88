"""A Milvus server of its own for tests, by the package milvus, on ports of this machine."""

import os
import signal
import socket
import subprocess
import time
import warnings
from pathlib import Path
from types import TracebackType

READY_SECONDS = 120


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class MilvusProcess:
    """A server that can be killed and started again with the same data; a context manager that ends it.

    Args:
        folder: Where it keeps its program and its data.
    """

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from milvus import MilvusServer, MilvusServerConfig

        names = ("proxy", "proxy_internal", "root_coord", "query_coord", "query_node", "index_coord", "index_node")
        ports = {f"{name}_port": free_port() for name in (*names, "data_coord", "data_node", "etcd")}
        config = MilvusServerConfig()
        self._server = MilvusServer(config, data_dir=str(folder), **ports)
        self._server.webservice_port = free_port()
        self.port: int = ports["proxy_port"]
        self.address = f"milvus://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        here = Path.cwd()
        try:
            self._server.wait_for_started = False
            self._server.start()
        finally:
            os.chdir(here)
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

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        """Its process."""
        return self._server.server_proc

    def kill(self) -> None:
        """Ends it as a power failure would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Ends it."""
        self._server.stop()

    def __enter__(self) -> "MilvusProcess":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
