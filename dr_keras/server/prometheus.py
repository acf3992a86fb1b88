"""Metrics for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS"})  # clients may invent others; those count as one
DURATION_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
BATCH_IMAGES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "dr_keras_requests", "Requests answered.", ("route", "method", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "dr_keras_request_seconds", "Time to the end of a response.", ("route",), buckets=DURATION_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.in_flight = Gauge("dr_keras_requests_in_flight", "Requests being answered.", registry=self.registry)
        self.batches = Histogram(
            "dr_keras_embedded_batch_size", "Images embedded together.", buckets=BATCH_IMAGES, registry=self.registry
        )
        self.images = Gauge("dr_keras_images", "Images that a search may find.", registry=self.registry)

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
        return generate_latest(self.registry)
