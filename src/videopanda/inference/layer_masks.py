"""Attention masks of a language model whose layers hold different numbers of keys and values.

transformers makes one mask for all layers of a type. Where a `KVPrefix` is ragged, each layer needs its own: pre-hooks
on the decoder layers take it from the keyword argument `layer_attention_masks`, which models hand down untouched.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from videopanda.inference.kv_prefix import PADDING

ARGUMENT = "layer_attention_masks"


def add_layer_mask_hooks(language_model: Any) -> None:
    """Let the decoder layers take masks of their own, where a call brings some. Once per model is enough.

    Raises:
        ValueError: the attention implementation takes no ready masks.
    """
    implementation = language_model.config._attn_implementation
    if implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"layers of different lengths need attn_implementation sdpa or eager, and the model uses {implementation}"
        )
    if getattr(language_model, "has_layer_mask_hooks", False):
        return
    for i, layer in enumerate(language_model.layers):
        layer.register_forward_pre_hook(_hook(i), with_kwargs=True)
    language_model.has_layer_mask_hooks = True


def _hook(i: int) -> Any:
    def take_own_mask(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        masks = kwargs.pop(ARGUMENT, None)
        if masks is not None:
            kwargs["attention_mask"] = masks[i]
        return args, kwargs

    return take_own_mask


def layer_masks(
    model: Any, positions: Sequence[Tensor], queries_BN: Tensor, windows: Sequence[int | None]
) -> dict[str, Any]:
    """Arguments for the language model: a mask (B, 1, N, L) per layer.

    Args:
        positions: (B, L) of each layer, the new columns included.
        queries_BN: positions of the new tokens.
        windows: sliding window of each layer, or None.
    """
    language_model = model.get_decoder()
    add_layer_mask_hooks(language_model)
    # A query of padding may look at everything: an empty row would turn into NaN, and NaN spreads through values.
    last_BN1 = queries_BN.masked_fill(queries_BN == PADDING, torch.iinfo(torch.long).max)[:, :, None]
    masks = []
    for positions_BL, window in zip(positions, windows):
        keys_B1L = positions_BL[:, None]
        seen_BNL = (keys_B1L != PADDING) & (keys_B1L <= last_BN1)
        if window is not None:
            seen_BNL &= (last_BN1 - keys_B1L < window) | (queries_BN == PADDING)[:, :, None]
        mask_B1NL = seen_BNL[:, None].to(model.device)
        if language_model.config._attn_implementation == "eager":
            mask_B1NL = torch.zeros_like(mask_B1NL, dtype=model.dtype).masked_fill(
                ~mask_B1NL, torch.finfo(model.dtype).min
            )
        masks.append(mask_B1NL)
    # The 4-D mask of the call itself only keeps transformers from making one.
    return {"attention_mask": masks[0], ARGUMENT: masks}
