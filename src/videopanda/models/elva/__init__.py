"""The ELVA model family: configuration, processors, model. Each name is imported on first use."""

from .. import on_first_use

_HOME = {
    "ElvaConfig": "configuration_elva",
    "ElvaForConditionalGeneration": "modeling_elva",
    "ElvaModel": "modeling_elva",
    "ElvaProcessor": "processing_elva",
    "ElvaVideoProcessor": "video_processing_elva",
}
__all__ = sorted(_HOME)
__getattr__ = on_first_use(__name__, _HOME)
