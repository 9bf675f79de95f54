"""Tiny random backbones with what real ones have: windows shorter than a row, states, layers without positions."""

import torch

from tiny import randomize, tiny_config
from videopanda.models.videopanda import VideoPandaConfig, VideoPandaForConditionalGeneration

WINDOW = 23

BACKBONES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 12},
    "smollm3": {"pad_token_id": 0, "no_rope_layers": [1, 0, 1, 0], "no_rope_layer_interval": 2},
    "mistral": {"sliding_window": WINDOW},
    "phi3": {"sliding_window": WINDOW, "pad_token_id": 0},
    "gemma3_text": {
        "head_dim": 12,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 12,
    },
    "qwen3_5_text": {
        "head_dim": 16,
        "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_conv_kernel_dim": 4,
    },
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "conv_L_cache": 3},
}


def backbone_model(name: str, seed: int = 0) -> VideoPandaForConditionalGeneration:
    """A random model of four layers in eval mode."""
    base = tiny_config().to_dict()
    text = {**base["text_config"], "num_hidden_layers": 4, "model_type": name, **BACKBONES[name]}
    for stale in ("layer_types", "head_dim", "rope_parameters", "architectures", "dtype", "transformers_version"):
        if stale not in BACKBONES[name]:
            text.pop(stale, None)
    torch.manual_seed(seed)
    config = VideoPandaConfig(**{**base, "text_config": text})
    model = VideoPandaForConditionalGeneration(config)
    randomize(model.model.stab, seed)
    randomize(model.model.projector, seed + 1)
    return model.eval()
