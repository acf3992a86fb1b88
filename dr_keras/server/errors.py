"""Errors of the API: an HTTP status and one plain sentence for the client."""

from collections.abc import Mapping

from starlette.responses import JSONResponse


class Problem(Exception):
    """A request that the server refuses.

    Args:
        status: The HTTP status.
        message: What was received, what was expected and what to do; never a path on the server.
        headers: Further headers of the response, such as Retry-After.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        """Makes the response: {"detail": message}, like FastAPI's own errors."""
        text = self.message.encode("utf-8", "backslashreplace").decode()  # file names need not be UTF-8
        return JSONResponse({"detail": text}, self.status, self.headers)


def busy(message: str, seconds: int = 1) -> Problem:
    """Makes a `Problem` with status 503.

    Args:
        message: As in `Problem`.
        seconds: How long the client should wait before it tries again.
    """
    return Problem(503, message, {"Retry-After": str(seconds)})
