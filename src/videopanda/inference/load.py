"""Loads a checkpoint folder for inference.

model, processor = load("path/to/checkpoint")            # None: the small model that comes with the package
"""

from pathlib import Path
from typing import Any

import torch

from videopanda.models.load import load_checkpoint

BUNDLED_MODEL = Path(__file__).parents[1] / "assets" / "nano"


def load(model: str | Path | None = None, device: str | None = None) -> tuple[Any, Any]:
    """Model and processor of a checkpoint folder, ready for inference. None is the bundled model.

    `device` is a torch device; default: CUDA if available, else the CPU, where every model runs in float32.

    Raises:
        FileNotFoundError: the folder or its weights are missing.
        ValueError: the folder is not a checkpoint, or is incomplete.
    """
    folder = BUNDLED_MODEL if model is None else Path(model)
    device = _usable(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    network, processor = load_checkpoint(folder, torch.float32 if device == "cpu" else "auto")
    return network.to(device).eval(), processor


def _usable(device: str) -> str:
    """Check that a device is available; returns its name. Raises ValueError."""
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}: use cpu, cuda or cuda:1") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device} is not available: torch {torch.__version__} finds no GPU; use cpu")
    return device
