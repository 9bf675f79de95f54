"""The vision towers of LanguageBind on transformers' CLIP (arXiv 2310.01852). Part of exported folders.

LanguageBind-Image is a CLIP tower. LanguageBind-Video adds to every layer, before its spatial attention, a temporal
attention at each place. Parameters are named as in the published weights.

Dimensions: F frames, in groups of L that follow each other; N tokens of a frame; D width.
"""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer, CLIPVisionEmbeddings

T = TypeVar("T")


class TemporalLayer(CLIPEncoderLayer):
    """A CLIP layer whose tokens first attend to the tokens at the same place in the other frames of the group."""

    def __init__(self, config: CLIPVisionConfig, num_frames: int):
        super().__init__(config)
        self.num_frames = num_frames
        self.temporal_embedding = nn.Parameter(torch.zeros(1, num_frames, config.hidden_size))
        self.temporal_attn = CLIPAttention(config)
        self.temporal_layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Map (F, N, D) to (F, N, D)."""
        tokens = hidden_states.shape[1]
        x_XLD = hidden_states.unflatten(0, (-1, self.num_frames)).transpose(1, 2).flatten(0, 1)  # X = F / L · N
        x_XLD = x_XLD + self.temporal_embedding
        x_XLD = x_XLD + self.temporal_attn(self.temporal_layer_norm1(x_XLD), None)[0]
        x_FND = x_XLD.unflatten(0, (-1, tokens)).transpose(1, 2).flatten(0, 1)
        # transformers accepts None for full attention, although the type of its argument does not allow it.
        return super().forward(x_FND, attention_mask, **kwargs)  # type: ignore[arg-type]


class LanguageBindTower(nn.Module):
    """A LanguageBind vision tower up to the input of its last layer, which is what is distilled.

    The last layer and the norm after it are loaded, so that every published tensor has its place, but never run.

    Args:
        config: of the tower.
        num_frames: L, the frames of a group; 1 is LanguageBind-Image, whose layers have no attention over time.
    """

    def __init__(self, config: CLIPVisionConfig, num_frames: int):
        super().__init__()
        if config._attn_implementation is None:  # only complete models choose it themselves
            config._attn_implementation = "sdpa"
        self.config, self.num_frames = config, num_frames
        self.embeddings = CLIPVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)  # the published spelling
        layers = nn.ModuleList(
            TemporalLayer(config, num_frames) if num_frames > 1 else CLIPEncoderLayer(config)
            for _ in range(config.num_hidden_layers)
        )
        self.encoder = nn.ModuleDict({"layers": layers})
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixels_FCHW: Tensor) -> Tensor:
        """Map frames to (F, N, D), class token first.

        Raises:
            ValueError: F is not a multiple of the group size.
        """
        if pixels_FCHW.shape[0] % self.num_frames:
            raise ValueError(
                f"this tower needs a multiple of {self.num_frames} frames, got {pixels_FCHW.shape[0]}: see in_groups"
            )
        x_FND = self.pre_layrnorm(self.embeddings(pixels_FCHW))
        *layers, _ = self.encoder["layers"].children()
        for layer in layers:
            x_FND = layer(x_FND, None)
        return x_FND


def in_groups(frames: Tensor, num_frames: int) -> Tensor:
    """The frames of clips (..., T, 3, S, S), the last one of each repeated until they fill groups of `num_frames`."""
    missing = -frames.shape[-4] % num_frames
    last = frames[..., -1:, :, :, :]
    return torch.cat([frames, *[last] * missing], dim=-4) if missing else frames


def tower_weights(state: dict[str, T]) -> dict[str, T]:
    """The tower's weights from a published file, renamed for `LanguageBindTower`.

    Known layouts: the full model (`vision_model.*` and `text_model.*`), official Video-Panda checkpoints
    (`model.video_teacher.video_tower.*`), and a tower alone, as transformers saves it.

    Raises:
        ValueError: no tower under any of these names.
    """
    for prefix in ("vision_model.", "model.video_teacher.video_tower.", ""):
        found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if "embeddings.class_embedding" in found:
            found.pop("embeddings.position_ids", None)  # a counter that old versions of transformers saved
            return found
    raise ValueError("no CLIP or LanguageBind tower in the weights: vision_model.* is missing")
