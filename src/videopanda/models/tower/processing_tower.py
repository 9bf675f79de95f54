"""Turns text, videos and images into inputs of a tower and a language model: one placeholder per visual feature."""

from ..processing import VisualProcessor
from .configuration_tower import TowerConfig
from .video_processing_tower import TowerVideoProcessor


class TowerProcessor(VisualProcessor):
    """Tokenizer, video processor and chat template; see `VisualProcessor`."""

    config_class = TowerConfig

    @staticmethod
    def video_processor_for(config: TowerConfig) -> TowerVideoProcessor:
        """Return the video processor of a new model."""
        return TowerVideoProcessor.for_config(config)
