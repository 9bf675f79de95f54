"""Configuration of ELVA ("Breaking the Encoder Barrier for Seamless Video-Language Understanding", ICCV 2025).

No code and no weights of ELVA are public; docs/elva.md lists the published facts and our own choices.

A frame of h × w cells becomes `<FRAME>`, then h rows of w patch tokens and a `<LINE>`: h·w + h + 1 positions.
"""

from copy import deepcopy
from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig

from ..compression_config import CompressionConfig, compression_of
from ..configuration import TIMESTAMPS, check_choice, check_counts, check_placeholders, section_of, text_config_of
from ..merge_schedule import MergeSchedule, published_layers

SPLITS = ("none", "norm", "norm+ffn", "all")
AUTO_MAP = {
    "AutoConfig": "configuration_elva.ElvaConfig",
    "AutoModel": "modeling_elva.ElvaModel",
    "AutoModelForImageTextToText": "modeling_elva.ElvaForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_elva.ElvaForConditionalGeneration",
    "AutoVideoProcessor": "video_processing_elva.ElvaVideoProcessor",
    "AutoProcessor": "processing_elva.ElvaProcessor",
}


def frame_tokens(rows: Any, columns: Any) -> Any:
    """Positions of a frame of `rows` × `columns` cells in the language model; of many frames for tensors or arrays.

    Processor, planner and model all count by this function.
    """
    return rows * columns + rows + 1


def cell_limit(max_frame_cells: int, max_frame_pixels: int | None, cell: int) -> int:
    """Maximum cells of a frame by both limits. Raises ValueError for limits that leave no cell."""
    check_counts(max_frame_cells=max_frame_cells)
    if max_frame_pixels is None:
        return max_frame_cells
    check_counts(max_frame_pixels=max_frame_pixels)
    if max_frame_pixels < cell * cell:
        raise ValueError(
            f"`max_frame_pixels` must be at least one cell, {cell} × {cell} pixels, got {max_frame_pixels}."
        )
    return min(max_frame_cells, max_frame_pixels // (cell * cell))


def grid_of(height: int, width: int, cell: int, max_cells: int) -> tuple[int, int]:
    """Rows and columns of cells of a frame at its own resolution and aspect.

    A frame is resized to the nearest multiple of the cell; one with more than `max_cells` cells is scaled down.

    Raises:
        ValueError: the frame is smaller than a cell.
    """
    if min(height, width) < cell:
        raise ValueError(f"a frame of {width} × {height} pixels is smaller than a patch of {cell} × {cell}")
    rows, columns = max(1, round(height / cell)), max(1, round(width / cell))
    if rows * columns > max_cells:
        scale = (max_cells / (height * width)) ** 0.5
        rows = min(max_cells, max(1, int(height * scale)))
        columns = max(1, min(int(width * scale), max_cells // rows))
        rows = min(rows, max_cells // columns)
    return rows, columns


def check_countable(compression: CompressionConfig, policy: str, every: int) -> None:
    """Raise ValueError where the number of compressed tokens would depend on the pixels."""
    if compression.is_active and every and policy in ("change", "random"):
        raise ValueError(
            f"hybrid.policy={policy} chooses frames by their pixels, so the number of compressed tokens is "
            "not known in advance: use hybrid.policy=every or ends, or compression.kind=none"
        )


class ElvaEmbeddingConfig(PreTrainedConfig):
    """The video patch embedding layer (VPEL): from pixels to FRAME, patch and LINE tokens.

    Args:
        hidden_size: width c of patches and of the cross-attention.
        patch_size: pixels per side of a patch; 2 × 2 patches make one token.
        num_heads: heads of the cross-attention.
        reduction: how 2 × 2 patches become one token: "attention" uses their mean as the query of the cross-attention,
            "mean" averages.
        markers: FRAME and LINE tokens read their frame and their row by cross-attention. If false, they are only
            learned vectors.
        frame_link: FRAME tokens also attend to the FRAME tokens of the same and of earlier frames.
        kind: "vpel", or another embedding to compare with: "convolution" (two convolutions, as EVEv2), "linear" (one
            linear map of raw pixels with factorized positions, as Gemma 4).
        max_side: rows and columns that the position tables of "linear" hold.
        coordinates: add to every token where it is in the picture and in the clip, as waves of relative positions.
    """

    model_type = "elva_embedding"

    hidden_size: int = 1024
    patch_size: int = 14
    num_heads: int = 8
    reduction: Literal["attention", "mean"] = "attention"
    markers: bool = True
    frame_link: bool = False
    kind: Literal["vpel", "convolution", "linear"] = "vpel"
    max_side: int = 64
    coordinates: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        check_counts(
            hidden_size=self.hidden_size, patch_size=self.patch_size, num_heads=self.num_heads, max_side=self.max_side
        )
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"embedding.hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        check_choice("reduction", self.reduction, ("attention", "mean"))
        check_choice("kind", self.kind, ("vpel", "convolution", "linear"))
        if self.kind != "vpel" and (self.frame_link or not self.markers or self.reduction != "attention"):
            raise ValueError(f"embedding.frame_link, markers and reduction apply only to kind=vpel, not to {self.kind}")
        super().__post_init__(**kwargs)

    @property
    def cell_size(self) -> int:
        """Pixels per side of the square that becomes one token."""
        return 2 * self.patch_size


class ElvaMergeConfig(PreTrainedConfig):
    """Hierarchical token merging inside the language model; see `MergeSchedule` for `layers` to `deep_layers`.

    Args:
        layers: merge after these layers, numbered from 1; empty for no merging. "published" are those of ELVA, 3, 9 and
            17 of 28, at the same depths of the language model; an `ElvaConfig` holds their numbers.
        random_keep: in training, redraw `keep` for every step between this and 1; 0 keeps it fixed.
    """

    model_type = "elva_merge"

    layers: list[int] | Literal["published"] | None = None
    keep: float = 0.5
    threshold: float = 0.6
    mode: Literal["ratio", "threshold", "drop"] = "ratio"
    deep_layers: list[int] | None = None
    random_keep: float = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        self.layers = self.layers if isinstance(self.layers, str) else list(self.layers or [])
        self.deep_layers = list(self.deep_layers or [])
        if not 0.0 <= self.random_keep <= 1.0:
            raise ValueError(f"merge.random_keep must be in [0, 1], got {self.random_keep}")
        super().__post_init__(**kwargs)


class ElvaHybridConfig(PreTrainedConfig):
    """Hybrid resolution: some frames keep the high resolution, the others get a lower one.

    Args:
        policy: which frames stay high, the first and the last in any case: "every": each n-th; "change": the same
            number, those that differ most from the previous frame; "random": the same number, drawn at random per clip,
            for training; "ends": no others.
        every: n; 0 keeps all frames high.
        scale: side of a low-resolution frame relative to a high-resolution one.
    """

    model_type = "elva_hybrid"

    policy: Literal["every", "ends", "change", "random"] = "every"
    every: int = 0
    scale: float = 0.5

    def __post_init__(self, **kwargs: Any) -> None:
        check_choice("policy", self.policy, ("every", "ends", "change", "random"))
        check_counts(0, every=self.every)
        if not 0.0 < self.scale <= 1.0:
            raise ValueError(f"hybrid.scale must be in (0, 1], got {self.scale}")
        super().__post_init__(**kwargs)


class ElvaConfig(PreTrainedConfig):
    """Video patch embedding, token merging and any causal language model that transformers builds from `text_config`.

    Args:
        text_config: configuration of the language model (object or dict with `model_type`); default Qwen2.
        embedding_config: see `ElvaEmbeddingConfig`.
        merge_config: see `ElvaMergeConfig`.
        hybrid_config: see `ElvaHybridConfig`; the processor of a new model copies it.
        compression: fewer tokens between the embedding and its last linear map; see `CompressionConfig`.
        video_token_id, image_token_id: ids of the placeholders `<video>` and `<image>`, real entries of the vocabulary.
        max_frame_cells: maximum cells (patch tokens) per frame; larger frames are scaled down.
        max_frame_pixels: maximum pixels per frame, as a second limit.
        initializer_range: standard deviation of fresh linear weights of the embedding.
        frame_attention: "both": tokens of a frame see each other in both directions, as in NEO; "causal" otherwise.
        modality_split: parameters of the language model that visual tokens have of their own; see `VisualParameters`.
        pre_buffer_layers: how many of the first layers of `text_config` are new, in front of a pretrained language
            model, as in NEO; see `for_new_model`.
        timestamps: "frame": the processor of a new model puts the time of every frame in front of its tokens.
    """

    model_type = "elva"
    presets = {  # noqa: RUF012
        "default": {},
        # For two CPU cores: 28-pixel cells, at most 4 × 4 of them per frame.
        "nano": {
            "embedding_config": {"hidden_size": 256, "patch_size": 14, "num_heads": 8, "coordinates": True},
            "max_frame_cells": 16,
            "initializer_range": 0.06,
        },
    }
    adjustable = ("merge", "hybrid")  # sections of fields that change no weights: a later stage may set them
    sub_configs = {  # noqa: RUF012
        "text_config": AutoConfig,
        "embedding_config": ElvaEmbeddingConfig,
        "merge_config": ElvaMergeConfig,
        "hybrid_config": ElvaHybridConfig,
        "compression": CompressionConfig,
    }

    text_config: Any = None
    embedding_config: Any = None
    merge_config: Any = None
    hybrid_config: Any = None
    compression: Any = None
    video_token_id: int = 32000
    image_token_id: int = 32001
    max_frame_cells: int = 144
    max_frame_pixels: int | None = None
    initializer_range: float = 0.02
    frame_attention: Literal["causal", "both"] = "causal"
    modality_split: Literal["none", "norm", "norm+ffn", "all"] = "none"
    pre_buffer_layers: int = 0
    timestamps: Literal["none", "frame"] = "none"
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.text_config = text_config_of(self.text_config, "qwen2")
        self.embedding_config = section_of(ElvaEmbeddingConfig, self.embedding_config)
        self.merge_config = section_of(ElvaMergeConfig, self.merge_config)
        self.hybrid_config = section_of(ElvaHybridConfig, self.hybrid_config)
        if self.merge_config.layers == "published":
            self.merge_config.layers = published_layers(self.text_config.num_hidden_layers)
        self.compression = compression_of(self.compression, kwargs)
        if self.compression.merge_tokens and self.merge_config.layers:
            raise ValueError(
                "tokens merge either before the language model or in it: "
                "set compression.merge_tokens=0 or merge.layers=[]"
            )
        if self.compression.keep_changed < 1 and self.merge_config.layers:
            raise ValueError(
                "merging in the language model counts whole frames: set compression.keep_changed=1 or merge.layers=[]"
            )
        check_countable(self.compression, self.hybrid_config.policy, self.hybrid_config.every)
        check_placeholders(self.video_token_id, self.image_token_id, self.text_config.vocab_size)
        cell_limit(
            self.max_frame_cells, self.max_frame_pixels, self.embedding_config.cell_size
        )  # rejects invalid combinations
        MergeSchedule.of(self.merge_config).check(self.text_config.num_hidden_layers)
        check_choice("frame_attention", self.frame_attention, ("causal", "both"))
        check_choice("modality_split", self.modality_split, SPLITS)
        check_choice("timestamps", self.timestamps, TIMESTAMPS)
        check_counts(least=0, pre_buffer_layers=self.pre_buffer_layers)
        if self.pre_buffer_layers and self.pre_buffer_layers >= self.text_config.num_hidden_layers:
            raise ValueError(f"pre_buffer_layers {self.pre_buffer_layers} leave no layer of the language model")
        super().__post_init__(**kwargs)

    @classmethod
    def for_new_model(cls, **fields: Any) -> "ElvaConfig":
        """The configuration of a new model, whose language model grows by the pre-buffer layers."""
        count = fields.get("pre_buffer_layers", 0)
        if count:
            text = deepcopy(text_config_of(fields.get("text_config"), "qwen2"))
            text.num_hidden_layers += count
            if kinds := getattr(text, "layer_types", None):
                text.layer_types = [*kinds[:1] * count, *kinds]
            fields["text_config"] = text
        return cls(**fields)

    def smaller(self) -> "ElvaConfig | None":
        """The same model with smaller frames; None if they have only one cell."""
        cells = cell_limit(self.max_frame_cells, self.max_frame_pixels, self.embedding_config.cell_size)
        if cells == 1:
            return None
        side = max(1, int(cells**0.5) - 1)
        return type(self)(**{**self.to_dict(), "text_config": self.text_config, "max_frame_cells": side * side})
