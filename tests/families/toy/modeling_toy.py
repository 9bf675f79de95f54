"""The toy model: frames (B, T, 3, S, S) to one token per patch of the real frames, in front of a language model."""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast

from ..generation import CACHE_NAME, VisualGenerationMixin, splice
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


class ToyModel(ToyPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        patch = config.patch_config
        self.patches = nn.Conv2d(3, patch.hidden_size, patch.patch_size, patch.patch_size, bias=patch.bias)
        self.projector = nn.Linear(patch.hidden_size, config.text_config.hidden_size)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.language_model.set_input_embeddings(value)

    def get_video_features(self, pixel_values_videos, video_frames, **kwargs):
        tokens = [
            self.projector(self.patches(video[: int(count)]).flatten(2).transpose(1, 2)).flatten(0, 1)
            for video, count in zip(pixel_values_videos, video_frames)
        ]
        return BaseModelOutputWithPooling(last_hidden_state=torch.cat(tokens), pooler_output=tokens)

    def get_image_features(self, pixel_values, image_frames, **kwargs):
        return self.get_video_features(pixel_values.unsqueeze(1), image_frames)

    def forward(
        self, input_ids=None, inputs_embeds=None, mm_encoder_outputs=None, past_key_values=None, cache=None, **kw
    ):
        cache, visuals = past_key_values if cache is None else cache, dict(mm_encoder_outputs or {})
        if "pixel_values_videos" in kw:
            visuals["video"] = self.get_video_features(kw.pop("pixel_values_videos"), kw.pop("video_frames"))
        if "pixel_values" in kw:
            visuals["image"] = self.get_image_features(kw.pop("pixel_values"), kw.pop("image_frames"))
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
            if visuals or input_ids.shape[1] > 1:
                for kind, token in (("video", self.config.video_token_id), ("image", self.config.image_token_id)):
                    empty = inputs_embeds.new_zeros(0, inputs_embeds.shape[-1])
                    found = torch.cat(list(visuals[kind].pooler_output)) if kind in visuals else empty
                    inputs_embeds = splice(inputs_embeds, input_ids, token, found, kind)
        return self.language_model(inputs_embeds=inputs_embeds, **{CACHE_NAME: cache}, **kw)


class ToyForConditionalGeneration(ToyPreTrainedModel, VisualGenerationMixin):
    visual_inputs = {  # noqa: RUF012
        "video": ("pixel_values_videos", "video_frames"),
        "image": ("pixel_values", "image_frames"),
    }

    def __init__(self, config):
        super().__init__(config)
        self.model = ToyModel(config)
        embedding = self.model.get_input_embeddings()
        name = next(name for name, module in self.model.named_modules() if module is embedding)
        self._tied_weights_keys = {"lm_head.weight": f"model.{name}.weight"}
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.generation_config.suppress_tokens = [config.video_token_id, config.image_token_id]
        self.post_init()

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.lm_head

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
        **kw,
    ):
        visuals = {"pixel_values_videos": pixel_values_videos, "video_frames": video_frames}
        visuals |= {
            "pixel_values": pixel_values,
            "image_frames": image_frames,
            "mm_encoder_outputs": mm_encoder_outputs,
        }
        visuals = {name: value for name, value in visuals.items() if value is not None}
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, **visuals, **kw)
        hidden, loss, logits = out.last_hidden_state, None, None
        if labels is not None:
            loss = self.answer_loss(hidden, labels, num_items_in_batch)
        if labels is None or not self.training:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.compute_logits(hidden[:, kept])
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE_NAME: out.get(CACHE_NAME)})

    def save_pretrained(self, save_directory, *args, self_contained=False, **kwargs):
        super().save_pretrained(save_directory, *args, **kwargs)
        if self_contained or "auto_map" in vars(self.config):
            add_code(Path(save_directory) / "config.json", ToyConfig)
