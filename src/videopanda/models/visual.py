"""The common output of every family's vision part. Copied into exported folders."""

from typing import Any, NamedTuple

from torch import Tensor

CELL, CONTEXT, ROW_END, PADDING = range(4)  # kinds of visual tokens, in column 3 of a layout

# The model's inputs for each kind of visual: pixels, and an integer tensor that locates them.
VISUAL_INPUTS = {"video": ("pixel_values_videos", "video_placement"), "image": ("pixel_values", "image_placement")}


class EncodedVisual(NamedTuple):
    """A video or an image as input of the language model.

    tokens: (V, E), one per placeholder.
    layout: (V, 4) integers, where a token comes from: frame, row and column of its cell on the canvas, and its kind.
        Tokens without a cell have row and column -1. None if a family does not provide it.
    """

    tokens: Tensor
    layout: Tensor | None = None


class ChunkState(NamedTuple):
    """What a vision part carries from one chunk of a clip to the next.

    frames: number of frames so far.
    compressor: state of its compressor, if it has one.
    """

    frames: int = 0
    compressor: Any = None
