"""The paths /v1/find and /v1/explain: work that takes many requests to the engine, which share it with all others."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from videopanda.inference.explain import study
from videopanda.inference.find import NUM_FRAMES, check_description, search
from videopanda.inference.request import Failed, Finished, Steps, T, advance
from videopanda.serving.disconnect import GONE, GoneError, unless_gone
from videopanda.serving.errors import ServeError, UnfitError
from videopanda.serving.files import owner_of_request
from videopanda.serving.protocol import ExplainRequest, FindRequest

router = APIRouter(prefix="/v1")


@router.post("/find", response_model=None)
async def find_moments(request: Request, body: FindRequest) -> Response:
    """When something happens in a video; the intervals of `videopanda.find`."""
    return await _answered(request, "find", _find(request.app.state.service, body, owner_of_request(request)))


@router.post("/explain", response_model=None)
async def explain_answer(request: Request, body: ExplainRequest) -> Response:
    """Answer a question, and say which frames and regions the answer depends on, as `videopanda answer --explain`."""
    work = _explain(request.app.state.service, body, owner_of_request(request))
    return await _answered(request, "explanation", work)


async def _answered(request: Request, kind: str, work: Any) -> Response:
    try:
        found = await unless_gone(request, work)
    except GoneError:
        return Response(status_code=GONE)
    return JSONResponse({"object": kind, "model": request.app.state.service.settings.name, **found})


async def _find(service: Any, body: FindRequest, owner: str) -> dict[str, Any]:
    service.check_model(body.model)
    try:
        check_description(body.description)
    except ValueError as error:
        raise ServeError(str(error), "description") from error
    video = await service.media.frames(body.video, owner, num_frames=NUM_FRAMES)
    found, _ = await _run(service, search(service.engine.processor, video, body.description))
    return found.as_dict()


async def _explain(service: Any, body: ExplainRequest, owner: str) -> dict[str, Any]:
    question = await service.question(body, owner)
    end = await service.answer(question)
    began = time.perf_counter()
    place, part = body.visual
    video = await service.media.frames(part, owner, body, place)
    (clip,) = question.clips
    steps = study(service.engine.processor, clip, video.frames, question.prompt_ids, end.token_ids, body.regions)
    effects, count = await _run(service, steps)
    return {
        "answer": end.text,
        "finish_reason": end.finish_reason,
        **asdict(effects),
        "ranking": effects.ranking,
        "visual_tokens": end.stats.visual_tokens,
        "requests": count,
        "seconds": round(time.perf_counter() - began, 6),
    }


async def _run(service: Any, steps: Steps[T]) -> tuple[T, int]:
    """The result, and how many requests it took. Raises ServeError, and what the engine reports."""
    replies: Sequence[Finished | Failed] | None = None
    count = 0
    while True:
        try:
            found = await asyncio.to_thread(advance, steps, replies)
        except ValueError as error:
            raise UnfitError(str(error)) from error
        if not isinstance(found, list):
            return found, count
        count += len(found)
        replies = await asyncio.gather(*map(service.answer, found))
