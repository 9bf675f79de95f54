"""The vision parts of encoder-based models at their published shapes, with random weights.

Dimensions: T frames of X × Y pixels; F = T; N tokens of a frame, class token first; D width; E width of the language
    model.
"""

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from videopanda.models.languagebind import LanguageBindTower

SIDE = 224  # pixels


def vit_l14() -> CLIPVisionConfig:
    """CLIP ViT-L/14 for 224 × 224 pixels."""
    return CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=SIDE,
        patch_size=14,
        projection_dim=768,
    )


class VideoChatGPTVision(nn.Module):
    """Video-ChatGPT (arXiv 2306.05424): CLIP per frame, means over time and over space, one linear map."""

    def __init__(self, output: int = 4096):
        super().__init__()
        self.tower = CLIPVisionModel(vit_l14())
        self.projector = nn.Linear(1024, output)

    def forward(self, pixels_FCXY: Tensor) -> Tensor:
        """Map T frames to (256 + T, E)."""
        return self.projector(self.pool(self.encode(pixels_FCXY)))

    def encode(self, pixels_FCXY: Tensor) -> Tensor:
        """Patch features of the second-to-last layer (T, N - 1, D); the tower runs to its end, as published."""
        return self.tower(pixels_FCXY, output_hidden_states=True).hidden_states[-2][:, 1:]

    def pool(self, x_FND: Tensor) -> Tensor:
        """Mean of each frame and mean of each place, (T + N - 1, D)."""
        return torch.cat([x_FND.mean(1), x_FND.mean(0)])


class VideoLlavaVision(nn.Module):
    """Video-LLaVA (arXiv 2311.10122): LanguageBind-Video with attention over time in all layers, MLP projector."""

    def __init__(self, frames: int = 8, output: int = 4096):
        super().__init__()
        self.tower = LanguageBindTower(vit_l14(), frames)
        self.projector = nn.Sequential(nn.Linear(1024, output), nn.GELU(), nn.Linear(output, output))

    def forward(self, pixels_FCXY: Tensor) -> Tensor:
        """Map T frames to (T, N, E); the last layer is unused, so it is not run."""
        return self.projector(self.tower(pixels_FCXY))
