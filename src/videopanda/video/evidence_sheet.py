"""Draws which frames an answer depends on: the frames in a row, a bar under each, and the regions that matter in them.

evidence_sheet(frames, times, falls, boxes, "What shape is it?  circle").save("evidence.png")
"""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from videopanda.video.contact_sheet import text_font

_GAP, _HEIGHT, _BAR, _LABEL, _TEXT = 6, 120, 60, 20, 16
_INK, _FAINT, _GOOD, _BAD = (20, 20, 20), (110, 110, 110), (200, 60, 30), (60, 110, 200)

Box = tuple[float, float, float, float, float]  # left, top, right, bottom in parts of the picture; weight from 0 to 1


def evidence_sheet(
    frames: Sequence[np.ndarray] | np.ndarray,
    times: Sequence[float],
    falls: Sequence[float],
    boxes: Mapping[int, Sequence[Box]],
    title: str,
) -> Image.Image:
    """One picture.

    Args:
        frames: T of uint8 (H, W, 3).
        times: seconds of the frames.
        falls: of the probability without each frame, -1 to 1; bars that point down say that it rises.
        boxes: regions by frame, drawn the stronger the more they weigh.
    """
    font = text_font(title, _TEXT)
    step = max(1, *(round(frame.shape[1] * _HEIGHT / frame.shape[0]) for frame in frames))
    size = (_GAP + len(frames) * (step + _GAP), 3 * _GAP + 2 * _LABEL + _HEIGHT + 2 * _BAR)
    sheet = Image.new("RGB", (max(size[0], round(font.getlength(title)) + 2 * _GAP), size[1]), "white")
    draw = ImageDraw.Draw(sheet, "RGBA")
    draw.text((_GAP, _GAP - 2), title, fill=_INK, font=font)
    top = _GAP + _LABEL
    zero = top + _LABEL + _HEIGHT + _GAP + _BAR
    for place, frame in enumerate(frames):
        left = _GAP + place * (step + _GAP)
        draw.text((left, top), f"{times[place]:.2f} s", fill=_FAINT, font=font)
        sheet.paste(Image.fromarray(np.ascontiguousarray(frame)).resize((step, _HEIGHT)), (left, top + _LABEL))
        for x0, y0, x1, y1, weight in boxes.get(place, ()):
            corners = (left + x0 * step, top + _LABEL + y0 * _HEIGHT, left + x1 * step, top + _LABEL + y1 * _HEIGHT)
            draw.rectangle(corners, fill=(*_GOOD, round(130 * weight)))
        fall = falls[place]
        end = zero - fall * _BAR
        draw.rectangle((left, min(zero, end), left + step, max(zero, end)), fill=_GOOD if fall > 0 else _BAD)
        draw.text((left, zero + 2), f"{-100 * fall:+.0f} %", fill=_INK, font=font)
    draw.line((0, zero, sheet.width, zero), fill=_FAINT)
    return sheet
