"""Runs the language model for many sequences at once: prompts are prefilled, then each step adds a token to all of
them.

    kv, logits_BV = prefill(model, layout, prompts)     # prompts, or what follows their cached prefixes
    batch.join(sequences, kv)                           # sequences join and leave between steps
    logits_BV = batch.step()
    batch.keep(sequences that continue)

Dimensions: B sequences; N new tokens; L cached positions; V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from videopanda.inference.clip import EncodedClip
from videopanda.inference.kv_prefix import CacheLayout, KVPrefix
from videopanda.models.layer_cache import layer_masks
from videopanda.models.merging import PADDING
from videopanda.models.visual import EncodedVisual
from videopanda.plan.planner import full_cache

GROUP_TOKENS = 2048  # short prompts are prefilled together up to this many tokens with padding
PASS_TOKENS = 512  # longer prompts go through in passes of this many tokens, which bounds memory

T = TypeVar("T")


@dataclass(frozen=True)
class Prompt:
    """New tokens of one sequence.

    ids: what follows `prefix`, or a whole prompt.
    clips: whose tokens fill the placeholders of `ids`, so without those of the prefix.
    """

    ids: Sequence[int]
    clips: Sequence[EncodedClip] = ()
    prefix: KVPrefix | None = None


def groups(prompts: Sequence[Prompt], layout: CacheLayout) -> list[list[int]]:
    """Indices of prompts to prefill together: padding must be cheap and must not change results."""
    order = sorted(range(len(prompts)), key=lambda place: (prompts[place].prefix is None, len(prompts[place].ids)))
    found: list[list[int]] = []
    for place in order:
        prompt = prompts[place]
        if found:
            first, size = prompts[found[-1][0]], len(prompt.ids)
            together = (first.prefix is None) == (prompt.prefix is None) and (len(found[-1]) + 1) * size <= GROUP_TOKENS
            # Merged rows of different lengths would have a gap after their prefixes.
            together &= prompt.prefix is None or not (first.clips or prompt.clips)
            if together and (len(first.ids) == size or not layout.has_states):
                found[-1].append(place)
                continue
        found.append([place])
    return found


def prefill(model: Any, layout: CacheLayout, prompts: Sequence[Prompt]) -> tuple[list[KVPrefix], Tensor]:
    """Prefill one group of prompts.

    Returns:
        The KV cache of each with all of its tokens, and the logits for the next ones (B, V).
    """
    lengths = [len(prompt.ids) for prompt in prompts]
    longest = max(lengths)
    ids = torch.tensor([[*prompt.ids, *[0] * (longest - len(prompt.ids))] for prompt in prompts])
    starts = [0 if prompt.prefix is None else prompt.prefix.num_tokens[0] for prompt in prompts]
    columns = torch.arange(longest)
    queries_BN = columns + torch.tensor(starts)[:, None]
    queries_BN = queries_BN.masked_fill(columns >= torch.tensor(lengths)[:, None], PADDING)
    prefixes = [prompt.prefix for prompt in prompts if prompt.prefix is not None]
    if not prefixes:
        past = KVPrefix(full_cache(layout.config), [queries_BN[:, :0]], starts)
    else:
        past = KVPrefix.stack(prefixes) if len(prefixes) > 1 else prefixes[0].fork()
    positions = past.extended(queries_BN)
    visuals: dict[str, list[EncodedVisual]] = {}
    for prompt in prompts:
        for clip in prompt.clips:
            assert clip.tokens is not None
            visuals.setdefault(clip.kind, []).append(EncodedVisual(clip.tokens, clip.layout))
    ragged = len(positions) > 1
    logits_BV, cache = model.prefill(
        ids.to(model.device),
        lengths,
        visuals=visuals,
        cache=past.cache,
        position_ids=queries_BN.clamp(min=0).to(model.device),
        max_tokens=0 if ragged else PASS_TOKENS,
        **_masks(model, layout, positions, queries_BN),
    )
    return past.grown(cache, queries_BN).rows(), logits_BV


def _masks(model: Any, layout: CacheLayout, positions: Sequence[Tensor], queries_BN: Tensor) -> dict[str, Any]:
    """The attention masks for new tokens; none if nothing is padded."""
    if len(positions) > 1:
        return layer_masks(model.get_decoder(), layout.windows, positions, queries_BN)
    held_BL = positions[0] != PADDING
    return {"attention_mask": None if held_BL.all() else held_BL.long().to(model.device)}


class Batch(Generic[T]):
    """Sequences in order, with their KV cache."""

    def __init__(self, model: Any, layout: CacheLayout):
        self.model, self.layout = model, layout
        self.sequences: list[T] = []
        self._kv: KVPrefix | None = None

    @property
    def columns(self) -> int:
        """Cached positions per sequence, with padding."""
        return self._kv.columns if self._kv is not None else 0

    def join(self, sequences: Sequence[T], kv: Sequence[KVPrefix]) -> None:
        """Add sequences with their KV caches."""
        parts = [*([self._kv] if self._kv is not None else []), *kv]
        self._kv = KVPrefix.stack(parts)
        self.sequences += sequences

    def keep(self, sequences: Sequence[T]) -> None:
        """Drop all other sequences."""
        if len(sequences) == len(self.sequences):
            return
        places = [place for place, one in enumerate(self.sequences) if one in sequences]
        self.sequences = [self.sequences[place] for place in places]
        self._kv = self._kv.select(places) if places and self._kv is not None else None

    def step(self, ids: Sequence[int]) -> Tensor:
        """Run the newest token of every sequence through the model. Returns logits for the next ones, (B, V)."""
        assert self._kv is not None
        kv = self._kv
        queries_B1 = torch.tensor(kv.num_tokens)[:, None]
        positions = kv.extended(queries_B1)
        output = self.model(
            input_ids=torch.tensor(ids, device=self.model.device)[:, None],
            cache=kv.cache,
            position_ids=queries_B1.to(self.model.device),
            use_cache=True,
            **_masks(self.model, self.layout, positions, queries_B1),
        )
        self._kv = KVPrefix(output[self.model.cache_name], positions, [count + 1 for count in kv.num_tokens])
        return output.logits[:, -1]
