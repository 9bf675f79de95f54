"""Errors of the server, each with its HTTP status, and what clients are told."""

from typing import Any

_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ServeError(ValueError):
    """A request that is refused. The message says what to do; `param` names the field, `code` is for programs."""

    status, code = 400, "invalid_request"

    def __init__(self, message: str, param: str | None = None):
        super().__init__(message)
        self.param = param


class ForbiddenError(ServeError):
    """A URL that this server does not fetch."""

    status, code = 403, "forbidden_address"


class NotFoundError(ServeError):
    """No such file, example or session."""

    status, code = 404, "not_found"


class UnknownModelError(NotFoundError):
    """Another model than the one that is served."""

    code = "model_not_found"


class TooLargeError(ServeError):
    """More bytes than the server accepts."""

    status, code = 413, "too_large"


class ContextLengthError(ServeError):
    """A conversation that is longer than the context."""

    status, code = 400, "context_length_exceeded"


class UnfitError(ServeError):
    """A clip that cannot be read, or does not fit into memory: retrying does not help."""

    status, code = 422, "unprocessable"


class BusyError(ServeError):
    """The queue is full: retrying later helps."""

    status, code = 429, "queue_full"


class ShuttingDownError(ServeError):
    """The server is shutting down, or its model failed."""

    status, code = 503, "unavailable"


class StorageError(ServeError):
    """The disk for uploads is full."""

    status, code = 507, "insufficient_storage"


def kind_of_status(status: int) -> str:
    """OpenAI's type of an error with this HTTP status."""
    return _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")


def error_body(message: str, kind: str, code: str, param: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's format."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_of(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body. What is not a ServeError is a fault of the server, of which clients are told nothing."""
    if isinstance(error, ServeError):
        return error.status, error_body(str(error), kind_of_status(error.status), error.code, error.param)
    return 500, error_body("internal server error; see the server log", "server_error", "internal_error")
