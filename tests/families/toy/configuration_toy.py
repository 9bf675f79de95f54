"""Configuration of the toy family."""

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

AUTO_MAP = {
    "AutoConfig": "configuration_toy.ToyConfig",
    "AutoModel": "modeling_toy.ToyModel",
    "AutoModelForImageTextToText": "modeling_toy.ToyForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_toy.ToyForConditionalGeneration",
    "AutoProcessor": "processing_toy.ToyProcessor",
    "AutoVideoProcessor": "video_processing_toy.ToyVideoProcessor",
}


class ToyVisionConfig(PreTrainedConfig):
    model_type = "toy_vision"
    base_config_key = "patch_config"

    def __init__(self, hidden_size: int = 32, patch_size: int = 16, image_size: int = 64, bias: bool = True, **kwargs):
        self.hidden_size, self.patch_size, self.image_size, self.bias = hidden_size, patch_size, image_size, bias
        super().__init__(**kwargs)


class ToyConfig(PreTrainedConfig):
    model_type = "toy"
    presets = {"small": {}, "wide": {"patch_config": {"hidden_size": 48}}}  # noqa: RUF012
    sub_configs = {"text_config": AutoConfig, "patch_config": ToyVisionConfig}  # noqa: RUF012

    def __init__(
        self,
        text_config=None,
        patch_config=None,
        video_token_id: int = 0,
        image_token_id: int = 1,
        initializer_range: float = 0.02,
        tie_word_embeddings: bool = False,
        **kwargs,
    ):
        text_config = text_config or {"model_type": "llama"}
        if isinstance(text_config, dict):
            text_config = CONFIG_MAPPING[text_config["model_type"]](**text_config)
        if not isinstance(patch_config, ToyVisionConfig):
            patch_config = ToyVisionConfig(**(patch_config or {}))
        self.text_config, self.patch_config = text_config, patch_config
        self.video_token_id, self.image_token_id = video_token_id, image_token_id
        self.initializer_range = initializer_range
        super().__init__(**{"tie_word_embeddings": tie_word_embeddings, **kwargs})

    def smaller(self):
        patch = self.patch_config
        if patch.image_size == patch.patch_size:
            return None
        fields = {**patch.to_dict(), "image_size": patch.image_size - patch.patch_size}
        return ToyConfig(**{**self.to_dict(), "text_config": self.text_config, "patch_config": fields})
