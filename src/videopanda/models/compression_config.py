"""How visual tokens are reduced before the language model: a part of every family's configuration (needs no torch).

`--set compression.kind=mamba` in `init` and `train`; the compressors themselves are in `compression.py`.
"""

from collections.abc import Mapping
from typing import Any, Literal

from transformers import PreTrainedConfig

from .configuration import check_choice, check_counts, section_of


class CompressionConfig(PreTrainedConfig):
    """Cells that do not change are left out, then tokens are mixed, pooled over time and space, thinned out and merged.

    Args:
        kind: "none" changes nothing; "pool" averages; "mamba" and "mamba2" let tokens exchange information in reading
            order before they are averaged (STORM, arXiv 2503.04130).
        mixer_layers: number of mixers, each residual, with output weights that start at zero.
        bidirectional: mix in both directions; such a compressor needs the whole clip and cannot stream.
        state_size: N of the mixers.
        pool_time: average this many consecutive frames.
        pool_space: average squares of this many cells per side.
        queries: pooled tokens are put between the others before mixing and are all that is kept (BIMBA, arXiv
            2503.09590).
        keep_every: keep every n-th pooled frame. In the paper of STORM only at test time: train with 1 and set it on
            the trained checkpoint.
        merge_tokens: merge the most similar cells of every `merge_frames` pooled frames until this many remain (ToMe);
            0 for none.
        merge_frames: pooled frames of a clip within which cells merge.
        keep_changed: share of the cells of every frame but the first that is kept, those whose pixels differ most from
            the frame before (EVS, arXiv 2510.14624); nothing is computed of the others. For families that embed cells
            alone, and with pool_time=1 and pool_space=1.
    """

    model_type = "videopanda_compression"

    kind: Literal["none", "pool", "mamba", "mamba2"] = "none"
    mixer_layers: int = 1
    bidirectional: bool = False
    state_size: int = 16
    pool_time: int = 4
    pool_space: int = 1
    queries: bool = False
    keep_every: int = 1
    merge_tokens: int = 0
    merge_frames: int = 4
    keep_changed: float = 1.0

    def __post_init__(self, **kwargs: Any) -> None:
        check_choice("compression.kind", self.kind, ("none", "pool", "mamba", "mamba2"))
        counts = ("mixer_layers", "state_size", "pool_time", "pool_space", "keep_every", "merge_frames")
        check_counts(**{f"compression.{name}": vars(self)[name] for name in counts})
        check_counts(0, **{"compression.merge_tokens": self.merge_tokens})
        if isinstance(self.keep_changed, bool) or not 0 < self.keep_changed <= 1:
            raise ValueError(f"compression.keep_changed must be above 0 and at most 1, got {self.keep_changed!r}")
        if self.is_active and self.keep_changed < 1 and (self.pool_time > 1 or self.pool_space > 1 or self.queries):
            raise ValueError(
                "compression.keep_changed leaves out cells by their pixels, so pooled cells could not be counted: "
                "set compression.pool_time=1, pool_space=1 and queries=false"
            )
        needs_mixers = {"queries": False, "bidirectional": False, "mixer_layers": 1}  # and their defaults
        needs_compressor = {"pool_time": 4, "pool_space": 1, "keep_every": 1, "merge_tokens": 0, "keep_changed": 1}
        for name, default in needs_mixers.items():
            if vars(self)[name] != default and not self.has_mixers:
                raise ValueError(f"compression.{name} needs compression.kind=mamba or mamba2, which mix tokens")
        for name, default in needs_compressor.items():
            if vars(self)[name] != default and not self.is_active:
                raise ValueError(f"compression.{name} changes nothing without compression.kind=pool, mamba or mamba2")
        super().__post_init__(**kwargs)

    def fields(self) -> dict[str, Any] | None:
        """What a video processor needs to count compressed tokens; None where nothing is compressed."""
        return (
            {name: vars(self)[name] for name in sorted(CompressionConfig.__annotations__)} if self.is_active else None
        )

    @property
    def is_active(self) -> bool:
        """Whether there is a compressor."""
        return self.kind != "none"

    @property
    def has_mixers(self) -> bool:
        """Whether tokens are mixed before they are reduced."""
        return self.kind in ("mamba", "mamba2")

    @property
    def needs_whole_clip(self) -> bool:
        """Whether tokens depend on later frames without bound, so that a clip cannot be compressed in chunks."""
        return self.bidirectional or self.queries or self.keep_changed < 1

    @property
    def segment_frames(self) -> int:
        """A stream may be cut at multiples of this many frames: whole pooled frames, kept frames and clips of ToMe."""
        if not self.is_active:
            return 1
        frames = self.pool_time * self.keep_every
        return frames * self.merge_frames if self.merge_tokens else frames


def compression_of(given: CompressionConfig | dict[str, Any] | None, others: Mapping[str, Any]) -> CompressionConfig:
    """The section `compression` of a configuration with the fields `others`. It is not called `compression_config`: so
    compressed-tensors calls quantization, and vLLM would look for it there.

    Raises:
        ValueError: it has that name.
    """
    if "compression_config" in others:
        raise ValueError("config.json has a section compression_config: rename it to compression")
    return section_of(CompressionConfig, given)
