"""What every request passes first, before a byte of its body is read: keys, sizes, the number of those inside.

Written against ASGI itself, so that bodies are bounded while they come in and refused ones cost nothing.
"""

import asyncio
import hashlib
import hmac
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException

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
_PATHS = ("/v1/chat/completions", "/v1/files", "/v1/models", "/health", "/metrics", "/static", "/examples")


def error_body(message: str, kind: str, code: str, param: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def owner_of(key: str) -> str:
    """What names the owner of files, from an API key: not the key itself."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest() if key else ""


@dataclass(frozen=True)
class GateLimits:
    """API keys (none: everybody may come in), bytes of a JSON body and of an upload, chats at the same time."""

    keys: Sequence[str] = ()
    json_bytes: int = 64 << 20
    upload_bytes: int = 513 << 20
    max_chats: int = 288


class RequestGate:
    """ASGI middleware that lets in what the rules allow, and counts it."""

    def __init__(self, app: Any, rules: GateLimits, metrics: Metrics):
        self.app, self.rules, self.metrics = app, rules, metrics
        self._keys = [owner_of(key) for key in rules.keys]
        self._chats = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = next((known for known in _PATHS if scope["path"].startswith(known)), "other")

        async def counted_send(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
                self.metrics.requests.labels(path, message["status"]).inc()
            await send(message)

        headers = dict(scope["headers"])
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _refuse(receive, counted_send, *refusal)
            return
        limit = self._limit(scope)
        is_chat = path == "/v1/chat/completions"
        self._chats += is_chat
        try:
            await self.app(scope, _bounded(receive, limit), counted_send)
        finally:
            self._chats -= is_chat

    def _limit(self, scope: Any) -> int:
        return self.rules.upload_bytes if scope["path"] == "/v1/files" else self.rules.json_bytes

    def _refusal(self, scope: Any, headers: dict[bytes, bytes]) -> tuple[int, str, str, str] | None:
        """Status, message, type and code for a request that does not get in."""
        if self._keys and scope["path"].startswith("/v1"):
            given = headers.get(b"authorization", b"").decode("latin-1")
            owner = owner_of(given.removeprefix("Bearer ").strip()) if given.startswith("Bearer ") else ""
            # Digests are compared, all of them and in constant time: how long it takes tells nothing about a key.
            if not sum(hmac.compare_digest(owner, key) for key in self._keys):
                message = "this server wants an API key: send the header  Authorization: Bearer KEY"
                return 401, message, "authentication_error", "invalid_api_key"
            scope["owner"] = owner
        origin = urlsplit(headers.get(b"origin", b"").decode("latin-1")).netloc
        if origin and origin != headers.get(b"host", b"").decode("latin-1"):
            message = "pages of other sites may not use this server: call it from a program, or from its own page"
            return 403, message, "permission_error", "foreign_origin"
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._limit(scope):
            message = f"the body has more than {self._limit(scope)} bytes"
            return 413, message, "invalid_request_error", "too_large"
        if scope["path"] == "/v1/chat/completions" and self._chats >= self.rules.max_chats:
            message = f"{self._chats} questions are being answered already: ask again later"
            return 429, message, "rate_limit_error", "queue_full"
        return None


def _bounded(receive: Any, limit: int) -> Any:
    """`receive` that fails when the body becomes larger than it may be."""
    taken = 0

    async def bounded() -> Any:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            raise HTTPException(413, f"the body has more than {limit} bytes")
        return message

    return bounded


async def _refuse(receive: Any, send: Any, status: int, message: str, kind: str, code: str) -> None:
    """Answer without having read the body; then read a little of it, so that the client gets to see the answer."""
    body = json.dumps(error_body(message, kind, code)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 429:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})

    async def drain() -> None:
        while (await receive()).get("more_body"):
            pass

    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(drain(), _DRAIN_SECONDS)
    await send({"type": "http.response.body", "body": b"", "more_body": False})
