"""The HTTP interface: OpenAI's chat completions and files over one engine, a health check, metrics, and the page."""

import asyncio
import base64
import io
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, FastAPI, File, Form, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from PIL import Image
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from videopanda.inference.engine import Engine, Failed, Finished, Piece, Question, Record
from videopanda.inference.sampling import Sampling
from videopanda.serving.decoder_pool import DecodeLimits, DecoderPool
from videopanda.serving.errors import NotFoundError, ServeError
from videopanda.serving.fetch import FetchPolicy
from videopanda.serving.media import MediaLoader
from videopanda.serving.metrics import Metrics
from videopanda.serving.middleware import GateLimits, RequestGate, error_body
from videopanda.serving.protocol import ChatRequest, FrameChoice
from videopanda.serving.uploads import FileLimits, FileStore, StoredFile

_PAGE = Path(__file__).parent / "page"
_EXAMPLES = Path(__file__).parents[1] / "assets"
_UPLOAD_CHUNK = 1 << 20
_CLEANING_SECONDS = 60.0
_THUMBNAIL_SIDE = 160
_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_T = TypeVar("_T")


@dataclass(frozen=True)
class ServerSettings:
    """How a server is run. `name`: of the model, as clients call it; `files`: folder of uploaded files."""

    name: str
    files: Path
    max_tokens: int = 1024
    keys: tuple[str, ...] = ()
    file_limits: FileLimits = field(default_factory=FileLimits)
    decode: DecodeLimits = field(default_factory=DecodeLimits)
    fetch: FetchPolicy = field(default_factory=FetchPolicy)
    json_bytes: int = 64 << 20


class Service:
    """The engine and all that stands around it."""

    def __init__(self, engine: Engine, settings: ServerSettings):
        self.engine, self.settings = engine, settings
        self.metrics = Metrics(engine)
        self.store = FileStore(settings.files, settings.file_limits)
        self.pool = DecoderPool(settings.decode)
        self.media = MediaLoader(engine.processor, engine.visuals, self.pool, self.store, settings.fetch)
        self.started = int(time.time())

    async def question(self, request: ChatRequest, owner: str) -> Question:
        """What the engine is asked. Raises ServeError."""
        if request.model not in (None, self.settings.name):
            raise NotFoundError(f"there is no model {request.model!r} here, but {self.settings.name!r}", "model")
        most = request.max_completion_tokens or request.max_tokens
        if most is not None and most > self.settings.max_tokens:
            raise ServeError(f"max_tokens is at most {self.settings.max_tokens} on this server", "max_tokens")
        began = time.perf_counter()
        messages, visuals = await self.media.conversation(request.messages, request.video, owner)
        extra = {} if most is None else {"max_new_tokens": most}
        return Question(
            messages,
            visuals,
            # Greedy unless asked otherwise, as the library.
            sampling=Sampling(
                request.temperature or 0.0, 1.0 if request.top_p is None else request.top_p, request.seed
            ),
            stops=request.stops,
            decode_seconds=time.perf_counter() - began if visuals else 0.0,
            **extra,
        )

    async def events(self, question: Question) -> AsyncGenerator[Piece | Finished, None]:
        """The events of an answer; leaving early cancels it. Raises what the engine reports."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Piece | Finished | Failed]()
        job = self.engine.submit(question, lambda event: loop.call_soon_threadsafe(events.put_nowait, event))
        try:
            while True:
                event = await events.get()
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Finished):
                    self.metrics.answered(event.record)
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            job.cancel()


class _GoneError(Exception):
    """The client went away."""


async def _unless_gone(request: Request, work: Awaitable[_T]) -> _T:
    """The result of `work`, which is cancelled when the client goes away. Raises _GoneError."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise _GoneError
    finally:
        task.cancel()
        watch.cancel()


def _usage(record: Record) -> dict[str, Any]:
    return {
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "total_tokens": record.prompt_tokens + record.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": record.known_tokens},
    }


def _about(record: Record) -> dict[str, Any]:
    """What OpenAI's answer has no place for."""
    return {
        "frame_times": [list(times) for times in record.frame_times],
        "visual_tokens": record.visual_tokens,
        "seconds": {phase: round(seconds, 6) for phase, seconds in record.seconds.items()},
    }


router = APIRouter()


def _service(request: Request) -> Service:
    return request.app.state.service


def _owner(request: Request) -> str:
    return str(request.scope.get("owner", ""))


# -- chat --------------------------------------------------------------------------------------------------------------
@router.post("/v1/chat/completions", response_model=None)
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    """Answer a conversation about videos, images or nothing but text."""
    service = _service(request)
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": service.settings.name}
    try:
        question = await _unless_gone(request, service.question(body, _owner(request)))
        events = service.events(question)
        if body.stream:
            first = await _unless_gone(request, anext(events))  # what cannot be answered has a status of its own
            usage = body.stream_options is not None and body.stream_options.include_usage
            return StreamingResponse(_stream(head, first, events, usage), media_type="text/event-stream")
        end = await _unless_gone(request, _last(events))
    except _GoneError:
        return Response(status_code=499)
    message = {"role": "assistant", "content": end.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": end.reason}
    answer = {**head, "object": "chat.completion", "choices": [choice], "usage": _usage(end.record)}
    return JSONResponse({**answer, "videopanda": _about(end.record)})


async def _last(events: AsyncIterator[Piece | Finished]) -> Finished:
    async for event in events:
        if isinstance(event, Finished):
            return event
    raise AssertionError("an answer has an end")


async def _stream(
    head: dict[str, Any], first: Piece | Finished, events: AsyncGenerator[Piece | Finished, None], usage: bool
) -> AsyncIterator[str]:
    """Server-sent events, as OpenAI's clients read them."""

    def chunk(delta: dict[str, Any], reason: str | None = None, **fields: Any) -> str:
        choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]
        extra = {"usage": None} if usage else {}
        content = {**head, "object": "chat.completion.chunk", "choices": choices, **extra, **fields}
        return f"data: {json.dumps(content)}\n\n"

    yield chunk({"role": "assistant", "content": ""})
    event: Piece | Finished = first
    try:
        while isinstance(event, Piece):
            yield chunk({"content": event.text})
            event = await anext(events)
        yield chunk({}, event.reason, videopanda=_about(event.record))
        if usage:
            yield chunk({}, choices=[], usage=_usage(event.record))
        yield "data: [DONE]\n\n"
    except (ServeError, RuntimeError) as error:  # too late for a status
        yield f"data: {json.dumps(_error_of(error)[1])}\n\n"
    finally:
        await events.aclose()


# -- files -------------------------------------------------------------------------------------------------------------
def _file(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at,
        "expires_at": int(file.expires_at),
        "filename": file.name,
        "purpose": "user_data",
        "status": "processed",
        "videopanda": {"kind": file.kind, "mime": file.mime},
    }


@router.post("/v1/files")
async def upload_file(
    request: Request,
    file: Annotated[UploadFile, File(description="A video or an image.")],
    purpose: Annotated[
        str, Form(max_length=100, description="Taken for OpenAI's sake; means nothing here.")
    ] = "user_data",
) -> dict[str, Any]:
    """Upload a file once, and ask about it often by its id."""
    with _service(request).store.new((file.filename or "")[:255], _owner(request)) as upload:
        while chunk := await file.read(_UPLOAD_CHUNK):
            upload.write(chunk)
        return _file(upload.finish())


@router.get("/v1/files")
async def list_files(request: Request) -> dict[str, Any]:
    """The files of this key, newest first."""
    return {
        "object": "list",
        "data": [_file(file) for file in _service(request).store.list(_owner(request))],
        "has_more": False,
    }


@router.get("/v1/files/{file_id}")
async def get_file(request: Request, file_id: str) -> dict[str, Any]:
    """What is known of a file."""
    return _file(_service(request).store.get(file_id, _owner(request)))


@router.delete("/v1/files/{file_id}")
async def delete_file(request: Request, file_id: str) -> dict[str, Any]:
    """Delete a file."""
    _service(request).store.remove(file_id, _owner(request))
    return {"id": file_id, "object": "file", "deleted": True}


@router.get("/v1/files/{file_id}/frames")
async def file_frames(
    request: Request,
    file_id: str,
    start: Annotated[float | None, Query(allow_inf_nan=False)] = None,
    end: Annotated[float | None, Query(allow_inf_nan=False)] = None,
    fps: Annotated[float | None, Query(allow_inf_nan=False)] = None,
    num_frames: int | None = None,
    max_side: int = _THUMBNAIL_SIDE,
) -> dict[str, Any]:
    """The frames that a question with this choice would look at, as small JPEG pictures with their times."""
    service = _service(request)
    try:
        choice = FrameChoice(start=start, end=end, fps=fps, num_frames=num_frames, max_side=max_side)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_input=False)) from error
    video = await service.media.thumbnails(file_id, choice, _owner(request))
    pictures = await asyncio.to_thread(lambda: [_jpeg(frame) for frame in video.frames])
    frames = [
        {"time": float(moment), "index": int(index), "image": picture}
        for moment, index, picture in zip(video.timestamps, video.indices, pictures)
    ]
    return {
        "object": "list",
        "data": frames,
        "duration": video.duration,
        "width": video.width,
        "height": video.height,
        "fps": video.source_fps,
    }


def _jpeg(frame: Any) -> str:
    content = io.BytesIO()
    Image.fromarray(frame).save(content, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


# -- models, health, metrics, page -------------------------------------------------------------------------------------
def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.settings.name,
        "object": "model",
        "created": service.started,
        "owned_by": "videopanda",
        "max_model_len": service.engine.context,
    }


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """The model of this server."""
    return {"object": "list", "data": [_model(_service(request))]}


@router.get("/v1/models/{model}")
async def get_model(request: Request, model: str) -> dict[str, Any]:
    """The model of this server, by its name."""
    service = _service(request)
    if model != service.settings.name:
        raise NotFoundError(f"there is no model {model!r} here, but {service.settings.name!r}")
    return _model(service)


@router.get("/health")
async def health(request: Request, response: Response) -> dict[str, Any]:
    """Whether questions are answered; status 503 where not."""
    service = _service(request)
    running, waiting = service.engine.load
    response.status_code = 200 if service.engine.is_alive else 503
    return {
        "status": "ok" if service.engine.is_alive else "stopped",
        "model": service.settings.name,
        "needs_key": bool(service.settings.keys),
        "running": running,
        "waiting": waiting,
    }


@router.get("/metrics", response_model=None)
async def metrics(request: Request) -> Response:
    """Counts and times for Prometheus."""
    return Response(_service(request).metrics.text(), media_type="text/plain; version=0.0.4")


@router.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """The page."""
    return FileResponse(_PAGE / "index.html")


@router.get("/examples/{name}", include_in_schema=False)
async def example(name: str) -> FileResponse:
    """The clip that comes with the package, and questions about it."""
    if name not in ("demo.mp4", "demo.json"):
        raise NotFoundError(f"there is no example {name!r}")
    return FileResponse(_EXAMPLES / name)


# -- errors ------------------------------------------------------------------------------------------------------------
def _error_of(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body."""
    if isinstance(error, ServeError):
        kind = _KINDS.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
        return error.status, error_body(str(error), kind, error.code, error.param)
    return 500, error_body("the server failed at this request; its log says more", "server_error", "internal_error")


async def _on_serve_error(_: Request, error: Exception) -> Response:
    status, body = _error_of(error)
    return JSONResponse(body, status, headers={"Retry-After": "1"} if status in (429, 503) else None)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = _KINDS.get(error.status_code, "invalid_request_error")
    reasons = {404: f"there is nothing at {request.url.path}", 405: f"{request.method} is not for {request.url.path}"}
    message = reasons.get(error.status_code, str(error.detail))
    return JSONResponse(error_body(message, kind, f"http_{error.status_code}"), error.status_code, error.headers)


async def _on_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(step) for step in first["loc"] if step != "body")
    message = f"{place}: {first['msg']}" if place else str(first["msg"])
    return JSONResponse(
        error_body(message[:1000], "invalid_request_error", "invalid_request", place[:200] or None), 400
    )


# -- the application ---------------------------------------------------------------------------------------------------
def create_app(engine: Engine, settings: ServerSettings) -> FastAPI:
    """The application around an engine, which it closes at its end.

    Raises:
        ValueError: the folder of files is in use or somebody else's.
    """
    service = Service(engine, settings)

    async def clean() -> None:
        while True:
            await asyncio.sleep(_CLEANING_SECONDS)
            service.store.remove_expired()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.pool.start()
        cleaning = asyncio.create_task(clean())
        yield
        cleaning.cancel()
        await asyncio.to_thread(engine.close)
        await service.pool.close()
        service.store.close()

    app = FastAPI(title="videopanda", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    app.include_router(router)
    app.mount("/static", StaticFiles(directory=_PAGE), name="static")
    app.add_exception_handler(ServeError, _on_serve_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(Exception, _on_serve_error)
    limits = engine.limits
    app.add_middleware(
        RequestGate,
        rules=GateLimits(
            settings.keys,
            settings.json_bytes,
            settings.file_limits.file_bytes + (1 << 20),  # the form around the file
            limits.max_rows + limits.max_waiting,
        ),
        metrics=service.metrics,
    )
    return app
