"""The toy model: frames (B, T, 3, S, S) to one token per patch of the real frames, in front of a language model."""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..backbone import VisualModelMixin
from ..generation import VisualGenerationMixin
from ..hub import add_code
from ..visual import EncodedVisual
from .configuration_toy import ToyConfig
from .video_processing_toy import frame_layout


class ToyPreTrainedModel(PreTrainedModel):
    config: ToyConfig
    config_class = ToyConfig
    base_model_prefix = "model"
    input_modalities = ("video", "image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ()


class ToyModel(VisualModelMixin, ToyPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        patch = config.patch_config
        self.patches = nn.Conv2d(3, patch.hidden_size, patch.patch_size, patch.patch_size, bias=patch.bias)
        self.projector = nn.Linear(patch.hidden_size, config.text_config.hidden_size)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_video_features(self, pixel_values_videos, video_frames, **kwargs):
        tokens = [
            self.projector(self.patches(video[: int(count)]).flatten(2).transpose(1, 2)).flatten(0, 1)
            for video, count in zip(pixel_values_videos, video_frames)
        ]
        return BaseModelOutputWithPooling(last_hidden_state=torch.cat(tokens), pooler_output=tokens)

    def get_image_features(self, pixel_values, image_frames, **kwargs):
        return self.get_video_features(pixel_values.unsqueeze(1), image_frames)

    def forward(
        self,
        input_ids=None,
        pixel_values_videos=None,
        video_frames=None,
        pixel_values=None,
        image_frames=None,
        cache=None,
        past_key_values=None,
        attention_mask=None,
        position_ids=None,
        inputs_embeds=None,
        use_cache=None,
        mm_encoder_outputs=None,
        **kwargs,
    ):
        visuals = {}
        if pixel_values_videos is not None:
            visuals["video"] = self.get_video_features(pixel_values_videos, video_frames)
        if pixel_values is not None:
            visuals["image"] = self.get_image_features(pixel_values, image_frames)
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


class ToyForConditionalGeneration(VisualGenerationMixin, ToyPreTrainedModel):
    visual_inputs = {  # noqa: RUF012
        "video": ("pixel_values_videos", "video_frames"),
        "image": ("pixel_values", "image_frames"),
    }

    def __init__(self, config):
        super().__init__(config)
        self.model = ToyModel(config)
        self.add_head(config)
        self.post_init()

    def get_video_features(self, *args, **kwargs):
        return self.model.get_video_features(*args, **kwargs)

    def vision_modules(self):
        return {"patches": self.model.patches, "projector": self.model.projector}

    def no_video(self):
        side = self.config.patch_config.image_size
        return {"pixel_values_videos": torch.zeros(1, 1, 3, side, side), "video_frames": torch.tensor([0])}

    def encode(self, inputs, kind="video"):
        pixels, frames = (inputs[name] for name in self.visual_inputs[kind])
        pixels = pixels.to(self.device, self.dtype)
        features = self.model.get_video_features if kind == "video" else self.model.get_image_features
        cells = self.config.patch_config.image_size // self.config.patch_config.patch_size
        return [
            EncodedVisual(tokens, frame_layout(int(count), cells))
            for tokens, count in zip(features(pixels, frames).pooler_output, frames)
        ]

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        pixel_values_videos=None,
        video_frames=None,
        pixel_values=None,
        image_frames=None,
        mm_encoder_outputs=None,
        labels=None,
        logits_to_keep=0,
        num_items_in_batch=None,
        **kwargs,
    ):
        outputs = self.model(
            input_ids,
            pixel_values_videos,
            video_frames,
            pixel_values,
            image_frames,
            attention_mask=attention_mask,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        return self.finish(outputs, labels, logits_to_keep, num_items_in_batch)

    def save_pretrained(self, save_directory, *args, self_contained=False, **kwargs):
        super().save_pretrained(save_directory, *args, **kwargs)
        if self_contained or "auto_map" in vars(self.config):
            add_code(Path(save_directory) / "config.json", ToyConfig)
