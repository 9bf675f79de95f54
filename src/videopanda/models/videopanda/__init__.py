"""The Video-Panda model family: configuration, processors, model. Each name is imported on first use."""

from .. import on_first_use

_HOME = {
    "VideoPandaConfig": "configuration_videopanda",
    "VideoPandaStabConfig": "configuration_videopanda",
    "placement_for_size": "configuration_videopanda",
    "visual_token_count": "configuration_videopanda",
    "VideoPandaForConditionalGeneration": "modeling_videopanda",
    "VideoPandaModel": "modeling_videopanda",
    "VideoPandaVision": "modeling_videopanda",
    "VideoPandaProjector": "modeling_videopanda",
    "VideoPandaStab": "modeling_videopanda_stab",
    "VideoPandaProcessor": "processing_videopanda",
    "VideoPandaVideoProcessor": "video_processing_videopanda",
}
__all__ = sorted(_HOME)
__getattr__ = on_first_use(__name__, _HOME)
