"""Turns text, videos and images into ELVA's inputs: a placeholder in the text becomes one token per visual feature."""

from ..processing import VisualProcessor
from .configuration_elva import ElvaConfig
from .video_processing_elva import ElvaVideoProcessor


class ElvaProcessor(VisualProcessor):
    """Tokenizer, video processor and chat template of ELVA; see `VisualProcessor`."""

    config_class = ElvaConfig

    @staticmethod
    def video_processor_for(config: ElvaConfig) -> ElvaVideoProcessor:
        """Return the video processor of a new model."""
        return ElvaVideoProcessor.for_config(config)
