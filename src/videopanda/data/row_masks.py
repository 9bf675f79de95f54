"""Attention masks of rows that hold several conversations about a clip, and several clips.

    masks = row_masks([[(segments, positions), ...], ...], length, {"full_attention": None, "sliding_attention": 1024})

A *part* of a row is one sample: the segment of each of its tokens (0 in the prefix that its conversations share, k in
conversation k) and their positions. A token sees its own conversation and the prefix before it, and nothing of other
parts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

ALL_LAYERS = ""  # layer type under which a mask for every layer stands
FULL_ATTENTION: Mapping[str, int | None] = {ALL_LAYERS: None}

Part = tuple[Sequence[int], Sequence[int]]
Masks = Tensor | dict[str, Tensor]  # dict by layer type


def part_masks(part: Part, windows: Mapping[str, int | None]) -> dict[str, Tensor]:
    """Which tokens of a part see which, bool (N, N), by layer type.

    A window counts positions, so a conversation sees as much of the prefix as it does alone, wherever it is in the row.
    """
    segments, positions = (torch.tensor(values, dtype=torch.int32) for values in part)
    visible = ((segments[:, None] == segments) | (segments == 0)).tril()
    longest = int(positions.max()) + 1
    masks = {}
    for kind, window in windows.items():
        if window is None or window >= longest:
            masks[kind] = visible
        else:
            masks[kind] = visible & (positions[:, None] - positions < window)
    return masks


def row_masks(
    rows: Sequence[Sequence[Part]], length: int, windows: Mapping[str, int | None], additive: bool = False
) -> Masks:
    """Masks (B, 1, L, L) of padded rows of `length` tokens, by layer type; a single mask for `ALL_LAYERS`.

    Args:
        windows: see `Collator`.
        additive: float masks that attention adds to its scores, instead of boolean ones.
    """
    masks = {kind: torch.zeros(len(rows), 1, length, length, dtype=torch.bool) for kind in windows}
    for number, row in enumerate(rows):
        start = 0
        for part in row:
            stop = start + len(part[0])
            for kind, visible in part_masks(part, windows).items():
                masks[kind][number, 0, start:stop, start:stop] = visible
            start = stop
        for mask in masks.values():  # padding sees padding: a query without any key would turn into NaN
            mask[number, 0, start:, start:] = torch.ones(length - start, length - start, dtype=torch.bool).tril()
    if additive:
        masks = {kind: torch.zeros(m.shape).masked_fill_(~m, torch.finfo().min) for kind, m in masks.items()}
    return masks.get(ALL_LAYERS, masks)


def clip_masks(parts: Sequence[Part], windows: Mapping[str, int | None]) -> tuple[Masks, list[tuple[int, bool]]]:
    """Masks (1, 1, L, W) of one row without padding, whose columns are the tokens of a query's own part, by layer type.

    Also returns the length of each part, and whether plain causal attention is all that it needs; only the others have
    a mask, so W is the length of the longest of them.
    """
    narrowest = min((window for window in windows.values() if window is not None), default=None)
    clips = []
    for segments, positions in parts:
        is_causal = segments[-1] <= 1 and (narrowest is None or len(positions) <= narrowest)
        clips.append((len(segments), is_causal))
    length, width = sum(count for count, _ in clips), max((n for n, is_causal in clips if not is_causal), default=0)
    masks: dict[str, Any] = {kind: torch.zeros(1, 1, length, width, dtype=torch.bool) for kind in windows}
    start = 0
    for part, (count, is_causal) in zip(parts, clips):
        if not is_causal:
            for kind, visible in part_masks(part, windows).items():
                masks[kind][0, 0, start : start + count, :count] = visible
        start += count
    return masks.get(ALL_LAYERS, masks), clips
