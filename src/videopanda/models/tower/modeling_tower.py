"""A pretrained tower and a projector in front of a causal language model.

Dimensions: B videos of T frames of S × S pixels; F frames of all of them; G × G patches, N = G²; D width of the tower;
V visual tokens of the batch; E width of the language model.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel
from transformers import initialization as init
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings

from ..backbone import VisualModelMixin, VisualPreTrainedModel, new_language_model
from ..generation import VisualGenerationMixin
from ..languagebind import LanguageBindTower, TemporalLayer, in_groups
from ..visual import EncodedVisual
from .configuration_tower import CLIP, TowerConfig
from .video_processing_tower import token_layout


class TowerPreTrainedModel(VisualPreTrainedModel):
    """Weight initialization."""

    config: TowerConfig
    config_class = TowerConfig
    _no_split_modules = ["CLIPEncoderLayer", "TemporalLayer"]  # noqa: RUF012 - plain, as transformers declares it

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """CLIP's learned vectors and its counter of positions; everything else follows transformers."""
        super()._init_weights(module)
        if isinstance(module, CLIPVisionEmbeddings):
            init.normal_(module.class_embedding, mean=0.0, std=module.embed_dim**-0.5)
            init.copy_(module.position_ids, torch.arange(module.num_positions).expand(1, -1))
        elif isinstance(module, TemporalLayer):
            init.zeros_(module.temporal_embedding)


def make_tower(config: TowerConfig) -> nn.Module:
    """The tower of a configuration, with fresh weights."""
    vision_config: Any = config.vision_config
    if vision_config.model_type == CLIP:
        return LanguageBindTower(vision_config, config.group_frames)
    return AutoModel.from_config(vision_config)


class TowerModel(VisualModelMixin, TowerPreTrainedModel):
    """Tower, projector and language model without its head."""

    def __init__(self, config: TowerConfig):
        super().__init__(config)
        self.encoder: Any = make_tower(config)
        width, language = config.vision_config.hidden_size, config.text_config.hidden_size
        self.projector = nn.Sequential(nn.Linear(width, language), nn.GELU(), nn.Linear(language, language))
        self.language_model: Any = new_language_model(config.text_config)
        self.post_init()

    @property
    def output_map(self) -> nn.Module:
        """See `VisualModelMixin.output_map`."""
        return self.projector[-1]

    def encode(self, pixels: Tensor, placement: Tensor, kind: str = "video") -> list[EncodedVisual]:
        """Encode videos (B, T, 3, S, S), or images (B, 3, S, S), to one `EncodedVisual` each.

        Args:
            placement: (B, 5): top, left, rows, columns of the picture in cells, and the number of frames.
        """
        clips = pixels.unsqueeze(1) if kind == "image" else pixels
        rows = placement.tolist()
        # The tower cannot run on nothing: a clip of no frames gives it one, whose tokens are not taken.
        size = self.config.group_frames
        groups = [in_groups(clip[: max(frames, 1)], size) for clip, (*_, frames) in zip(clips, rows, strict=True)]
        features_FGGD = self.features(torch.cat(groups))
        tokens, start = [], 0
        for group, (top, left, height, width, frames) in zip(groups, rows):
            clip_TGGD = features_FGGD[start : start + frames]
            tokens.append(clip_TGGD[:, top : top + height, left : left + width].flatten(0, 2))
            start += len(group)
        tokens_VE = self.projector(torch.cat(tokens))
        parts = tokens_VE.split([len(each) for each in tokens])
        return [EncodedVisual(part, token_layout(row)) for part, row in zip(parts, rows)]

    def features(self, pixels_FCSS: Tensor) -> Tensor:
        """The tower's features of every cell, (F, G, G, D).

        As in LLaVA and Video-LLaVA, CLIP and LanguageBind give the input of their last layer; the others, which are
        trained on every patch, their normalized output.
        """
        kind, config = self.config.vision_config.model_type, self.config
        pixels_FCSS = pixels_FCSS.to(next(self.encoder.parameters()).dtype)
        if kind == CLIP:
            tokens_FND = self.encoder(pixels_FCSS)
        elif kind == "siglip_vision_model":
            tokens_FND = self.encoder(pixels_FCSS, interpolate_pos_encoding=True).last_hidden_state
        else:
            tokens_FND = self.encoder(pixel_values=pixels_FCSS).last_hidden_state
        side = config.frame_size // config.vision_config.patch_size
        grid_FGGD = tokens_FND[:, -side * side :].unflatten(1, (side, side))  # without class and register tokens
        if config.pool > 1:
            grid_FGGD = F.avg_pool2d(grid_FGGD.permute(0, 3, 1, 2), config.pool).permute(0, 2, 3, 1)
        return grid_FGGD


class TowerForConditionalGeneration(VisualGenerationMixin, TowerPreTrainedModel):
    """Tower, projector and language model with its head: training loss and `generate`."""

    pretrained_modules = ("encoder",)

    def __init__(self, config: TowerConfig):
        super().__init__(config)
        self.model = TowerModel(config)
        self.add_head(config)
        self.post_init()

    def vision_modules(self) -> dict[str, nn.Module]:
        """Everything that is not the language model, by name."""
        return {"projector": self.model.projector, "encoder": self.model.encoder}

    def no_video(self) -> dict[str, Tensor]:
        """Inputs of one video without frames: it runs the vision modules and yields no tokens."""
        side = self.config.frame_size
        return {
            "pixel_values_videos": torch.zeros(1, 1, 3, side, side),
            "video_placement": torch.tensor([[0, 0, 1, 1, 0]]),
        }
