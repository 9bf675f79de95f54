"""An engine in its own thread, for requests from many threads."""

import logging
import threading
from collections.abc import Callable
from typing import Any

from videopanda.inference.engine import Engine, Limits
from videopanda.inference.errors import EngineStoppedError
from videopanda.inference.request import ActiveSequence, Callback, GenerateRequest

_LOG = logging.getLogger(__name__)


class EngineThread(Engine):
    """Generates replies in its own thread; clips keep the KV caches of their prompts.

    on_crash: called in that thread, with the reason, when it cannot continue; all requests have failed by then.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        limits: Limits | None = None,
        on_crash: Callable[[BaseException], object] | None = None,
    ):
        limits = limits or Limits(max_queue=256, cache_bytes=1 << 30)
        super().__init__(model, processor, limits, keep_prefixes=limits.cache_bytes > 0)
        self._on_crash = on_crash
        _ = self.max_kv_tokens  # measured now, before the memory fills
        self._changed = threading.Condition(self._lock)
        self._closed = self._drains = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: GenerateRequest, callback: Callback) -> ActiveSequence:
        """See `Engine.submit`; `callback` is called in the engine's thread.

        Raises:
            EngineStoppedError: the engine was closed, or crashed.
        """
        with self._changed:
            if not self.is_alive:
                raise EngineStoppedError("the server is shutting down: retry later")
            sequence = super().submit(request, callback)
            self._changed.notify()
        return sequence

    @property
    def is_alive(self) -> bool:
        """Whether requests are still answered."""
        return self._thread.is_alive() and not self._closed

    def close(self, drain: bool = False) -> None:
        """End the thread: with `drain` after all requests are answered, else at once, failing them."""
        with self._changed:
            self._closed, self._drains = True, drain
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            while self._await_work():
                self.step()
        except BaseException as crash:
            error = crash
            _LOG.critical("the engine cannot continue", exc_info=crash)
        with self._changed:
            self._closed = True
        self.fail_all(EngineStoppedError("the server stopped before the answer was complete"))
        if error is not None and self._on_crash is not None:
            self._on_crash(error)

    def _await_work(self) -> bool:
        """Wait until there is something to do; False when the thread should stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self.has_work)
            return not self._closed or (self._drains and self.has_work)
