"""Loads a model and serves it until a signal ends the process."""

import asyncio
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from videopanda.hub import name_of
from videopanda.inference.engine import Limits
from videopanda.inference.engine_thread import EngineThread
from videopanda.inference.load import BUNDLED_MODEL, load
from videopanda.serving.api import ServerSettings, create_app

DRAIN_SECONDS = 30
KEEP_ALIVE_SECONDS = 90  # longer than proxies and clients keep one (75 s in nginx), so that they close it first
HEADER_SECONDS = 20
HEADER_BYTES = 32 << 10
MESSAGE_BYTES = 16 << 20  # of a WebSocket


def _end(error: BaseException) -> None:
    """End the process, so a supervisor can restart it: the model can no longer answer."""
    sys.stderr.write(f"videopanda: error: the engine stopped: {error}\n")
    sys.stderr.flush()
    os._exit(1)


def serve(
    model: Path | None,
    device: str | None,
    listener: socket.socket,
    limits: Limits,
    settings: ServerSettings,
    changes: Mapping[str, Any] | None = None,
    quantize: str = "",
) -> None:
    """Serve a checkpoint (None: the bundled one) until SIGINT or SIGTERM; running answers are completed first.

    `changes` and `quantize` are the settings and the format of the model, see `load`.

    Raises:
        ValueError, OSError: the checkpoint cannot be loaded, or the folder of files cannot be used.
    """
    network, processor = load(model, device, settings=changes, quantize=quantize)
    name = settings.name or name_of(model or BUNDLED_MODEL)
    app = create_app(EngineThread(network, processor, limits, on_crash=_end), replace(settings, name=name))
    config = uvicorn.Config(
        app,
        http=HeaderLimits,
        ws_max_size=MESSAGE_BYTES,
        ws_max_queue=2,  # messages that wait, which take memory
        access_log=False,
        log_level="warning",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        h11_max_incomplete_event_size=HEADER_BYTES,
    )
    address = _address(listener)
    sys.stderr.write(f"videopanda: {name} is at {address}, its API at {address}/v1\n")
    sys.stderr.flush()
    uvicorn.Server(config).run(sockets=[listener])


def _address(listener: socket.socket) -> str:
    """The URL of the page as a browser on this machine reaches it."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class HeaderLimits(H11Protocol):
    """uvicorn's connection, closed if the headers of a request take too long."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start waiting for a request."""
        super().connection_made(transport)
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        """Receive bytes of headers or of a body."""
        super().data_received(data)
        self._wait_for_headers()

    def on_response_complete(self) -> None:
        """Wait for the next request, if part of it has already arrived; otherwise the keep-alive limit applies."""
        super().on_response_complete()
        if self.conn.trailing_data[0]:
            self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timer."""
        super().connection_lost(exc)
        self._stop_waiting()

    def _wait_for_headers(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
