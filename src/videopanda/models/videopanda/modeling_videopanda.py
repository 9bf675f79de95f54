"""Video-Panda: STAB, projector and a causal language model joined at placeholder tokens.

Dimensions: B samples of N tokens; V visual tokens of the whole batch; D width of STAB; E width of the language model;
X × Y pixels.
STAB itself is in `modeling_videopanda_stab.py`.
"""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, Cache, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast

from ..backbone import VisualModelMixin
from ..generation import VisualGenerationMixin
from ..hub import add_code
from ..visual import EncodedVisual
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


@dataclass
class VideoPandaVisualOutput(BaseModelOutputWithPooling):
    """Projected visual tokens.

    Args:
        last_hidden_state: tokens of all videos one after the other, (V, E).
        pooler_output: the same tokens as one view (V_i, E) per video, in the order of the videos.
        token_counts: number of tokens of each video, (videos,).
    """

    pooler_output: list[Tensor] | None = None  # type: ignore[assignment]
    token_counts: Tensor | None = None


class VideoPandaPreTrainedModel(PreTrainedModel):
    """Weight initialization and capability flags."""

    config: VideoPandaConfig
    config_class = VideoPandaConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["video", "image", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _no_split_modules = ["VideoPandaStab"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012

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

    Outside of training, frames are processed in passes of whole segments, so memory other than the tokens does not grow
    with the number and length of videos.
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
    count = int(stab.token_counts(placement_B6, rows, columns, is_image).sum())
    tokens_VE, filled = None, 0
    for start in range(0, len(pixels_BTXY), videos):
        part_B6 = placement_B6[start : start + videos]
        ends = max(1, min(frames, int(part_B6[:, 4].max())))  # later frames yield no tokens
        for first in range(0, ends, per_pass):
            part_BTXY = pixels_BTXY[start : start + videos, first : first + per_pass]
            layout = stab.plan(part_B6, part_BTXY.shape[1], rows, columns, is_image, device, first)
            part_VE = projector(stab(part_BTXY, part_B6, is_image, layout)).index_select(0, layout.order)
            if len(part_VE) == count:
                return part_VE
            if tokens_VE is None:
                tokens_VE = part_VE.new_empty(count, part_VE.shape[1])
            tokens_VE[filled : filled + len(part_VE)] = part_VE
            filled += len(part_VE)
            del part_VE  # before the next pass
    assert tokens_VE is not None
    assert filled == count
    return tokens_VE


class VideoPandaVision(nn.Module):
    """STAB and projector for videos, or images, of given placements: a graph without data-dependent shapes.

    exported = torch.export.export(VideoPandaVision(model, video_placement, pixels.shape), (pixels,))
    """

    def __init__(self, model: Any, placement_B6: Tensor, shape: tuple[int, ...], is_image: bool = False):
        super().__init__()
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
        self.projector = VideoPandaProjector(config.stab_config.hidden_size, config.text_config.hidden_size)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def encode_visuals(self, pixels_BTXY: Tensor, placement_B6: Tensor, is_image: bool = False) -> Tensor:
        """Map frames to projected tokens (V, E)."""
        if placement_B6.shape != (pixels_BTXY.shape[0], 6):
            raise ValueError(
                f"The placement needs one row of six numbers per video, got {tuple(placement_B6.shape)} for "
                f"{pixels_BTXY.shape[0]} videos."
            )
        cell = self.config.stab_config.cell_size
        if pixels_BTXY.shape[-2] % cell or pixels_BTXY.shape[-1] % cell:
            raise ValueError(f"Frames of {tuple(pixels_BTXY.shape[-2:])} pixels are not a multiple of {cell} pixels.")
        return encode_frames(self.stab, self.projector, pixels_BTXY, placement_B6, is_image)

    def _visual_output(self, pixels_BTXY: Tensor, placement_B6: Tensor, is_image: bool) -> VideoPandaVisualOutput:
        features_VE = self.encode_visuals(pixels_BTXY, placement_B6, is_image)
        cell = self.config.stab_config.cell_size
        rows, columns = pixels_BTXY.shape[-2] // cell, pixels_BTXY.shape[-1] // cell
        counts_B = self.stab.token_counts(placement_B6, rows, columns, is_image)
        per_video = list(torch.split(features_VE, counts_B.tolist()))
        if self.schedule() is not None:  # merging needs to know where tokens come from
            stab = self.config.stab_config
            context_token = stab.image_context_token if is_image else stab.context_token
            for tokens_VE, row in zip(per_video, placement_B6.tolist()):
                tokens_VE.token_layout = token_layout(row, stab.max_cells, stab.row_tokens, context_token)  # type: ignore[attr-defined]
        return VideoPandaVisualOutput(last_hidden_state=features_VE, pooler_output=per_video, token_counts=counts_B)

    def get_video_features(
        self, pixel_values_videos: Tensor, video_placement: Tensor, **kwargs: Any
    ) -> VideoPandaVisualOutput:
        """Encode videos (videos, T, 3, X, Y) with placement (videos, 6) to the features for `<video>` tokens."""
        return self._visual_output(pixel_values_videos, video_placement, is_image=False)

    def get_image_features(
        self, pixel_values: Tensor, image_placement: Tensor, **kwargs: Any
    ) -> VideoPandaVisualOutput:
        """Encode images (images, 3, X, Y) with placement (images, 6) to the features for `<image>` tokens."""
        return self._visual_output(pixel_values.unsqueeze(1), image_placement, is_image=True)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        video_placement: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        image_placement: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Replace placeholders by visual features and run the language model.

        Args:
            input_ids: (B, N), with one `<video>` or `<image>` id per visual token.
            pixel_values_videos: (videos, T, 3, X, Y), normalized; shorter videos are padded at the end.
            video_placement: (videos, 6): top, left, rows, columns in cells, frames that yield tokens, real frames.
            pixel_values, image_placement: (images, 3, X, Y) and (images, 6).
            attention_mask: (B, N), or a four-dimensional mask, passed through unchanged.
            past_key_values, cache: the KV cache, under either of its two names.
            mm_encoder_outputs: features computed before, under "video" and "image", as `get_video_features` returns
                them.

        Raises:
            ValueError: when placeholders and features differ in number.
        """
        visuals: dict[str, Any] = {}
        if pixel_values_videos is not None:
            if video_placement is None:
                raise ValueError("`pixel_values_videos` needs `video_placement`.")
            visuals["video"] = self.get_video_features(pixel_values_videos, video_placement)
        if pixel_values is not None:
            if image_placement is None:
                raise ValueError("`pixel_values` needs `image_placement`.")
            visuals["image"] = self.get_image_features(pixel_values, image_placement)
        return self.run(
            input_ids,
            visuals,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=past_key_values if cache is None else cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )


class VideoPandaForConditionalGeneration(VisualGenerationMixin, VideoPandaPreTrainedModel):
    """Video-Panda with its language-model head: training loss and `generate`."""

    visual_inputs = {  # noqa: RUF012
        "video": ("pixel_values_videos", "video_placement"),
        "image": ("pixel_values", "image_placement"),
    }

    def __init__(self, config: VideoPandaConfig):
        super().__init__(config)
        self.model = VideoPandaModel(config)
        self.add_head(config)
        self.post_init()

    def vision_modules(self) -> dict[str, nn.Module]:
        """Everything that is not the language model, by name, in the order of the data."""
        return {"stab": self.model.stab, "projector": self.model.projector}

    def no_video(self) -> dict[str, Tensor]:
        """Inputs of one video without frames: it runs the vision modules and yields no tokens."""
        side = self.config.stab_config.cell_size
        placement = torch.tensor([[0, 0, 1, 1, 0, 0]])
        return {"pixel_values_videos": torch.zeros(1, 1, 3, side, side), "video_placement": placement}

    def encode(self, inputs: Any, kind: Literal["video", "image"] = "video") -> list[EncodedVisual]:
        """Encode the videos, or the images, of a batch from the processor, on any device."""
        pixels, placement = (inputs[name] for name in self.visual_inputs[kind])
        pixels = pixels.to(self.device, self.dtype)
        features = self.get_video_features if kind == "video" else self.get_image_features
        stab = self.config.stab_config
        context_token = stab.context_token if kind == "video" else stab.image_context_token
        return [
            EncodedVisual(tokens_VE, token_layout(row, stab.max_cells, stab.row_tokens, context_token))
            for tokens_VE, row in zip(features(pixels, placement).pooler_output, placement.tolist())
        ]

    def get_video_features(self, pixel_values_videos: Tensor, video_placement: Tensor, **kwargs: Any) -> Any:
        """See `VideoPandaModel.get_video_features`."""
        return self.model.get_video_features(pixel_values_videos, video_placement, **kwargs)

    def get_image_features(self, pixel_values: Tensor, image_placement: Tensor, **kwargs: Any) -> Any:
        """See `VideoPandaModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, image_placement, **kwargs)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        video_placement: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        image_placement: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_encoder_outputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run the model; see `VideoPandaModel.forward` for the inputs and `VisualGenerationMixin.finish`."""
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        outputs = self.model(
            input_ids=input_ids,
            pixel_values_videos=pixel_values_videos,
            video_placement=video_placement,
            pixel_values=pixel_values,
            image_placement=image_placement,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=past_key_values if cache is None else cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        return self.finish(outputs, labels, logits_to_keep, num_items_in_batch)

    def save_pretrained(
        self, save_directory: str | PathLike[Any], *args: Any, self_contained: bool = False, **kwargs: Any
    ) -> None:
        """Write configuration and weights to a folder; see `PreTrainedModel.save_pretrained`.

        Args:
            self_contained: write the code too, so that the folder loads with `trust_remote_code=True` where this
                package is missing. A model that came from such a folder is always saved with its code.
        """
        super().save_pretrained(save_directory, *args, **kwargs)
        if self_contained or "auto_map" in vars(self.config):
            add_code(Path(save_directory) / "config.json", VideoPandaConfig)


__all__ = [
    "VideoPandaForConditionalGeneration",
    "VideoPandaModel",
    "VideoPandaPreTrainedModel",
    "VideoPandaProjector",
    "VideoPandaStab",
    "VideoPandaVision",
    "VideoPandaVisualOutput",
]
