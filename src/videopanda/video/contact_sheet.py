"""Lays frames of videos out in rows, each with lines of text under it, as one picture.

sheet = contact_sheet([SheetRow(video.frames, ["What colour is the circle?  red"], video.timestamps)])
sheet.save("contact_sheet.png")
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP = 6  # pixels around frames and between rows
_TEXT_SIZE = 16
_LINE_HEIGHT = 22
_LABEL_HEIGHT = 18
_BACKGROUND, _TEXT, _FAINT = (250, 250, 250), (20, 20, 20), (110, 110, 110)


@dataclass(frozen=True)
class SheetRow:
    """One row of the sheet.

    frames: uint8 RGB, (T, H, W, 3), or (H, W, 3) each where sizes differ.
    lines: text under the frames; long lines are wrapped.
    timestamps: T times in seconds, written above the frames; an empty sequence omits the labels.
    """

    frames: Sequence[np.ndarray] | np.ndarray
    lines: Sequence[str]
    timestamps: Sequence[float] | np.ndarray = ()


def contact_sheet(rows: Sequence[SheetRow], frame_height: int = 120) -> Image.Image:
    """Draw rows below each other, every frame `frame_height` pixels high in its own aspect ratio.

    Raises:
        ValueError: no rows, a row without frames, or different numbers of timestamps and frames.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one row")
    for row in rows:
        if not len(row.frames) or any(frame.ndim != 3 for frame in row.frames):
            shapes = sorted({frame.shape for frame in row.frames})
            raise ValueError(f"a row needs frames of shape (H, W, 3), not {shapes}")
        if len(row.timestamps) not in (0, len(row.frames)):
            raise ValueError(f"{len(row.timestamps)} timestamps for {len(row.frames)} frames")
    font = text_font("".join(line for row in rows for line in row.lines), _TEXT_SIZE)
    width = _GAP + max(sum(_frame_width(frame, frame_height) + _GAP for frame in row.frames) for row in rows)
    pictures = [_draw_row(row, frame_height, width, font) for row in rows]
    sheet = Image.new("RGB", (width, sum(picture.height for picture in pictures)), _BACKGROUND)
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet


def text_font(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, which has the letters of English; for other text that of matplotlib, if it is installed."""
    plotting = None if text.isascii() else find_spec("matplotlib")
    if plotting is None or plotting.origin is None:
        return ImageFont.load_default(size)
    return ImageFont.truetype(str(Path(plotting.origin).with_name("mpl-data") / "fonts/ttf/DejaVuSans.ttf"), size)


def _frame_width(frame: np.ndarray, frame_height: int) -> int:
    height, width = frame.shape[:2]
    return max(1, round(width * frame_height / height))


def _draw_row(
    row: SheetRow, frame_height: int, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> Image.Image:
    lines = [part for line in row.lines for part in _wrap(line, font, width - 2 * _GAP)]
    label_height = _LABEL_HEIGHT if len(row.timestamps) else 0
    height = _GAP + label_height + frame_height + _GAP + len(lines) * _LINE_HEIGHT + _GAP
    picture = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(picture)
    left = _GAP
    for i, frame in enumerate(row.frames):
        frame_width = _frame_width(frame, frame_height)
        if label_height:
            draw.text((left, _GAP - 3), f"{row.timestamps[i]:.2f} s", fill=_FAINT, font=font)
        scaled = Image.fromarray(np.ascontiguousarray(frame)).resize((frame_width, frame_height))
        picture.paste(scaled, (left, _GAP + label_height))
        left += frame_width + _GAP
    for i, line in enumerate(lines):
        draw.text((_GAP, 2 * _GAP + label_height + frame_height + i * _LINE_HEIGHT), line, fill=_TEXT, font=font)
    return picture


def _wrap(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Break a line at spaces so that each part fits; a single word that is too wide stays whole."""
    parts = [""]
    for word in line.split():
        longer = f"{parts[-1]} {word}".strip()
        if parts[-1] and font.getlength(longer) > width:
            parts.append(word)
        else:
            parts[-1] = longer
    return parts
