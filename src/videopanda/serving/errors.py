"""What a server refuses, each with the HTTP status that says so."""


class ServeError(ValueError):
    """A request that is not answered. The message says what to do; `code` is a word for programs."""

    status, code = 400, "invalid_request"

    def __init__(self, message: str, param: str | None = None):
        super().__init__(message)
        self.param = param


class ForbiddenError(ServeError):
    """An address that this server does not fetch."""

    status, code = 403, "forbidden_address"


class NotFoundError(ServeError):
    """No such file or model."""

    status, code = 404, "not_found"


class TooLargeError(ServeError):
    """More bytes than the server takes."""

    status, code = 413, "too_large"


class UnfitError(ServeError):
    """A clip that cannot be read, or a prompt that does not fit: asking again does not help."""

    status, code = 422, "unprocessable"


class BusyError(ServeError):
    """As much is waiting as may wait: asking later helps."""

    status, code = 429, "queue_full"


class StoppedError(ServeError):
    """The server is shutting down, or its model failed."""

    status, code = 503, "unavailable"
