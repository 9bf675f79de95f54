"""The Video-Panda model family: configuration, processors, model. Each name is imported on first use."""

from importlib import import_module
from typing import Any

_HOME = {
    "VideoPandaConfig": "configuration_videopanda",
    "VideoPandaStabConfig": "configuration_videopanda",
    "frame_token_count": "configuration_videopanda",
    "grid_for_size": "configuration_videopanda",
    "placement_for_size": "configuration_videopanda",
    "placement_token_count": "configuration_videopanda",
    "refuse_official": "configuration_videopanda",
    "visual_token_count": "configuration_videopanda",
    "VideoPandaForConditionalGeneration": "modeling_videopanda",
    "VideoPandaModel": "modeling_videopanda",
    "VideoPandaPreTrainedModel": "modeling_videopanda",
    "VideoPandaVision": "modeling_videopanda",
    "VideoPandaProjector": "modeling_videopanda",
    "VideoPandaStab": "modeling_videopanda_stab",
    "VideoPandaProcessor": "processing_videopanda",
    "VideoPandaVideoProcessor": "video_processing_videopanda",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
