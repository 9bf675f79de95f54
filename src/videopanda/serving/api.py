"""The HTTP interface: OpenAI's chat completions and files over one engine, a health check, metrics, and the page."""

import asyncio
import errno
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from videopanda.inference.answer import build_prompt
from videopanda.inference.engine_thread import EngineThread
from videopanda.inference.errors import ConstraintError, EngineStoppedError, QueueFullError
from videopanda.inference.grammar import Constraint, Grammars
from videopanda.inference.request import MAX_NEW_TOKENS, Failed, Finished, GenerateRequest, RequestStats, TextDelta
from videopanda.inference.sampling import Sampling, eos_token_ids
from videopanda.plan.planner import DoesNotFitError
from videopanda.serving import analyses, files, responses
from videopanda.serving import sessions as streaming
from videopanda.serving.decoder_pool import DecodeLimits, DecoderPool
from videopanda.serving.disconnect import unless_gone
from videopanda.serving.errors import (
    BusyError,
    ContextLengthError,
    NotFoundError,
    ServeError,
    ShuttingDownError,
    StorageError,
    UnfitError,
    UnknownModelError,
    error_body,
    error_of,
    kind_of_status,
)
from videopanda.serving.fetch import FetchPolicy
from videopanda.serving.files import owner_of_request
from videopanda.serving.media import MediaLoader
from videopanda.serving.metrics import Metrics
from videopanda.serving.middleware import GateLimits, RequestGate
from videopanda.serving.prompt import PromptRules
from videopanda.serving.protocol import ChatRequest, place_of, reason_of
from videopanda.serving.responses import ResponsesRequest
from videopanda.serving.uploads import FileLimits, FileStore

_PAGE = Path(__file__).parent / "page"
_EXAMPLES = Path(__file__).parents[1] / "assets"
_CLEANING_SECONDS = 60.0


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server. name: of the model, as seen by clients. files: folder of uploaded files. max_tokens:
    longest reply.
    hosts: host names by which clients may address the server; none: any. origins: of foreign web pages that may use it.
    media_root: folder whose files clients may refer to as file:// URLs, if any.
    """

    name: str
    files: Path
    max_tokens: int = 1024
    keys: tuple[str, ...] = ()
    file_limits: FileLimits = field(default_factory=FileLimits)
    decode: DecodeLimits = field(default_factory=DecodeLimits)
    fetch: FetchPolicy = field(default_factory=FetchPolicy)
    json_bytes: int = 64 << 20
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    media_root: Path | None = None
    sessions: streaming.SessionLimits = field(default_factory=streaming.SessionLimits)


class Service:
    """The engine and everything that feeds it."""

    def __init__(self, engine: EngineThread, settings: ServerSettings):
        self.engine, self.settings = engine, settings
        self.metrics = Metrics(engine)
        self.store = FileStore(settings.files, settings.file_limits)
        self.pool = DecoderPool(settings.decode)
        self.sessions = streaming.SessionStore(settings.sessions)
        rules = PromptRules(engine.processor, engine.context)
        self.media = MediaLoader(rules, engine.clips, self.pool, self.store, settings.fetch, settings.media_root)
        self.started = int(time.time())

    async def question(self, request: ChatRequest, owner: str) -> GenerateRequest:
        """The engine's request. Raises ServeError."""
        self.check_model(request.model)
        schema = request.schema_of_reply
        constraint = None if schema is None else await asyncio.to_thread(self.constraint, schema)
        began = time.perf_counter()
        messages, visuals = await self.media.conversation(request, owner)
        # A request above the server's limit ends with finish_reason "length", like one at its own limit.
        # JSON that is cut off is worth nothing.
        default = MAX_NEW_TOKENS if constraint is None else self.settings.max_tokens
        most = default if request.max_new_tokens is None else request.max_new_tokens
        prompt = await asyncio.to_thread(build_prompt, self.engine.processor, messages, visuals)
        try:
            room = self.engine.room_for(len(prompt))
        except DoesNotFitError as error:
            message = f"the conversation is longer than the model's context length: {error}"
            raise ContextLengthError(message, "messages") from error
        return GenerateRequest(
            prompt,
            visuals,
            min(most, self.settings.max_tokens, room),
            # Greedy by default, as in the library.
            sampling=Sampling(
                request.sampling_temperature, 1.0 if request.top_p is None else request.top_p, request.seed
            ),
            stop=request.stop,
            decode_seconds=time.perf_counter() - began if visuals else 0.0,
            constraint=constraint,
        )

    def check_model(self, name: str | None) -> None:
        """Raises UnknownModelError for another model than the one that is served."""
        if name not in (None, self.settings.name):
            raise UnknownModelError(f"unknown model {name!r}; this server serves {self.settings.name!r}", "model")

    @cached_property
    def _grammars(self) -> Grammars:
        model = self.engine.model
        ends = eos_token_ids(model.generation_config)
        return Grammars(self.engine.processor.tokenizer, model.config.text_config.vocab_size, ends)

    def constraint(self, schema: dict[str, Any]) -> Constraint:
        """What a reply of this schema must be. Raises ServeError."""
        try:
            return self._grammars.of(schema)
        except ImportError as error:
            missing = "response_format: JSON modes need llguidance on the server: pip install llguidance"
            raise ServeError(missing, "response_format") from error
        except ValueError as error:
            raise ServeError(f"response_format: {error}", "response_format") from error

    async def answer(self, question: GenerateRequest) -> Finished:
        """The whole answer. Raises what the engine reports."""
        async for event in self.events(question):
            if isinstance(event, Finished):
                return event
        raise AssertionError("the stream of an answer ended without a final event")

    async def events(self, question: GenerateRequest) -> AsyncGenerator[TextDelta | Finished, None]:
        """The events of an answer; leaving early cancels it. Raises what the engine reports."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[TextDelta | Finished | Failed]()
        try:
            sequence = self.engine.submit(question, lambda event: loop.call_soon_threadsafe(events.put_nowait, event))
        except (DoesNotFitError, QueueFullError, EngineStoppedError) as error:
            raise _as_serve_error(error) from error
        try:
            while True:
                event = await events.get()
                if isinstance(event, Failed):
                    raise _as_serve_error(event.error)
                if isinstance(event, Finished):
                    self.metrics.answered(event.stats)
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            sequence.cancel()


def _as_serve_error(error: Exception) -> Exception:
    """An error of the engine as one with an HTTP status."""
    statuses = {
        DoesNotFitError: UnfitError,
        ConstraintError: UnfitError,
        QueueFullError: BusyError,
        EngineStoppedError: ShuttingDownError,
    }
    kind = next((status for cause, status in statuses.items() if isinstance(error, cause)), None)
    return error if kind is None else kind(str(error))


def _usage(stats: RequestStats) -> dict[str, Any]:
    return {
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": stats.completion_tokens,
        "total_tokens": stats.prompt_tokens + stats.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": stats.cached_tokens},
    }


def _about(stats: RequestStats) -> dict[str, Any]:
    """Extra fields that are not part of OpenAI's format."""
    return {
        "frame_times": [list(times) for times in stats.frame_times],
        "visual_tokens": stats.visual_tokens,
        "seconds": {phase: round(seconds, 6) for phase, seconds in stats.seconds.items()},
    }


router = APIRouter()


def _service(request: Request) -> Service:
    return request.app.state.service


# -- chat --------------------------------------------------------------------------------------------------------------
@router.post("/v1/chat/completions", response_model=None)
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    """Answer a conversation about videos or images, or text only."""
    service = _service(request)
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": service.settings.name}
    question = await unless_gone(request, service.question(body, owner_of_request(request)))
    if body.stream:
        events = service.events(question)
        first = await unless_gone(request, anext(events))  # errors before the stream starts get their own status
        usage = body.stream_options is not None and body.stream_options.include_usage
        return StreamingResponse(_stream(head, first, events, usage), media_type="text/event-stream")
    end = await unless_gone(request, service.answer(question))
    message = {"role": "assistant", "content": end.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": end.finish_reason}
    answer = {**head, "object": "chat.completion", "choices": [choice], "usage": _usage(end.stats)}
    return JSONResponse({**answer, "videopanda": _about(end.stats)})


@router.post("/v1/responses", response_model=None)
async def create_response(request: Request, body: ResponsesRequest) -> Response:
    """Answer a conversation in the form of OpenAI's Responses API."""
    service = _service(request)
    head = {"id": responses.new_id(), "created_at": int(time.time()), "model": service.settings.name, **body.echo}
    try:
        question = await unless_gone(request, service.question(body.chat, owner_of_request(request)))
    except ServeError as error:
        raise body.renamed(error) from error
    if body.stream:
        events = service.events(question)
        first = await unless_gone(request, anext(events))
        streamed = responses.stream(head, first, events, _about, lambda error: error_of(error)[1])
        return StreamingResponse(streamed, media_type="text/event-stream")
    end = await unless_gone(request, service.answer(question))
    return JSONResponse({**responses.response(head, "completed", end.text, end), "videopanda": _about(end.stats)})


async def _stream(
    head: dict[str, Any], first: TextDelta | Finished, events: AsyncGenerator[TextDelta | Finished, None], usage: bool
) -> AsyncIterator[str]:
    """Server-sent events in OpenAI's format."""

    def chunk(delta: dict[str, Any], reason: str | None = None, **fields: Any) -> str:
        choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]
        extra = {"usage": None} if usage else {}
        content = {**head, "object": "chat.completion.chunk", "choices": choices, **extra, **fields}
        return f"data: {json.dumps(content)}\n\n"

    yield chunk({"role": "assistant", "content": ""})
    event: TextDelta | Finished = first
    try:
        while isinstance(event, TextDelta):
            yield chunk({"content": event.text})
            event = await anext(events)
        yield chunk({}, event.finish_reason, videopanda=_about(event.stats))
        if usage:
            yield chunk({}, choices=[], usage=_usage(event.stats))
        yield "data: [DONE]\n\n"
    except (ServeError, RuntimeError) as error:  # too late for a status code
        yield f"data: {json.dumps(error_of(error)[1])}\n\n"
    finally:
        await events.aclose()


# -- models, health, metrics, page -------------------------------------------------------------------------------------
def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.settings.name,
        "object": "model",
        "created": service.started,
        "owned_by": "videopanda",
        "max_model_len": service.engine.context,
        "videopanda": {
            "num_frames": service.engine.processor.video_processor.num_frames,
            "max_frames": service.settings.decode.limits.frames,
            "max_tokens": service.settings.max_tokens,
            "max_file_bytes": service.settings.file_limits.file_bytes,
            "timestamps": service.engine.processor.timestamps,
        },
        "architecture": {"input_modalities": ["text", "image", "video"], "output_modalities": ["text"]},
        # Open WebUI would otherwise offer its own tools in every chat, which are refused.
        "info": {"meta": {"capabilities": {"builtin_tools": False, "usage": True, "vision": True}}},
    }


@router.get("/v1/models")
@router.get("/v1/models/", include_in_schema=False)
async def list_models(request: Request) -> dict[str, Any]:
    """The model of this server."""
    return {"object": "list", "data": [_model(_service(request))]}


@router.get("/v1/models/{model:path}")  # those of the Hub have a slash in their names
async def get_model(request: Request, model: str) -> dict[str, Any]:
    """The model of this server, by its name."""
    service = _service(request)
    service.check_model(model)
    return _model(service)


@router.get("/health")
async def health(request: Request, response: Response) -> dict[str, Any]:
    """Whether the server can answer; status 503 if not."""
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
    """The bundled clip, and questions about it."""
    if name not in ("demo.mp4", "demo.json"):
        raise NotFoundError(f"there is no example {name!r}")
    return FileResponse(_EXAMPLES / name)


# -- errors ------------------------------------------------------------------------------------------------------------
def _is_full(error: BaseException | None) -> bool:
    """Whether an error says that a disk or a quota is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


_FULL = StorageError("the server's disk is full: delete files or retry later")


async def _on_os_error(request: Request, error: Exception) -> Response:
    if not _is_full(error):
        raise error  # logged, answered with status 500
    return await _on_serve_error(request, _FULL)


async def _on_serve_error(_: Request, error: Exception) -> Response:
    status, body = error_of(error)
    return JSONResponse(body, status, headers={"Retry-After": "1"} if status in (429, 503) else None)


async def _on_disconnect(_: Request, error: Exception) -> Response:
    return Response(status_code=499)  # which nobody reads: it is for the metrics


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if _is_full(error.__cause__):  # of the temporary file of a form
        return await _on_serve_error(request, _FULL)
    kind = kind_of_status(error.status_code)
    path = request.url.path
    below = "" if path.startswith("/v1/") else ": the API is below /v1"
    reasons = {404: f"nothing at {path}{below}", 405: f"{path} does not accept {request.method}"}
    message = reasons.get(error.status_code, str(error.detail))
    if message == "There was an error parsing the body":  # FastAPI's words for what no parser accepts
        message = "the body is not valid JSON in UTF-8, or nested too deeply"
    return JSONResponse(error_body(message, kind, f"http_{error.status_code}"), error.status_code, error.headers)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    kind = request.headers.get("content-type", "")
    if request.method == "POST" and first["loc"] == ("body",) and "json" not in kind:
        return _refused(f"the body must be JSON, with the header Content-Type: application/json, not {kind[:100]!r}")
    if first["type"] == "json_invalid":
        return _refused(f"the body is not valid JSON, at character {first['loc'][-1]}")
    if first["loc"] == ("body",) and first["type"] in ("missing", "model_attributes_type"):
        return _refused("the body must be a JSON object")
    if isinstance(cause := first.get("ctx", {}).get("error"), ServeError):
        return await _on_serve_error(request, cause)
    place = place_of([step for step in first["loc"] if step not in ("body", "query")])
    reason = reason_of(first)
    return _refused(f"{place}: {reason}" if place else reason, place)


def _refused(message: str, place: str = "") -> Response:
    body = error_body(message[:1000], "invalid_request_error", "invalid_request", place[:200] or None)
    return JSONResponse(body, 400)


# -- the application ---------------------------------------------------------------------------------------------------
def create_app(engine: EngineThread, settings: ServerSettings) -> FastAPI:
    """The application around an engine, which it closes on shutdown.

    Raises:
        ValueError: the upload folder is in use or owned by another user.
    """
    service = Service(engine, settings)

    async def clean() -> None:
        while True:
            await asyncio.sleep(_CLEANING_SECONDS)
            service.store.remove_expired()
            service.sessions.free_idle()

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
    app.include_router(analyses.router)
    app.include_router(files.router)
    app.include_router(streaming.router)
    app.mount("/static", StaticFiles(directory=_PAGE), name="static")
    app.add_exception_handler(ServeError, _on_serve_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(OSError, _on_os_error)
    app.add_exception_handler(Exception, _on_serve_error)
    limits = engine.limits
    app.add_middleware(
        RequestGate,
        limits=GateLimits(
            settings.keys,
            settings.hosts,
            settings.origins,
            settings.json_bytes,
            settings.file_limits.file_bytes + (1 << 20),  # the form around the file
            max_chats=limits.max_num_seqs + (limits.max_queue or 0),
        ),
        metrics=service.metrics,
    )
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            allow_private_network=True,
        )
    return app
