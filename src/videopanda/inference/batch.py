"""A batch of replies that grow together: rows join and leave between steps.

    row, logits_V = read(model, ids, visuals)       # one prompt through the language model
    batch.join([row])
    logits_BV = batch.step()                        # the last token of every row, one step for all
    batch.keep(rows that go on)

Dimensions: B rows; L cached positions; V words. Keys and values of a layer are (B, heads, L, head width). A row that is
shorter than the longest is padded on the left, where the mask says 0; columns that no row needs any more are dropped.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

Layers = list[tuple[Tensor, Tensor]]  # keys and values of every layer


@dataclass(eq=False)
class Row:
    """One reply: `ids` are prompt and reply; `layers` (1, heads, L, head width) until it joins a batch."""

    ids: list[int]
    layers: Layers = field(default_factory=list)


def read(model: Any, ids: Sequence[int], known: Layers, visuals: dict[str, Any]) -> tuple[Layers, Tensor]:
    """Run a prompt, or what follows its `known` start, through the model.

    Returns:
        Keys and values of all of it, and the logits (V,) for the next token.
    """
    start = known[0][0].shape[2] if known else 0
    positions = torch.arange(start, len(ids), device=model.device)[None]
    output = model(
        input_ids=torch.tensor([list(ids[start:])], device=model.device),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=model.device),
        position_ids=positions,
        cache=_cache(known),
        use_cache=True,
        logits_to_keep=1,
        **visuals,
    )
    return _layers(output[model.cache_name]), output.logits[0, -1]


def _cache(layers: Layers) -> DynamicCache:
    """A cache that starts with these layers. Generation adds to it by new tensors, so that they stay as they are.

    Made without the model's configuration: every layer keeps all positions, and the mask alone bounds a window.
    """
    cache = DynamicCache()
    for number, (keys, values) in enumerate(layers):
        cache.update(keys, values, number)
    return cache


def _layers(cache: Any) -> Layers:
    return [(layer.keys, layer.values) for layer in cache.layers]


class Batch:
    """Rows in order, with a cache and a mask for all of them."""

    def __init__(self, model: Any):
        self.model = model
        self.rows: list[Row] = []
        self._cache = DynamicCache()
        self._mask = torch.ones(0, 0, dtype=torch.long, device=model.device)  # (B, L)

    @property
    def positions(self) -> int:
        """L, with padding."""
        return self._mask.shape[1]

    def join(self, rows: Sequence[Row]) -> None:
        """Add rows; their `layers` move into the batch."""
        parts = [(_layers(self._cache), self._mask)] if self.rows else []
        parts += [(row.layers, self._mask.new_ones(1, row.layers[0][0].shape[2])) for row in rows]
        longest = max(mask.shape[1] for _, mask in parts)
        self._mask = torch.cat([F.pad(mask, (longest - mask.shape[1], 0)) for _, mask in parts])
        layers = zip(*(part for part, _ in parts))
        self._cache = _cache(
            [(_padded([k for k, _ in layer], longest), _padded([v for _, v in layer], longest)) for layer in layers]
        )
        for row in rows:
            row.layers = []
        self.rows += rows

    def keep(self, rows: Sequence[Row]) -> None:
        """Let all other rows go."""
        if len(rows) == len(self.rows):
            return
        places = torch.tensor([i for i, row in enumerate(self.rows) if row in rows], device=self._mask.device).long()
        self.rows = [self.rows[place] for place in places.tolist()]
        mask = self._mask[places]
        columns = mask.any(0).nonzero().squeeze(1)
        self._mask = mask[:, columns]
        self._cache = _cache([(k[places][:, :, columns], v[places][:, :, columns]) for k, v in _layers(self._cache)])

    def step(self) -> Tensor:
        """Run the last token of every row through the model. Returns the logits for the next ones (B, V)."""
        device = self._mask.device
        self._mask = F.pad(self._mask, (0, 1), value=1)
        output = self.model(
            input_ids=torch.tensor([row.ids[-1:] for row in self.rows], device=device),
            attention_mask=self._mask,
            position_ids=torch.tensor([[len(row.ids) - 1] for row in self.rows], device=device),
            cache=self._cache,
            use_cache=True,
        )
        return output.logits[:, -1]


def _padded(parts: Sequence[Tensor], length: int) -> Tensor:
    """Parts (B_i, heads, L_i, head width) below each other, filled up on the left to `length`."""
    return torch.cat([F.pad(part, (0, 0, length - part.shape[2], 0)) for part in parts])
