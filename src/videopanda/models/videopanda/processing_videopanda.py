"""Turns text, videos and images into model inputs: a placeholder in the text becomes one token per visual feature."""

import json
from pathlib import Path
from typing import Any

from ..processing import VisualProcessor
from .configuration_videopanda import VideoPandaConfig, refuse_official
from .video_processing_videopanda import VideoPandaVideoProcessor


class VideoPandaProcessor(VisualProcessor):
    """Tokenizer, video processor and chat template of Video-Panda; see `VisualProcessor`."""

    config_class = VideoPandaConfig

    @classmethod
    def for_config(
        cls, config: VideoPandaConfig, tokenizer: Any, chat_template: str | None = None
    ) -> "VideoPandaProcessor":
        """Return the processor of a new model. If the model masks padding, the prompt states the clip's length."""
        video_processor = cls.video_processor_for(config)
        told: dict[str, Any] = {"time_prompt": config.stab_config.mask_padding, "timestamps": config.timestamps}
        return cls(video_processor, tokenizer, chat_template, **told)

    @staticmethod
    def video_processor_for(config: VideoPandaConfig) -> VideoPandaVideoProcessor:
        """Return the video processor of a new model: without padding frames if the model masks padding."""
        tight: dict[str, Any] = {"canvas": "tight", "pad_frames": False} if config.stab_config.mask_padding else {}
        compression = config.compression.fields()
        return VideoPandaVideoProcessor.for_stab(config.stab_config, compression=compression, **tight)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> "VideoPandaProcessor":
        """Load the processor of a folder or Hub name.

        Raises:
            ValueError: the folder is an official checkpoint; the message names the command that converts it.
        """
        config = Path(pretrained_model_name_or_path, "config.json")
        if config.is_file():
            refuse_official(json.loads(config.read_text(encoding="utf-8")), config.parent)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
