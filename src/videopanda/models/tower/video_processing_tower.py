"""Turns frames into a tower's inputs: each in the middle of a square of the tower's mean color.

Only cells that the picture covers become tokens, as in LLaVA-NeXT, so a tower and an encoder-free model with as many
cells per side give the language model as many cells.

Dimensions: B videos of T frames; S × S pixels.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from transformers import BatchFeature

from ..configuration import check_choice, check_counts
from ..frames import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, FrameProcessor
from ..pictures import WHITE
from ..visual import CELL
from .configuration_tower import CLIP, TowerConfig, grid_of

# Mean and standard deviation that towers were trained with, by kind; SigLIP's are one half.
_NORMALIZED = {
    CLIP: (CLIP_MEAN, CLIP_STD),
    **dict.fromkeys(("dinov2", "dinov2_with_registers"), (IMAGENET_MEAN, IMAGENET_STD)),
}


class TowerVideoProcessor(FrameProcessor):
    """Turn frames into `pixel_values_videos` (B, T, 3, S, S) and `video_placement` (B, 5).

    A placement row is: top, left, rows, columns of the picture in cells, and the number of frames.

    Args:
        frame_size: S; the longer side of every picture becomes this long.
        patch_size: pixels per side of a cell, which becomes one token.
        num_frames: frames sampled from longer videos.
        do_sample_frames, frame_sampling: as in every family: "uniform" takes the middles of equal parts of the clip.
        image_mean, image_std: per channel, for values in [0, 1].
        background: uint8 color under transparent pixels; white by default.
    """

    def __init__(
        self,
        frame_size: int = 224,
        patch_size: int = 14,
        num_frames: int = 8,
        do_sample_frames: bool = True,
        frame_sampling: Literal["uniform"] = "uniform",
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        background: Sequence[int] = WHITE,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.frame_size = frame_size
        self.patch_size = patch_size
        self.num_frames = num_frames
        self.do_sample_frames = do_sample_frames
        self.frame_sampling = frame_sampling
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.background = list(background)
        if frame_size % patch_size:
            raise ValueError(f"`frame_size` {frame_size} is not a multiple of the cell, {patch_size} pixels.")
        check_choice("frame_sampling", frame_sampling, ("uniform",))
        check_counts(num_frames=num_frames)

    @classmethod
    def for_config(cls, config: TowerConfig) -> "TowerVideoProcessor":
        """Return the processor of a new model."""
        mean, std = _NORMALIZED.get(config.vision_config.model_type, ((0.5, 0.5, 0.5),) * 2)
        return cls(config.frame_size, config.cell_size, image_mean=mean, image_std=std)

    @property
    def cell_size(self) -> int:
        """Pixels per side of the square that becomes one token."""
        return self.patch_size

    @property
    def max_cells(self) -> int:
        """Cells per side of the square."""
        return self.frame_size // self.cell_size

    def most_tokens(self, num_frames: int) -> int:
        """Tokens of a clip of `num_frames` square frames, which have most of them."""
        return self.token_count(num_frames, 1, 1)

    def longer_side(self, height: int, width: int) -> int:
        """Pixels of the longer side of a frame of `height` × `width`, as the model sees it."""
        return self.frame_size

    def token_count(self, num_frames: int, height: int, width: int, kind: Literal["video", "image"] = "video") -> int:
        """Count the tokens of a clip of `num_frames` frames, or of an image, of `height` × `width` source pixels."""
        rows, columns = grid_of(height, width, self.max_cells)
        return num_frames * rows * columns

    def token_layout(self, inputs: Any, i: int, kind: Literal["video", "image"] = "video") -> torch.Tensor:
        """Frame, row, column and kind of every token of visual `i` of a batch of this processor, (V, 4)."""
        return token_layout(inputs[f"{kind}_placement"][i])

    def layout(self, sizes: Sequence[tuple[int, ...]]) -> BatchFeature:
        """Return the inputs that clips of (frames, height, width) become, with their pixels on the meta device."""
        shape = (len(sizes), max(size[0] for size in sizes), 3, self.frame_size, self.frame_size)
        rows = torch.tensor([self._placement(*size) for size in sizes])
        return BatchFeature({"pixel_values_videos": torch.empty(shape, device="meta"), "video_placement": rows})

    def place(self, clips: list[np.ndarray], is_image: bool = False) -> dict[str, torch.Tensor]:
        """Resize, normalize and put clips on squares; (B, T, 3, S, S), shorter clips end in zeros, and (B, 5)."""
        if not clips:
            raise ValueError("There is no video or image to process.")
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.image_mean, self.image_std))
        pixels = torch.zeros(len(clips), max(len(clip) for clip in clips), 3, self.frame_size, self.frame_size)
        rows = [self._placement(*clip.shape[:3]) for clip in clips]
        for square, clip, sides in zip(pixels, clips, rows):
            top, left, height, width = (self.cell_size * side for side in sides[:4])
            picture = torch.from_numpy(self.resize(clip, height, width)).permute(0, 3, 1, 2).float().div_(255)
            square[: len(clip), :, top : top + height, left : left + width] = (picture - mean) / std
        names = self.image_input_names if is_image else self.model_input_names
        return {names[0]: pixels.squeeze(1) if is_image else pixels, names[1]: torch.tensor(rows)}

    def _placement(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        rows, columns = grid_of(height, width, self.max_cells)
        return (self.max_cells - rows) // 2, (self.max_cells - columns) // 2, rows, columns, frames


def token_layout(placement: Any) -> torch.Tensor:
    """Frame, row, column and kind of every token of one placement row, (V, 4); see `EncodedVisual`."""
    top, left, rows, columns, frames = map(int, placement)
    places = (torch.arange(frames), torch.arange(top, top + rows), torch.arange(left, left + columns))
    return torch.nn.functional.pad(torch.cartesian_prod(*places).view(-1, 3), (0, 1), value=CELL)
