"""The paths below /v1/streaming/sessions: a video that is still arriving, in frames or chunks, and questions about it.

    POST   /v1/streaming/sessions               {"max_visual_tokens": 2048}       → {"id": "session-…", …}
    POST   /v1/streaming/sessions/{id}/frame    a JPEG or PNG, ?timestamp=12.5, or {"image": data URL, "timestamp": …}
    POST   /v1/streaming/sessions/{id}/chunk    a video of a few seconds, ?timestamp=10&fps=1
    POST   /v1/streaming/sessions/{id}/ask      {"question": "What happens?"}     → {"answer": …, "timestamp": …}
    DELETE /v1/streaming/sessions/{id}
    WS     /v1/streaming/sessions/{id}/ws       the same as messages: {"type": "frame", …}, "chunk", "ask"

The first three names are those that vLLM proposes for streaming sessions. A session keeps a bounded number of visual
tokens, however long it runs; one that is not used for a while is freed. Decoding happens in the decoder processes.
"""

import asyncio
import base64
import binascii
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from videopanda.inference.answer import build_prompt, question_messages
from videopanda.inference.request import MAX_NEW_TOKENS, GenerateRequest
from videopanda.inference.session import VideoSession
from videopanda.serving.disconnect import unless_gone
from videopanda.serving.errors import BusyError, NotFoundError, ServeError, TooLargeError
from videopanda.serving.files import owner_of_request
from videopanda.serving.protocol import Strict

router = APIRouter(prefix="/v1/streaming/sessions")
_UPLOAD_BYTES = 64 << 20  # of one frame or chunk
_MAX_FPS = 30.0


@dataclass(frozen=True)
class SessionLimits:
    """max_sessions, max_visual_tokens: of open sessions, and of each. idle_seconds: until an unused one is closed."""

    max_sessions: int = 32
    idle_seconds: float = 300.0
    max_visual_tokens: int = 8192


class SessionRequest(Strict):
    """How to make a session; see `VideoSession`."""

    model: str | None = None
    max_visual_tokens: int | None = Field(None, ge=1)
    window: int = Field(4, ge=0, le=64)
    last_frames: int = Field(0, ge=0, le=64)


class FrameRequest(Strict):
    """A frame in JSON. image: data URL or base64; timestamp: seconds."""

    image: str
    timestamp: float | None = Field(None, ge=0, allow_inf_nan=False)


class ChunkRequest(Strict):
    """A short video in a message. video: data URL or base64; timestamp: seconds; fps: frames per second to read."""

    video: str
    timestamp: float | None = Field(None, ge=0, allow_inf_nan=False)
    fps: float = Field(1.0, gt=0, le=_MAX_FPS)


class AskRequest(Strict):
    """A question about the frames so far."""

    question: str = Field(min_length=1, max_length=10_000)
    max_tokens: int = Field(MAX_NEW_TOKENS, ge=1)


@dataclass(eq=False)
class OpenSession:
    """A session and its owner; `lock` keeps its frames in order. users: requests that it is answering."""

    id: str
    owner: str
    video: VideoSession
    created: float
    used: float = field(default_factory=time.monotonic)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within it, the session is not idle."""
        self.users += 1
        try:
            yield
        finally:
            self.users, self.used = self.users - 1, time.monotonic()


class SessionStore:
    """The open sessions."""

    def __init__(self, limits: SessionLimits):
        self.limits = limits
        self._open: dict[str, OpenSession] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, video: VideoSession, owner: str) -> OpenSession:
        """Keep a new session. Raises BusyError if there are too many."""
        self.free_idle()
        if len(self._open) >= self.limits.max_sessions:
            raise BusyError(f"{len(self._open)} sessions are open: delete one, or retry later")
        opened = OpenSession(f"session-{uuid.uuid4().hex}", owner, video, time.time())
        self._open[opened.id] = opened
        return opened

    def get(self, name: str, owner: str) -> OpenSession:
        """An open session of this owner. Raises NotFoundError."""
        self.free_idle()
        found = self._open.get(name)
        if found is None or found.owner != owner:
            raise NotFoundError(f"no session with the id {name!r}; idle sessions are closed", "session_id")
        found.used = time.monotonic()
        return found

    def remove(self, name: str, owner: str) -> None:
        """Close a session. Raises NotFoundError."""
        del self._open[self.get(name, owner).id]

    def free_idle(self) -> None:
        """Close the sessions that were not used for too long."""
        limit = time.monotonic() - self.limits.idle_seconds
        for name in [name for name, one in self._open.items() if one.used < limit and not one.users]:
            del self._open[name]


def _service(request: Request | WebSocket) -> Any:
    return request.app.state.service


def _object(opened: OpenSession, limits: SessionLimits) -> dict[str, Any]:
    log = opened.video.log
    return {
        "id": opened.id,
        "object": "streaming.session",
        "created_at": int(opened.created),
        "idle_timeout": limits.idle_seconds,
        "frames": log.frames,
        "duration": opened.video.duration,
        "visual_tokens": opened.video.memory.num_tokens,
        "max_visual_tokens": opened.video.memory.max_tokens,
        "log": {"steps": log.steps, "merged": log.merged, "dropped": log.dropped, "resized": log.resized},
    }


@router.post("")
async def open_session(request: Request, body: SessionRequest) -> dict[str, Any]:
    """Open a session."""
    service = _service(request)
    service.check_model(body.model)
    limits, engine = service.sessions.limits, service.engine
    if (body.max_visual_tokens or 0) > limits.max_visual_tokens:
        raise ServeError(f"max_visual_tokens must be at most {limits.max_visual_tokens}", "max_visual_tokens")
    try:
        video = VideoSession(
            engine.model,
            engine.processor,
            max_visual_tokens=body.max_visual_tokens,
            window=body.window,
            last_frames=body.last_frames,
        )
    except ValueError as error:
        raise ServeError(str(error)) from error
    return _object(service.sessions.add(video, owner_of_request(request)), limits)


@router.get("/{session_id}")
async def get_session(request: Request, session_id: str) -> dict[str, Any]:
    """What a session has seen and kept."""
    sessions = _service(request).sessions
    return _object(sessions.get(session_id, owner_of_request(request)), sessions.limits)


@router.delete("/{session_id}")
async def close_session(request: Request, session_id: str) -> dict[str, Any]:
    """Close a session and free its memory."""
    _service(request).sessions.remove(session_id, owner_of_request(request))
    return {"id": session_id, "object": "streaming.session", "deleted": True}


@router.post("/{session_id}/frame")
async def push_frame(
    request: Request, session_id: str, timestamp: Annotated[float | None, Query(ge=0, allow_inf_nan=False)] = None
) -> dict[str, Any]:
    """Push one picture: the body itself, or JSON with a data URL."""
    opened = _service(request).sessions.get(session_id, owner_of_request(request))
    data = await request.body()
    if request.headers.get("content-type", "").partition(";")[0] == "application/json":
        try:
            frame = FrameRequest.model_validate_json(data)
        except ValidationError as error:
            raise _invalid(error) from error
        data, timestamp = _bytes_of(frame.image), timestamp if frame.timestamp is None else frame.timestamp
    return await _push(_service(request), opened, data, timestamp)


@router.post("/{session_id}/chunk")
async def push_chunk(
    request: Request,
    session_id: str,
    timestamp: Annotated[float | None, Query(ge=0, allow_inf_nan=False)] = None,
    fps: Annotated[float, Query(gt=0, le=_MAX_FPS)] = 1.0,
) -> dict[str, Any]:
    """Push a short video, whose frames at `fps` come after those so far."""
    opened = _service(request).sessions.get(session_id, owner_of_request(request))
    return await _push(_service(request), opened, await request.body(), timestamp, fps)


@router.post("/{session_id}/ask")
async def ask_session(request: Request, session_id: str, body: AskRequest) -> dict[str, Any]:
    """Answer a question about the frames so far; given up if the client disconnects."""
    opened = _service(request).sessions.get(session_id, owner_of_request(request))
    return await unless_gone(request, _ask(_service(request), opened, body))


def _invalid(error: ValidationError) -> ServeError:
    first = error.errors()[0]
    return ServeError(f"{first['loc']}: {first['msg']}")


def _bytes_of(content: str) -> bytes:
    try:
        return base64.b64decode(content.partition(",")[2] if content.startswith("data:") else content, validate=True)
    except binascii.Error as error:
        raise ServeError("frames and chunks must be a data URL, or base64") from error


async def _push(
    service: Any, opened: OpenSession, data: bytes, timestamp: float | None, fps: float | None = None
) -> dict[str, Any]:
    """Decode and push a picture, or with `fps` a video; without a timestamp it follows what was pushed last."""
    if not data:
        raise ServeError("the body is empty: send a picture or a video")
    if len(data) > _UPLOAD_BYTES:
        raise TooLargeError(f"a frame or chunk is at most {_UPLOAD_BYTES} bytes")
    with opened.in_use():
        async with opened.lock:
            with tempfile.NamedTemporaryFile() as file:

                def save() -> None:  # by its handle: a canceled request cannot create the file again
                    file.write(data)
                    file.flush()

                await asyncio.to_thread(save)
                choice = {"num_frames": 1} if fps is None else {"fps": fps}
                video = await service.pool.read(Path(file.name), **choice)
            if fps is None and not video.is_still:
                raise ServeError("a frame must be a picture, and this is a video: push it as a chunk")
            if fps is not None and video.is_still:
                raise ServeError("a chunk must be a video, and this is a picture: push it as a frame")
            start = opened.video.next_time if timestamp is None else timestamp

            def push() -> None:
                for image, moment in zip(video.frames, video.times):
                    opened.video.push(image, start if fps is None else start + float(moment))
                if fps is not None:
                    opened.video.end = start + video.duration

            try:
                await asyncio.to_thread(push)
            except ValueError as error:
                raise ServeError(str(error), "timestamp") from error
            return {"id": opened.id, "object": "streaming.frame", "frames": opened.video.num_frames, "timestamp": start}


async def _ask(service: Any, opened: OpenSession, body: AskRequest) -> dict[str, Any]:
    processor = service.engine.processor
    with opened.in_use():
        try:
            messages = question_messages(processor, body.question)
            async with opened.lock:
                clip = await asyncio.to_thread(opened.video.clip)
                now, frames = opened.video.next_time, opened.video.num_frames
            prompt = await asyncio.to_thread(build_prompt, processor, messages, [clip])
            tokens = min(body.max_tokens, service.settings.max_tokens, service.engine.room_for(len(prompt)))
        except ValueError as error:
            raise ServeError(str(error)) from error
        end = await service.answer(GenerateRequest(prompt, [clip], tokens))
    return {
        "id": opened.id,
        "object": "streaming.answer",
        "answer": end.text,
        "finish_reason": end.finish_reason,
        "timestamp": now,
        "frames": frames,
        "visual_tokens": clip.num_tokens,
    }


@router.websocket("/{session_id}/ws")
async def session_socket(socket: WebSocket, session_id: str) -> None:
    """Frames, chunks and questions over one connection, which ends with the session; a binary message is a frame."""
    service = _service(socket)
    owner = str(socket.scope.get("owner", ""))
    await socket.accept()
    try:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            try:
                opened = service.sessions.get(session_id, owner)
            except NotFoundError as error:
                await socket.send_json(_error(error))
                await socket.close(1008, "no such session")
                return
            try:
                if message.get("bytes") is not None:
                    reply = await _push(service, opened, message["bytes"], None)
                else:
                    reply = await _handle(service, opened, message.get("text") or "")
            except ServeError as error:
                reply = _error(error)
            await socket.send_json(reply)
    except WebSocketDisconnect:
        return


def _error(error: ServeError) -> dict[str, Any]:
    return {"object": "error", "error": {"message": str(error), "code": error.code, "param": error.param}}


class _SocketMessage(BaseModel):
    """A text message: what to do, and the fields of `FrameRequest` or `AskRequest`."""

    model_config = ConfigDict(extra="allow")
    type: str


async def _handle(service: Any, opened: OpenSession, text: str) -> dict[str, Any]:
    try:
        message = _SocketMessage.model_validate_json(text)
        fields = message.model_extra or {}
        if message.type == "frame":
            frame = FrameRequest(**fields)
            return await _push(service, opened, _bytes_of(frame.image), frame.timestamp)
        if message.type == "chunk":
            chunk = ChunkRequest(**fields)
            return await _push(service, opened, _bytes_of(chunk.video), chunk.timestamp, chunk.fps)
        if message.type == "ask":
            return await _ask(service, opened, AskRequest(**fields))
    except ValidationError as error:
        raise _invalid(error) from error
    raise ServeError(f"the type of a message must be frame, chunk or ask, got {message.type!r}", "type")
