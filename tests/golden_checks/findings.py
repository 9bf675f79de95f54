"""What a check of reference numbers found."""

from typing import Any

import torch


class Findings(dict[str, tuple[float, float]]):
    """Largest error and tolerance of every compared thing."""

    def compare(self, name: str, found: Any, expected: Any, tolerance: float) -> None:
        """Note the largest absolute difference of two tensors (or numbers, or nested lists of numbers)."""
        found, expected = (torch.as_tensor(x).detach().double() for x in (found, expected))
        if found.shape != expected.shape:
            raise ValueError(f"{name} has shape {tuple(found.shape)}, expected {tuple(expected.shape)}")
        error = (found - expected).abs().max().item() if found.numel() else 0.0
        self[name] = (error, tolerance)

    def require(self, name: str, is_right: bool) -> None:
        """Note something that is either equal or not."""
        self[name] = (0.0 if is_right else 1.0, 0.0)

    @property
    def worst(self) -> str:
        """What comes closest to its tolerance, or lies farthest beyond it. NaN lies beyond all."""
        return max(self, key=lambda name: (not self.holds(name), self[name][0] / max(self[name][1], 1e-30)))

    def holds(self, name: str) -> bool:
        """Whether one error is within its tolerance."""
        error, tolerance = self[name]
        return error <= tolerance

    @property
    def hold(self) -> bool:
        """Whether something was compared and all errors are within their tolerances."""
        return bool(self) and all(self.holds(name) for name in self)
