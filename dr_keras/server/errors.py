"""What the server refuses: an HTTP status and one plain sentence for the client."""

from collections.abc import Mapping

from starlette.responses import JSONResponse


class Problem(Exception):
    """A request that is refused.

    Args:
        status: the HTTP status.
        message: what was received, what was expected and what to do; never a path of the server.
        headers: of the response, such as Retry-After.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        """{"detail": message}, as FastAPI says it."""
        text = self.message.encode("utf-8", "backslashreplace").decode()  # names of files need not be UTF-8
        return JSONResponse({"detail": text}, self.status, self.headers)


def busy(message: str, seconds: int = 1) -> Problem:
    """503 with the seconds after which another try is worth it."""
    return Problem(503, message, {"Retry-After": str(seconds)})
