"""A clip as the language model takes it in: found in the cache, or read, planned and encoded.

found, seconds = look(model, processor, Request("clip.mp4", 8, None, None, max_new_tokens=64), cache=None)
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from videopanda.inference.visual_cache import Entry, VisualCache, clip_key, is_stored, vision_key
from videopanda.models.frames import to_uint8_frames
from videopanda.models.videopanda import VideoPandaForConditionalGeneration
from videopanda.plan.planner import budget, planner_for, shown_frames
from videopanda.video.read import Video, read_video


@dataclass(frozen=True)
class EncodedClip:
    """A clip as the language model takes it in.

    marker: what stands in the prompt in place of `<video>`.
    tokens: projected visual tokens, (V, E).
    read_starts: what the language model made of prompts up to the end of the clip, by their token ids; see `reply`.
    """

    marker: str
    tokens: Tensor
    read_starts: dict[tuple[int, ...], Any] = field(default_factory=dict, repr=False, compare=False)


def encode(
    model: VideoPandaForConditionalGeneration,
    processor: Any,
    videos: Sequence[Any],
    cache: VisualCache | None = None,
) -> list[EncodedClip]:
    """Encode decoded videos (`.frames`, `.timestamps`, `.duration`) in one batch.

    With a `cache` each is looked up there, or encoded alone and kept: what is kept must not depend on its company.
    """
    if cache is None:
        return _encode(model, _prepare(processor, videos), processor)
    return [_encode_once(model, processor, video, cache) for video in videos]


def _encode_once(model: Any, processor: Any, video: Any, cache: VisualCache) -> EncodedClip:
    key = _key(model, processor, Request(video, None, None, None, 0))
    assert key is not None
    if entry := cache.get(key):
        return _restore(model, processor, entry)
    (clip,) = _encode(model, _prepare(processor, [video]), processor)
    _keep(cache, key, processor, clip, {})
    return clip


def _restore(model: Any, processor: Any, entry: Entry) -> EncodedClip:
    marker = entry.facts["prefix"] + processor.video_token * len(entry.tokens)
    return EncodedClip(marker, entry.tokens.to(model.device))


def _keep(cache: VisualCache, key: str, processor: Any, clip: EncodedClip, facts: dict[str, Any]) -> None:
    cache.put(key, clip.tokens, {**facts, "prefix": clip.marker.replace(processor.video_token, "")})


def _prepare(processor: Any, videos: Sequence[Any]) -> Any:
    return processor.video_processor(videos=list(videos), return_tensors="pt", return_metadata=True)


@torch.inference_mode()
def _encode(model: VideoPandaForConditionalGeneration, inputs: Any, processor: Any) -> list[EncodedClip]:
    return [EncodedClip(processor.placeholder_text(inputs, i), v.tokens) for i, v in enumerate(model.encode(inputs))]


@dataclass(frozen=True)
class Look:
    """An encoded clip and the frames that it was made of; see `Answer`."""

    clip: EncodedClip
    frame_times: tuple[float, ...]
    frame_indices: tuple[int, ...] | None
    decoder: str | None


@dataclass(frozen=True)
class Request:
    """Which part of which video; `num_frames` is None for frames that are decoded already."""

    video: Any
    num_frames: int | None
    start: float | None
    end: float | None
    max_new_tokens: int

    def __post_init__(self) -> None:
        if hasattr(self.video, "frames") and not (self.num_frames is self.start is self.end is None):
            raise ValueError("num_frames, start and end choose frames of a file; these frames are decoded already")


def look(model: Any, processor: Any, request: Request, cache: VisualCache | None) -> tuple[Look, dict[str, float]]:
    """Find a clip in the cache, or read and encode it; and the seconds of "decode", "preprocess" and "encode".

    Raises:
        VideoReadError: the video cannot be read.
        DoesNotFitError: the clip does not fit into the context of the language model, or its cost into the memory.
    """
    began = time.perf_counter()
    key = None if cache is None else _key(model, processor, request)
    if cache is not None and key is not None and (entry := cache.get(key)) is not None:
        facts = entry.facts
        indices = None if facts["frame_indices"] is None else tuple(facts["frame_indices"])
        clip = _restore(model, processor, entry)
        found = Look(clip, tuple(facts["frame_times"]), indices, facts["decoder"])
        return found, {"decode": time.perf_counter() - began, "preprocess": 0.0, "encode": 0.0}
    video = _open(model, processor, request)
    decoded = time.perf_counter()
    frames, height, width, _ = to_uint8_frames(video).shape
    plan = planner_for(model, processor.video_processor).plan(
        frames, height, width, text_tokens=0, new_tokens=request.max_new_tokens
    )
    plan.require(budget(model))
    inputs = _prepare(processor, [video])
    prepared = time.perf_counter()
    (clip,) = _encode(model, inputs, processor)
    from_file = isinstance(video, Video)
    found = Look(
        clip,
        tuple(float(moment) for moment in video.timestamps),
        tuple(int(index) for index in video.indices) if from_file else None,
        f"{video.decoder} {video.decoder_version}" if from_file else None,
    )
    costs = {"decode": decoded - began, "preprocess": prepared - decoded, "encode": time.perf_counter() - prepared}
    if cache is not None and key is not None:
        facts = {name: getattr(found, name) for name in ("frame_times", "frame_indices", "decoder")}
        _keep(cache, key, processor, clip, facts)
    return found, costs


def _key(model: Any, processor: Any, request: Request) -> str | None:
    sampling = processor.video_processor.frame_sampling
    clip = clip_key(
        request.video, num_frames=request.num_frames, sampling=sampling, start=request.start, end=request.end
    )
    return None if clip is None else VisualCache.key(vision_key(model, processor), clip)


def _open(model: Any, processor: Any, request: Request) -> Any:
    """Read a video, or hand on one that is decoded already. Its duration is that of the range that is looked at."""
    if request.num_frames is None:
        return request.video
    rules = processor.video_processor
    read = partial(read_video, request.video, sampling=rules.frame_sampling, start=request.start, end=request.end)
    planner = planner_for(model, rules)
    square = rules.token_count(request.num_frames, 1, 1)  # no other shape has more tokens
    if square + request.max_new_tokens > planner.context and is_stored(request.video):
        # So many frames are refused before they are decoded, which may take long and all memory.
        first = read(num_frames=1)
        frames = shown_frames(rules, request.num_frames, first.end - first.start, first.source_fps)
        planner.require_context(frames, first.height, first.width, text_tokens=0, new_tokens=request.max_new_tokens)
    part = read(num_frames=request.num_frames)
    return replace(part, duration=part.end - part.start)
