"""What a row of training may hold, read from the language model's configuration and checked on the model itself.

    windows = attention_windows(model.config)       # {"full_attention": None, "sliding_attention": 1024}, or None
    windows = checked_windows(model)                # the same, if the model confirms it
    attends_by_clip(model, windows)                 # whether rows of several clips need no mask of all their tokens

`Collator(windows=...)` turns windows into one attention mask per layer type. A layer that carries state from token to
token (gated delta rule, short convolution, Mamba) ignores such a mask, so None asks for one conversation per row.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AttentionInterface, AttentionMaskInterface, AutoConfig

from videopanda.data.collate import Collator
from videopanda.data.row_masks import ALL_LAYERS, Part, clip_masks, row_masks
from videopanda.models.configuration import context_length
from videopanda.training.stages import StageConfig

logger = logging.getLogger(__name__)

_MASKED_TYPES = {"full_attention", "sliding_attention"}
_LENGTH, _SHARED = 12, 5  # tokens per sequence in the check, and of their common prefix
_REFUSED = (TypeError, ValueError, AttributeError, IndexError, RuntimeError)  # of a model that takes no such masks
_BY_CLIP = "sdpa_by_clip"
_SDPA = AttentionInterface()["sdpa"]


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
    first, second = _sequences(decoder)
    was_training = decoder.training
    decoder.eval()
    try:
        alone = [_states(decoder, ids[None])[0] for ids in (first, second)]
        real = torch.ones(2, _LENGTH, dtype=torch.long, device=first.device)
        real[1, _SHARED:] = 0
        padded = _states(decoder, torch.stack([first, second * real[1]]), real)
        if not (_equal(padded[0], alone[0]) and _equal(padded[1, :_SHARED], alone[0][:_SHARED])):
            raise ValueError(
                f"{text.model_type} cannot be trained: a padded row does not give what the same tokens give alone, "
                "because the model is not causal or padding changes its state"
            )
        if windows is None:
            return None
        row = _Row.of(first, second)
        masks = row_masks([row.parts], len(row.ids), windows, adds_masks(decoder))
        return windows if row.is_alone(decoder, alone, masks) else None
    finally:
        decoder.train(was_training)


def adds_masks(decoder: Any) -> bool:
    """Whether attention adds its mask to the scores (eager attention), so that a boolean one would be wrong."""
    return decoder.config._attn_implementation == "eager"


def set_rows(collator: Collator, model: Any) -> None:
    """Let a collator make the rows that are exact on a model.

    Raises:
        ValueError: rows shall hold several clips, and the language model needs one conversation per row.
    """
    collator.context = context_length(model.config.get_text_config())
    collator.windows = checked_windows(model)
    collator.additive_mask |= adds_masks(model.get_decoder())
    if not collator.fill_rows:
        return
    if collator.windows is None:
        raise cannot_pack(model.config)
    # Rows of one length, for compilation, keep their padding.
    collator.by_clip = collator.pad_to is None and attends_by_clip(model, collator.windows)


@torch.no_grad()
def attends_by_clip(model: Any, windows: Mapping[str, int | None]) -> bool:
    """Let the language model attend clip by clip, see `attention_by_clip`, if that is exact on it; says whether it is.

    It is not where attention is not SDPA, where a layer does not hand its arguments on to attention, and where the
    model merges tokens or changes masks itself: there rows of several clips have a mask of all their tokens.
    """
    decoder = model.get_decoder()
    if decoder.config._attn_implementation not in ("sdpa", _BY_CLIP) or getattr(model, "changes_masks", False):
        return False
    was_training = decoder.training
    decoder.eval()
    try:
        first, second = _sequences(decoder)
        alone = [_states(decoder, ids[None])[0] for ids in (first, second)]
        row = _Row.of(first, second)
        masks, clips = clip_masks(row.parts, windows)
        decoder.set_attn_implementation(_BY_CLIP)
        if row.is_alone(decoder, alone, masks, clips=clips):
            return True
        decoder.set_attn_implementation("sdpa")
        return False
    finally:
        decoder.train(was_training)


def attention_by_clip(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    clips: Sequence[tuple[int, bool]] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """SDPA of every clip in a row (1, heads, N, K) by itself, so that its cost is quadratic only in the longest clip.

    Args:
        attention_mask, clips: from `clip_masks`; without clips this is plain SDPA.
    """
    if clips is None:
        return _SDPA(module, query, key, value, attention_mask, **kwargs)
    found, start = [], 0
    for length, is_causal in clips:
        stop = start + length
        q, k, v = (tensor[:, :, start:stop] for tensor in (query, key, value))
        mask = None if is_causal or attention_mask is None else attention_mask[:, :, start:stop, :length]
        found.append(_SDPA(module, q, k, v, mask, **kwargs)[0])
        start = stop
    return torch.cat(found, 1), None


AttentionInterface.register(_BY_CLIP, attention_by_clip)
AttentionMaskInterface.register(_BY_CLIP, AttentionMaskInterface()["sdpa"])


def _sequences(decoder: Any) -> tuple[Tensor, Tensor]:
    """Two sequences of tokens (N,) that begin alike."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(3, decoder.config.vocab_size, (2, _LENGTH), generator=generator)
    second[:_SHARED] = first[:_SHARED]
    device = decoder.get_input_embeddings().weight.device
    return first.to(device), second.to(device)


@dataclass(frozen=True)
class _Row:
    """A row of the check: two sequences after their common prefix, then the second one again, as another clip."""

    ids: Tensor
    parts: list[Part]

    @classmethod
    def of(cls, first: Tensor, second: Tensor) -> "_Row":
        whole, tail = list(range(_LENGTH)), list(range(_SHARED, _LENGTH))
        segments = [0] * _SHARED + [1] * len(tail) + [2] * len(tail)
        parts: list[Part] = [(segments, whole + tail), ([1] * _LENGTH, whole)]
        return cls(torch.cat([first, second[_SHARED:], second]), parts)

    def is_alone(self, decoder: Any, alone: Sequence[Tensor], masks: Any, **given: Any) -> bool:
        """Whether each sequence has the states in this row that it has alone."""
        positions = torch.tensor([[place for _, places in self.parts for place in places]])
        device = self.ids.device
        masks = {k: mask.to(device) for k, mask in masks.items()} if isinstance(masks, dict) else masks.to(device)
        try:
            states = _states(decoder, self.ids[None], masks, positions.to(device), **given)[0]
        except _REFUSED:
            return False
        first, second, again = states.split([_LENGTH, _LENGTH - _SHARED, _LENGTH])
        found = (first, torch.cat([first[:_SHARED], second]), again)
        return all(_equal(*pair) for pair in zip(found, (alone[0], alone[1], alone[1])))


def _states(decoder: Any, ids: Tensor, mask: Any = None, positions: Any = None, **given: Any) -> Tensor:
    """Last hidden states (B, N, E)."""
    given |= {} if positions is None else {"position_ids": positions}
    return decoder(input_ids=ids, attention_mask=mask, use_cache=False, **given).last_hidden_state


def _equal(found: Tensor, expected: Tensor) -> bool:
    """Equal except for rounding."""
    tolerance = max(1e-3, 8 * torch.finfo(found.dtype).eps)
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def packing_report(config: Any, collator: Collator) -> str:
    """A line for the start of a run."""
    if collator.windows is None:
        why = f"{config.get_text_config().model_type} cannot keep several apart in one row"
        return f"{'rows':<16}one conversation each: {why}"
    span = next((f", attention window {window:,}" for window in collator.windows.values() if window is not None), "")
    held = "conversations about one clip share a row"
    if collator.fill_rows:
        held = f"several clips share a row of at most {collator.max_length:,} tokens"
        held += ", each with attention to itself" if collator.by_clip else ", under one mask"
    return f"{'rows':<16}{held}{span}"


def for_backbone(stage: StageConfig, folder: Path | None) -> StageConfig:
    """The stage with `group_by_clip` off where the language model in `folder` needs one conversation per row.

    Raises:
        ValueError: it does, and rows shall hold several clips.
    """
    if folder is None or not (stage.group_by_clip or stage.pack_rows):
        return stage
    config = AutoConfig.from_pretrained(folder)
    if attention_windows(config) is not None:
        return stage
    if stage.pack_rows:
        raise cannot_pack(config)
    logger.info("group_by_clip is off: this language model needs one conversation per row")
    return replace(stage, group_by_clip=False)


def cannot_pack(config: Any) -> ValueError:
    """The error for a language model whose rows hold one conversation each."""
    name = config.get_text_config().model_type
    return ValueError(f"{name} cannot keep several clips apart in one row: --set pack_rows=false")
