"""Decodes chosen frames with torchcodec, if it is available; `timeline` decides which frames those are.

    decoder, version = load()             # None and the reason if torchcodec is missing or does not work
    for pts, _, rgb in decode(source, timeline, [0, 512], deadline): ...

A stream whose times, rotation or colors would differ from PyAV is refused.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np

from videopanda.video.container import Deadline, DisorderedError, Reader, UnreadableError, display_matrix
from videopanda.video.source import OpenSource
from videopanda.video.timeline import Timeline

# Formats whose conversion to RGB is the same in all releases of FFmpeg; torchcodec and PyAV bring different ones.
_PLAIN_FORMATS = ("yuv420p", "yuvj420p")
_FULL_RANGE = 2  # FFmpeg's AVCOL_RANGE_JPEG


@cache
def load() -> tuple[Any, str]:
    """The decoder class (None if it cannot be loaded) and its version or the reason."""
    try:
        import torchcodec
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError, OSError) as error:  # absent, or its FFmpeg libraries are
        if isinstance(error, ModuleNotFoundError) and error.name == "torchcodec":
            return None, "it is not installed: pip install 'videopanda[video]'"
        return None, (str(error).strip() or "it does not load").splitlines()[0]
    return VideoDecoder, str(torchcodec.__version__)


def _check(source: OpenSource, timeline: Timeline, ticks: Sequence[int], deadline: Deadline) -> None:
    decoder_class, reason = load()
    if decoder_class is None:
        raise UnreadableError(f"torchcodec cannot be loaded: {reason}")
    if source.plain is None:
        raise UnreadableError("torchcodec is used only for paths and bytes")
    if timeline.counted or timeline.pts is None or len(timeline.parts) > 1 or timeline.hidden:
        raise UnreadableError("torchcodec is used only if all timestamps are known and come from one clock")
    reader = Reader(source.opener, timeline, deadline)
    try:
        frame = reader.read(timeline.first)
        matrix = display_matrix(frame)
        if matrix is not None and matrix[0] * matrix[3] - matrix[1] * matrix[2] < 0:
            raise UnreadableError("torchcodec does not mirror pictures")
        kind = reader.container.format.name
        by_container = reader.stream.codec_context.name != "mjpeg" and ("mp4" in kind or "matroska" in kind)
        if matrix is not None and not by_container:
            raise UnreadableError("torchcodec applies the rotation of the container, not that of the pictures (EXIF)")
        if frame.format.name not in _PLAIN_FORMATS or frame.width % 2 or frame.height % 2:
            raise UnreadableError(f"torchcodec may round the colors of {frame.format.name} pictures differently")
        if frame.color_range == _FULL_RANGE and frame.format.name == "yuv420p":
            raise UnreadableError("torchcodec mistakes the full color range for the limited one")
        for key in sorted({timeline.keyframe(tick) or timeline.first for tick in ticks}):
            if key > timeline.first:
                reader.go_to(key)
                if reader.ahead is None or reader.ahead.pts != key:
                    raise UnreadableError(f"decoding cannot start at the keyframe at {timeline.seconds(key):.3f} s")
                if display_matrix(reader.ahead) != matrix:
                    raise UnreadableError("torchcodec does not follow an orientation that changes")
    except DisorderedError as error:
        raise UnreadableError("torchcodec is used only if timestamps are in order") from error
    finally:
        reader.close()


def decode(
    source: OpenSource, timeline: Timeline, ticks: Sequence[int], deadline: Deadline
) -> Iterator[tuple[int, int, np.ndarray]]:
    """As `container.decode`: yields (stamp, 0, upright RGB picture uint8 (H, W, 3))."""
    _check(source, timeline, ticks, deadline)
    decoder_class, _ = load()
    try:
        decoder = decoder_class(source.plain, dimension_order="NHWC", seek_mode="exact")
        for tick in ticks:
            deadline.check()
            frame = decoder.get_frame_at(timeline.index(tick))
            # torchcodec numbers frames differently where some are hidden or cut off by an edit list.
            if round(frame.pts_seconds / float(timeline.time_base)) != tick:
                raise UnreadableError(f"torchcodec returns a different frame at {timeline.seconds(tick):.3f} s")
            yield tick, 0, frame.data.numpy()
    except (RuntimeError, ValueError, IndexError) as error:
        raise UnreadableError("torchcodec: " + str(error).strip().splitlines()[0].rsplit(", ", 1)[-1]) from error
