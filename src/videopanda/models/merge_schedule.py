"""When and how far a language model merges visual tokens (`merging.py`). Part of exported folders; needs no torch."""

from dataclasses import dataclass
from math import ceil, isfinite
from typing import Any, Literal

_PUBLISHED, _OF_LAYERS = (3, 9, 17), 28  # ELVA's merges on Qwen2-7B


def published_layers(num_layers: int) -> list[int]:
    """The layers after which ELVA merges, at the same depths of a language model of `num_layers` layers."""
    found = {max(1, round(k * num_layers / _OF_LAYERS)) for k in _PUBLISHED}
    return sorted(k for k in found if k < num_layers)


@dataclass(frozen=True)
class MergeSchedule:
    """When and how far to merge.

    layers: merge after the k-th layer for every k listed; 0 merges the embeddings, before the first layer.
    keep: share of patch tokens to keep in each merge; the s-th merge aims at ceil(keep^s · N0)
        patch tokens of a visual.
    threshold: cosine from which tokens are similar (mode "threshold").
    mode: "ratio" merges the most similar pairs until the target is met exactly, or only one token per place remains.
        "threshold" merges every similar pair; in `deep_layers` it continues to the target. "drop" keeps patch tokens
        at even distances and drops the others, as HiCo (VideoChat-Flash, arXiv 2501.00574) does in shallow layers.
    """

    layers: tuple[int, ...]
    keep: float = 0.5
    threshold: float = 0.6
    mode: Literal["ratio", "threshold", "drop"] = "ratio"
    deep_layers: tuple[int, ...] = ()

    @classmethod
    def of(cls, config: Any) -> "MergeSchedule":
        """The schedule of a configuration with these fields."""
        layers, deep = tuple(config.layers), tuple(config.deep_layers)
        return cls(layers, config.keep, config.threshold, config.mode, deep)

    def check(self, num_layers: int) -> None:
        """Check that the schedule fits a model of `num_layers` layers. Raises ValueError."""
        layers = list(self.layers)
        if layers != sorted(set(layers)) or not all(isinstance(k, int) and 0 <= k < num_layers for k in layers):
            raise ValueError(f"merge layers must be increasing numbers in [0, {num_layers - 1}], got {layers}")
        if not 0.0 < self.keep <= 1.0:
            raise ValueError(f"merge keep must be in (0, 1], got {self.keep}")
        if not isfinite(self.threshold):
            raise ValueError(f"merge threshold must be a number, got {self.threshold}")
        if self.mode not in ("ratio", "threshold", "drop"):
            raise ValueError(f"merge mode must be ratio, threshold or drop, got {self.mode!r}")
        if not set(self.deep_layers) <= set(layers):
            raise ValueError(f"merge deep_layers {list(self.deep_layers)} must be among the layers {layers}")

    def patches_after(self, stage: int, patches: int, places: int) -> int:
        """Patch tokens of a visual after merge `stage` (1, 2, …) in the modes "ratio" and "drop".

        Args:
            patches: patch tokens before any merge.
            places: distinct places (grid and cell), of which each keeps one token where tokens merge.
        """
        least = 1 if self.mode == "drop" else places
        return min(patches, max(least, ceil(self.keep**stage * patches - 1e-9)))
