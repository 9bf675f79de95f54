"""The base model of a family: visual features replace placeholders, and the language model processes them.

Any family can merge visual tokens inside its language model: `model.model.merge_schedule = MergeSchedule(...)`, without
training. Copied into exported folders.

Dimensions: B samples of N tokens; V visual tokens of the whole batch; E width of the language model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling

from .generation import CACHE_NAME, splice
from .layer_cache import MergedCache, check_mergeable, layer_masks
from .merging import ARGUMENT, Merger, MergeSchedule, VisualPlaces, add_layer_hooks
from .visual import EncodedVisual

Features = Sequence[EncodedVisual] | BaseModelOutputWithPooling


class VisualModelMixin:
    """Embeddings, splice and language model. A family sets `language_model` and encodes its visuals.

    Args:
        merge_schedule: when and how far the language model merges visual tokens; None for never.
    """

    config: Any
    language_model: Any
    merge_schedule: MergeSchedule | None = None

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding of the language model."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding of the language model."""
        self.language_model.set_input_embeddings(value)

    def schedule(self) -> MergeSchedule | None:
        """When and how far to merge in the next forward pass."""
        return self.merge_schedule

    def merger_for(
        self, input_ids_BN: Tensor, videos: Sequence[EncodedVisual], is_padding_BN: Tensor | None
    ) -> Merger | None:
        """The merger of the tokens of `videos` inside the language model; None if nothing merges.

        Raises:
            ValueError: the features have no layout, or the language model cannot merge.
        """
        schedule = self.schedule()
        if schedule is None or not schedule.layers or not videos:
            return None
        schedule.check(self.config.text_config.num_hidden_layers)
        check_mergeable(self.language_model)
        layouts = [visual.layout for visual in videos]
        if any(layout is None for layout in layouts):
            raise ValueError("token merging needs to know where visual tokens come from: give pixels, or EncodedVisual")
        add_layer_hooks(self.language_model)
        places = VisualPlaces.of(input_ids_BN == self.config.video_token_id, layouts)  # type: ignore[arg-type]
        return Merger(schedule, places, is_padding_BN)

    def run(
        self,
        input_ids: Tensor | None,
        visuals: Mapping[str, Features],
        *,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: Cache | None,
        inputs_embeds: Tensor | None,
        use_cache: bool | None,
        mm_encoder_outputs: Mapping[str, Features] | None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Splice features at placeholders and run the language model; see the families' `forward` for arguments."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either `input_ids` or `inputs_embeds`.")
        given = {**(mm_encoder_outputs or {}), **visuals}
        if inputs_embeds is not None and given:
            raise ValueError("Visual inputs need `input_ids`: the placeholders show where the features go.")
        embeds_BNE = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        encoded = {kind: _encoded(features) for kind, features in given.items()}
        # One token after a cache was generated and is never a placeholder: to look would wait for the device.
        if input_ids is not None and (given or input_ids.shape[1] > 1 or cache is None or not cache.get_seq_length()):
            embeds_BNE = self.spliced(embeds_BNE, input_ids, encoded)
        merger = None
        if input_ids is not None and encoded.get("video"):
            is_flat = isinstance(attention_mask, Tensor) and attention_mask.ndim == 2
            is_padding_BN = attention_mask[:, -input_ids.shape[1] :] == 0 if is_flat else None  # type: ignore[index]
            merger = self.merger_for(input_ids, encoded["video"], is_padding_BN)
        if merger is not None:
            kwargs[ARGUMENT] = merger
            if use_cache and (cache is None or not cache.get_seq_length()):
                cache = MergedCache()
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
        masks = layer_masks(self.language_model, cache.extended(queries_BN), queries_BN)
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


def _encoded(features: Features) -> Sequence[EncodedVisual]:
    """Features as returned by `encode`. `generate` repeats the tensors of an output for beams; their layout is kept as
    an attribute.
    """
    if isinstance(features, Sequence):
        return features
    return [EncodedVisual(tokens, getattr(tokens, "token_layout", None)) for tokens in features.pooler_output or ()]


__all__ = ["VisualModelMixin"]
