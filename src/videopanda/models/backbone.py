"""The base model of a family: visual features replace placeholders, and the language model processes them.

Any family can merge visual tokens inside its language model: `model.model.merge_schedule = MergeSchedule(...)`, without
training. Copied into exported folders.

Dimensions: B samples of N tokens; V visual tokens of the whole batch; E width of the language model.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, Cache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling

from .generation import CACHE_NAME, splice
from .hub import add_code
from .layer_cache import MergedCache, check_layers, layer_masks
from .merge_schedule import MergeSchedule
from .merging import ARGUMENT, Merger, VisualPlaces, add_layer_hooks
from .visual import VISUAL_INPUTS, ChunkState, EncodedVisual

Features = Sequence[EncodedVisual] | BaseModelOutputWithPooling


def new_language_model(text: Any) -> Any:
    """The language model of a text configuration, without its head. One that caps its attention scores is computed
    eagerly: SDPA has no cap, and older transformers left it out unnoticed.
    """
    if getattr(text, "attn_logit_softcapping", None) is not None:
        text._attn_implementation = "eager"
    return AutoModel.from_config(text)


class VisualPreTrainedModel(PreTrainedModel):
    """Capability flags, and folders that carry their code."""

    config_class: type
    pretrained_modules: tuple[str, ...] = ()  # vision modules that start from weights of their own; see `rates_of`
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["video", "image", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012

    def save_pretrained(
        self, save_directory: str | PathLike[Any], *args: Any, self_contained: bool = False, **kwargs: Any
    ) -> None:
        """Write configuration and weights to a folder; see `PreTrainedModel.save_pretrained`.

        Args:
            self_contained: write the code too, so that the folder loads with `trust_remote_code=True` where this
                package is missing. A model that came from such a folder is always saved with its code.
        """
        super().save_pretrained(save_directory, *args, **kwargs)
        if self_contained or "auto_map" in vars(self.config):
            add_code(Path(save_directory) / "config.json", self.config_class)


class VisualModelMixin:
    """Embeddings, splice and language model. A family sets `language_model` and `encode`s its visuals.

    Args:
        merge_schedule: when and how far the language model merges visual tokens; None for never.
    """

    config: Any
    language_model: Any
    merge_schedule: MergeSchedule | None = None

    @property
    def chunk_frames(self) -> int | None:
        """A clip may be encoded in chunks that are multiples of this many frames; None: only as a whole."""
        return None

    @property
    def needs_total_frames(self) -> bool:
        """Whether the tokens of a chunk depend on the number of frames of the whole clip."""
        return False

    def encode_chunk(
        self, pixels: Tensor, placement: Tensor, state: ChunkState, total_frames: int | None
    ) -> tuple[EncodedVisual, ChunkState]:
        """Encode the next chunk of one clip; see `VisualGenerationMixin.encode_chunk`."""
        raise ValueError("this model encodes a clip only as a whole")

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding of the language model."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding of the language model."""
        self.language_model.set_input_embeddings(value)

    def schedule(self) -> MergeSchedule | None:
        """When and how far to merge in the next forward pass."""
        return self.merge_schedule

    @property
    def changes_masks(self) -> bool:
        """Whether decoder layers see other columns, or through other masks, than the model is given."""
        schedule = self.schedule()
        return schedule is not None and bool(schedule.layers)

    @property
    def output_map(self) -> nn.Module:
        """The last linear map of the vision part: visual tokens are proportional to its weights."""
        raise NotImplementedError

    def adopt(self, language_model: nn.Module) -> None:
        """Take over a pretrained language model, which parts of a family may start from."""
        self.language_model = language_model

    def layer_arguments(
        self, input_ids_BN: Tensor, encoded: Mapping[str, Sequence[EncodedVisual]], is_padding_BN: Tensor | None
    ) -> dict[str, Any]:
        """Keyword arguments for the decoder layers: the merger of the tokens of videos, if anything merges.

        Args:
            encoded: the visuals of `input_ids`, by kind.

        Raises:
            ValueError: the features have no layout, or the language model cannot merge.
        """
        schedule, videos = self.schedule(), encoded.get("video", ())
        if schedule is None or not schedule.layers or not any(len(tokens) for tokens, _ in videos):
            return {}
        schedule.check(self.config.text_config.num_hidden_layers)
        check_layers(self.language_model)
        add_layer_hooks(self.language_model)
        places = VisualPlaces.of(input_ids_BN == self.config.video_token_id, layouts_of(videos))
        return {ARGUMENT: Merger(schedule, places, is_padding_BN)}

    def encode(self, pixels: Tensor, placement: Tensor, kind: str = "video") -> list[EncodedVisual]:
        """Encode the videos, or images, of a batch."""
        raise NotImplementedError

    def get_video_features(
        self, pixel_values_videos: Tensor, video_placement: Tensor, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """The features of all videos, one tensor (V_i, E) each, with its layout as an attribute."""
        return _output(self.encode(pixel_values_videos, video_placement, "video"))

    def get_image_features(
        self, pixel_values: Tensor, image_placement: Tensor, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """The features of all images, one tensor (V_i, E) each, with its layout as an attribute."""
        return _output(self.encode(pixel_values, image_placement, "image"))

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        video_placement: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_placement: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        mm_encoder_outputs: Mapping[str, Features] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Replace placeholders by visual features and run the language model.

        Args:
            input_ids: (B, N), with one `<video>` or `<image>` id per visual token.
            pixel_values_videos, video_placement: all videos; shapes as the family's video processor makes them.
            pixel_values, image_placement: the same of all images.
            attention_mask: (B, N), or a four-dimensional mask, passed through unchanged.
            past_key_values, cache: the KV cache, under either of its two names.
            mm_encoder_outputs: features computed before, under "video" and "image", as `get_video_features` returns
                them.

        Returns: `last_hidden_state` (B, N, E); merged tokens repeat the token they were merged into.

        Raises:
            ValueError: placeholders and features differ in number, or inputs are inconsistent.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either `input_ids` or `inputs_embeds`.")
        cache = past_key_values if cache is None else cache
        encoded = {kind: _encoded(features) for kind, features in (mm_encoder_outputs or {}).items()}
        given = {"video": (pixel_values_videos, video_placement), "image": (pixel_values, image_placement)}
        for kind, (pixels, placement) in given.items():
            if pixels is not None:
                if placement is None:
                    raise ValueError("`{}` needs `{}`.".format(*VISUAL_INPUTS[kind]))
                encoded[kind] = self.encode(pixels, placement, kind)
        if inputs_embeds is not None and encoded:
            raise ValueError("Visual inputs need `input_ids`: the placeholders show where the features go.")
        embeds_BNE = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        # One token after a cache was generated and is never a placeholder: checking would synchronize with the device.
        if input_ids is not None and (encoded or input_ids.shape[1] > 1 or cache is None or not cache.get_seq_length()):
            embeds_BNE = self.spliced(embeds_BNE, input_ids, encoded)
        if input_ids is not None and encoded:
            is_flat = isinstance(attention_mask, Tensor) and attention_mask.ndim == 2
            is_padding_BN = attention_mask[:, -input_ids.shape[1] :] == 0 if is_flat else None  # type: ignore[index]
            kwargs |= self.layer_arguments(input_ids, encoded, is_padding_BN)
        merger = kwargs.get(ARGUMENT)
        if merger is not None and not isinstance(cache, MergedCache):
            if cache is not None and cache.get_seq_length():
                raise ValueError("Tokens of a video cannot merge after a cache that was made without merging.")
            cache = MergedCache(self.config.text_config) if use_cache else cache
        if isinstance(cache, MergedCache):
            return self._run_merged(embeds_BNE, attention_mask, position_ids, cache, merger, **kwargs)
        output = self.language_model(
            inputs_embeds=embeds_BNE,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            **{CACHE_NAME: cache},
            **kwargs,
        )
        if merger is not None:
            output.last_hidden_state = merger.unmerge(output.last_hidden_state)
        return output

    def spliced(
        self, embeds_BNE: Tensor, input_ids_BN: Tensor, encoded: Mapping[str, Sequence[EncodedVisual]]
    ) -> Tensor:
        """Embeddings with the features of all kinds at their placeholders. Raises ValueError if numbers differ."""
        for kind, token_id in (("video", self.config.video_token_id), ("image", self.config.image_token_id)):
            tokens = [visual.tokens for visual in encoded.get(kind, ())]
            features_VE = torch.cat(tokens) if tokens else embeds_BNE.new_zeros(0, embeds_BNE.shape[-1])
            embeds_BNE = splice(embeds_BNE, input_ids_BN, token_id, features_VE, kind)
        return embeds_BNE

    def _run_merged(
        self,
        embeds_BNE: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: MergedCache,
        merger: Merger | None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Continue a cache whose layers differ: each layer gets the mask of its own positions."""
        batch, length = embeds_BNE.shape[:2]
        total = cache.num_tokens + length
        if attention_mask is None:
            attention_mask = torch.ones(batch, total, dtype=torch.long, device=embeds_BNE.device)
        if position_ids is None:
            position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)[:, -length:]
        is_padding_BN = attention_mask[:, -length:] == 0
        queries_BN = position_ids.expand(batch, length).masked_fill(is_padding_BN, -1)
        masks: dict[str, Any] = {"attention_mask": None}  # causal, for which attention has its fastest kernel
        if cache.num_tokens or bool(is_padding_BN.any()):
            masks = layer_masks(self.language_model, cache.windows, cache.extended(queries_BN), queries_BN)
        output = self.language_model(
            inputs_embeds=embeds_BNE,
            position_ids=position_ids,
            use_cache=True,
            **{CACHE_NAME: cache},
            **masks,
            **kwargs,
        )
        cache.num_tokens = total
        if merger is None:
            cache.note(queries_BN)
        else:
            output.last_hidden_state = merger.unmerge(output.last_hidden_state)
        return output


def layouts_of(visuals: Sequence[EncodedVisual]) -> list[Tensor]:
    """The layouts of visuals. Raises ValueError where one is missing."""
    layouts = [visual.layout for visual in visuals if visual.layout is not None]
    if len(layouts) < len(visuals):
        raise ValueError("this model needs to know where visual tokens come from: give pixels, or EncodedVisual")
    return layouts


def _output(visuals: Sequence[EncodedVisual]) -> BaseModelOutputWithPooling:
    """Features as transformers wants them; see `_encoded`."""
    for tokens_VE, layout_V4 in visuals:
        tokens_VE.token_layout = layout_V4  # type: ignore[attr-defined]
    return BaseModelOutputWithPooling(pooler_output=[visual.tokens for visual in visuals])  # type: ignore[arg-type]


def _encoded(features: Features) -> Sequence[EncodedVisual]:
    """Features as returned by `encode`. `generate` repeats the tensors of an output for beams; their layout is kept as
    an attribute.
    """
    if isinstance(features, Sequence):
        return features
    return [EncodedVisual(tokens, getattr(tokens, "token_layout", None)) for tokens in features.pooler_output or ()]
