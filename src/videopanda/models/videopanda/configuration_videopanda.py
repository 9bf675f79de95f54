"""Configuration of Video-Panda and the arithmetic of its visual tokens (needs no torch).

Geometry: a *cell* is the square that becomes one visual token, 2 × 2 patches of `patch_size` pixels. A frame is scaled
    so that its longer side fills the canvas of `image_size` pixels; the shorter side is rounded up to whole cells. Per
    frame the language model sees [context token] + rows × (columns tokens + row token).
"""

import math
from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig

from ..compression_config import CompressionConfig, compression_of
from ..configuration import TIMESTAMPS, check_choice, check_counts, check_placeholders, section_of, text_config_of

# What transformers' Auto classes find in this folder.
AUTO_MAP = {
    "AutoConfig": "configuration_videopanda.VideoPandaConfig",
    "AutoModel": "modeling_videopanda.VideoPandaModel",
    "AutoModelForImageTextToText": "modeling_videopanda.VideoPandaForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_videopanda.VideoPandaForConditionalGeneration",
    "AutoProcessor": "processing_videopanda.VideoPandaProcessor",
    "AutoVideoProcessor": "video_processing_videopanda.VideoPandaVideoProcessor",
}

# QUIRK(ckpt): the official code crops an all-padding frame to its first 16 × 16 patches, whatever the clip's shape.
PADDING_FRAME_CELLS = 8


def grid_for_size(height: int, width: int, max_cells: int) -> tuple[int, int]:
    """Return (rows, columns) of visual tokens for a frame of `height` × `width` pixels, at most `max_cells` each."""
    if height < 1 or width < 1:
        raise ValueError(f"A frame needs at least one pixel per side, got {height} × {width} (height × width).")
    if width > height:
        return math.ceil(max_cells * height / width), max_cells
    return max_cells, math.ceil(max_cells * width / height)


def placement_for_size(height: int, width: int, max_cells: int, tight: bool = False) -> tuple[int, int, int, int]:
    """Return (top, left, rows, columns) in cells of the picture on its canvas.

    The canvas is a square of `max_cells` cells with the picture in its middle (an odd cell goes below or right), or
    with `tight` exactly the picture.
    """
    rows, columns = grid_for_size(height, width, max_cells)
    if tight:
        return 0, 0, rows, columns
    return (max_cells - rows) // 2, (max_cells - columns) // 2, rows, columns


def frame_token_count(rows: int, columns: int, row_tokens: bool, context_token: bool) -> int:
    """Count the tokens of one frame of `rows` × `columns` cells."""
    return rows * (columns + int(row_tokens)) + int(context_token)


def visual_token_count(
    num_frames: int,
    height: int,
    width: int,
    *,
    image_size: int = 448,
    patch_size: int = 14,
    row_tokens: bool = True,
    context_token: bool = True,
    pad_to_frames: int = 0,
) -> int:
    """Count the visual tokens of a clip of `num_frames` frames of `height` × `width` source pixels.

    `context_token` is false for a model without frame and video summary; `pad_to_frames` counts the all-padding frames
        that fill a short clip. `token_layout`, which says where each of them comes from, has as many rows.
    """
    max_cells = image_size // (2 * patch_size)
    corner = min(PADDING_FRAME_CELLS, max_cells)
    real = frame_token_count(*grid_for_size(height, width, max_cells), row_tokens, context_token)
    padding = frame_token_count(corner, corner, row_tokens, context_token)
    return num_frames * real + max(0, pad_to_frames - num_frames) * padding


# The forms of STAB by name, as what differs from the arithmetic of the published weights.
STAB_PRESETS: dict[str, dict[str, Any]] = {
    "released": {},
    # The paper's equations. Eq. 2: three plain convolutions and no batch norm. Eq. 4: single-head attention with scale
    # 1/√D. Eq. 5: a learned query for windows. Eqs. 11 to 13: one summary per video, from the downsampled tokens.
    # Eq. 14: a free weight per channel and a linear map. Padding is excluded everywhere. docs/fidelity.md lists what
    # the paper leaves open and how it is interpreted here.
    "paper": {
        "num_heads": 1,
        "segment_frames": None,
        "lste_batch_norm": False,
        "lste_depthwise": False,
        "dense_connection": False,
        "mask_padding": True,
        "gstra_input": "downsampled",
        "gstra_mlp": False,
        "lsd_query": "learned",
        "query_residual": False,
        "fusion": "linear",
    },
    # The EVE* baseline, EVE applied frame by frame: no LSTE (with its position encoding) and no GSTRA.
    "eve_star": {"lste": False, "gstra": False},
    # The paper's block at a size for two CPU cores: 100-pixel frames, 20-pixel cells, at most 5 × 5 tokens per frame.
    # Padding is excluded everywhere and there is no batch norm, so a clip's tokens depend on nothing but the clip.
    "nano": {
        "hidden_size": 256,
        "patch_size": 10,
        "image_size": 100,
        "num_heads": 8,
        "attention_scale": "head",
        "lste_batch_norm": False,
        "mask_padding": True,
        "coordinates": True,
        "dropout": 0.0,
    },
}


class VideoPandaStabConfig(PreTrainedConfig):
    """The Spatio-Temporal Alignment Block: one field for each choice in which the paper and the released weights may
    differ.

    The defaults are the released arithmetic; `STAB_PRESETS` has the others. Ablations change single fields, for example
    `VideoPandaStabConfig(row_tokens=False)`.
    """

    model_type = "videopanda_stab"
    base_config_key = "stab_config"

    hidden_size: int = 1024  # D, width of every visual feature
    patch_size: int = 14  # pixels per patch side
    image_size: int = 448  # canvas side in pixels; bounds the token grid
    num_heads: int = 8  # heads of LSD, FSRA and GSTRA
    segment_frames: int | None = 4  # frames that LSTE and GSTRA see together; None = the whole video
    lste: bool = True  # local spatio-temporal encoding and dynamic position encoding
    lste_batch_norm: bool = True  # batch norm in front of LSTE
    lste_depthwise: bool = True  # temporal convolution per channel; False mixes channels
    # Channels between the LSTE convolutions; None = int(D / 1.5).
    lste_bottleneck: int = None  # type: ignore[assignment]
    dense_connection: bool = True  # add the patch embedding to the LSTE output once more before LSD
    mask_padding: bool = False  # padding influences nothing, from the first layer on
    gstra: bool = True  # global spatio-temporal aggregation: one summary per segment
    gstra_input: Literal["full", "downsampled"] = "full"  # what GSTRA attends to: patches or visual tokens
    gstra_mlp: bool = True  # MLP after the attention of GSTRA
    fsra: bool = True  # frame-wise spatial aggregation: one summary per frame
    lsd_query: Literal["pooled", "learned"] = "pooled"  # query of a window: its average, or one learned vector
    query_residual: bool = True  # add the query side (average pool, learned query) to what attention returns
    attention_scale: Literal["width", "head"] = "width"  # LSD and FSRA divide by √D, or by √(D / heads)
    fusion: Literal["gated", "linear"] = "gated"  # sigmoid gate + norm + linear, or free weight + linear
    downsampling: Literal["lsd", "average", "half_resolution", "perceiver"] = "lsd"  # 2 × 2 patches → one token
    downsample_first: bool = False  # downsample in front of LSTE
    row_tokens: bool = True  # a learned token after each row of visual tokens
    coordinates: bool = False  # encode frame, row and column in every token; not in the paper
    dropout: float = 0.5  # inside the GSTRA MLP and the fusion, in training only
    layer_norm_eps: float = 1e-5

    def __post_init__(self, **kwargs: Any) -> None:
        check_counts(**{name: vars(self)[name] for name in ("hidden_size", "patch_size", "image_size", "num_heads")})
        for name in ("lste_bottleneck", "segment_frames"):  # may be None
            if vars(self)[name] is not None:
                check_counts(**{name: vars(self)[name]})
        for name in (
            *("lste", "lste_batch_norm", "lste_depthwise", "dense_connection", "mask_padding", "gstra"),
            *("gstra_mlp", "fsra", "query_residual", "downsample_first", "row_tokens", "coordinates"),
        ):
            if not isinstance(vars(self)[name], bool):
                raise ValueError(f"`{name}` must be true or false, got {vars(self)[name]!r}.")
        choices = {
            "gstra_input": ("full", "downsampled"),
            "lsd_query": ("pooled", "learned"),
            "attention_scale": ("width", "head"),
            "fusion": ("gated", "linear"),
            "downsampling": ("lsd", "average", "half_resolution", "perceiver"),
        }
        for name, allowed in choices.items():
            check_choice(name, vars(self)[name], allowed)
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}.")
        if self.image_size % (2 * self.patch_size):
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of the cell, 2 × {self.patch_size} pixels."
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"`dropout` must be in [0, 1), got {self.dropout!r}.")
        if not self.layer_norm_eps > 0.0:
            raise ValueError(f"`layer_norm_eps` must be positive, got {self.layer_norm_eps!r}.")
        self.lste_bottleneck = self.lste_bottleneck or int(self.hidden_size / 1.5)
        super().__post_init__(**kwargs)

    @property
    def cell_size(self) -> int:
        """Pixels per side of the square that becomes one visual token."""
        return 2 * self.patch_size

    @property
    def max_cells(self) -> int:
        """Cells per side of the canvas."""
        return self.image_size // self.cell_size

    @property
    def context_token(self) -> bool:
        """Whether a video frame starts with a context token."""
        return self.gstra or self.fsra

    @property
    def image_context_token(self) -> bool:
        """Whether an image starts with a context token: GSTRA does not see images."""
        return self.fsra


def refuse_official(config: dict[str, Any], folder: Any) -> None:
    """Raise `ValueError` with the command to run if `config` is that of an official Video-Panda or EVE checkpoint."""
    if config.get("model_type") in ("videopanda", "eve") and "text_config" not in config and "hidden_size" in config:
        raise ValueError(
            f"{folder} is a checkpoint of the official {config['model_type']} code: run "
            f"`videopanda convert {folder} OUT` and load OUT."
        )


class VideoPandaConfig(PreTrainedConfig):
    """STAB, projector and any causal language model that transformers builds from `text_config`.

    Args:
        text_config: configuration of the language model (object or dict with `model_type`); default LLaMA.
        stab_config: configuration of STAB (object or dict); default `VideoPandaStabConfig()`.
        compression: fewer tokens between STAB and projector; see `CompressionConfig`. Default: none.
        video_token_id, image_token_id: ids of the placeholders `<video>` and `<image>`, real entries of the vocabulary.
        initializer_range: standard deviation of fresh linear weights of STAB and projector.
        timestamps: "frame": the processor of a new model puts the time of every frame in front of its tokens.
    """

    model_type = "videopanda"
    # 0.06 is 1 / √256; transformers' 0.02 suits widths of a thousand and more.
    presets = {  # noqa: RUF012
        name: {"stab_config": fields, **({"initializer_range": 0.06} if name == "nano" else {})}
        for name, fields in STAB_PRESETS.items()
    }
    sub_configs = {  # noqa: RUF012
        "text_config": AutoConfig,
        "stab_config": VideoPandaStabConfig,
        "compression": CompressionConfig,
    }

    text_config: Any = None
    stab_config: Any = None
    compression: Any = None
    video_token_id: int = 32000
    image_token_id: int = 32001
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    timestamps: Literal["none", "frame"] = "none"

    def __post_init__(self, **kwargs: Any) -> None:
        self.text_config = text_config_of(self.text_config, "llama")
        check_choice("timestamps", self.timestamps, TIMESTAMPS)
        self.stab_config = section_of(VideoPandaStabConfig, self.stab_config)
        self.compression = compression_of(self.compression, kwargs)
        if self.compression.keep_changed < 1:
            raise ValueError("compression.keep_changed needs cells that are embedded alone; LSTE reads their neighbors")
        check_placeholders(self.video_token_id, self.image_token_id, self.text_config.vocab_size)
        super().__post_init__(**kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> "VideoPandaConfig":
        """Read the configuration of a folder or Hub name; see `from_dict` for official checkpoints."""
        kwargs.setdefault("name_or_path", str(pretrained_model_name_or_path))
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "VideoPandaConfig":
        """Read a configuration.

        Raises:
            ValueError: it is that of an official checkpoint; the message names the command that converts it.
        """
        refuse_official(config_dict, kwargs.get("name_or_path", "SRC"))
        return super().from_dict(config_dict, **kwargs)

    def smaller(self) -> "VideoPandaConfig | None":
        """The same model with frames that are one cell smaller; None if they have only one cell."""
        stab = self.stab_config
        if stab.max_cells == 1:
            return None
        fields = {**stab.to_dict(), "image_size": stab.image_size - stab.cell_size}
        return type(self)(**{**self.to_dict(), "text_config": self.text_config, "stab_config": fields})
