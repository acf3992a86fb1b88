"""Errors of the API: an HTTP status and one plain sentence for the client."""

from collections.abc import Mapping

from starlette.responses import JSONResponse


class Problem(Exception):
    """A request that the server refuses.

    Args:
        status: the HTTP status.
        message: what was received, what was expected and what to do; never a path on the server.
        headers: further headers of the response, such as Retry-After.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        """Makes the response: {"detail": message}, as FastAPI's own errors."""
        text = self.message.encode("utf-8", "backslashreplace").decode()  # file names need not be UTF-8
        return JSONResponse({"detail": text}, self.status, self.headers)


def busy(message: str, seconds: int = 1) -> Problem:
    """Makes a Problem 503.

    Args:
        message: as in `Problem`.
        seconds: after which the client may try again.
    """
    return Problem(503, message, {"Retry-After": str(seconds)})
