"""ELVA: a light video embedding in front of a causal language model that merges visual tokens inside.

Dimensions: B samples of N tokens; V visual tokens of the whole batch; C cells and F frames of all videos; E width of
the language model. The embedding is in `modeling_elva_embedding.py`, merging in `merging.py`.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import AutoModel
from transformers import initialization as init

from ..backbone import VisualModelMixin, VisualPreTrainedModel
from ..compression import Compressor, init_compressor
from ..generation import VisualGenerationMixin
from ..merge_schedule import MergeSchedule
from ..visual import ChunkState, EncodedVisual
from .configuration_elva import ElvaConfig, frame_tokens
from .modeling_elva_embedding import ElvaVideoEmbedding, token_layout


class ElvaPreTrainedModel(VisualPreTrainedModel):
    """Weight initialization."""

    config: ElvaConfig
    config_class = ElvaConfig
    _no_split_modules = ["ElvaVideoEmbedding"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Learned vectors start at the scale of the weights; everything else follows transformers."""
        super()._init_weights(module)
        if isinstance(module, ElvaVideoEmbedding):
            for token in (module.frame_token, module.line_token):
                init.normal_(token, mean=0.0, std=self.config.initializer_range)
        init_compressor(module)


class ElvaModel(VisualModelMixin, ElvaPreTrainedModel):
    """Video embedding and language model without its head."""

    def __init__(self, config: ElvaConfig):
        super().__init__(config)
        self.embedding = ElvaVideoEmbedding(config.embedding_config, config.text_config.hidden_size)
        compression = config.compression_config
        self.compressor = (
            Compressor(compression, config.embedding_config.hidden_size) if compression.is_active else None
        )
        self.language_model = AutoModel.from_config(config.text_config)
        MergeSchedule.of(config.merge_config).check(config.text_config.num_hidden_layers)
        self.post_init()

    def schedule(self) -> MergeSchedule:
        """When and how far the language model merges; in training `keep` may be redrawn (`merge.random_keep`)."""
        merge = self.config.merge_config
        schedule = self.merge_schedule or MergeSchedule.of(merge)
        if self.training and merge.random_keep:
            return replace(schedule, keep=merge.random_keep + (1 - merge.random_keep) * torch.rand(()).item())
        return schedule

    def encode(self, pixels: Tensor, placement: Tensor, kind: str = "video") -> list[EncodedVisual]:
        """Encode the cells of ragged frames to one `EncodedVisual` per video; images are videos of one frame.

        Args:
            pixels: (C, 4, 3·p·p), normalized.
            placement: (F, 4): video, number in it, rows and columns of every frame.
        """
        cells_CPX, frames_F4 = pixels, placement.cpu()
        if not len(frames_F4):
            return []
        expected = int((frames_F4[:, 2] * frames_F4[:, 3]).sum())
        if expected != len(cells_CPX):
            raise ValueError(f"The frames have {expected} cells, but pixels of {len(cells_CPX)} were given.")
        tokens_Vc, layout_V4 = self.embedding.features(cells_CPX, frames_F4), token_layout(frames_F4)
        lengths_F = frame_tokens(frames_F4[:, 2], frames_F4[:, 3])
        per_video = torch.zeros(int(frames_F4[-1, 0]) + 1, dtype=torch.long).index_add(0, frames_F4[:, 0], lengths_F)
        layouts = list(layout_V4.split(per_video.tolist()))
        if self.compressor is not None:
            tokens_Vc, layouts = self.compressor.clips(tokens_Vc, layouts)
        tokens_VE = self.embedding.output(tokens_Vc)
        return [EncodedVisual(*pair) for pair in zip(tokens_VE.split([len(part) for part in layouts]), layouts)]

    @property
    def chunk_frames(self) -> int | None:
        """Frames are embedded alone, unless FRAME tokens attend to earlier ones; a compressor may need several."""
        compression = self.config.compression_config
        if self.config.embedding_config.frame_link or compression.needs_whole_clip:
            return None
        return compression.segment_frames

    def encode_chunk(
        self, pixels: Tensor, placement: Tensor, state: ChunkState, total_frames: int | None
    ) -> tuple[EncodedVisual, ChunkState]:
        """See `VisualGenerationMixin.encode_chunk`."""
        if self.chunk_frames is None:
            raise ValueError("FRAME tokens that attend to earlier frames, or this compressor, need the whole clip")
        tokens, layout_V4, compressor = self.embedding.features(pixels, placement), token_layout(placement), None
        if self.compressor is not None:
            tokens, layout_V4, compressor = self.compressor.chunk(tokens, layout_V4, state.compressor)
        visual = EncodedVisual(self.embedding.output(tokens), layout_V4)
        return visual, ChunkState(state.frames + len(placement), compressor)


class ElvaForConditionalGeneration(VisualGenerationMixin, ElvaPreTrainedModel):
    """ELVA with its language-model head: training loss and `generate`."""

    def __init__(self, config: ElvaConfig):
        super().__init__(config)
        self.model = ElvaModel(config)
        self.add_head(config)
        self.post_init()

    def vision_modules(self) -> dict[str, nn.Module]:
        """Everything that is not the language model, by name."""
        compressor = {} if self.model.compressor is None else {"compressor": self.model.compressor}
        return {"embedding": self.model.embedding, **compressor}

    def no_video(self) -> dict[str, Tensor]:
        """Inputs of one video without frames: it runs the vision modules and yields no tokens."""
        patch = self.config.embedding_config.patch_size
        return {
            "pixel_values_videos": torch.zeros(0, 4, 3 * patch * patch),
            "video_placement": torch.zeros(0, 4, dtype=torch.long),
        }


__all__ = ["ElvaForConditionalGeneration", "ElvaModel", "ElvaPreTrainedModel"]
