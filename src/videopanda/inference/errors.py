"""Errors of requests; a request that does not fit raises `plan`'s `DoesNotFitError`."""

from videopanda.plan.planner import DoesNotFitError


class QueueFullError(RuntimeError):
    """Too many requests are waiting: retry later."""


class EngineStoppedError(RuntimeError):
    """The engine was closed, or its device failed."""


__all__ = ["DoesNotFitError", "EngineStoppedError", "QueueFullError"]
