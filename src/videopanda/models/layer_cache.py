"""Caches and masks of a language model whose layers hold different positions, as after token merging.

Part of exported folders.
"""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from .merging import MASKS, PADDING, add_layer_hooks


class MergedCache(DynamicCache):
    """A cache whose layers hold different positions: `layer.positions` (B, L_i), PADDING for empty columns.

    To `generate` it looks as long as the sequence without merging, so positions and masks are those of all tokens.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.windows = layer_windows(config)
        self.layers: list[Any] = []  # each with `positions`
        self.num_tokens = 0  # of each row, with padding

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of tokens so far, merged ones included."""
        return self.num_tokens

    def extended(self, queries_BN: Tensor) -> list[Tensor]:
        """Positions of each layer with those of new tokens; one entry for all layers of an empty cache."""
        held = [layer.positions for layer in self.layers]
        return [torch.cat([positions_BL, queries_BN], 1) for positions_BL in held] or [queries_BN]

    def note(self, queries_BN: Tensor) -> None:
        """Record the positions of tokens that every layer has processed."""
        for layer, positions_BL in zip(self.layers, self.extended(queries_BN)):
            layer.positions = positions_BL

    def crop(self, max_length: int) -> None:
        """Refuse: merged tokens cannot be split again."""
        raise ValueError("assisted decoding needs a cache that can be cropped, which token merging does not allow")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the rows for beam search, positions included."""
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep rows, positions included."""
        super().batch_select_indices(indices)
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat rows, positions included."""
        super().batch_repeat_interleave(repeats)
        for layer in self.layers:
            layer.positions = layer.positions.repeat_interleave(repeats, dim=0)

    def _select(self, rows: Tensor) -> None:
        for layer in self.layers:
            layer.positions = layer.positions[rows.to(layer.positions.device)]


# -- masks of layers that differ ---------------------------------------------------------------------------------------
def check_layers(language_model: Any, purpose: str = "token merging") -> None:
    """Check that every layer of a language model takes a mask and positions of its own.

    Raises:
        ValueError: the model keeps a state in some layers, its layers take no rotary positions, or its attention does
            not accept precomputed masks. The message names the purpose.
    """
    config = language_model.config
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        raise ValueError(f"{purpose} needs attention in every layer, and {config.model_type} has {min(kinds)}")
    layers: Any = getattr(language_model, "layers", ())
    takes = set(signature(type(layers[0]).forward).parameters) if len(layers) else set()
    if "position_embeddings" not in takes or not takes & {"cache", "past_key_values"}:
        raise ValueError(
            f"{purpose} needs decoder layers that take rotary positions and a cache, and those of {config.model_type} "
            "do not: choose another language model"
        )
    if config._attn_implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"{purpose} needs attn_implementation sdpa or eager, and the model uses {config._attn_implementation}: "
            "load it with one of these, or switch this off in config.json"
        )


def layer_windows(config: Any) -> list[int | None]:
    """The sliding window of each layer, None if it sees everything."""
    cached: Any = DynamicCache(config=config).layers
    windows = [getattr(layer, "sliding_window", None) for layer in cached]
    return windows or [None] * config.num_hidden_layers


def layer_masks(
    language_model: Any, windows: Sequence[int | None], positions: Sequence[Tensor], queries_BN: Tensor
) -> dict[str, Any]:
    """Arguments for the language model: a mask (B, 1, N, L_i) per layer.

    Args:
        windows: of each layer, from `layer_windows`.
        positions: (B, L_i) of each layer, the new columns included; one entry stands for all layers.
        queries_BN: positions of the new tokens, PADDING where there is none.
    """
    check_layers(language_model, "a cache whose layers differ in length")
    add_layer_hooks(language_model)
    weight = next(language_model.parameters())
    # A query of padding may look at everything: an empty row would turn into NaN, and NaN spreads through values.
    is_padding_BN1 = (queries_BN == PADDING)[:, :, None]
    last_BN1 = queries_BN[:, :, None].masked_fill(is_padding_BN1, torch.iinfo(torch.long).max)
    masks = []
    for positions_BL, window in zip(list(positions) * (len(windows) // len(positions)), windows):
        keys_B1L = positions_BL[:, None]
        seen_BNL = (keys_B1L != PADDING) & (keys_B1L <= last_BN1)
        if window is not None:
            seen_BNL &= (last_BN1 - keys_B1L < window) | is_padding_BN1
        mask_B1NL = (seen_BNL | is_padding_BN1)[:, None].to(weight.device)
        if language_model.config._attn_implementation == "eager":
            lowest = torch.finfo(weight.dtype).min
            mask_B1NL = torch.zeros_like(mask_B1NL, dtype=weight.dtype).masked_fill(~mask_B1NL, lowest)
        masks.append(mask_B1NL)
    # The 4-D mask of the call itself only keeps transformers from making one.
    return {"attention_mask": masks[0], MASKS: masks}
