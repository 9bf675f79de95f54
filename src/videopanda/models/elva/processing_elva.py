"""Turns text, videos and images into ELVA's inputs: a placeholder in the text becomes one token per visual feature."""

from typing import Any

from ..processing import VisualProcessor
from .configuration_elva import ElvaConfig
from .video_processing_elva import ElvaVideoProcessor


class ElvaProcessor(VisualProcessor):
    """Tokenizer, video processor and chat template of ELVA; see `VisualProcessor`."""

    config_class = ElvaConfig

    @classmethod
    def for_config(cls, config: ElvaConfig, tokenizer: Any, chat_template: str | None = None) -> "ElvaProcessor":
        """Return the processor of a new model, which states the clip's length in the prompt."""
        told: dict[str, Any] = {"time_prompt": True, "timestamps": config.timestamps}
        return cls(cls.video_processor_for(config), tokenizer, chat_template, **told)

    @staticmethod
    def video_processor_for(config: ElvaConfig) -> ElvaVideoProcessor:
        """Return the video processor of a new model."""
        return ElvaVideoProcessor.for_config(config)


__all__ = ["ElvaProcessor"]
