"""ELVA: a light video embedding in front of a causal language model that merges visual tokens inside.

Dimensions: B samples of N tokens; V visual tokens of the whole batch; C cells and F frames of all videos; E width of
the language model. The embedding is in `modeling_elva_embedding.py`, merging in `merging.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ..backbone import VisualModelMixin, VisualPreTrainedModel, layouts_of, new_language_model
from ..compression import Compressor, changed_cells, init_compressor
from ..generation import VisualGenerationMixin
from ..layer_cache import check_layers
from ..merge_schedule import MergeSchedule
from ..merging import FRAMES, PADDING, VISUAL, add_layer_hooks
from ..modality import VisualParameters
from ..visual import CELL, ChunkState, EncodedVisual
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
        compression = config.compression
        self.compressor = (
            Compressor(compression, config.embedding_config.hidden_size) if compression.is_active else None
        )
        self.language_model: Any = new_language_model(config.text_config)
        if config.merge_config.layers:
            check_layers(self.language_model)
        if config.frame_attention != "causal":
            check_layers(self.language_model, "attention in both directions inside a frame")
        self.visual_parameters: VisualParameters | None = None
        if config.modality_split != "none":
            check_layers(self.language_model, "a split by modality")
            self.visual_parameters = VisualParameters(self.language_model, config.modality_split)
        parts = [(getattr(layer, "self_attn", None), getattr(layer, "mlp", None)) for layer in self.pre_buffer]
        known = [hasattr(attention, "o_proj") and hasattr(mlp, "down_proj") for attention, mlp in parts]
        if known != [True] * config.pre_buffer_layers:
            raise ValueError(f"pre_buffer_layers are not supported with {config.text_config.model_type}")
        self.post_init()

    @property
    def pre_buffer(self) -> list[Any]:
        """The new decoder layers in front of those of the pretrained language model."""
        return list(getattr(self.language_model, "layers", ())[: self.config.pre_buffer_layers])

    @torch.no_grad()
    def adopt(self, language_model: Any) -> None:
        """Adopt a pretrained language model: pre-buffer layers start as the identity, visual parameters as copies."""
        count = self.config.pre_buffer_layers
        if not count:
            super().adopt(language_model)
        else:
            for name, module in language_model.named_children():
                if name != "layers":
                    setattr(self.language_model, name, module)
            for own, given in zip(self.language_model.layers[count:], language_model.layers, strict=True):
                own.load_state_dict(given.state_dict(), assign=True)
            for layer in self.pre_buffer:
                for last in (layer.self_attn.o_proj, layer.mlp.down_proj):
                    last.weight.zero_()
        if self.visual_parameters is not None:
            self.visual_parameters.copy_from(self.language_model)
            self.visual_parameters.attach(self.language_model)

    def layer_arguments(
        self, input_ids_BN: Tensor, encoded: Mapping[str, Sequence[EncodedVisual]], is_padding_BN: Tensor | None
    ) -> dict[str, Any]:
        """See `VisualModelMixin.layer_arguments`; also frames that are open inside, and which tokens are visual."""
        found = super().layer_arguments(input_ids_BN, encoded, is_padding_BN)
        if not any(encoded.values()):
            return found
        video, image = self.config.video_token_id, self.config.image_token_id
        if self.config.frame_attention != "causal":
            found[FRAMES] = frame_numbers(input_ids_BN, encoded, {"video": video, "image": image})
        if self.visual_parameters is not None:
            found[VISUAL] = (input_ids_BN == video) | (input_ids_BN == image)
        if found:
            add_layer_hooks(self.language_model)
        return found

    @property
    def changes_masks(self) -> bool:
        """See `VisualModelMixin.changes_masks`; frames that are open inside need their whole mask, too."""
        return super().changes_masks or self.config.frame_attention != "causal"

    def schedule(self) -> MergeSchedule:
        """When and how far the language model merges; in training `keep` may be redrawn (`merge.random_keep`)."""
        merge = self.config.merge_config
        schedule = self.merge_schedule or MergeSchedule.of(merge)
        if self.training and merge.random_keep:
            return replace(schedule, keep=merge.random_keep + (1 - merge.random_keep) * torch.rand(()).item())
        return schedule

    @property
    def output_map(self) -> nn.Module:
        """See `VisualModelMixin.output_map`."""
        return self.embedding.output

    def encode(self, pixels: Tensor, placement: Tensor, kind: str = "video") -> list[EncodedVisual]:
        """Encode the cells of ragged frames to one `EncodedVisual` per video; images are videos of one frame.

        Args:
            pixels: (C, 4, 3·p·p), normalized.
            placement: (F, 4): video, number in it, rows and columns of every frame.
        """
        cells_CPX, frames_F4 = pixels, placement.cpu()
        expected = int((frames_F4[:, 2] * frames_F4[:, 3]).sum())
        if expected != len(cells_CPX):
            raise ValueError(f"The frames have {expected} cells, but pixels of {len(cells_CPX)} were given.")
        kept_C: Tensor | None = None
        layout_V4, keep = token_layout(frames_F4), self.config.compression.keep_changed
        lengths_F = frame_tokens(frames_F4[:, 2], frames_F4[:, 3])
        visual_V = torch.repeat_interleave(frames_F4[:, 0], lengths_F)
        if keep < 1 and len(frames_F4):
            change_C = None if cells_CPX.is_meta else change_of(cells_CPX, frames_F4).cpu()
            stays_V = changed_cells(layout_V4, visual_V, keep, change_C)
            kept_C = stays_V[layout_V4[:, 3] == CELL]
            layout_V4, visual_V = layout_V4[stays_V], visual_V[stays_V]
            cells_CPX = cells_CPX.index_select(0, kept_C.nonzero().squeeze(1).to(cells_CPX.device))
        tokens_Vc = self.embedding.features(cells_CPX, frames_F4, kept_C)
        if not len(frames_F4):  # one video without frames, see `no_video`
            return [EncodedVisual(self.embedding.output(tokens_Vc), layout_V4)]
        layouts = list(layout_V4.split(torch.bincount(visual_V, minlength=int(frames_F4[-1, 0]) + 1).tolist()))
        if self.compressor is not None:
            tokens_Vc, layouts = self.compressor.clips(tokens_Vc, layouts)
        tokens_VE = self.embedding.output(tokens_Vc)
        return [EncodedVisual(*pair) for pair in zip(tokens_VE.split([len(part) for part in layouts]), layouts)]

    @property
    def chunk_frames(self) -> int | None:
        """Frames are embedded alone, unless they read others or the clip's length; a compressor may need several."""
        compression, embedding = self.config.compression, self.config.embedding_config
        if embedding.frame_link or embedding.coordinates or compression.needs_whole_clip:
            return None
        return compression.segment_frames

    def encode_chunk(
        self, pixels: Tensor, placement: Tensor, state: ChunkState, total_frames: int | None
    ) -> tuple[EncodedVisual, ChunkState]:
        """See `VisualGenerationMixin.encode_chunk`."""
        if self.chunk_frames is None:
            raise ValueError("frame_link, coordinates, or this compressor need the whole clip")
        tokens, layout_V4, compressor = self.embedding.features(pixels, placement), token_layout(placement), None
        if self.compressor is not None:
            tokens, layout_V4, compressor = self.compressor.chunk(tokens, layout_V4, state.compressor)
        visual = EncodedVisual(self.embedding.output(tokens), layout_V4)
        return visual, ChunkState(state.frames + len(placement), compressor)


def change_of(cells_CPX: Tensor, frames_F4: Tensor) -> Tensor:
    """Mean difference of the pixels of each cell from those of the same cell of the frame before, (C,); from any other
    cell where that frame has another grid.
    """
    size_F = (frames_F4[:, 2] * frames_F4[:, 3]).to(cells_CPX.device)
    before_C = torch.arange(len(cells_CPX), device=cells_CPX.device) - torch.repeat_interleave(size_F, size_F)
    return (cells_CPX - cells_CPX[before_C.clamp(min=0)]).abs().mean((1, 2))


def frame_numbers(
    input_ids_BN: Tensor, encoded: Mapping[str, Sequence[EncodedVisual]], token_ids: Mapping[str, int]
) -> Tensor:
    """A number for each frame of all visuals at the places of its tokens, (B, N); PADDING for text."""
    numbers_BN, first = torch.full_like(input_ids_BN, PADDING), 0
    for kind, token_id in token_ids.items():
        if not encoded.get(kind):
            continue
        layouts = layouts_of(encoded[kind])
        sizes = torch.tensor([len(layout) for layout in layouts])
        frame_V = torch.cat([layout[:, 0] for layout in layouts])
        key_V2 = torch.stack(
            [torch.repeat_interleave(torch.arange(len(layouts)), sizes).to(frame_V.device), frame_V], 1
        )
        _, number_V = torch.unique(key_V2, dim=0, return_inverse=True)
        numbers_BN[input_ids_BN == token_id] = first + number_V.to(numbers_BN.device)
        first += int(number_V.max()) + 1
    return numbers_BN


class ElvaForConditionalGeneration(VisualGenerationMixin, ElvaPreTrainedModel):
    """ELVA with its language-model head: training loss and `generate`."""

    def __init__(self, config: ElvaConfig):
        super().__init__(config)
        self.model = ElvaModel(config)
        self.add_head(config)
        self.post_init()

    def vision_modules(self) -> dict[str, nn.Module]:
        """Everything that is not the pretrained language model, by name."""
        found: dict[str, nn.Module] = {"embedding": self.model.embedding}
        if self.model.compressor is not None:
            found["compressor"] = self.model.compressor
        found |= {f"pre_buffer_{i}": layer for i, layer in enumerate(self.model.pre_buffer)}
        if self.model.visual_parameters is not None:
            found["visual_parameters"] = self.model.visual_parameters
        return found

    def check_adaptable(self) -> None:
        """Check that LoRA fits. Raises ValueError for parameters of the layers that are trained whole.

        Visual parameters and pre-buffer layers are parts of decoder layers: an adapter would act on all tokens while it
        is trained, and on text alone once it is merged.
        """
        if self.config.modality_split != "none" or self.config.pre_buffer_layers:
            raise ValueError(
                "LoRA does not work with modality_split or pre_buffer_layers, whose weights in the decoder layers are "
                "trained whole: set lora_rank=0, or make the model without them"
            )

    def no_video(self) -> dict[str, Tensor]:
        """Inputs of one video without frames: it runs the vision modules and yields no tokens."""
        patch = self.config.embedding_config.patch_size
        return {
            "pixel_values_videos": torch.zeros(0, 4, 3 * patch * patch),
            "video_placement": torch.zeros(0, 4, dtype=torch.long),
        }
