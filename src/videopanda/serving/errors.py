"""Errors of the server, each with its HTTP status."""


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
    """No such file or model."""

    status, code = 404, "not_found"


class TooLargeError(ServeError):
    """More bytes than the server accepts."""

    status, code = 413, "too_large"


class ContextLengthError(ServeError):
    """A conversation that is longer than the context."""

    status, code = 400, "context_length_exceeded"


class TimedOutError(ServeError):
    """A request that was not sent in time."""

    status, code = 408, "request_timeout"


class UnfitError(ServeError):
    """A clip that cannot be read, or does not fit into memory: retrying does not help."""

    status, code = 422, "unprocessable"


class BusyError(ServeError):
    """The queue is full: retrying later helps."""

    status, code = 429, "queue_full"


class StoppedError(ServeError):
    """The server is shutting down, or its model failed."""

    status, code = 503, "unavailable"


class StorageError(ServeError):
    """The disk for uploads is full."""

    status, code = 507, "insufficient_storage"
