"""Turns text, videos and images into inputs of a tower and a language model: one placeholder per visual feature."""

from typing import Any

from ..processing import VisualProcessor
from .configuration_tower import TowerConfig
from .video_processing_tower import TowerVideoProcessor


class TowerProcessor(VisualProcessor):
    """Tokenizer, video processor and chat template; see `VisualProcessor`."""

    config_class = TowerConfig

    @classmethod
    def for_config(cls, config: TowerConfig, tokenizer: Any, chat_template: str | None = None) -> "TowerProcessor":
        """Return the processor of a new model, which states the clip's length in the prompt."""
        told: dict[str, Any] = {"time_prompt": True, "timestamps": config.timestamps}
        return cls(cls.video_processor_for(config), tokenizer, chat_template, **told)

    @staticmethod
    def video_processor_for(config: TowerConfig) -> TowerVideoProcessor:
        """Return the video processor of a new model."""
        return TowerVideoProcessor.for_config(config)


__all__ = ["TowerProcessor"]
