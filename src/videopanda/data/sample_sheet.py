"""A picture of training samples: the frames of each with the questions and answers that are trained on."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from videopanda.data.sample import Sample
from videopanda.models.frames import to_uint8_frames
from videopanda.video.contact_sheet import SheetRow, contact_sheet
from videopanda.video.read import read_video

_FRAMES, _SIDE, _TURNS = 8, 240, 3


def sample_sheet(samples: Sequence[Sample]) -> Image.Image | None:
    """The first video of every sample that has one, up to eight frames of it; None if no sample has one.

    Raises:
        VideoReadError: a clip cannot be read.
    """
    rows = []
    for sample in samples:
        if not sample.videos:
            continue
        clip: Any = sample.videos[0]
        if isinstance(clip, str | os.PathLike):
            clip = read_video(clip, num_frames=_FRAMES, max_side=_SIDE)
        frames = to_uint8_frames(clip)
        places = np.linspace(0, len(frames) - 1, min(_FRAMES, len(frames))).round().astype(int)
        times = [float(clip.timestamps[at]) for at in places] if hasattr(clip, "timestamps") else []
        turns = [turn for conversation in sample.conversations for turn in conversation][:_TURNS]
        lines = [f"{turn[0]}  {turn[1]}".replace("<video>", "").strip() for turn in turns]
        rows.append(SheetRow([frames[at] for at in places], lines, times))
    return contact_sheet(rows) if rows else None
