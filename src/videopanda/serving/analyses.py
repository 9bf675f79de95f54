"""The paths /v1/find and /v1/explain: work that takes many requests to the engine, which share it with all others.

With `stream: true` the reply is a stream of events: how many requests are done, as they are, and last what was found.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from videopanda.inference.explain import study
from videopanda.inference.find import NUM_FRAMES, check_description, search
from videopanda.inference.request import Finished, Round, Steps, T, advance
from videopanda.serving.disconnect import unless_gone
from videopanda.serving.errors import ServeError, UnfitError, error_of
from videopanda.serving.files import owner_of_request
from videopanda.serving.protocol import ExplainRequest, FindRequest

router = APIRouter(prefix="/v1")

Event = dict[str, Any]
_LOG = logging.getLogger(__name__)


@router.post("/find", response_model=None)
async def find_moments(request: Request, body: FindRequest) -> Response:
    """When something happens in a video; the intervals of `videopanda.find`."""
    return await _answered(request, _find(request.app.state.service, body, owner_of_request(request)), body.stream)


@router.post("/explain", response_model=None)
async def explain_answer(request: Request, body: ExplainRequest) -> Response:
    """Answer a question, and say which frames and regions the answer depends on, as `videopanda answer --explain`."""
    return await _answered(request, _explain(request.app.state.service, body, owner_of_request(request)), body.stream)


async def _answered(request: Request, events: AsyncGenerator[Event, None], stream: bool) -> Response:
    async def last() -> Event:
        *_, event = [event async for event in events]
        return event

    if not stream:
        return JSONResponse(await unless_gone(request, last()))
    first = await unless_gone(request, anext(events))  # errors before the stream starts get their own status
    return StreamingResponse(_lines(first, events), media_type="text/event-stream")


async def _lines(first: Event, events: AsyncGenerator[Event, None]) -> AsyncIterator[str]:
    """Server-sent events."""
    try:
        yield f"data: {json.dumps(first)}\n\n"
        async for event in events:
            yield f"data: {json.dumps(event)}\n\n"
    except (ServeError, RuntimeError) as error:  # too late for a status code
        if not isinstance(error, ServeError):
            _LOG.error("an analysis failed", exc_info=error)
        yield f"data: {json.dumps(error_of(error)[1])}\n\n"
    else:
        yield "data: [DONE]\n\n"
    finally:
        await events.aclose()


async def _find(service: Any, body: FindRequest, owner: str) -> AsyncGenerator[Event, None]:
    service.check_model(body.model)
    try:
        check_description(body.description)
    except ValueError as error:
        raise ServeError(str(error), "description") from error
    video = await service.media.frames(body.video, owner, num_frames=NUM_FRAMES)
    async for step in _steps(service, search(service.engine.processor, video, body.description), "find"):
        if isinstance(step, dict):
            yield step
        else:
            yield {"object": "find", "model": service.settings.name, **step.as_dict()}


async def _explain(service: Any, body: ExplainRequest, owner: str) -> AsyncGenerator[Event, None]:
    question = await service.question(body, owner)
    end = await service.answer(question)
    began, count = time.perf_counter(), 0
    place, part = body.visual
    video = await service.media.frames(part, owner, body, place)
    (clip,) = question.clips
    steps = study(service.engine.processor, clip, video.frames, question.prompt_ids, end.token_ids, body.regions)
    async for step in _steps(service, steps, "explanation"):
        if isinstance(step, dict):
            count = step["total"]
            yield step
            continue
        yield {
            "object": "explanation",
            "model": service.settings.name,
            "answer": end.text,
            "finish_reason": end.finish_reason,
            **asdict(step),
            "ranking": step.ranking,
            "visual_tokens": end.stats.visual_tokens,
            "requests": count,
            "seconds": round(time.perf_counter() - began, 6),
        }


async def _steps(service: Any, steps: Steps[T], kind: str) -> AsyncGenerator[Event | T, None]:
    """The progress before each round of requests and after the last, then the result.

    Raises ServeError, and what the engine reports.
    """

    def progress(done: int, total: int) -> Event:
        """Requests that are done, and how many there will be as far as known; in the end both are exact."""
        return {"object": f"{kind}.progress", "done": done, "total": total}

    replies: Sequence[Finished] | None = None
    done = 0
    while True:
        try:
            found = await asyncio.to_thread(advance, steps, replies)
        except ValueError as error:
            raise UnfitError(str(error)) from error
        if not isinstance(found, Round):
            yield progress(done, done)
            yield found
            return
        yield progress(done, done + len(found.requests) + found.expected)
        replies = await asyncio.gather(*map(service.answer, found.requests))
        done += len(found.requests)
