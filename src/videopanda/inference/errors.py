"""Errors of requests; a request that does not fit raises `plan`'s `DoesNotFitError`."""


class QueueFullError(RuntimeError):
    """Too many requests are waiting: retry later."""


class ConstraintError(ValueError):
    """What a reply must be can no longer be checked within the limits of the grammar library."""


class EngineStoppedError(RuntimeError):
    """The engine was closed, or its device failed."""
