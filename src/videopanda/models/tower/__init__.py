"""The family of a pretrained encoder in front of a language model. Each name is imported on first use."""

from .. import on_first_use

_HOME = {
    "TowerConfig": "configuration_tower",
    "TowerForConditionalGeneration": "modeling_tower",
    "TowerModel": "modeling_tower",
    "TowerProcessor": "processing_tower",
    "TowerVideoProcessor": "video_processing_tower",
}
__all__ = sorted(_HOME)
__getattr__ = on_first_use(__name__, _HOME)
