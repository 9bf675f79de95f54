"""What every family makes of a video or an image. Copied into exported folders."""

from typing import NamedTuple

from torch import Tensor

CELL, CONTEXT, ROW_END, PADDING = range(4)  # kinds of visual tokens, in column 3 of a layout


class EncodedVisual(NamedTuple):
    """A video or an image as the language model reads it.

    tokens: (V, E), one per placeholder.
    layout: (V, 4) integers, where a token comes from: frame, row and column of its cell on the canvas, and its kind.
        Tokens that stand for no cell have row and column -1. None where a family does not tell.
    """

    tokens: Tensor
    layout: Tensor | None = None


__all__ = ["CELL", "CONTEXT", "PADDING", "ROW_END", "EncodedVisual"]
