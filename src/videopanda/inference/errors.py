"""Why a request is not answered; a request that does not fit is a `DoesNotFitError` of `plan`."""

from videopanda.plan.planner import DoesNotFitError


class QueueFullError(RuntimeError):
    """Too many requests are waiting: try again later."""


class EngineStoppedError(RuntimeError):
    """The engine was closed, or its device failed."""


__all__ = ["DoesNotFitError", "EngineStoppedError", "QueueFullError"]
