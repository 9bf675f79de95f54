"""The family of a pretrained encoder in front of a language model. Each name is imported on first use."""

from importlib import import_module
from typing import Any

_HOME = {
    "TowerConfig": "configuration_tower",
    "TowerForConditionalGeneration": "modeling_tower",
    "TowerModel": "modeling_tower",
    "TowerProcessor": "processing_tower",
    "TowerVideoProcessor": "video_processing_tower",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
