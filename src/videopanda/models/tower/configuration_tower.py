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

    text_config: Any = None
    vision_config: Any = None
    group_frames: int = 1
    frame_size: int = None  # type: ignore[assignment]
    pool: int = 1
    video_token_id: int = 32000
    image_token_id: int = 32001
    initializer_range: float = 0.02
    timestamps: str = "none"
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.text_config = text_config_of(self.text_config, "qwen2")
        if self.vision_config is None:
            self.vision_config = dict(_VIT_L14)
        if isinstance(self.vision_config, Mapping):
            kind = str(self.vision_config.get("model_type"))
            if kind not in KINDS.values():
                raise ValueError(f"vision_config has the type {kind!r}: supported are {', '.join({*KINDS.values()})}.")
            self.vision_config = CONFIG_MAPPING[kind](**self.vision_config)
        check_counts(group_frames=self.group_frames, pool=self.pool)
        check_choice("timestamps", self.timestamps, TIMESTAMPS)
        check_placeholders(self.video_token_id, self.image_token_id, self.text_config.vocab_size)
        if self.group_frames > 1 and self.vision_config.model_type != CLIP:
            raise ValueError(
                f"group_frames {self.group_frames}: only LanguageBind-Video reads several frames together."
            )
        trained = self.vision_config.image_size
        self.frame_size = self.frame_size or trained
        if self.frame_size != trained and self.vision_config.model_type == CLIP:
            raise ValueError(
                f"frame_size {self.frame_size}: CLIP and LanguageBind need the {trained} of their training."
            )
        check_counts(frame_size=self.frame_size)
        if self.frame_size % self.cell_size:
            patches = f"{self.pool} patches of {self.vision_config.patch_size} pixels"
            raise ValueError(f"frame_size {self.frame_size} is not a multiple of {patches}.")
        super().__post_init__(**kwargs)

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
