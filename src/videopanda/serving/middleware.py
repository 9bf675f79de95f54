"""Request gate (ASGI middleware): hosts, origins, keys, sizes, time limits and concurrency, before the body is parsed.

Written against ASGI itself, so bodies are limited while they arrive and refused ones cost nothing.
"""

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException

from videopanda.serving.errors import error_body, kind_of_status
from videopanda.serving.metrics import Metrics

_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
        b"frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
_DRAIN_SECONDS = 5.0
_CHATS = ("/v1/chat/completions", "/v1/responses", "/v1/find", "/v1/explain")
_PATHS = (*_CHATS, "/v1/files", "/v1/models", "/v1/streaming", "/health", "/metrics", "/static", "/examples")
_SMALL_BODY = 1 << 20  # bodies up to this size are always accepted, whatever else is being received


def owner_of(key: str) -> str:
    """A name for the owner of files, derived from an API key: not the key itself."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest() if key else ""


@dataclass(frozen=True)
class GateLimits:
    """Limits of the gate. keys: API keys; none: no key is required.
    hosts: host names that requests may name; none: any. This blocks pages whose host name resolves to this server (DNS
        rebinding).
    origins: origins of web pages that may use the server, in addition to its own; "*": all.
    json_bytes, upload_bytes: of one body. receiving_bytes: of all bodies being received, except small ones.
    max_chats: running and waiting chats. They count once their body is complete.
    body_seconds, body_rate: seconds for a body, plus one second for each `body_rate` bytes.
    """

    keys: Sequence[str] = ()
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    json_bytes: int = 64 << 20
    upload_bytes: int = 513 << 20
    receiving_bytes: int = 2 << 30
    max_chats: int = 288
    body_seconds: float = 30.0
    body_rate: int = 32 << 10


class _RefusedError(Exception):
    """Status, message and code of a refusal."""


class RequestGate:
    """ASGI middleware that admits requests within the limits."""

    def __init__(self, app: Any, limits: GateLimits, metrics: Metrics):
        self.app, self.limits, self.metrics = app, limits, metrics
        self._keys = [owner_of(key) for key in limits.keys]
        self._chats = self._receiving = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle one connection."""
        if scope["type"] == "websocket":
            try:
                self._check(scope, dict(scope["headers"]))
            except _RefusedError as error:  # before the connection is accepted: the client sees status 403
                await receive()
                await send({"type": "websocket.close", "code": 1008, "reason": error.args[1][:100]})
                return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # the server sends no body, and the routes need not know
            scope = {**scope, "method": "GET"}
        path = next((known for known in _PATHS if scope["path"].startswith(known)), "other")

        async def counted_send(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
                self.metrics.requests.labels(path, message["status"]).inc()
            await send(message)

        body = _Body(self, receive, self._limit(scope))
        is_chat = path in _CHATS
        try:
            try:
                self._check(scope, dict(scope["headers"]))
                if is_chat:
                    await body.complete()
                    if self._chats >= self.limits.max_chats:
                        message = f"{self._chats} requests are running or waiting: retry later"
                        raise _RefusedError(429, message, "queue_full")
            except _RefusedError as error:
                await _refuse(receive, counted_send, *error.args)
                return
            self._chats += is_chat
            try:
                await self.app(scope, body.receive, counted_send)
            finally:
                self._chats -= is_chat
        finally:
            body.release()

    def _limit(self, scope: Any) -> int:
        return self.limits.upload_bytes if scope["path"] == "/v1/files" else self.limits.json_bytes

    def _check(self, scope: Any, headers: dict[bytes, bytes]) -> None:
        """Raises _RefusedError for a request that is not admitted."""

        def header(name: bytes) -> str:
            return headers.get(name, b"").decode("latin-1")

        host = header(b"host")
        if self.limits.hosts and _host_name(host) not in self.limits.hosts:
            message = f"this server does not answer to {host!r:.100}: start it with --public-url to allow that name"
            raise _RefusedError(403, message, "foreign_host")
        origin = header(b"origin")
        foreign = origin and origin not in self.limits.origins and "*" not in self.limits.origins
        # "null" is what sandboxed frames and local files send. A page of this server names the host that it asks.
        if (foreign and (origin == "null" or urlsplit(origin).netloc != host)) or (
            not origin and header(b"sec-fetch-site") == "cross-site" and scope["path"].startswith("/v1")
        ):
            raise _RefusedError(403, "cross-origin requests are not allowed (see --allow-origin)", "foreign_origin")
        if self._keys and scope["path"].startswith("/v1"):
            given = header(b"authorization")
            owner = owner_of(given.removeprefix("Bearer ").strip()) if given.startswith("Bearer ") else ""
            # Digests are compared, all of them and in constant time: the time taken reveals nothing about a key.
            if not sum(hmac.compare_digest(owner, key) for key in self._keys):
                message = "an API key is required: send the header  Authorization: Bearer KEY"
                raise _RefusedError(401, message, "invalid_api_key")
            scope["owner"] = owner
        if (encoding := header(b"content-encoding")) not in ("", "identity"):
            message = f"compressed bodies are not supported: send it without Content-Encoding: {encoding:.20}"
            raise _RefusedError(415, message, "unsupported_encoding")
        length = header(b"content-length")
        if length.isdigit() and int(length) > self._limit(scope):
            raise _RefusedError(413, f"the body is larger than {self._limit(scope)} bytes", "too_large")

    def received(self, size: int, total: int) -> None:
        """Count bytes of a body that now has `total`. Raises _RefusedError while too many are being received."""
        self._receiving += size
        if self._receiving > self.limits.receiving_bytes and total > _SMALL_BODY:
            raise _RefusedError(429, "too many large requests are being received: retry later", "queue_full")

    def released(self, size: int) -> None:
        """A body of this size has been released."""
        self._receiving -= size


class _Body:
    """The body of a request: bounded in bytes and time while it arrives."""

    def __init__(self, gate: RequestGate, receive: Any, limit: int):
        self._gate, self._receive, self._limit = gate, receive, limit
        self._began, self._size, self._ended = time.monotonic(), 0, False
        self._whole: list[bytes] | None = None

    async def _next(self) -> Any:
        if self._ended:
            return await self._receive()  # the client disconnected
        limits = self._gate.limits
        deadline = self._began + limits.body_seconds + self._size / limits.body_rate
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, deadline - time.monotonic()))
        except asyncio.TimeoutError as error:
            raise _RefusedError(408, "the body of the request did not arrive in time", "request_timeout") from error
        size = len(message.get("body", b""))
        self._size += size
        self._ended = not message.get("more_body", False)
        self._gate.received(size, self._size)
        if self._size > self._limit:
            raise _RefusedError(413, f"the body is larger than {self._limit} bytes", "too_large")
        return message

    async def complete(self) -> None:
        """Wait for all of it. Raises _RefusedError."""
        chunks = []
        while not self._ended:
            message = await self._next()
            if message["type"] == "http.disconnect":
                raise _RefusedError(408, "the client disconnected", "request_timeout")
            chunks.append(message.get("body", b""))
        self._whole = [b"".join(chunks)]

    async def receive(self) -> Any:
        """What the application receives. Raises HTTPException."""
        if self._whole:
            return {"type": "http.request", "body": self._whole.pop(), "more_body": False}
        try:
            return await self._next()
        except _RefusedError as error:
            raise HTTPException(error.args[0], error.args[1]) from error

    def release(self) -> None:
        """Release its memory."""
        self._gate.released(self._size)


def _host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    with suppress(ValueError):
        return (urlsplit(f"//{host}").hostname or "").lower()
    return ""


async def _refuse(receive: Any, send: Any, status: int, message: str, code: str) -> None:
    """Answer without reading the body; then drain some of it, so that the client sees the answer."""
    body = json.dumps(error_body(message, kind_of_status(status), code)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 429:
        headers.append((b"retry-after", b"1"))
    if status == 408:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})

    async def drain() -> None:
        while (await receive()).get("more_body"):
            pass

    if status != 408:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(drain(), _DRAIN_SECONDS)
    await send({"type": "http.response.body", "body": b"", "more_body": False})
