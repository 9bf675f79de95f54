"""KV caches of sequences that can be cut, kept, stacked and continued.

Every layer has its own length and positions: a model that merges tokens inside its layers keeps fewer keys and
values in deep layers than in shallow ones. Rows are right-aligned and have no gaps, so sliding windows, which
the masks of transformers count in columns, are exact.

Dimensions: B sequences; L cached positions of a layer, with padding; H heads; W head width.
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, DynamicCache, DynamicLayer

from videopanda.models.merging import PADDING
from videopanda.plan.planner import cache_tensors, has_state

EXACT_LAYERS = {"full_attention", "sliding_attention", "linear_attention", "conv"}


@dataclass(frozen=True)
class CacheLayout:
    """How the layers of a language model cache.

    windows: sliding window of each layer; None if a layer sees everything or keeps a state instead.
    has_states: some layers keep a state (gated delta rule, short convolution) that padding inside a row would change.
    """

    config: Any
    windows: tuple[int | None, ...]
    has_states: bool

    @classmethod
    def of(cls, config: Any) -> "CacheLayout":
        """The layout for a text configuration.

        Raises:
            ValueError: a layer caches in a way that rows of different lengths cannot share exactly.
        """
        for kind in sorted(set(getattr(config, "layer_types", None) or ()) - EXACT_LAYERS):
            raise ValueError(f"{config.model_type}: layers of type {kind} are not supported by the inference engine")
        layers = DynamicCache(config=config).layers
        for layer in layers:
            if isinstance(layer, DynamicLayer) == has_state(layer) or hasattr(layer, "update_indexer"):
                name = type(layer).__name__
                raise ValueError(f"{config.model_type}: a cache of {name} is not supported by the inference engine")
        windows = tuple(getattr(layer, "sliding_window", None) for layer in layers)
        return cls(config, windows, any(map(has_state, layers)))


@dataclass(eq=False)
class KVPrefix:
    """The language model's cache of the beginnings of B prompts.

    cache: keys and values (B, H, L, W) per layer, or the state of a layer.
    positions: (B, L), PADDING where a column is empty; one tensor for all layers, or one per layer. On the CPU, so that
        masks are made without waiting for the device.
    num_tokens: length of each prompt so far, which is the position of its next token.
    """

    cache: Cache
    positions: list[Tensor]
    num_tokens: list[int]

    def __len__(self) -> int:
        return len(self.num_tokens)

    @property
    def is_ragged(self) -> bool:
        """Whether the layers differ in length or positions."""
        return len(self.positions) > 1

    @property
    def columns(self) -> int:
        """Cached positions per sequence with padding, in the longest layer."""
        return max(positions.shape[1] for positions in self.positions)

    @property
    def num_bytes(self) -> int:
        """Memory in use."""
        return sum(tensor.nbytes for layer in self.cache.layers for tensor in cache_tensors(layer))

    def rows(self) -> list["KVPrefix"]:
        """Every sequence alone, without padding; views if possible."""
        spans = [_spans(positions) for positions in self.positions]
        return [self._row(b, [span[b] for span in spans]) for b in range(len(self))]

    def _row(self, b: int, spans: list[tuple[int, int]]) -> "KVPrefix":
        cache = self._changed(lambda state: state[b : b + 1], lambda kv, i: kv[b : b + 1, :, slice(*spans[i])])
        positions = [p[b : b + 1, start:end] for p, (start, end) in zip(self.positions, spans)]
        return KVPrefix(cache, positions, [self.num_tokens[b]])

    def _changed(self, of_state: Callable[[Tensor], Tensor], of_kv: Callable[[Tensor, int], Tensor]) -> Cache:
        """The cache with changed tensors; `of_kv` gets keys or values, and their place in `positions`."""
        layers: list[Any] = []
        layer: Any  # transformers types it as any kind of cache layer
        for i, layer in enumerate(self.cache.layers):
            if has_state(layer):
                layers.append(_mapped([layer], lambda tensors: of_state(tensors[0])))
            else:
                place = i if self.is_ragged else 0
                layers.append(_attention(of_kv(layer.keys, place), of_kv(layer.values, place)))
        return _cache(layers)

    def clone(self) -> "KVPrefix":
        """A copy with its own memory, so it keeps nothing else alive."""
        return self.select(list(range(len(self))))

    def fork(self) -> "KVPrefix":
        """The same sequences for a model to continue: its new keys and values go into new tensors, so these stay as
        they are, and only states, which are overwritten, are copied."""
        return KVPrefix(self._changed(Tensor.clone, lambda kv, _: kv), self.positions, self.num_tokens)

    def select(self, places: Sequence[int]) -> "KVPrefix":
        """The sequences at `places`; columns unused by all of them are dropped."""
        rows = torch.tensor(places, dtype=torch.long)
        kept = [p[rows] for p in self.positions]
        firsts = [min((start for start, _ in _spans(p)), default=p.shape[1]) for p in kept]
        cache = self._changed(
            lambda state: state[rows.to(state.device)], lambda kv, i: kv[:, :, firsts[i] :][rows.to(kv.device)]
        )
        positions = [p[:, first:] for p, first in zip(kept, firsts)]
        return KVPrefix(cache, positions, [self.num_tokens[place] for place in places])

    def cut(self, length: int) -> "KVPrefix":
        """The first tokens of a single sequence whose layers are equally long and keep no state; views."""
        assert len(self) == 1 and not self.is_ragged and not any(map(has_state, self.cache.layers))  # noqa: PT018
        cache = self._changed(Tensor.clone, lambda kv, _: kv[:, :, :length])
        return KVPrefix(cache, [self.positions[0][:, :length]], [length])

    @classmethod
    def stack(cls, parts: Sequence["KVPrefix"]) -> "KVPrefix":
        """All sequences of `parts` in one, padded on the left."""
        if len(parts) == 1:
            return parts[0]
        number = len(parts[0].cache.layers)
        ragged = any(part.is_ragged for part in parts)
        all_positions = [part.positions * number if ragged and not part.is_ragged else part.positions for part in parts]
        lengths = [max(p.shape[1] for p in layer) for layer in zip(*all_positions)]

        def stacked(i: int, layers: Sequence[Any]) -> Any:
            if has_state(layers[0]):
                return _mapped(layers, torch.cat)
            longest = lengths[i if ragged else 0]
            return _attention(*(_padded([getattr(x, name) for x in layers], longest) for name in ("keys", "values")))

        layers = [stacked(i, layers) for i, layers in enumerate(zip(*(part.cache.layers for part in parts)))]
        positions = [
            torch.cat([F.pad(p, (longest - p.shape[1], 0), value=PADDING) for p in layer])
            for layer, longest in zip(zip(*all_positions), lengths)
        ]
        return cls(_cache(layers), positions, [count for part in parts for count in part.num_tokens])

    def extended(self, positions_BN: Tensor) -> list[Tensor]:
        """The positions of each layer with N more columns."""
        return [torch.cat([positions, positions_BN], dim=1) for positions in self.positions]

    def grown(self, cache: Cache, positions_BN: Tensor) -> "KVPrefix":
        """This prefix after N more columns went through the model, which returned `cache`.

        Layers in which fewer columns are left, because tokens merged, carry the `positions` (B, M) of those.
        """
        totals = [held + new for held, new in zip(self.num_tokens, (positions_BN != PADDING).sum(1).tolist())]
        left = [getattr(layer, "positions", None) for layer in cache.layers]
        if all(own is None for own in left):
            return KVPrefix(cache, self.extended(positions_BN), totals)
        held = self.positions if self.is_ragged else self.positions * len(left)
        new = [positions_BN if own is None else own.cpu() for own in left]
        return KVPrefix(cache, [torch.cat(pair, dim=1) for pair in zip(held, new)], totals)


# -- layers ------------------------------------------------------------------------------------------------------------
def _attention(keys: Tensor, values: Tensor) -> DynamicLayer:
    layer = DynamicLayer()
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    return layer


def _cache(layers: list[Any]) -> Cache:
    cache = DynamicCache()
    cache.layers = layers
    return cache


def _mapped(layers: Sequence[Any], change: Callable[[list[Tensor]], Tensor]) -> Any:
    """A layer whose tensors are computed from those of `layers`, for any supported version of transformers."""

    def mapped(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return {key: mapped([value[key] for value in values]) for key in values[0]}
        return change(values) if isinstance(values[0], Tensor) and values[0].dim() else values[0]

    made = copy(layers[0])
    for name in vars(made):
        setattr(made, name, mapped([vars(layer)[name] for layer in layers]))
    return made


def _padded(parts: Sequence[Tensor], length: int) -> Tensor:
    """Parts (B_i, H, L_i, W) below each other, padded on the left to `length`."""
    return torch.cat([F.pad(part, (0, 0, length - part.shape[2], 0)) for part in parts])


def _spans(positions_BL: Tensor) -> list[tuple[int, int]]:
    """First column and exclusive end column of what each row holds; rows hold no gaps."""
    held_BL = positions_BL != PADDING
    counts_B = held_BL.sum(1)
    starts_B = torch.where(counts_B > 0, held_BL.int().argmax(1), positions_BL.shape[1])
    return list(zip(starts_B.tolist(), (starts_B + counts_B).tolist()))
