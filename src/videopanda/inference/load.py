"""Loads a checkpoint folder for inference.

model, processor = load("path/to/checkpoint")            # None: the bundled model
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from videopanda.hub import folder_of
from videopanda.inference.changes import change
from videopanda.inference.quantize import FORMATS
from videopanda.inference.quantize import quantize as quantize_layers
from videopanda.models.load import load_checkpoint, multiplies_bfloat16

BUNDLED_MODEL = Path(__file__).parents[1] / "assets" / "nano"


DTYPES = ("float32", "bfloat16", "float16", "auto")


def load(
    model: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    settings: Mapping[str, Any] | None = None,
    quantize: str = "",
) -> tuple[Any, Any]:
    """Load model and processor for inference, from a folder or a Hub name (`videopanda.hub`); None: the bundled model.

    Args:
        device: a torch device; default: CUDA if available, else the CPU.
        dtype: one of `DTYPES`; "auto" is bfloat16 on a CPU with native support for it. Default: float32 on a CPU, else
            the type in which the weights were saved.
        settings: changes that need no training, such as {"merge.layers": [3, 9, 17]}; see `changes.py`.
        quantize: "int8" or "nf4" for the layers of the language model (`quantize.py`). The device holds only these,
            never the full weights, which the host reads.

    Raises:
        FileNotFoundError: the folder or its weights are missing.
        ValueError: the folder is not a checkpoint, or is incomplete; the device is not available; no such
            dtype, format or setting.
    """
    if dtype not in (None, *DTYPES):
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if quantize not in ("", *FORMATS):
        raise ValueError(f"quantize must be {' or '.join(FORMATS)}, got {quantize!r}")
    folder = BUNDLED_MODEL if model is None else folder_of(model)
    device = _usable(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if torch.device(device).type != "cpu":
        kind = dtype or "auto"
    elif dtype == "auto":
        kind = "bfloat16" if multiplies_bfloat16(device) else "float32"
    else:
        kind = dtype or "float32"
    network, processor = load_checkpoint(folder, "auto" if kind == "auto" else getattr(torch, kind))
    change(network, processor, settings or {})
    if quantize:
        quantize_layers(network, quantize, device)
    return network.to(device).eval(), processor


def _usable(device: str) -> str:
    """Check that a device is available; returns its name. Raises ValueError."""
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}: use cpu, cuda, cuda:1 or mps") from error
    if kind not in ("cpu", "cuda", "mps"):
        raise ValueError(f"unknown device {device!r}: use cpu, cuda, cuda:1 or mps")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device} is not available: torch {torch.__version__} finds no GPU; use cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device {device} is not available: torch {torch.__version__} finds no Apple GPU; use cpu")
    return device
