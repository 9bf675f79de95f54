"""Whether conversations about one clip may share a row, read from the language model's configuration and checked on it.

    windows = attention_windows(model.config)       # {"full_attention": None, "sliding_attention": 1024}, or None
    windows = checked_windows(model)                # the same, if the model confirms it

`Collator(windows=...)` turns windows into one attention mask per layer type. A layer that carries state from token to
token (gated delta rule, short convolution, Mamba) ignores such a mask, so None asks for one conversation per row.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from videopanda.data.collate import ALL_LAYERS, attention_masks
from videopanda.training.stages import StageConfig

logger = logging.getLogger(__name__)

_MASKED_TYPES = {"full_attention", "sliding_attention"}
_LENGTH, _SHARED = 12, 5  # tokens per sequence in the check, and of their common prefix


def attention_windows(config: Any) -> dict[str, int | None] | None:
    """The window in tokens (None: unlimited) of each layer type; None if a row may hold only one conversation.

    This is transformers' own rule for the masks of `generate`: models with `layer_types` take one mask per type,
    others one for all layers. A layer type that no mask can describe, or a class that carries state, means None.
    """
    text = config.get_text_config()
    if getattr(MODEL_FOR_CAUSAL_LM_MAPPING.get(type(text), None), "_is_stateful", False):
        return None
    window = getattr(text, "sliding_window", None)
    kinds = set(getattr(text, "layer_types", None) or ())
    if kinds:
        if kinds - _MASKED_TYPES or ("sliding_attention" in kinds and not window):
            return None
        return {kind: window if kind == "sliding_attention" else None for kind in sorted(kinds)}
    if getattr(text, "attention_chunk_size", None) is not None:
        return None
    return {ALL_LAYERS: window}


@torch.no_grad()
def checked_windows(model: Any) -> Mapping[str, int | None] | None:
    """`attention_windows` if packing is exact on this model, else None; runs a few tokens to find out.

    Position schemes that look at indices instead of `position_ids` (ALiBi, say) are found here.

    Raises:
        ValueError: even a single padded row gives other results than without padding: the model is not causal, or
            padding leaks.
    """
    decoder, text = model.get_decoder(), model.config.get_text_config()
    windows = attention_windows(model.config)
    device = decoder.get_input_embeddings().weight.device
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(3, text.vocab_size, (2, _LENGTH), generator=generator).to(device)
    second[:_SHARED] = first[:_SHARED]
    was_training = decoder.training
    decoder.eval()
    try:
        alone = [_states(decoder, ids[None])[0] for ids in (first, second)]
        real = torch.ones(2, _LENGTH, dtype=torch.long, device=device)
        real[1, _SHARED:] = 0
        padded = _states(decoder, torch.stack([first, second * real[1]]), real)
        if not (_equal(padded[0], alone[0]) and _equal(padded[1, :_SHARED], alone[0][:_SHARED])):
            raise ValueError(
                f"{text.model_type} cannot be trained: a padded row does not give what the same tokens give alone, "
                "because the model is not causal or padding changes its state"
            )
        if windows is None:
            return None
        tail = list(range(_SHARED, _LENGTH))
        ids = torch.cat([first, second[_SHARED:]])[None]
        positions = torch.tensor([[*range(_LENGTH), *tail]], device=device)
        segments = torch.tensor([[0] * _SHARED + [1] * len(tail) + [2] * len(tail)], device=device)
        masks = attention_masks(segments, positions, windows, adds_masks(decoder))
        try:
            packed = _states(decoder, ids, masks, positions)[0]
        except (TypeError, ValueError, AttributeError, IndexError, RuntimeError):
            return None  # does not accept masks of this form
        of_second = torch.cat([packed[:_SHARED], packed[_LENGTH:]])
        return windows if _equal(packed[:_LENGTH], alone[0]) and _equal(of_second, alone[1]) else None
    finally:
        decoder.train(was_training)


def adds_masks(decoder: Any) -> bool:
    """Whether attention adds its mask to the scores (eager attention), so that a boolean one would be wrong."""
    return decoder.config._attn_implementation == "eager"


def _states(decoder: Any, ids: torch.Tensor, mask: Any = None, positions: Any = None) -> torch.Tensor:
    """Last hidden states (B, N, E)."""
    given = {} if positions is None else {"position_ids": positions}
    return decoder(input_ids=ids, attention_mask=mask, use_cache=False, **given).last_hidden_state


def _equal(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal except for rounding."""
    tolerance = max(1e-3, 8 * torch.finfo(found.dtype).eps)
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def packing_report(config: Any, windows: Mapping[str, int | None] | None) -> str:
    """A line for the start of a run."""
    if windows is None:
        why = f"{config.get_text_config().model_type} cannot keep several apart in one row"
        return f"{'rows':<16}one conversation each: {why}"
    span = next((f", attention window {window:,}" for window in windows.values() if window is not None), "")
    return f"{'rows':<16}conversations about one clip share a row{span}"


def for_backbone(stage: StageConfig, folder: Path | None) -> StageConfig:
    """The stage with `group_by_clip` off where the language model in `folder` needs one conversation per row."""
    if not stage.group_by_clip or folder is None or attention_windows(AutoConfig.from_pretrained(folder)) is not None:
        return stage
    logger.info("group_by_clip is off: this language model needs one conversation per row")
    return replace(stage, group_by_clip=False)
