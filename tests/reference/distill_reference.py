"""The distillation once more, slowly: loops over videos, frames, cells, states and heads."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from videopanda.models.videopanda import VideoPandaStabConfig


def slow_distillation(
    weights: Mapping[str, Tensor],
    states: Sequence[Tensor],
    placement: Tensor,
    teacher: Tensor,
    stab: VideoPandaStabConfig,
    distance: str = "cosine",
    num_heads: int = 8,
) -> Tensor:
    """Loss from hidden states (V, E) at all visual tokens, last layer first, and features (B, T, G, G, D)."""
    at, per_frame = 0, []
    factor = teacher.shape[2] / stab.max_cells
    for video, (top, left, rows, columns, sent, real) in enumerate(placement.tolist()):
        for t in range(sent):
            h, w = (rows, columns) if t < real else [min(8, stab.max_cells)] * 2
            at += stab.context_token
            grid = {}
            for r in range(h):
                for c in range(w):
                    grid[r, c] = [state[at] for state in states]
                    at += 1
                at += stab.row_tokens
            if t < real:
                targets = valid_features(
                    teacher[video, t], top * factor, left * factor, rows * factor, columns * factor
                )
                per_frame.append(frame_loss(weights, grid, targets, distance, num_heads))
    return sum(per_frame) / max(len(per_frame), 1)


def valid_features(features: Tensor, top: float, left: float, rows: float, columns: float) -> dict:
    """Features of the picture, without padding, by their place in it."""
    top, left = int(top), int(left)
    return {(r, c): features[top + r, left + c] for r in range(int(rows)) for c in range(int(columns))}


def frame_loss(weights: Mapping[str, Tensor], grid: dict, targets: dict, distance: str, num_heads: int) -> Tensor:
    """Mean distance over one frame; the finer of the two grids is averaged first."""
    finer = (len(targets) / len(grid)) ** 0.5
    k = round(max(finer, 1 / finer))
    if finer > 1:
        targets = {
            (r, c): sum(targets[r * k + i, c * k + j] for i in range(k) for j in range(k)) / k**2 for r, c in grid
        }
    elif finer < 1:
        grid = {
            (r, c): [
                sum(grid[r * k + i, c * k + j][n] for i in range(k) for j in range(k)) / k**2 for n in range(depth)
            ]
            for depth in [len(grid[0, 0])]
            for r, c in targets
        }
    return sum(measure(predict(weights, grid[at], num_heads), targets[at], distance) for at in grid) / len(grid)


def predict(weights: Mapping[str, Tensor], states: Sequence[Tensor], num_heads: int) -> Tensor:
    """What the head says about one token."""
    out = weights["input_layer.weight"] @ states[0] + weights["input_layer.bias"]
    if "output_layer.weight" not in weights:
        return out
    projected = []
    for j, state in enumerate(states):
        variance = ((state - state.mean()) ** 2).mean()
        normal = (state - state.mean()) / (variance + 1e-5) ** 0.5
        normal = normal * weights[f"norm_layer.{j}.0.weight"] + weights[f"norm_layer.{j}.0.bias"]
        projected.append(weights[f"norm_layer.{j}.1.weight"] @ normal)
    width, heads = len(projected[0]), []
    for first in range(0, width, width // num_heads):
        part = slice(first, first + width // num_heads)
        scores = [projected[0][part] @ u[part] / width**0.5 for u in projected[1:]]
        shares = [(score - max(scores)).exp() for score in scores]
        heads.append(sum(share / sum(shares) * u[part] for share, u in zip(shares, projected[1:])))
    return out + weights["output_layer.weight"] @ torch.cat(heads) + weights["output_layer.bias"]


def measure(one: Tensor, two: Tensor, distance: str) -> Tensor:
    """1 - cosine, or the mean squared difference."""
    if distance == "mse":
        return ((one - two) ** 2).mean()
    return 1 - one @ two / ((one @ one) ** 0.5 * (two @ two) ** 0.5)
