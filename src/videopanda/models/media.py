"""Reads files and URLs of videos and pictures for processors. Copied into exported folders.

Models decode no video. The package gives them `read_video` when it is imported. An exported folder alone reads pictures
and refuses videos: another reader would rotate, cut or time them differently.
"""

import base64
import io
import math
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .pictures import to_pixels

_TIMEOUT = 60.0  # seconds for a server to answer
_LONGEST_PATH = 4096
_read_video: Callable[..., Any] | None = None


def use_reader(read_video: Callable[..., Any]) -> None:
    """Let processors read files with `read_video` (that of `videopanda.video.read`)."""
    global _read_video
    _read_video = read_video


def check_sampling(num_frames: int | None, fps: float | None) -> None:
    """Raise ValueError, as `read_video` does, for an invalid choice of frames."""
    if num_frames is not None and fps is not None:
        raise ValueError("give exactly one of num_frames= or fps=")
    if num_frames is not None and not (isinstance(num_frames, int | np.integer) and num_frames >= 1):
        raise ValueError(f"num_frames must be a whole number of at least 1, got {num_frames}")
    if fps is not None and not 0 < fps < math.inf:
        raise ValueError(f"fps must be a positive number of frames per second, got {fps}")


def read_file(source: str | Path, **arguments: Any) -> Any:
    """Read frames of a file or an http URL with `read_video`, which has the same arguments and errors.

    Raises:
        ValueError: there is no reader, as in an exported folder without the package.
    """
    if _read_video is None:
        raise ValueError(
            f"cannot read {source}: this folder's own code reads no video files. Install videopanda and import it, or "
            "pass frames (T, H, W, 3), with their times as `video_metadata`"
        )
    return _read_video(_content(source), **arguments)


def read_picture(source: str | Path, background: Sequence[int]) -> np.ndarray:
    """Read a picture from a file, an http URL or a data URL (or bare base64); uint8 (H, W, 3).

    Raises:
        ValueError: the source is a video, or not a readable picture. Errors of `read_video` if that is used.
    """
    content = _content(source)
    if _read_video is not None:
        video = _read_video(content, num_frames=1, background=background)
        if not video.is_still:
            raise ValueError(f"{str(source)[:80]} is a video, not a picture: pass it as a video")
        return np.asarray(video.frames[0])
    with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
        return to_pixels(image, background)


def _content(source: str | Path) -> str | Path | bytes:
    """A path unchanged, or the content of a URL or base64 text."""
    text = str(source)
    if text.startswith(("http://", "https://")):
        with urllib.request.urlopen(text, timeout=_TIMEOUT) as answer:
            return bytes(answer.read())
    if text.startswith("data:"):
        return base64.b64decode(text.partition(",")[2])
    if len(text) > _LONGEST_PATH:
        return base64.b64decode(text)  # transformers takes pictures in this form too
    return source
