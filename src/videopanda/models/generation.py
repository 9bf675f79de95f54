"""Shared by all families: splice, language-model head, loss and `generate`. Copied into exported folders.

Dimensions: B samples of N tokens; V visual tokens; E width of the language model; W words of the vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast

from .merging import ARGUMENT as MERGER
from .merging import FRAMES
from .visual import VISUAL_INPUTS, ChunkState, EncodedVisual

# transformers 5.24 renamed the argument and the output; the language model has to be called by the installed name.
CACHE_NAME = "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else "past_key_values"
LOSS_LOGITS = 1 << 26  # 256 MiB in float32: 440 positions of a vocabulary of 152,000


def splice(embeds_BNE: Tensor, input_ids_BN: Tensor, token_id: int, features_VE: Tensor, kind: str) -> Tensor:
    """Put features at the placeholders of one kind, in order; the numbers must agree."""
    places_V = (input_ids_BN == token_id).flatten().nonzero().squeeze(1)
    if places_V.shape[0] != features_VE.shape[0]:
        raise ValueError(
            f"The text holds {places_V.shape[0]} <{kind}> tokens but the {kind}s give {features_VE.shape[0]} "
            "features. Let the processor expand the placeholders, and do not truncate them."
        )
    flat_XE = embeds_BNE.flatten(0, 1)  # (B·N, E)
    return flat_XE.index_copy(0, places_V, features_VE.to(flat_XE.dtype)).view_as(embeds_BNE)


class VisualGenerationMixin(GenerationMixin):
    """Adapts `generate` of transformers to a model with `encode`, `lm_head` and placeholders in its config.

    `cache_name` is what the installed transformers calls the KV cache, as an argument of `generate` and in outputs.
    """

    cache_name = CACHE_NAME
    config: Any
    model: Any
    training: bool
    device: Any
    dtype: Any
    get_decoder: Any
    get_input_embeddings: Any

    def add_head(self, config: Any) -> None:
        """Make the language-model head. A placeholder is an input, never an answer."""
        embedding = self.get_input_embeddings()
        name = next(name for name, module in self.model.named_modules() if module is embedding)
        self._tied_weights_keys = {"lm_head.weight": f"model.{name}.weight"}  # where the configuration ties them
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.generation_config.suppress_tokens = [config.video_token_id, config.image_token_id]

    def encode(self, inputs: Any, kind: str = "video") -> list[EncodedVisual]:
        """Encode the videos, or the images, of a batch from the processor, on any device."""
        pixels, placement = (inputs[name] for name in VISUAL_INPUTS[kind])
        return self.model.encode(pixels.to(self.device, self.dtype), placement, kind)

    def check_adaptable(self) -> None:
        """Check that a low-rank adapter on the language model can be merged into its weights. Raises ValueError."""

    @property
    def chunk_frames(self) -> int | None:
        """A clip may be encoded in chunks that are multiples of this many frames; None: only as a whole."""
        return self.model.chunk_frames

    @property
    def changes_masks(self) -> bool:
        """Whether decoder layers see other columns, or through other masks, than the model is given."""
        return self.model.changes_masks

    @property
    def needs_total_frames(self) -> bool:
        """Whether the tokens of a chunk depend on the number of frames of the whole clip."""
        return self.model.needs_total_frames

    def encode_chunk(
        self, inputs: Any, state: ChunkState | None = None, total_frames: int | None = None
    ) -> tuple[EncodedVisual, ChunkState]:
        """Encode the next chunk of one clip, given the state after the earlier ones: the tokens of the whole clip.

        Args:
            inputs: from `place_chunk` of the video processor: `chunk_frames` frames or a multiple; the last chunk of a
                clip may have any number.
            state: None at the start. A state may be continued several times.
            total_frames: of the whole clip; needed only by models whose tokens encode their relative time in the clip.

        Raises:
            ValueError: this model needs the whole clip, or the number of its frames.
        """
        pixels, placement = (inputs[name] for name in VISUAL_INPUTS["video"])
        return self.model.encode_chunk(
            pixels.to(self.device, self.dtype), placement.cpu(), state or ChunkState(), total_frames
        )

    def get_video_features(self, pixel_values_videos: Tensor, video_placement: Tensor, **kwargs: Any) -> Any:
        """See `VisualModelMixin.get_video_features`."""
        return self.model.get_video_features(pixel_values_videos, video_placement, **kwargs)

    def get_image_features(self, pixel_values: Tensor, image_placement: Tensor, **kwargs: Any) -> Any:
        """See `VisualModelMixin.get_image_features`."""
        return self.model.get_image_features(pixel_values, image_placement, **kwargs)

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
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_encoder_outputs: dict[str, Any] | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run the model and its head; see `VisualModelMixin.forward` for the other inputs.

        Args:
            labels: (B, N), -100 for unsupervised positions. The loss is the mean over supervised tokens (their sum over
                `num_items_in_batch` where the trainer gives it). In training mode with labels `logits` is None; call
                `eval()` or omit the labels to get logits.
            logits_to_keep: number of last positions (0 = all) or indices for which logits are computed.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values_videos=pixel_values_videos,
            video_placement=video_placement,
            pixel_values=pixel_values,
            image_placement=image_placement,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=past_key_values if cache is None else cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        hidden_BNE = outputs.last_hidden_state
        loss = None if labels is None else self.answer_loss(hidden_BNE, labels, num_items_in_batch)
        logits = None
        if labels is None or not self.training:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.compute_logits(hidden_BNE[:, kept])
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
        )

    def answer_loss(
        self,
        hidden_BNE: Tensor,
        labels_BN: Tensor,
        num_items: Tensor | int | None = None,
        most_logits: int = LOSS_LOGITS,
    ) -> Tensor:
        """Cross-entropy, its sum over `num_items` or the mean; the head runs on supervised positions only.

        At most `most_logits` logits exist at once. Where there are more, the backward pass computes them again, part by
        part, so memory does not grow with the number of answers times the vocabulary.

        Placeholders are inputs, never answers: the loss is as if the vocabulary had none (the official one has none),
            and labels that contain them (such as a copy of `input_ids`) are ignored there.
        """
        placeholders = torch.tensor([self.config.video_token_id, self.config.image_token_id], device=labels_BN.device)
        targets_BN = F.pad(labels_BN[:, 1:], (0, 1), value=-100)
        supervised_BN = (targets_BN != -100) & ~torch.isin(targets_BN, placeholders)
        hidden_SE, targets_S = hidden_BNE[supervised_BN], targets_BN[supervised_BN]

        def summed(hidden_KE: Tensor, targets_K: Tensor) -> Tensor:
            logits_KW = self.compute_logits(hidden_KE).float()
            logits_KW = logits_KW.index_fill(1, placeholders.to(logits_KW.device), float("-inf"))
            return F.cross_entropy(logits_KW, targets_K.to(logits_KW.device), reduction="sum")

        at_once = max(1, most_logits // self.config.get_text_config().vocab_size)
        if len(targets_S) <= at_once:
            total = summed(hidden_SE, targets_S)
        else:
            parts = zip(hidden_SE.split(at_once), targets_S.split(at_once))
            sums = [checkpoint(summed, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
            total = torch.stack(sums).sum()
        return total / (len(targets_S) or 1 if num_items is None else num_items)

    def compute_logits(self, hidden_XE: Tensor) -> Tensor:
        """Head of the language model, with the logit scale or soft cap of its family."""
        text = self.config.get_text_config()
        logits_XW = self.lm_head(hidden_XE)
        if (scale := getattr(text, "logit_scale", None)) is not None:  # Cohere
            logits_XW = logits_XW * scale
        if (divisor := getattr(text, "logits_scaling", None)) is not None:  # Granite
            logits_XW = logits_XW / divisor
        if (cap := getattr(text, "final_logit_softcapping", None)) is not None:  # Gemma
            logits_XW = torch.tanh(logits_XW / cap) * cap
        return logits_XW

    def generate(self, *args: Any, assistant_model: Any = None, **kwargs: Any) -> Any:
        """See `GenerationMixin.generate`.

        Raises:
            ValueError: the assistant cannot use the features of this model's vision modules.
        """
        if assistant_model is not None:
            text, other = self.config.get_text_config(), assistant_model.config.get_text_config()
            fits = [getattr(other, name) == getattr(text, name) for name in ("hidden_size", "vocab_size")]
            if not (hasattr(assistant_model, "vision_modules") and all(fits)):
                raise ValueError(
                    f"{type(assistant_model).__name__} cannot assist: it is given the visual tokens of this model, "
                    f"so it must be a video-language model of the same width ({text.hidden_size}) and vocabulary "
                    f"({text.vocab_size}). `prompt_lookup_num_tokens=4` speeds up generation without an assistant."
                )
            kwargs["assistant_model"] = assistant_model
        return super().generate(*args, **kwargs)

    def prefill(
        self,
        input_ids: Tensor,
        lengths: Sequence[int] | None = None,
        visuals: Mapping[str, Sequence[EncodedVisual]] | None = None,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        max_tokens: int = 0,
        **kwargs: Any,
    ) -> tuple[Tensor, Cache]:
        """Run prompts, or what follows their cached prefixes, through the language model.

        Args:
            input_ids: (B, N), padded on the right.
            lengths: tokens of each row without padding; default N.
            visuals: encoded visuals by kind, "video" and "image": their tokens fill the placeholders in order.
            cache: KV cache of P positions to continue, in place.
            attention_mask: (B, P + N) with 0 at padding; required if anything is padded.
            position_ids: (B, N); default P, P + 1, …
            max_tokens: tokens per forward pass and row, which bounds memory; 0: all at once.

        Returns:
            Logits of the last token of each row, (B, vocabulary), and the cache.

        Raises:
            ValueError: placeholders and visual tokens differ in number.
        """
        batch, length = input_ids.shape
        past = 0 if cache is None else cache.get_seq_length()
        if position_ids is None:
            position_ids = torch.arange(past, past + length, device=input_ids.device).expand(batch, length)
        visuals = visuals or {}
        embeds_BNE = self.model.spliced(self.get_input_embeddings()(input_ids), input_ids, visuals)
        ends = torch.tensor(lengths or [length] * batch, device=input_ids.device)[:, None]
        is_padding_BN = torch.arange(length, device=input_ids.device) >= ends
        of_layers = self.model.layer_arguments(input_ids, visuals, is_padding_BN)
        merger = of_layers.get(MERGER)
        if of_layers.keys() & {MERGER, FRAMES}:
            max_tokens = 0  # tokens merge over the whole clip, and see their whole frame
        last = [count - 1 for count in lengths or [length] * batch]
        last_BE = torch.empty_like(embeds_BNE[:, 0])
        for start in range(0, length, max_tokens or length):
            end = min(start + (max_tokens or length), length)
            is_part = attention_mask is not None and end < length
            output = self.get_decoder()(
                inputs_embeds=embeds_BNE[:, start:end],
                attention_mask=attention_mask[:, : past + end] if is_part else attention_mask,  # type: ignore[index]
                position_ids=position_ids[:, start:end],
                use_cache=True,
                **{CACHE_NAME: cache},
                **{name: x[:, start:end] if isinstance(x, Tensor) else x for name, x in of_layers.items()},
                **kwargs,
            )
            cache = output[CACHE_NAME]
            hidden_BNE = merger.unmerge(output.last_hidden_state) if merger else output.last_hidden_state
            rows = [row for row in range(batch) if start <= last[row] < end]
            last_BE[rows] = hidden_BNE[rows, [last[row] - start for row in rows]]
        assert cache is not None
        return self.compute_logits(last_BE), cache

    def prepare_inputs_for_generation(
        self, input_ids: Any, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Pass visuals to the step that processes their placeholders, except those already in the cache."""
        inputs = super().prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)
        cache = inputs.get(CACHE_NAME)
        if inputs.get("input_ids") is None:
            return inputs
        if cache is None or cache.get_seq_length() == 0:
            for name in (name for names in VISUAL_INPUTS.values() for name in names):
                if kwargs.get(name) is not None:  # old versions of transformers drop those of an assistant
                    inputs[name] = kwargs[name]
            if kwargs.get("mm_encoder_outputs"):  # which transformers keeps from an assistant
                inputs["mm_encoder_outputs"] = kwargs["mm_encoder_outputs"]
            return inputs
        outputs = inputs.pop("mm_encoder_outputs", None) or {}
        visuals = {kind: torch.cat(list(output.pooler_output)) for kind, output in outputs.items()}
        for kind, names in VISUAL_INPUTS.items():
            given = {name: inputs.pop(name) for name in names if name in inputs}
            if names[0] in given:  # from the second step on, old versions of transformers drop the pixels alone
                visuals[kind] = torch.cat([visual.tokens for visual in self.encode(given, kind)])
        placeholders = {"video": self.config.video_token_id, "image": self.config.image_token_id}
        if kwargs.get("is_first_iteration"):
            inputs["mm_encoder_outputs"] = {
                kind: BaseModelOutputWithPooling(pooler_output=[tokens_VE])  # type: ignore[arg-type]
                for kind, token_id in placeholders.items()
                if len(tokens_VE := _uncached(input_ids, inputs["input_ids"], token_id, visuals.get(kind), kind))
            }
        elif inputs["input_ids"].shape[1] > 1:  # guesses from the prompt may hold placeholders, which are never right
            for token_id in placeholders.values():
                inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == token_id, 0)
        return inputs


def _uncached(ids_BN: Tensor, new_BM: Tensor, token_id: int, tokens_VE: Tensor | None, kind: str) -> Tensor:
    """The visual tokens for the placeholders in the last M of N ids; the earlier ones are in the cache.

    Raises:
        ValueError: the visuals are neither those of the new ids nor those of all ids.
    """
    tokens_VE = ids_BN.new_zeros(0, 1) if tokens_VE is None else tokens_VE
    all_B, new_B = ((ids == token_id).sum(1).tolist() for ids in (ids_BN, new_BM))
    if len(tokens_VE) == sum(new_B):
        return tokens_VE
    if len(tokens_VE) != sum(all_B):
        raise ValueError(
            f"The text holds {sum(all_B)} <{kind}> tokens, {sum(new_B)} of them after the cached part, but the {kind}s "
            f"give {len(tokens_VE)}: pass the {kind}s of the new text only, or those of the whole text."
        )
    rows = torch.split(tokens_VE, all_B)
    return torch.cat([row_VE[len(row_VE) - new :] for row_VE, new in zip(rows, new_B)])
