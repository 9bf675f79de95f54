"""The ELVA model family: configuration, processors, model. Each name is imported on first use."""

from importlib import import_module
from typing import Any

_HOME = {
    "ElvaConfig": "configuration_elva",
    "ElvaForConditionalGeneration": "modeling_elva",
    "ElvaModel": "modeling_elva",
    "ElvaProcessor": "processing_elva",
    "ElvaVideoProcessor": "video_processing_elva",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
