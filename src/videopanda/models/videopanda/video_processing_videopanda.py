"""Turns frames into model inputs: resize, place on a canvas, normalize. Needs neither torchvision nor a video decoder.

Dimensions: B videos; T frames; X × Y canvas pixels (height × width); R × C cells of the picture on its canvas.
"""

from collections.abc import Sequence
from copy import copy
from typing import Any, Literal

import numpy as np
import torch
from transformers import BatchFeature

from ..configuration import check_choice, check_counts
from ..frames import CLIP_MEAN, CLIP_STD, FrameProcessor
from ..pictures import WHITE
from .configuration_videopanda import VideoPandaStabConfig, placement_for_size, visual_token_count
from .layout_videopanda import token_layout


class VideoPandaVideoProcessor(FrameProcessor):
    """Turn frames into `pixel_values_videos` (B, T, 3, X, Y) and `video_placement` (B, 6).

    A placement row is: top, left, rows, columns of the picture in cells of two patches, the number of frames that yield
        tokens, and the number of real frames among them. The defaults are those of the released model.

    Args:
        size: {"height", "width"} of the square canvas in pixels; the longer side of every picture becomes this long.
        patch_size: pixels per patch side.
        num_frames: frames per video: the number sampled from longer videos and, with `pad_frames`, the least number
            sent.
        canvas: "square" places the picture in the middle of the canvas; "tight" makes the canvas as large as the
            picture (the largest picture of a batch), for models that mask padding.
        pad_frames: fill shorter videos with all-zero frames, as the released model does.
        do_sample_frames: take `num_frames` evenly spaced frames of an array with more of them. Objects with `frames`
            and `timestamps`, such as those of `read_video`, are already sampled and stay unchanged.
        frame_sampling: the rule by which `videopanda answer` and related commands choose frames of a file: "uniform"
            takes the middles of equal parts, "released" a grid of one frame per second, thinned, as the released code
            does.
        image_mean, image_std: per channel, for values in [0, 1].
        pad_color: uint8 color around the picture.
        background: uint8 color under transparent pixels of files and PIL images; white by default.
        row_tokens, context_token, image_context_token: what the model adds to a frame or image; see `for_stab`.
        compression: how the model reduces tokens, as a dictionary of `CompressionConfig`; None: not at all.
        max_visual_tokens: with `fps`, clips are read into a memory of this many tokens, for models that were trained
            with one; None: only where it is asked for.
    """

    def __init__(
        self,
        size: dict[str, int] | None = None,
        patch_size: int = 14,
        num_frames: int = 8,
        canvas: Literal["square", "tight"] = "square",
        pad_frames: bool = True,
        do_sample_frames: bool = True,
        frame_sampling: Literal["uniform", "released"] = "uniform",
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        pad_color: list[int] | None = None,
        background: list[int] | None = None,
        row_tokens: bool = True,
        context_token: bool = True,
        image_context_token: bool = True,
        compression: dict[str, Any] | None = None,
        max_visual_tokens: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.size = dict(size or {"height": 448, "width": 448})
        self.patch_size = patch_size
        self.num_frames = num_frames
        self.canvas = canvas
        self.pad_frames = pad_frames
        self.do_sample_frames = do_sample_frames
        self.frame_sampling = frame_sampling
        self.image_mean = list(CLIP_MEAN if image_mean is None else image_mean)
        self.image_std = list(CLIP_STD if image_std is None else image_std)
        self.pad_color = [int(255 * mean) for mean in self.image_mean] if pad_color is None else list(pad_color)
        self.background = list(WHITE if background is None else background)
        self.row_tokens = row_tokens
        self.context_token = context_token
        self.image_context_token = image_context_token
        self.compression = compression
        self.max_visual_tokens = max_visual_tokens
        if set(self.size) != {"height", "width"} or self.size["height"] != self.size["width"]:
            raise ValueError(
                f"`size` must be a square canvas such as {{'height': 448, 'width': 448}}, got {self.size}."
            )
        if self.size["height"] % (2 * patch_size):
            raise ValueError(
                f"The canvas of {self.size['height']} pixels is not a multiple of two patches, {2 * patch_size}."
            )
        check_choice("canvas", canvas, ("square", "tight"))
        check_choice("frame_sampling", frame_sampling, ("uniform", "released"))
        check_counts(num_frames=num_frames)
        if pad_frames and canvas == "tight":
            raise ValueError("`pad_frames` needs a square canvas: padding frames contribute its first 8 × 8 cells.")
        if not all(len(value) == 3 for value in (self.image_mean, self.image_std, self.pad_color, self.background)):
            raise ValueError("`image_mean`, `image_std`, `pad_color` and `background` need three channels.")

    @classmethod
    def for_stab(cls, config: VideoPandaStabConfig, **fields: Any) -> "VideoPandaVideoProcessor":
        """Return a processor whose canvas and token counts are those of `config`; `fields` set everything else."""
        if fields.get("canvas") == "tight" and not config.mask_padding:
            raise ValueError("A tight canvas needs `mask_padding`: otherwise a clip's tokens depend on its batch.")
        return cls(
            size={"height": config.image_size, "width": config.image_size},
            patch_size=config.patch_size,
            row_tokens=config.row_tokens,
            context_token=config.context_token,
            image_context_token=config.image_context_token,
            **fields,
        )

    @property
    def max_cells(self) -> int:
        """Cells per side of the square canvas."""
        return self.size["height"] // self.cell_size

    def most_tokens(self, num_frames: int) -> int:
        """Tokens of a clip of `num_frames` frames of the shape that has most of them."""
        return self.token_count(num_frames, 1, 1)

    def longer_side(self, height: int, width: int) -> int:
        """Pixels of the longer side of a frame of `height` × `width`, as the model sees it."""
        return self.size["height"]

    def token_count(self, num_frames: int, height: int, width: int, kind: Literal["video", "image"] = "video") -> int:
        """Count the tokens of a clip of `num_frames` frames, or of an image, of `height` × `width` source pixels."""
        is_video = kind == "video"
        if self.compression is not None:
            placement, _ = self._layout([(num_frames, height, width)], not is_video)
            return len(self.token_layout({f"{kind}_placement": placement}, 0, kind))
        return visual_token_count(
            num_frames,
            height,
            width,
            image_size=self.size["height"],
            patch_size=self.patch_size,
            row_tokens=self.row_tokens,
            context_token=self.context_token if is_video else self.image_context_token,
            pad_to_frames=self.num_frames if self.pad_frames and is_video else 0,
        )

    def token_layout(self, inputs: Any, i: int, kind: Literal["video", "image"] = "video") -> torch.Tensor:
        """Frame, row, column and kind of every token of visual `i` of a batch of this processor, (V, 4)."""
        context_token = self.context_token if kind == "video" else self.image_context_token
        placement = inputs[f"{kind}_placement"][i]
        return self.compressed(token_layout(placement, self.max_cells, self.row_tokens, context_token))

    def layout(self, sizes: Sequence[tuple[int, ...]]) -> BatchFeature:
        """Return the inputs that clips of (frames, height, width) become, with their pixels on the meta device."""
        placement, shape = self._layout(sizes)
        pixel_values = torch.empty(shape, device="meta")
        return BatchFeature({"pixel_values_videos": pixel_values, "video_placement": torch.tensor(placement)})

    def _layout(
        self, sizes: Sequence[tuple[int, ...]], is_image: bool = False
    ) -> tuple[list[tuple[int, int, int, int, int, int]], tuple[int, int, int, int, int]]:
        """Return placement rows and shape (B, T, 3, X, Y) of the pixels for clips of (frames, height, width)."""
        cell, tight = self.cell_size, self.canvas == "tight"
        least = self.num_frames if self.pad_frames and not is_image else 0
        placement = [
            (*placement_for_size(height, width, self.max_cells, tight), max(frames, least), frames)
            for frames, height, width in sizes
        ]
        rows, columns, frames = (max(row[i] for row in placement) for i in (2, 3, 4))
        x, y = (rows * cell, columns * cell) if tight else (self.size["height"], self.size["width"])
        return placement, (len(placement), frames, 3, x, y)

    def place_chunk(self, frames: np.ndarray) -> dict[str, torch.Tensor]:
        """As `place`; a stream is never filled up with padding frames."""
        alone = copy(self)
        alone.pad_frames = False
        return alone.place([frames])

    def place(self, clips: list[np.ndarray], is_image: bool = False) -> dict[str, torch.Tensor]:
        """Resize, normalize and put clips on canvases of one size; (B, T, 3, X, Y) and (B, 6)."""
        if not clips:
            raise ValueError("There is no video or image to process.")
        placement, shape = self._layout([clip.shape[:3] for clip in clips], is_image)
        cell, tight = self.cell_size, self.canvas == "tight"
        mean = torch.tensor(self.image_mean).view(3, 1, 1)
        std = torch.tensor(self.image_std).view(3, 1, 1)
        pad_color = (torch.tensor(self.pad_color, dtype=torch.float32).view(3, 1, 1) / 255 - mean) / std
        pixel_values = torch.zeros(shape)
        for canvas, clip, (top, left, num_rows, num_columns, *_) in zip(pixel_values, clips, placement):
            resized = self.resize(clip, num_rows * cell, num_columns * cell)
            if not tight:
                canvas[: len(clip)] = pad_color
            x, y = top * cell, left * cell
            picture = torch.from_numpy(resized).permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std)
            canvas[: len(clip), :, x : x + num_rows * cell, y : y + num_columns * cell] = picture
        pixels, rows = self.image_input_names if is_image else self.model_input_names
        placed = pixel_values.squeeze(1) if is_image else pixel_values
        return {pixels: placed, rows: torch.tensor(placement, dtype=torch.int64)}
