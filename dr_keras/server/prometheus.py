"""Metrics for Prometheus."""

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from dr_keras.server.peers import Peers

METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS"})  # clients may invent others; those count as one
DURATION_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
BATCH_IMAGES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """The metrics of one server, in a registry of their own.

    Args:
        peers: The workers of the server; what `text` returns is of all of them.
    """

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, peers: Peers) -> None:
        self._folder = peers.folder
        if self._folder is not None:
            # A worker goes on with the files of the one that it replaces, so that counters never fall.
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(self._folder)
            values.ValueClass = values.MultiProcessValue(lambda: peers.number)
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "dr_keras_requests", "Requests answered.", ("route", "method", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "dr_keras_request_seconds", "Time to the end of a response.", ("route",), buckets=DURATION_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.in_flight = Gauge(
            "dr_keras_requests_in_flight", "Requests being answered.", registry=self.registry,
            multiprocess_mode="livesum",
        )  # fmt: skip
        self.batches = Histogram(
            "dr_keras_embedded_batch_size", "Images embedded together.", buckets=BATCH_IMAGES, registry=self.registry
        )
        self.images = Gauge(
            "dr_keras_images", "Images that a search may find.", registry=self.registry,
            multiprocess_mode="livemostrecent",
        )  # fmt: skip

    def count_response(self, route: str, method: str, status: int, seconds: float) -> None:
        """Counts a response.

        Args:
            route: The path of the route, with its parameters unfilled.
            method: The HTTP method.
            status: The HTTP status.
            seconds: From the request to the end of the response.
        """
        method = method if method in METHODS else "other"
        self.requests.labels(route, method, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Returns all metrics in Prometheus's text format."""
        if self._folder is None:
            return generate_latest(self.registry)
        everything = CollectorRegistry()
        MultiProcessCollector(everything, str(self._folder))
        return generate_latest(everything)


def forget_worker(peers: Peers) -> None:
    """Takes what a dead worker was doing out of the metrics; what it has done stays in them."""
    mark_process_dead(peers.number, str(peers.folder))
