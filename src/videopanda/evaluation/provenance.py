"""What determines a model's answers in addition to the question: its weights and the package versions."""

import hashlib
import platform
from pathlib import Path

import av
import numpy as np
import torch
import transformers

from videopanda import __version__


def weights_sha256(folder: Path) -> str | None:
    """Digest of a checkpoint's weight files, in the order of their names; None for a model that was never saved."""
    files = sorted(folder.glob("*.safetensors")) if folder.name else []
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest() if files else None


def versions() -> dict[str, str]:
    """Versions of the packages that affect a model's answers."""
    modules = {"torch": torch, "transformers": transformers, "numpy": np, "av": av}
    named = {name: module.__version__ for name, module in modules.items()}
    return {"videopanda": __version__, "python": platform.python_version(), **named}
