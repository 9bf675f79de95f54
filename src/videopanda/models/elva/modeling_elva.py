"""ELVA: a light video embedding in front of a causal language model that merges visual tokens inside.

Dimensions: B samples of N tokens; V visual tokens of the whole batch; C cells and F frames of all videos; E width of
the language model. The embedding is in `modeling_elva_embedding.py`, merging in `merging.py`.
"""

from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModel, Cache, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast

from ..backbone import VisualModelMixin
from ..generation import VisualGenerationMixin
from ..hub import add_code
from ..merging import MergeSchedule
from ..visual import EncodedVisual
from .configuration_elva import ElvaConfig
from .modeling_elva_embedding import ElvaVideoEmbedding, token_layout


class ElvaPreTrainedModel(PreTrainedModel):
    """Weight initialization and capability flags."""

    config: ElvaConfig
    config_class = ElvaConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["video", "image", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["ElvaVideoEmbedding"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Learned vectors start at the scale of the weights; everything else follows transformers."""
        super()._init_weights(module)
        if isinstance(module, ElvaVideoEmbedding):
            for token in (module.frame_token, module.line_token):
                init.normal_(token, mean=0.0, std=self.config.initializer_range)


class ElvaModel(VisualModelMixin, ElvaPreTrainedModel):
    """Video embedding and language model without its head."""

    def __init__(self, config: ElvaConfig):
        super().__init__(config)
        self.embedding = ElvaVideoEmbedding(config.embedding_config, config.text_config.hidden_size)
        self.language_model = AutoModel.from_config(config.text_config)
        MergeSchedule.of(config.merge_config).check(config.text_config.num_hidden_layers)
        self.post_init()

    def schedule(self) -> MergeSchedule:
        """When and how far the language model merges; in training `keep` may be redrawn (`merge.random_keep`)."""
        merge = self.config.merge_config
        schedule = self.merge_schedule or MergeSchedule.of(merge)
        if self.training and merge.random_keep:
            return replace(schedule, keep=merge.random_keep + (1 - merge.random_keep) * torch.rand(()).item())
        return schedule

    def encode(self, cells_CPX: Tensor, frames_F4: Tensor) -> list[EncodedVisual]:
        """Encode the cells of ragged frames to one `EncodedVisual` per video.

        Args:
            cells_CPX: (C, 4, 3·p·p), normalized.
            frames_F4: video, number in it, rows and columns of every frame; on the CPU.
        """
        if not len(frames_F4):
            return []
        expected = int((frames_F4[:, 2] * frames_F4[:, 3]).sum())
        if expected != len(cells_CPX):
            raise ValueError(f"The frames have {expected} cells, but pixels of {len(cells_CPX)} were given.")
        tokens_VE, layout_V4 = self.embedding(cells_CPX, frames_F4), token_layout(frames_F4)
        lengths_F = frames_F4[:, 2] * frames_F4[:, 3] + frames_F4[:, 2] + 1
        per_video = torch.zeros(int(frames_F4[-1, 0]) + 1, dtype=torch.long).index_add(0, frames_F4[:, 0], lengths_F)
        sizes = per_video.tolist()
        return [EncodedVisual(*pair) for pair in zip(tokens_VE.split(sizes), layout_V4.split(sizes))]

    def get_video_features(
        self, pixel_values_videos: Tensor, video_frames: Tensor, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """The features of all videos, one tensor (V_i, E) each, with its layout as an attribute."""
        visuals = self.encode(pixel_values_videos, video_frames.cpu())
        for tokens_VE, layout_V4 in visuals:
            tokens_VE.token_layout = layout_V4  # type: ignore[attr-defined]
        return BaseModelOutputWithPooling(pooler_output=[visual.tokens for visual in visuals])  # type: ignore[arg-type]

    def get_image_features(
        self, pixel_values: Tensor, image_frames: Tensor, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """The features of all images, as those of videos of one frame."""
        return self.get_video_features(pixel_values, image_frames)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        video_frames: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        image_frames: torch.LongTensor | None = None,
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
            pixel_values_videos, video_frames: cells (C, 4, 3·p·p) and frames (F, 4) of all videos.
            pixel_values, image_frames: the same of all images.
            attention_mask: (B, N), or a four-dimensional mask, passed through unchanged.
            past_key_values, cache: the KV cache, under either of its two names.
            mm_encoder_outputs: features computed before, under "video" and "image".

        Returns: `last_hidden_state` (B, N, E); merged tokens repeat the token they were merged into.

        Raises:
            ValueError: when placeholders and features differ in number.
        """
        pixels = {"video": (pixel_values_videos, video_frames), "image": (pixel_values, image_frames)}
        return self.run(
            input_ids,
            {kind: self.encode(*given) for kind, given in pixels.items() if given[0] is not None},  # type: ignore[arg-type]
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=past_key_values if cache is None else cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )


class ElvaForConditionalGeneration(VisualGenerationMixin, ElvaPreTrainedModel):
    """ELVA with its language-model head: training loss and `generate`."""

    visual_inputs = {  # noqa: RUF012
        "video": ("pixel_values_videos", "video_frames"),
        "image": ("pixel_values", "image_frames"),
    }

    def __init__(self, config: ElvaConfig):
        super().__init__(config)
        self.model = ElvaModel(config)
        self.add_head(config)
        self.post_init()

    def vision_modules(self) -> dict[str, nn.Module]:
        """Everything that is not the language model, by name."""
        return {"embedding": self.model.embedding}

    def no_video(self) -> dict[str, Tensor]:
        """Inputs of one video without frames: it runs the vision modules and yields no tokens."""
        patch = self.config.embedding_config.patch_size
        return {
            "pixel_values_videos": torch.zeros(0, 4, 3 * patch * patch),
            "video_frames": torch.zeros(0, 4, dtype=torch.long),
        }

    def encode(self, inputs: Any, kind: Literal["video", "image"] = "video") -> list[EncodedVisual]:
        """Encode the videos, or the images, of a batch from the processor, on any device."""
        pixels, frames = (inputs[name] for name in self.visual_inputs[kind])
        return self.model.encode(pixels.to(self.device, self.dtype), frames.cpu())

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        video_frames: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        image_frames: torch.LongTensor | None = None,
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
        """Run the model; see `ElvaModel.forward` for the inputs and `VisualGenerationMixin.finish` for the rest."""
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        outputs = self.model(
            input_ids=input_ids,
            pixel_values_videos=pixel_values_videos,
            video_frames=video_frames,
            pixel_values=pixel_values,
            image_frames=image_frames,
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
        """Write configuration and weights to a folder; with `self_contained` the code too."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if self_contained or "auto_map" in vars(self.config):
            add_code(Path(save_directory) / "config.json", ElvaConfig)


__all__ = ["ElvaForConditionalGeneration", "ElvaModel", "ElvaPreTrainedModel"]
