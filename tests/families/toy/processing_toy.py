"""Processor of the toy family."""

from ..processing import VisualProcessor
from .configuration_toy import ToyConfig
from .video_processing_toy import ToyVideoProcessor


class ToyProcessor(VisualProcessor):
    config_class = ToyConfig

    @classmethod
    def for_config(cls, config, tokenizer, chat_template=None):
        return cls(cls.video_processor_for(config), tokenizer, chat_template)

    @staticmethod
    def video_processor_for(config):
        side = config.patch_config.image_size
        return ToyVideoProcessor({"height": side, "width": side}, config.patch_config.patch_size)
