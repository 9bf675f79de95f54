"""Writes real test videos whose frames carry their own number, so that tests can tell which frame they got.

write_video(path, range(30), fps=30)         # 30 frames of 64x48 pixels, H.264
read_number(frame)                           # 17
"""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

GRID = 4  # the number is painted as GRID x GRID black or white fields, lowest bit first


def paint_number(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A picture, uint8 (H, W, 3), that shows a number below 65536."""
    bits = np.array([number >> bit & 1 for bit in range(GRID * GRID)], np.uint8).reshape(GRID, GRID)
    rows, columns = np.arange(height) * GRID // height, np.arange(width) * GRID // width
    return np.repeat(bits[rows][:, columns, None] * 200 + 25, 3, axis=2).astype(np.uint8)


def read_number(frame: np.ndarray) -> int:
    """The number that a picture of `paint_number` shows."""
    height, width = frame.shape[:2]
    rows, columns = ((2 * np.arange(GRID) + 1) * size // (2 * GRID) for size in (height, width))
    bits = frame[rows][:, columns].mean(axis=2).reshape(-1) > 127
    return int(sum(1 << bit for bit, is_white in enumerate(bits) if is_white))


def read_numbers(frames: np.ndarray) -> list[int]:
    """The numbers of several pictures (T, H, W, 3)."""
    return [read_number(frame) for frame in frames]


def write_video(
    path: Path,
    numbers: Iterable[int],
    *,
    fps: Fraction | int = 30,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    container_options: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """Write frames that show `numbers`, at a constant rate or at the stamps `pts` (in units of `time_base`)."""
    if codec == "libx264":
        options = {"preset": "ultrafast", "bf": "0", "g": "250", "crf": "18", **options}
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        clock = time_base or 1 / Fraction(fps)
        stream.codec_context.time_base = clock
        for k, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(paint_number(number, *size), format="rgb24")
            frame.pts, frame.time_base = (k if pts is None else pts[k]), clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_audio(path: Path, seconds: float = 0.5) -> Path:
    """Write a file that holds a tone and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        tone = np.sin(np.arange(int(16000 * seconds)) / 5, dtype=np.float32)[None]
        frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def set_display_matrix(path: Path, abcd: tuple[int, int, int, int]) -> None:
    """Overwrite the display matrix in the track header of an MP4: x' = a·x + c·y, y' = b·x + d·y."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44  # type, version and flags, 20 bytes of times and number, 16 of layer and volume
    a, b, c, d = (value << 16 for value in abcd)
    data[start : start + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in (a, b, 0, c, d, 0, 0, 0, 1 << 30))
    path.write_bytes(data)
