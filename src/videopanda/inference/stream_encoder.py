"""A video that is still coming, or too long for one array, encoded in constant memory, at constant cost per frame.

Frames are encoded in chunks, with the state of the vision part carried from chunk to chunk, into a `TokenMemory`. At
any frame, `clip()` is the stream so far as if it ended there: its tokens are those of the whole clip offline.

    clip, seconds, log = encode_long(model, processor, "lecture.mp4", fps=1, max_visual_tokens=2048)
    Chat(model, processor, clip).ask("Which topic comes second?")

With `last_frames=N` only the last N frames are kept and encoded when something is asked: the baseline that any
memory has to beat (SimpleStream, arXiv 2604.02317), and the only way to stream for models that need a whole clip.
"""

import math
import os
import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import numpy as np
import torch

from videopanda.inference.clip import ClipSource, EncodedClip, encode_prepared, prepare_clips
from videopanda.inference.token_memory import TokenMemory
from videopanda.models.configuration import context_length
from videopanda.models.visual import ChunkState
from videopanda.video.read import VideoReadError, read_video
from videopanda.video.stream import Note, stream_video

MAX_VISUAL_TOKENS = 2048
KEPT_TIMES = 100_000  # frame times that an answer reports at most
_SLACK = 1e-6  # of a frame, for rates and ranges that are no binary fractions


@dataclass(frozen=True)
class SessionLog:
    """What happened to the frames of a stream.

    frames: number seen so far; steps: (first second, last second, frames) of each step that is kept.
    merged: merges so far; dropped: frames no longer in memory; dropped_stretches: the latest of them, as time ranges.
    resized: frames whose size differs from that of the first one.
    """

    frames: int
    steps: list[tuple[float, float, int]]
    merged: int
    dropped: int
    dropped_stretches: list[tuple[float, float]]
    resized: int


class StreamEncoder:
    """One stream, encoded as it comes.

    Args:
        max_visual_tokens: maximum tokens of all frames so far; default what the model was trained with, else 2,048, or
            half of the context if that is less.
        window: number of latest steps that are never merged.
        last_frames: keep only this many frames, and encode them when something is asked; 0 for a memory of everything.
        total_frames: length of the stream, if known; models with `stab.coordinates` need it.

    Raises:
        ValueError: the model cannot encode in chunks; the message names what it needs.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        max_visual_tokens: int | None = None,
        window: int = 4,
        last_frames: int = 0,
        total_frames: int | None = None,
    ):
        self.model, self.processor = model, processor
        self.total_frames, self.last_frames = total_frames, last_frames
        context = context_length(model.config.text_config)
        if max_visual_tokens is None:
            trained = processor.video_processor.max_visual_tokens
            max_visual_tokens = trained or min(MAX_VISUAL_TOKENS, context // 2)
        if max_visual_tokens >= context:
            raise ValueError(f"{max_visual_tokens:,} visual tokens exceed the context of {context:,} tokens")
        self.memory = TokenMemory(max_visual_tokens, window)
        self.num_frames = self.resized = 0
        self.seconds = {"preprocess": 0.0, "encode": 0.0}
        self.end: float | None = None  # second at which the last frame ends; None: it lasts as long as the one before
        self._key = uuid4().hex
        self._size: tuple[int, int] | None = None
        self._state = ChunkState()
        self._chunk = 1
        if not last_frames:
            self._chunk = model.chunk_frames or 0
            if model.needs_total_frames and total_frames is None:
                raise ValueError(
                    "the tokens of this model encode their relative time in the clip (stab.coordinates), which is "
                    "undefined in an endless stream: watch its last frames with last_frames=N"
                )
            if not self._chunk:
                raise ValueError(
                    "this model needs the whole clip (unbounded segments, a bidirectional compressor, or FRAME tokens "
                    "that see earlier ones): watch its last frames with last_frames=N"
                )
        self._pending: deque[tuple[np.ndarray, float]] = deque(maxlen=last_frames or None)
        self._times: deque[float] = deque(maxlen=KEPT_TIMES)
        self._first: float | None = None
        self._encoded: tuple[int, EncodedClip] | None = None  # number of frames, and the clip of them

    @torch.inference_mode()
    def push(self, image: np.ndarray, seconds: float) -> None:
        """Add the next frame, uint8 (H, W, 3), shown at `seconds`. Frames of another size are scaled to the first one.

        Raises:
            ValueError: it is not such an array, or its time is before that of the last one.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"a frame must be uint8 (height, width, 3), got {image.dtype} {image.shape}")
        if self._times and seconds < self._times[-1]:
            raise ValueError(f"frame times must not decrease: got {seconds:.3f} s after {self._times[-1]:.3f} s")
        size = image.shape[1], image.shape[0]
        is_resized = self._size not in (None, size)
        if self._size is not None and is_resized:
            image = self.processor.video_processor.resize(image[None], self._size[1], self._size[0])[0]
        pending = [*self._pending, (image, seconds)]
        if not self.last_frames and len(pending) == self._chunk:
            self._state = self._encode(self.memory, pending)  # if this fails, all is as if the frame had not come
            self._pending.clear()
        else:
            self._pending.append((image, seconds))
        self._size, self.resized = self._size or size, self.resized + is_resized
        self._first = seconds if self._first is None else self._first
        self._times.append(seconds)
        self.num_frames, self.end = self.num_frames + 1, None

    @torch.inference_mode()
    def finish(self, end: float) -> None:
        """The stream has ended, at this second: its last frames need not wait for a whole chunk."""
        self.end = end
        if self._pending and not self.last_frames:
            self._state = self._encode(self.memory, self._pending)
            self._pending.clear()

    def _encode(self, memory: TokenMemory, pending: Collection[tuple[np.ndarray, float]]) -> ChunkState:
        began = time.perf_counter()
        frames = np.stack([image for image, _ in pending])
        rules = self.processor.video_processor
        inputs = rules.place_chunk(frames)
        placed = time.perf_counter()
        visual, state = self.model.encode_chunk(inputs, self._state, self.total_frames)
        memory.add(visual.tokens, visual.layout, [seconds for _, seconds in pending], rules.frames_per_number)
        self.seconds["preprocess"] += placed - began
        self.seconds["encode"] += time.perf_counter() - placed
        return state

    @torch.inference_mode()
    def clip(self) -> EncodedClip:
        """The stream so far, encoded. Raises ValueError before the first frame."""
        if not self.num_frames:
            raise ValueError("no frame has been pushed yet")
        if self._encoded is None or self._encoded[0] != self.num_frames:
            self._encoded = self.num_frames, self._last_clip() if self.last_frames else self._memory_clip()
        return self._encoded[1]

    def _memory_clip(self) -> EncodedClip:
        memory = self.memory.copy()
        if self._pending:
            self._encode(memory, self._pending)
        layout = memory.layout
        text = self.processor.video_text(layout, self.duration, [start for start, _, _ in memory.spans])
        key, times = f"stream {self._key} {self.num_frames}", tuple(self._times)
        kept: dict[str, Any] = {"tokens": memory.tokens, "layout": layout, "selection": memory.selection}
        return EncodedClip(key, "video", text, times, **kept)

    def _last_clip(self) -> EncodedClip:
        began = time.perf_counter()
        frames, times = zip(*self._pending)
        video = SimpleNamespace(frames=np.stack(frames), timestamps=np.array(times), duration=self._span(times[0]))
        (clip,) = prepare_clips(self.processor, [video])
        placed = time.perf_counter()
        encode_prepared(self.model, [clip])
        self.seconds["preprocess"] += placed - began
        self.seconds["encode"] += time.perf_counter() - placed
        clip.frames, clip.selection = None, ("one of the last frames",) * len(frames)
        return clip

    def _span(self, start: float) -> float:
        """Seconds from `start` to the end of the last frame, which is shown as long as the one before."""
        if self.end is not None:
            return self.end - start
        step = self._times[-1] - self._times[-2] if len(self._times) > 1 else 1.0
        return self._times[-1] + step - start

    @property
    def next_time(self) -> float:
        """Second at which the last frame ends, and a next one may begin."""
        return self._span(0.0) if self._times else 0.0

    @property
    def duration(self) -> float:
        """Seconds so far."""
        return 0.0 if self._first is None else self._span(self._first)

    @property
    def log(self) -> SessionLog:
        """What happened to the frames."""
        memory = self.memory
        if self.last_frames:
            steps = [(seconds, seconds, 1) for _, seconds in self._pending]
            return SessionLog(self.num_frames, steps, 0, self.num_frames - len(steps), [], self.resized)
        return SessionLog(
            self.num_frames, memory.spans, memory.merged, memory.num_dropped, list(memory.dropped), self.resized
        )

    @property
    def num_bytes(self) -> int:
        """Memory of what is kept between frames; it does not grow once the memory is full."""
        kept = sum(step.tokens.nbytes + step.places.nbytes for step in self.memory.steps)
        return kept + sum(image.nbytes for image, _ in self._pending)


def encode_long(
    model: Any,
    processor: Any,
    source: Any,
    *,
    fps: float = 1.0,
    max_visual_tokens: int | None = None,
    last_frames: int = 0,
    start: float | None = None,
    end: float | None = None,
) -> tuple[EncodedClip, dict[str, float], SessionLog]:
    """Encode a whole file in constant memory; the seconds of "decode", "preprocess" and "encode", and the log.

    Args:
        source: a file or a folder of images.
        fps: frames per second that are encoded, the first at `start`.
        max_visual_tokens, last_frames: see `StreamEncoder`.
        start, end: range in seconds.

    Raises:
        VideoReadError: the source cannot be read, is damaged or cut short.
        ValueError: the model needs a whole clip, the source is a still picture, or has nothing in this range.
    """
    ClipSource(source, None, start, end, fps)  # refuses frames and wrong rates
    if not isinstance(source, str | os.PathLike):
        raise ValueError("only a file or a folder of images is read into a memory: pass its path, or use num_frames")
    began = time.perf_counter()
    background = processor.video_processor.background
    whole = read_video(
        source, num_frames=1, start=start, end=end, background=background, decoder="pyav", timeout=math.inf
    )
    if whole.is_still:
        raise ValueError(
            "a memory is for videos, and this is a still image: omit fps, max_visual_tokens and last_frames"
        )
    decode = time.perf_counter() - began
    encoder = StreamEncoder(
        model,
        processor,
        max_visual_tokens=max_visual_tokens,
        last_frames=last_frames,
        total_frames=max(1, math.ceil((whole.end - whole.start) * fps - _SLACK)),
    )
    notes: list[Note] = []
    with stream_video(source, fps=fps, start=whole.start, background=background, on_note=notes.append) as stream:
        while True:
            began = time.perf_counter()
            frame = next(stream, None)
            decode += time.perf_counter() - began
            if frame is None or (end is not None and frame.time >= whole.end - _SLACK / fps):
                break
            encoder.push(frame.image, frame.time)
    # As `read_video`: an answer about a part of the file would not say so. Damage before the first frame shows nothing.
    if lost := [note for note in notes if note.kind in ("damage", "end") and note.time > 0]:
        raise VideoReadError(str(source), f"{lost[0].text} (after {lost[0].time:.1f} s)")
    if not encoder.num_frames:
        raise VideoReadError(str(source), "no video frames")
    encoder.finish(whole.end)
    clip = encoder.clip()
    return clip, {"decode": decode, **encoder.seconds}, encoder.log
