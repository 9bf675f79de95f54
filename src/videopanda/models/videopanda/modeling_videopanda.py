"""Video-Panda: STAB, projector and a causal language model joined at placeholder tokens.

Dimensions: B samples of N tokens; V visual tokens of the whole batch; D width of STAB; E width of the language model;
X × Y pixels.
STAB itself is in `modeling_videopanda_stab.py`.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from ..backbone import VisualModelMixin, VisualPreTrainedModel, new_language_model
from ..compression import Compressor, init_compressor
from ..generation import VisualGenerationMixin
from ..visual import ChunkState, EncodedVisual
from .configuration_videopanda import VideoPandaConfig
from .layout_videopanda import token_layout
from .modeling_videopanda_layers import Linear, MaskedBatchNorm, PatchEmbedding, ReadLinear, ZeroConv3d
from .modeling_videopanda_stab import (
    ContextFusion,
    FrameSpatialAggregator,
    GlobalSpatioTemporalAggregator,
    LocalSpatialDownsampling,
    PerceiverDownsampling,
    VideoPandaStab,
)


class VideoPandaPreTrainedModel(VisualPreTrainedModel):
    """Weight initialization and capability flags."""

    config: VideoPandaConfig
    config_class = VideoPandaConfig
    _supports_flash_attn = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _no_split_modules = ["VideoPandaStab"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Keep the initial values of the paper's parts; everything else follows transformers.

        The last LSTE convolution starts at zero, so LSTE starts as its position encoding; the GSTRA query starts at
        zero, so GSTRA starts as the mean of its tokens; the fusion gate starts half open. Transformers visits only
        modules with parameters of their own.
        """
        super()._init_weights(module)
        if isinstance(module, ReadLinear):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, PatchEmbedding):
            init.kaiming_uniform_(module.weight, a=5**0.5)
        elif isinstance(module, MaskedBatchNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
        elif isinstance(module, ZeroConv3d):
            init.zeros_(module.weight)
        elif isinstance(module, nn.Conv3d):
            init.kaiming_uniform_(module.weight, a=5**0.5)
        elif isinstance(module, GlobalSpatioTemporalAggregator):
            init.zeros_(module.query)
            init.xavier_uniform_(module.in_proj.weight)
        elif isinstance(module, (LocalSpatialDownsampling, PerceiverDownsampling, FrameSpatialAggregator)):
            if module.query is not None:
                init.normal_(module.query, mean=0.0, std=1.0)
        elif isinstance(module, ContextFusion):
            if module.balance is not None:
                init.constant_(module.balance, 0.0 if module.gated else 0.5)
        elif isinstance(module, VideoPandaStab) and module.row_token is not None:
            init.normal_(module.row_token, mean=0.0, std=1.0)
        init_compressor(module)


# Patches per pass at inference, eight square frames of the released size: larger passes cost memory without being
# faster.
PATCHES_PER_PASS = 8192


class VideoPandaProjector(nn.Module):
    """Two linear maps with an exact GELU in between, from D to the width E of the language model."""

    def __init__(self, hidden_size: int, output_size: int):
        super().__init__()
        self.up = Linear(hidden_size, output_size)
        self.down = Linear(output_size, output_size)

    def forward(self, tokens_VD: Tensor) -> Tensor:
        """Map (V, D) to (V, E)."""
        return self.down(F.gelu(self.up(tokens_VD)))


def encode_frames(
    stab: VideoPandaStab, projector: nn.Module, pixels_BTXY: Tensor, placement_B6: Tensor, is_image: bool = False
) -> Tensor:
    """Map frames (B, T, 3, X, Y) to projected tokens (V, E): in training all, else each distinct one once.

    Outside of training, frames are processed in passes of whole segments, so memory other than the tokens and two
    indices for each does not grow with the number and length of videos.
    """
    device = pixels_BTXY.device
    if stab.training:
        return projector(stab(pixels_BTXY, placement_B6.to(device), is_image))
    cell = stab.config.cell_size
    _, frames, _, height, width = pixels_BTXY.shape
    rows, columns = height // cell, width // cell
    placement_B6 = placement_B6.cpu()
    segment = 1 if is_image else stab.config.segment_frames or frames
    per_pass = max(1, PATCHES_PER_PASS // (4 * rows * columns) // segment) * segment
    videos = max(1, per_pass // frames)
    passes = []
    for start in range(0, len(pixels_BTXY), videos):
        part_B6 = placement_B6[start : start + videos]
        ends = max(1, min(frames, int(part_B6[:, 4].max())))  # later frames yield no tokens
        for first in range(0, ends, per_pass):
            part_BTXY = pixels_BTXY[start : start + videos, first : first + per_pass]
            plan = stab.plan(part_B6, part_BTXY.shape[1], rows, columns, is_image, device, first)
            passes.append((part_BTXY, part_B6, plan))
    tokens_VE, filled = None, 0
    for part_BTXY, part_B6, plan in passes:
        part_VE = projector(stab(part_BTXY, part_B6, is_image, plan)).index_select(0, plan.order)
        if len(passes) == 1:
            return part_VE
        if tokens_VE is None:
            tokens_VE = part_VE.new_empty(sum(len(plan.order) for *_, plan in passes), part_VE.shape[1])
        tokens_VE[filled : filled + len(part_VE)] = part_VE
        filled += len(part_VE)
        del part_VE  # before the next pass
    assert tokens_VE is not None
    return tokens_VE


class VideoPandaVision(nn.Module):
    """STAB and projector for videos, or images, of given placements: a graph without data-dependent shapes.

    exported = torch.export.export(VideoPandaVision(model, video_placement, pixels.shape), (pixels,))
    """

    def __init__(self, model: Any, placement_B6: Tensor, shape: tuple[int, ...], is_image: bool = False):
        super().__init__()
        if model.model.compressor is not None:
            raise ValueError("a model with a compressor cannot be exported as one graph: set compression.kind=none")
        self.stab, self.projector = model.model.stab, model.model.projector
        self.placement, self.is_image, cell = placement_B6, is_image, self.stab.config.cell_size
        frames, rows, columns = shape[1], shape[-2] // cell, shape[-1] // cell
        self.layout = self.stab.plan(placement_B6, frames, rows, columns, is_image, model.device)

    def forward(self, pixels_BTXY: Tensor) -> Tensor:
        """Map (B, T, 3, X, Y) to the tokens of all videos (V, E), in eval mode."""
        tokens_UE = self.projector(self.stab(pixels_BTXY, self.placement, self.is_image, self.layout))
        return tokens_UE.index_select(0, self.layout.order)


class VideoPandaModel(VisualModelMixin, VideoPandaPreTrainedModel):
    """STAB, projector and language model without its head."""

    def __init__(self, config: VideoPandaConfig):
        super().__init__(config)
        self.stab = VideoPandaStab(config.stab_config)
        compression, width = config.compression, config.stab_config.hidden_size
        self.compressor = Compressor(compression, width) if compression.is_active else None
        self.projector = VideoPandaProjector(width, config.text_config.hidden_size)
        self.language_model = new_language_model(config.text_config)
        self.post_init()

    @property
    def output_map(self) -> nn.Module:
        """See `VisualModelMixin.output_map`."""
        return self.projector.down

    def encode(self, pixels: Tensor, placement: Tensor, kind: str = "video") -> list[EncodedVisual]:
        """Encode videos (videos, T, 3, X, Y), or images (images, 3, X, Y), of a batch.

        Args:
            pixels: normalized; shorter videos are padded at the end.
            placement: (videos, 6): top, left, rows, columns in cells, frames that yield tokens, real frames.
        """
        config, is_image = self.config.stab_config, kind == "image"
        pixels_BTXY, placement_B6 = pixels.unsqueeze(1) if is_image else pixels, placement.cpu()
        if placement_B6.shape != (len(pixels_BTXY), 6):
            raise ValueError(
                f"The placement needs one row of six numbers per video, got {tuple(placement_B6.shape)} for "
                f"{len(pixels_BTXY)} videos."
            )
        cell = config.cell_size
        if pixels_BTXY.shape[-2] % cell or pixels_BTXY.shape[-1] % cell:
            raise ValueError(f"Frames of {tuple(pixels_BTXY.shape[-2:])} pixels are not a multiple of {cell} pixels.")
        context_token = config.image_context_token if is_image else config.context_token
        layouts = [token_layout(row, config.max_cells, config.row_tokens, context_token) for row in placement_B6]
        if self.compressor is None:
            tokens_VE = encode_frames(self.stab, self.projector, pixels_BTXY, placement_B6, is_image)
        else:
            tokens_VD = encode_frames(self.stab, nn.Identity(), pixels_BTXY, placement_B6, is_image)
            tokens_VD, layouts = self.compressor.clips(tokens_VD, layouts)
            tokens_VE = self.projector(tokens_VD)
        return [EncodedVisual(*pair) for pair in zip(tokens_VE.split([len(part) for part in layouts]), layouts)]

    @property
    def chunk_frames(self) -> int | None:
        """Whole segments. None where LSTE or GSTRA see the whole video, or a compressor does."""
        config, compression = self.config.stab_config, self.config.compression
        segment = config.segment_frames if config.lste or config.gstra else 1
        if segment is None or compression.needs_whole_clip:
            return None
        return math.lcm(segment, compression.segment_frames)

    @property
    def needs_total_frames(self) -> bool:
        """Coordinates encode the relative time of a token in the clip."""
        return self.config.stab_config.coordinates

    def encode_chunk(
        self, pixels: Tensor, placement: Tensor, state: ChunkState, total_frames: int | None
    ) -> tuple[EncodedVisual, ChunkState]:
        """See `VisualGenerationMixin.encode_chunk`."""
        config, frames = self.config.stab_config, pixels.shape[1]
        if self.chunk_frames is None:
            raise ValueError("segments of unlimited length, or this compressor, need the whole clip")
        if config.coordinates and total_frames is None:
            raise ValueError("stab.coordinates needs the total number of frames of the clip")
        end = state.frames + frames
        whole_16 = placement.clone()
        whole_16[:, 4:] = max(end, total_frames or end)
        rows, columns = pixels.shape[-2] // config.cell_size, pixels.shape[-1] // config.cell_size
        plan = self.stab.plan(whole_16, frames, rows, columns, False, pixels.device, state.frames)
        tokens = self.stab(pixels, whole_16, layout=plan).index_select(0, plan.order)
        layout_V4 = token_layout(placement[0], config.max_cells, config.row_tokens, config.context_token)
        compressor = None
        if self.compressor is not None:
            tokens, layout_V4, compressor = self.compressor.chunk(tokens, layout_V4, state.compressor)
        return EncodedVisual(self.projector(tokens), layout_V4), ChunkState(end, compressor)


class VideoPandaForConditionalGeneration(VisualGenerationMixin, VideoPandaPreTrainedModel):
    """Video-Panda with its language-model head: training loss and `generate`."""

    def __init__(self, config: VideoPandaConfig):
        super().__init__(config)
        self.model = VideoPandaModel(config)
        self.add_head(config)
        self.post_init()

    def vision_modules(self) -> dict[str, nn.Module]:
        """Everything that is not the language model, by name, in the order of the data."""
        compressor = {} if self.model.compressor is None else {"compressor": self.model.compressor}
        return {"stab": self.model.stab, **compressor, "projector": self.model.projector}

    def no_video(self) -> dict[str, Tensor]:
        """Inputs of one video without frames: it runs the vision modules and yields no tokens."""
        side = self.config.stab_config.cell_size
        placement = torch.tensor([[0, 0, 1, 1, 0, 0]])
        return {"pixel_values_videos": torch.zeros(1, 1, 3, side, side), "video_placement": placement}
