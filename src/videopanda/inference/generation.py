"""How greedy replies are made: ways that change time and memory and leave the words as they are."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from videopanda.models.generation import splice


@dataclass(frozen=True)
class Generation:
    """Ways of generation, of which one can be chosen; all give the same words.

    static_cache: keys and values lie in a cache of fixed size; on a GPU transformers then compiles the steps.
    prompt_lookup: so many tokens are guessed at a time from what stands in the prompt and the reply, and checked in one
        step; 0 for none. Conversations are then answered one after the other.
    prefill_chunk: the language model reads a clip in pieces of so many tokens, which bounds memory; 0 for at once.

    Raises:
        ValueError: a negative number, or more than one way.
    """

    static_cache: bool = False
    prompt_lookup: int = 0
    prefill_chunk: int = 0

    def __post_init__(self) -> None:
        if min(self.prompt_lookup, self.prefill_chunk) < 0:
            raise ValueError("prompt lookup and chunks of the prefill are numbers of tokens, 0 for none")
        if bool(self.static_cache) + bool(self.prompt_lookup) + bool(self.prefill_chunk) > 1:
            raise ValueError("static cache, prompt lookup and a prefill in chunks go one at a time: choose")

    @property
    def shares_starts(self) -> bool:
        """Whether questions about a clip share its reading.

        transformers 5.23 can neither go on from a cache that is there already with prompt lookup, nor make it static.
        """
        return not (self.static_cache or self.prompt_lookup)

    def arguments(self) -> dict[str, Any]:
        """What `generate` is told."""
        found: dict[str, Any] = {"do_sample": False, "num_beams": 1}
        if self.static_cache:
            found["cache_implementation"] = "static"
        if self.prompt_lookup:
            found["prompt_lookup_num_tokens"] = self.prompt_lookup
        return found


PLAIN = Generation()


def prefill(model: Any, ids_BN: Tensor, mask_BN: Tensor, features_VE: Tensor, chunk: int = 0) -> Any:
    """Let the language model read prompts (B, N) with the visual tokens of their clips; returns its cache.

    chunk: tokens at a time; 0 for all at once.
    """
    inner, size = model.model, chunk or ids_BN.shape[1]
    embeds_BNE = inner.get_input_embeddings()(ids_BN)
    embeds_BNE = splice(embeds_BNE, ids_BN, model.config.video_token_id, features_VE, "video")
    positions_BN = (mask_BN.cumsum(1) - 1).clamp(min=0)
    cache = None
    for start in range(0, ids_BN.shape[1], size):
        end = start + size
        cache = inner.language_model(
            inputs_embeds=embeds_BNE[:, start:end],
            attention_mask=mask_BN[:, :end],
            position_ids=positions_BN[:, start:end],
            use_cache=True,
            **{model.cache_name: cache},
        )[model.cache_name]
    return cache
