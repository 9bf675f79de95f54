"""Turns frames into ELVA's inputs: each at its own resolution, or some at a lower one, cut into cells of 2 × 2 patches.

Dimensions: B videos; F frames of all of them; C cells of all frames; P = 4 patches of a cell; X = 3·p·p pixel values.
"""

import zlib
from collections.abc import Iterable, Sequence
from copy import copy
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature

from ..compression_config import CompressionConfig
from ..configuration import check_choice, check_counts
from ..frames import FrameProcessor
from ..pictures import WHITE
from .configuration_elva import ElvaConfig, ElvaHybridConfig, cell_limit, check_countable, frame_tokens, grid_of
from .modeling_elva_embedding import token_layout


class ElvaVideoProcessor(FrameProcessor):
    """Turn frames into `pixel_values_videos` (C, 4, 3·p·p) and `video_placement` (F, 4): video, number, rows, columns.

    Args:
        patch_size: pixels per side of a patch; a cell has two patches per side, which becomes one token.
        max_frame_cells: maximum cells per frame; larger frames are scaled down, keeping their aspect ratio.
        max_frame_pixels: maximum pixels per frame, as a second limit.
        num_frames: frames sampled from longer videos.
        hybrid_policy, hybrid_every, hybrid_scale: which frames keep the high resolution; see `ElvaHybridConfig`.
        do_sample_frames, frame_sampling: as in every family: "uniform" takes the middles of equal parts of the clip.
        image_mean, image_std: per channel, for values in [0, 1].
        background: uint8 color under transparent pixels; white by default.
        compression: how the model reduces tokens, as a dictionary of `CompressionConfig`; None: not at all.
        max_visual_tokens: with `fps`, clips are read into a memory of this many tokens, for models that were trained
            with one; None: only where it is asked for.
    """

    mixed_sizes = True
    changeable = ("num_frames", "max_frame_cells", "max_frame_pixels", "hybrid_policy", "hybrid_every", "hybrid_scale")

    def __init__(
        self,
        patch_size: int = 14,
        max_frame_cells: int = 144,
        max_frame_pixels: int | None = None,
        num_frames: int = 16,
        hybrid_policy: Literal["every", "ends", "change", "random"] = "every",
        hybrid_every: int = 0,
        hybrid_scale: float = 0.5,
        do_sample_frames: bool = True,
        frame_sampling: Literal["uniform"] = "uniform",
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        background: list[int] | None = None,
        compression: dict[str, Any] | None = None,
        max_visual_tokens: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        ElvaHybridConfig(policy=hybrid_policy, every=hybrid_every, scale=hybrid_scale)  # checks the values
        check_countable(CompressionConfig(**(compression or {})), hybrid_policy, hybrid_every)
        self.patch_size = patch_size
        self.max_frame_cells = max_frame_cells
        self.max_frame_pixels = max_frame_pixels
        self.num_frames = num_frames
        self.hybrid_policy = hybrid_policy
        self.hybrid_every = hybrid_every
        self.hybrid_scale = hybrid_scale
        self.do_sample_frames = do_sample_frames
        self.frame_sampling = frame_sampling
        self.image_mean = list(image_mean or [0.5, 0.5, 0.5])
        self.image_std = list(image_std or [0.5, 0.5, 0.5])
        self.background = list(background or WHITE)
        self.compression = compression
        self.max_visual_tokens = max_visual_tokens
        check_choice("frame_sampling", frame_sampling, ("uniform",))
        cell_limit(max_frame_cells, max_frame_pixels, self.cell_size)  # rejects invalid combinations
        check_counts(num_frames=num_frames)

    @classmethod
    def for_config(cls, config: ElvaConfig) -> "ElvaVideoProcessor":
        """Return the processor of a new model."""
        hybrid = config.hybrid_config
        return cls(
            patch_size=config.embedding_config.patch_size,
            max_frame_cells=config.max_frame_cells,
            max_frame_pixels=config.max_frame_pixels,
            hybrid_policy=hybrid.policy,
            hybrid_every=hybrid.every,
            hybrid_scale=hybrid.scale,
            compression=config.compression.fields(),
        )

    def coarse(self) -> "ElvaVideoProcessor":
        """A processor that shows frames with a quarter of the cells."""
        less = copy(self)
        less.max_frame_cells = max(1, self.frame_cells // 4)
        return less

    @property
    def frame_cells(self) -> int:
        """Maximum cells per frame, by both limits."""
        return cell_limit(self.max_frame_cells, self.max_frame_pixels, self.cell_size)

    @property
    def max_cells(self) -> int:
        """Cells per side of the largest square frame."""
        return int(self.frame_cells**0.5)

    def grids(self, num_frames: int, height: int, width: int, scale_T: np.ndarray | None = None) -> np.ndarray:
        """Rows and columns of cells of each frame of a clip, (T, 2).

        Args:
            scale_T: sides relative to the high resolution; default: the policy's choice without seeing the frames.
        """
        sides_2 = np.array(grid_of(height, width, self.cell_size, self.frame_cells))
        scale_T = self.scales(num_frames) if scale_T is None else scale_T
        return np.maximum(1, np.rint(scale_T[:, None] * sides_2)).astype(int)

    def scales(self, num_frames: int, frames: Iterable[np.ndarray] | None = None) -> np.ndarray:
        """Sides of every frame relative to the high resolution, (T,); see `high_frames`."""
        return np.where(self.high_frames(num_frames, frames), 1.0, self.hybrid_scale)

    def high_frames(self, num_frames: int, frames: Iterable[np.ndarray] | None = None) -> np.ndarray:
        """Which frames keep the high resolution, bool (T,). The first and the last one always do.

        "change" and "random" need `frames`; without them the same number of frames is chosen, so counting needs no
        pixels.
        """
        if self.hybrid_every == 0:
            return np.ones(num_frames, bool)
        chosen = np.zeros(num_frames, bool)
        chosen[[0, -1]] = True
        if self.hybrid_policy == "ends":
            return chosen
        every = np.arange(num_frames) % self.hybrid_every == 0
        if self.hybrid_policy == "every" or frames is None:
            return chosen | every
        # As many as "every" has, and those with the largest change, or any: the same ones for the same clip.
        score = _changes(frames) if self.hybrid_policy == "change" else _noise(frames)
        score[chosen] = np.inf
        chosen[np.argsort(-score, kind="stable")[: int((every | chosen).sum())]] = True
        return chosen

    def most_tokens(self, num_frames: int) -> int:
        """Tokens of a clip of `num_frames` frames of the shape that has most of them: one column of cells."""
        return self._count(np.tile([self.frame_cells, 1], (num_frames, 1)))

    def longer_side(self, height: int, width: int) -> int:
        """Pixels of the longer side of a frame of `height` × `width`, as the model sees it."""
        return max(grid_of(height, width, self.cell_size, self.frame_cells)) * self.cell_size

    def token_count(self, num_frames: int, height: int, width: int, kind: Literal["video", "image"] = "video") -> int:
        """Count the tokens of a clip of `num_frames` frames, or of an image, of `height` × `width` source pixels."""
        grids_T2 = self.grids(num_frames, height, width, None if kind == "video" else np.ones(num_frames))
        return self._count(grids_T2)

    def _count(self, grids_T2: np.ndarray) -> int:
        """Tokens of one visual whose frames have these grids."""
        if self.compression is None:
            return int(frame_tokens(*grids_T2.T).sum())
        return len(self.token_layout({"video_placement": _rows([grids_T2])}, 0))

    def place_chunk(self, frames: np.ndarray) -> dict[str, torch.Tensor]:
        """As `place`. Raises ValueError for hybrid resolution, which needs to know the last frame."""
        if self.hybrid_every:
            raise ValueError("hybrid resolution needs the whole clip: set hybrid.every=0")
        return self.place([list(frames)])

    def token_layout(self, inputs: Any, i: int, kind: Literal["video", "image"] = "video") -> torch.Tensor:
        """Frame, row, column and kind of every token of visual `i` of a batch of this processor, (V, 4)."""
        frames_F4 = torch.as_tensor(inputs[f"{kind}_placement"])
        return self.compressed(token_layout(frames_F4[frames_F4[:, 0] == i]))

    def layout(self, sizes: Sequence[tuple[int, ...]]) -> BatchFeature:
        """Return the inputs that clips of (frames, height, width) become, with their pixels on the meta device."""
        grids = [self.grids(frames, height, width) for frames, height, width in sizes]
        cells = sum(int(grid.prod(1).sum()) for grid in grids)
        pixels = torch.empty(cells, 4, 3 * self.patch_size**2, device="meta")
        return BatchFeature({"pixel_values_videos": pixels, "video_placement": _rows(grids)})

    def place(self, clips: Sequence[Sequence[np.ndarray]], is_image: bool = False) -> dict[str, torch.Tensor]:
        """Resize, normalize and cut clips into cells, (C, 4, 3·p·p), with (F, 4) rows that describe the frames."""
        scales = [np.ones(len(clip)) if is_image else self.scales(len(clip), clip) for clip in clips]
        return dict(zip(self.image_input_names if is_image else self.model_input_names, self._placed(clips, scales)))

    def place_scaled(self, clips: Sequence[Any], scales: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        """As `place`, with these sides relative to the high resolution instead of those of the policy."""
        return dict(zip(self.model_input_names, self._placed(clips, scales)))

    def _placed(
        self, clips: Sequence[Sequence[np.ndarray]], scales: Sequence[np.ndarray]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not clips:
            raise ValueError("There is no video or image to process.")
        grids, cells = [], []
        for clip, scale_T in zip(clips, scales, strict=True):
            grid_T2 = np.concatenate(
                [self.grids(1, frame.shape[0], frame.shape[1], scale_T[t : t + 1]) for t, frame in enumerate(clip)]
            )
            cells += [self._cells(frame, int(rows), int(columns)) for frame, (rows, columns) in zip(clip, grid_T2)]
            grids.append(grid_T2)
        return torch.from_numpy(np.concatenate(cells)), _rows(grids)

    def _cells(self, frame: np.ndarray, rows: int, columns: int) -> np.ndarray:
        """The cells of one frame in reading order, float32 (rows · columns, 4, 3·p·p)."""
        side, patch = self.cell_size, self.patch_size
        size = (columns * side, rows * side)
        if frame.shape[1::-1] != size:
            frame = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
        pixels = (frame.astype(np.float32) / 255 - np.array(self.image_mean, np.float32)) / np.array(
            self.image_std, np.float32
        )
        cut = pixels.reshape(rows, 2, patch, columns, 2, patch, 3).transpose(0, 3, 1, 4, 6, 2, 5)
        return np.ascontiguousarray(cut.reshape(rows * columns, 4, 3 * patch * patch))


def _rows(grids: Sequence[np.ndarray]) -> torch.Tensor:
    """Video, number, rows and columns of every frame, (F, 4)."""
    rows = [(b, t, *grid) for b, grid_T2 in enumerate(grids) for t, grid in enumerate(grid_T2.tolist())]
    return torch.tensor(rows, dtype=torch.int64)


def _changes(frames: Iterable[np.ndarray]) -> np.ndarray:
    """Mean absolute change of small gray pictures from frame to frame, (T,); 0 for the first."""
    small = [np.asarray(Image.fromarray(frame).convert("L").resize((32, 32)), np.float64) for frame in frames]
    return np.array([0.0, *(np.abs(b - a).mean() for a, b in pairwise(small))])


def _noise(frames: Iterable[np.ndarray]) -> np.ndarray:
    """A pseudo-random number per frame that depends only on the clip, (T,)."""
    listed = list(frames)
    seed = zlib.crc32(np.ascontiguousarray(listed[0]).data)
    return np.random.default_rng([seed, len(listed)]).random(len(listed))
