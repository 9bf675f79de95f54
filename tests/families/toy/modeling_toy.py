"""The toy model: frames (B, T, 3, S, S) to one token per patch of the real frames, in front of a language model."""

import torch
from torch import nn
from transformers import AutoModel

from ..backbone import VisualModelMixin, VisualPreTrainedModel
from ..generation import VisualGenerationMixin
from ..visual import EncodedVisual
from .configuration_toy import ToyConfig
from .video_processing_toy import frame_layout


class ToyPreTrainedModel(VisualPreTrainedModel):
    config: ToyConfig
    config_class = ToyConfig
    _no_split_modules = ()


class ToyModel(VisualModelMixin, ToyPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        patch = config.patch_config
        self.patches = nn.Conv2d(3, patch.hidden_size, patch.patch_size, patch.patch_size, bias=patch.bias)
        self.projector = nn.Linear(patch.hidden_size, config.text_config.hidden_size)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def encode(self, pixels, placement, kind="video"):
        patch = self.config.patch_config
        cells = patch.image_size // patch.patch_size
        pixels = pixels.unsqueeze(1) if kind == "image" else pixels
        tokens = [
            self.projector(self.patches(video[: int(count)]).flatten(2).transpose(1, 2)).flatten(0, 1)
            for video, count in zip(pixels, placement)
        ]
        layouts = [frame_layout(int(count), cells) for count in placement]
        return [EncodedVisual(*pair) for pair in zip(tokens, layouts)]


class ToyForConditionalGeneration(VisualGenerationMixin, ToyPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model = ToyModel(config)
        self.add_head(config)
        self.post_init()

    def vision_modules(self):
        return {"patches": self.model.patches, "projector": self.model.projector}

    def no_video(self):
        side = self.config.patch_config.image_size
        return {"pixel_values_videos": torch.zeros(1, 1, 3, side, side), "video_placement": torch.tensor([0])}
