"""Configuration of the encoder-based peer: a pretrained image or video tower, a projector, a language model.

This is what encoder-free models are compared with: LLaVA (arXiv 2310.03744) reads every frame with CLIP, Video-LLaVA
(arXiv 2311.10122) groups of frames with LanguageBind. Training stages leave the tower as it is unless told otherwise.
"""

from collections.abc import Mapping
from math import ceil
from typing import Any, ClassVar

from transformers import CONFIG_MAPPING, AutoConfig, CLIPVisionConfig, PreTrainedConfig

from ..configuration import TIMESTAMPS, check_choice, check_counts, check_placeholders, text_config_of

AUTO_MAP = {
    "AutoConfig": "configuration_tower.TowerConfig",
    "AutoModel": "modeling_tower.TowerModel",
    "AutoModelForImageTextToText": "modeling_tower.TowerForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_tower.TowerForConditionalGeneration",
    "AutoVideoProcessor": "video_processing_tower.TowerVideoProcessor",
    "AutoProcessor": "processing_tower.TowerProcessor",
}
CLIP = "clip_vision_model"
# The kinds of towers, by the `model_type` of a published folder.
KINDS = {
    **dict.fromkeys(("clip", CLIP, "LanguageBindImage", "LanguageBindVideo"), CLIP),
    **dict.fromkeys(("siglip", "siglip_vision_model"), "siglip_vision_model"),
    "dinov2": "dinov2",
    "dinov2_with_registers": "dinov2_with_registers",
}
_VIT_L14 = {
    "model_type": CLIP,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 768,
}


def grid_of(height: int, width: int, cells: int) -> tuple[int, int]:
    """Rows and columns of cells of a frame whose longer side has `cells`; the picture is stretched to whole cells."""
    longer = max(height, width)
    return ceil(cells * height / longer), ceil(cells * width / longer)


class TowerConfig(PreTrainedConfig):
    """Tower, projector (two linear maps and a GELU, as LLaVA 1.5) and any causal language model.

    Args:
        text_config: configuration of the language model (object or dict with `model_type`); default Qwen2.
        vision_config: of the tower: `clip_vision_model` (CLIP and LanguageBind), `dinov2`, `dinov2_with_registers` or
            `siglip_vision_model`.
        group_frames: consecutive frames that attend to each other: 8 in LanguageBind-Video, 1 in image towers.
        frame_size: pixels per side of the square that frames are put on; None: the size the tower was trained with,
            which CLIP and LanguageBind always need.
        pool: patches per side that are averaged to one token.
        video_token_id, image_token_id: ids of the placeholders `<video>` and `<image>`, real entries of the vocabulary.
        initializer_range: standard deviation of fresh weights of the projector.
        timestamps: "frame": the processor of a new model puts the time of every frame in front of its tokens.
    """

    model_type = "tower"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "llava": {"vision_config": _VIT_L14},
        "video-llava": {"vision_config": _VIT_L14, "group_frames": 8},
        # The teachers that `videopanda lab teacher` trains on two CPU cores.
        "nano": {
            "vision_config": {
                "model_type": CLIP,
                "hidden_size": 128,
                "intermediate_size": 512,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "image_size": 100,
                "patch_size": 20,
            },
            "group_frames": 4,
        },
    }
    sub_configs = {"text_config": AutoConfig, "vision_config": AutoConfig}  # noqa: RUF012 - plain, as transformers declares it

    def __init__(
        self,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        vision_config: PreTrainedConfig | dict[str, Any] | None = None,
        group_frames: int = 1,
        frame_size: int | None = None,
        pool: int = 1,
        video_token_id: int = 32000,
        image_token_id: int = 32001,
        initializer_range: float = 0.02,
        timestamps: str = "none",
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ):
        text_config = text_config_of(text_config, "qwen2")
        if vision_config is None:
            vision_config = dict(_VIT_L14)
        if isinstance(vision_config, Mapping):
            kind = str(vision_config.get("model_type"))
            if kind not in KINDS.values():
                raise ValueError(f"vision_config has the type {kind!r}: supported are {', '.join({*KINDS.values()})}.")
            vision_config = CONFIG_MAPPING[kind](**vision_config)
        check_counts(group_frames=group_frames, pool=pool)
        check_choice("timestamps", timestamps, TIMESTAMPS)
        check_placeholders(video_token_id, image_token_id, text_config.vocab_size)
        if group_frames > 1 and vision_config.model_type != CLIP:
            raise ValueError(f"group_frames {group_frames}: only LanguageBind-Video reads several frames together.")
        trained = vision_config.image_size
        if frame_size not in (None, trained) and vision_config.model_type == CLIP:
            raise ValueError(f"frame_size {frame_size}: CLIP and LanguageBind need the {trained} of their training.")
        check_counts(frame_size=frame_size or trained)
        if (frame_size or trained) % (vision_config.patch_size * pool):
            raise ValueError(
                f"frame_size {frame_size or trained} is not a multiple of {pool} patches of {vision_config.patch_size} "
                "pixels."
            )
        self.text_config = text_config
        self.vision_config = vision_config
        self.group_frames = group_frames
        self.frame_size = frame_size or trained
        self.pool = pool
        self.video_token_id = video_token_id
        self.image_token_id = image_token_id
        self.initializer_range = initializer_range
        self.timestamps = timestamps
        super().__init__(**{"tie_word_embeddings": tie_word_embeddings, **kwargs})

    @property
    def cell_size(self) -> int:
        """Pixels per side of the square that becomes one token."""
        return self.vision_config.patch_size * self.pool

    @classmethod
    def of_encoder(cls, published: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that follow from the `config.json` of a published tower.

        Raises:
            ValueError: an unknown kind of tower.
        """
        kind, vision = KINDS.get(published.get("model_type", "")), published.get("vision_config", published)
        if kind is None:
            raise ValueError(f"model type {published.get('model_type')!r}; supported are {', '.join(KINDS)}")
        if kind != CLIP:
            return {"vision_config": {**vision, "model_type": kind}, "group_frames": 1}
        known = {key: vision[key] for key in CLIPVisionConfig().to_dict() if key in vision}
        frames = vision.get("num_frames", 1) if vision.get("add_time_attn") else 1
        return {"vision_config": {**known, "model_type": kind}, "group_frames": frames}

    def smaller(self) -> "TowerConfig | None":
        """The same model with frames that are one cell smaller; None if they cannot be."""
        if self.vision_config.model_type == CLIP or self.frame_size == self.cell_size:
            return None
        parts = {"text_config": self.text_config, "vision_config": self.vision_config}
        return type(self)(**{**self.to_dict(), **parts, "frame_size": self.frame_size - self.cell_size})
