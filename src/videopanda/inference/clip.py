"""Encoded clips: visual tokens, the text that stands for them in a prompt, and where they come from.

clip, seconds = encode_clip(model, processor, ClipSource("clip.mp4", 8, None, None), max_new_tokens=64, cache=None)
clips = encode_clips(model, processor, videos)      # of videos that are decoded already, in one batch
"""

import math
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from videopanda.inference.kv_prefix import KVPrefix
from videopanda.inference.visual_cache import TokenDiskCache, clip_key, vision_key
from videopanda.plan.planner import budget, planner_for, shown_frames
from videopanda.video.disk_cache import is_stored
from videopanda.video.read import Video, read_video

MAX_PREFIXES_PER_CLIP = 2  # the text before a clip is nearly always the same

PrefixKey = tuple[tuple[str, ...], tuple[int, ...]]


@dataclass(eq=False)
class EncodedClip:
    """A video or an image: prepared by the processor, then encoded.

    key: identifies frames and kind; clips with the same key have the same tokens.
    kind: "video" or "image".
    placeholder_text: replaces `<video>` or `<image>` in the prompt.
    times: seconds at which the frames are first shown.
    indices: frame numbers in the file; None if no file was read.
    decoder: what decoded the file, with its version; None if no file was read.
    inputs: the processor's output; dropped once the clip is encoded.
    source_shape: frames, height and width of the source.
    tokens: projected visual tokens, (V, E); None before the clip is encoded.
    layout: where each token comes from, as reported by the model; see `EncodedVisual`.
    kv_prefixes: KV caches of prompts up to this clip, by the keys of all their clips and their token ids.
    selection: why these frames were chosen: one line per frame or memory step; None for the model's own rule.
    frames: the decoded frames, uint8 (T, H, W, 3), where `encode_clip` has just read them.
    """

    key: str
    kind: Literal["video", "image"]
    placeholder_text: str
    times: tuple[float, ...] = ()
    indices: tuple[int, ...] | None = None
    decoder: str | None = None
    inputs: Any = field(default=None, repr=False)
    source_shape: tuple[int, int, int] | None = None
    tokens: Tensor | None = field(default=None, repr=False)
    layout: Tensor | None = field(default=None, repr=False)
    kv_prefixes: "OrderedDict[PrefixKey, KVPrefix]" = field(default_factory=OrderedDict, repr=False)
    frames: np.ndarray | list[np.ndarray] | None = field(default=None, repr=False)
    selection: tuple[str, ...] | None = None

    @property
    def num_tokens(self) -> int:
        """Visual tokens in the prompt; 0 before the clip is encoded."""
        return 0 if self.tokens is None else len(self.tokens)

    @property
    def num_bytes(self) -> int:
        """Memory in use: pixels, tokens and KV caches."""
        tensors = [value for value in (self.inputs or {}).values() if isinstance(value, Tensor)]
        tensors += [tensor for tensor in (self.tokens, self.layout) if tensor is not None]
        kept = list(self.kv_prefixes.values())  # at once: the thread of the engine may add one
        return sum(tensor.nbytes for tensor in tensors) + sum(kv.num_bytes for kv in kept)

    def keep_prefix(self, key: PrefixKey, kv: KVPrefix) -> None:
        """Keep the KV cache of a prompt up to this clip; the oldest ones are evicted."""
        self.kv_prefixes[key] = kv
        while len(self.kv_prefixes) > MAX_PREFIXES_PER_CLIP:
            self.kv_prefixes.popitem(last=False)


@dataclass(frozen=True)
class ClipSource:
    """Which part of which video: `num_frames`, or `fps` per second; neither for frames that are already decoded."""

    video: Any
    num_frames: int | None
    start: float | None
    end: float | None
    fps: float | None = None

    def __post_init__(self) -> None:
        if self.num_frames is not None and self.fps is not None:
            raise ValueError("num_frames and fps are mutually exclusive")
        if self.fps is not None and (isinstance(self.fps, str) or not 0 < self.fps < math.inf):
            raise ValueError(f"fps must be a positive number of frames per second, got {self.fps!r}")
        if hasattr(self.video, "frames") and not (self.num_frames is self.fps is self.start is self.end is None):
            raise ValueError("num_frames, fps, start and end choose frames of a file; these frames are already decoded")


def kind_of(video: Any) -> Literal["video", "image"]:
    """A still picture is an image, of one frame; everything else is a video."""
    return "image" if getattr(video, "is_still", False) else "video"


# -- from frames to tokens ---------------------------------------------------------------------------------------------
def prepare_clips(
    processor: Any, videos: Sequence[Any], kind: Literal["video", "image"] = "video", keys: Sequence[str] = ()
) -> list[EncodedClip]:
    """Run the processor on decoded videos (`.frames`, `.timestamps`, `.duration`), in one shared batch."""
    rules = processor.video_processor
    if kind == "video":
        inputs = rules(videos=list(videos), return_tensors="pt", return_metadata=True)
    else:
        inputs = rules.preprocess_images([video.frames[0] for video in videos], return_tensors="pt")
    clips = []
    shown = 1 if kind == "image" else None  # frames of each
    for i, video in enumerate(videos):
        from_file = isinstance(video, Video)
        clips.append(
            EncodedClip(
                keys[i] if keys else uuid4().hex,
                kind,
                processor.placeholder_text(inputs, i, kind),
                tuple(float(moment) for moment in video.timestamps[:shown]),
                tuple(int(index) for index in video.indices[:shown]) if from_file else None,
                f"{video.decoder} {video.decoder_version}" if from_file else None,
                inputs,
                rules.clip_shape(rules.frames_of(video)[:shown]),
            )
        )
    return clips


@torch.inference_mode()
def encode_prepared(model: Any, clips: Sequence[EncodedClip]) -> None:
    """Encode clips that were prepared together."""
    for clip, visual in zip(clips, model.encode(clips[0].inputs, clips[0].kind), strict=True):
        # Copied where clips share memory: a view would keep the whole batch alive.
        clip.tokens = visual.tokens.clone() if len(clips) > 1 else visual.tokens
        clip.layout, clip.inputs = visual.layout, None


def encode_clips(
    model: Any, processor: Any, videos: Sequence[Any], cache: TokenDiskCache | None = None
) -> list[EncodedClip]:
    """Encode decoded videos in one batch, still pictures in another; with a `cache` one by one, so that kept tokens do
    not depend on the batch.
    """
    if cache is not None:
        return [_encode_once(model, processor, video, cache) for video in videos]
    clips: dict[int, EncodedClip] = {}
    for kind in ("video", "image"):
        places = [i for i, video in enumerate(videos) if kind_of(video) == kind]
        if places:
            prepared = prepare_clips(processor, [videos[i] for i in places], kind)
            encode_prepared(model, prepared)
            clips.update(zip(places, prepared))
    return [clips[i] for i in range(len(videos))]


def encode_clip(
    model: Any, processor: Any, source: ClipSource, max_new_tokens: int, cache: TokenDiskCache | None = None
) -> tuple[EncodedClip, dict[str, float]]:
    """Find a clip in the cache, or read and encode it. Also returns the seconds of "decode", "preprocess" and "encode".

    Raises:
        VideoReadError: the video cannot be read.
        DoesNotFitError: the clip does not fit into the context window or into memory.
    """
    began = time.perf_counter()
    key = None if cache is None else _key(model, processor, source)
    if cache is not None and key is not None and (found := _cached(model, processor, cache, key)):
        return found, {"decode": time.perf_counter() - began, "preprocess": 0.0, "encode": 0.0}
    video = _read(model, processor, source, max_new_tokens)
    decoded = time.perf_counter()
    kind = kind_of(video)
    frames = processor.video_processor.frames_of(video)[: 1 if kind == "image" else None]
    require_fit(model, processor, processor.video_processor.clip_shape(frames), max_new_tokens)
    (clip,) = prepare_clips(processor, [video], kind)
    prepared = time.perf_counter()
    encode_prepared(model, [clip])
    clip.frames = frames
    costs = {"decode": decoded - began, "preprocess": prepared - decoded, "encode": time.perf_counter() - prepared}
    if cache is not None and key is not None:
        _keep(cache, key, processor, clip)
    return clip, costs


def require_fit(model: Any, processor: Any, shape: Sequence[int], max_new_tokens: int) -> None:
    """Check that a clip of (frames, height, width) fits into context and memory. Raises DoesNotFitError."""
    planner = planner_for(model, processor.video_processor)
    planner.require_context(*shape, text_tokens=0, new_tokens=max_new_tokens)
    planner.plan(*shape, text_tokens=0, new_tokens=max_new_tokens).require(budget(model))


def _read(model: Any, processor: Any, source: ClipSource, max_new_tokens: int) -> Any:
    """Read a video, unless it is already decoded. Its duration is that of the chosen range."""
    if source.num_frames is None and source.fps is None:
        return source.video
    rules = processor.video_processor
    read = partial(read_video, source.video, start=source.start, end=source.end, background=rules.background)
    choice: dict[str, Any] = {"num_frames": source.num_frames, "sampling": rules.frame_sampling}
    if source.fps is not None:
        choice = {"fps": source.fps}
    planner = planner_for(model, rules)
    square = math.inf if source.num_frames is None else rules.most_tokens(source.num_frames)
    if square + max_new_tokens > planner.context and is_stored(source.video):
        # Refused before all frames are decoded, which may take much time and memory.
        first = read(num_frames=1)
        seconds = first.end - first.start
        if source.num_frames is None:
            frames = math.ceil(seconds * choice["fps"])
        else:
            frames = shown_frames(rules, source.num_frames, seconds, first.source_fps)
        planner.require_context(max(1, frames), first.height, first.width, text_tokens=0, new_tokens=max_new_tokens)
    part = read(**choice)
    return replace(part, duration=part.end - part.start)


# -- caches ------------------------------------------------------------------------------------------------------------
def _encode_once(model: Any, processor: Any, video: Any, cache: TokenDiskCache) -> EncodedClip:
    key = _key(model, processor, ClipSource(video, None, None, None))
    assert key is not None
    if found := _cached(model, processor, cache, key):
        return found
    (clip,) = prepare_clips(processor, [video], kind_of(video))
    encode_prepared(model, [clip])
    _keep(cache, key, processor, clip)
    return clip


def _key(model: Any, processor: Any, source: ClipSource) -> str | None:
    sampling = processor.video_processor.frame_sampling
    clip = clip_key(
        source.video,
        num_frames=source.num_frames,
        fps=source.fps,
        sampling=sampling,
        start=source.start,
        end=source.end,
    )
    return None if clip is None else TokenDiskCache.key(vision_key(model, processor), clip)


def _cached(model: Any, processor: Any, cache: TokenDiskCache, key: str) -> EncodedClip | None:
    entry = cache.get(key)
    if entry is None:
        return None
    facts, tokens = entry.facts, entry.tokens.to(model.device)
    token = processor.image_token if facts["kind"] == "image" else processor.video_token
    return EncodedClip(
        key,
        facts["kind"],
        "".join(text + token * count for text, count in facts["placeholder"]),
        tuple(facts["frame_times"]),
        None if facts["frame_indices"] is None else tuple(facts["frame_indices"]),
        facts["decoder"],
        tokens=tokens,
        layout=entry.layout,
    )


def _keep(cache: TokenDiskCache, key: str, processor: Any, clip: EncodedClip) -> None:
    assert clip.tokens is not None
    facts: dict[str, Any] = {
        "kind": clip.kind,
        "frame_times": clip.times,
        "frame_indices": clip.indices,
        "decoder": clip.decoder,
    }
    token = processor.image_token if clip.kind == "image" else processor.video_token
    runs = re.findall(f"(.*?)((?:{re.escape(token)})+)", clip.placeholder_text, re.DOTALL)
    facts["placeholder"] = [[text, len(run) // len(token)] for text, run in runs]
    cache.put(key, clip.tokens, facts, clip.layout)


class ClipMemoryCache:
    """The most recently used clips, up to `max_bytes`. Safe to use from several threads."""

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self._clips: OrderedDict[str, EncodedClip] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> EncodedClip | None:
        """The clip with this key, if it is still there."""
        with self._lock:
            if key in self._clips:
                self._clips.move_to_end(key)
            return self._clips.get(key)

    def put(self, clip: EncodedClip) -> None:
        """Add a clip, or recount one that changed; the least recently used ones are evicted."""
        with self._lock:
            self._clips[clip.key] = clip
            self._clips.move_to_end(clip.key)
            total = sum(one.num_bytes for one in self._clips.values())
            while total > self.max_bytes:
                _, oldest = self._clips.popitem(last=False)
                total -= oldest.num_bytes

    @property
    def num_bytes(self) -> int:
        """Memory in use."""
        with self._lock:
            return sum(one.num_bytes for one in self._clips.values())

    def __len__(self) -> int:
        return len(self._clips)
