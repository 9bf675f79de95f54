"""From logits to text: choosing tokens as `generate` does, and pieces of text that add up to the library's answer."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, RepetitionPenaltyLogitsProcessor

# What a generation config may say without changing greedy answers, and what `TokenChooser` does itself.
_HARMLESS = {
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "transformers_version",
    "use_cache",
    "_from_model_config",
} | {
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "max_length",
    "max_new_tokens",
}
_APPLIED = {"suppress_tokens", "repetition_penalty"}


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: greedily at temperature 0, else drawn from the most probable ones of mass `top_p`."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None  # None: another draw each time


class TokenChooser:
    """Chooses the tokens of one reply.

    Raises:
        ValueError: the checkpoint's generation config asks for what is not applied here, so that answers would differ
            from the library's.
    """

    def __init__(self, config: GenerationConfig, sampling: Sampling):
        check_generation(config)
        self._suppressed = torch.tensor(config.suppress_tokens or [], dtype=torch.long)
        penalty = config.repetition_penalty
        self._penalty = RepetitionPenaltyLogitsProcessor(penalty) if penalty not in (None, 1.0) else None
        self._sampling = sampling
        seed = random.getrandbits(63) if sampling.seed is None else sampling.seed
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, ids: Sequence[int], logits_V: Tensor) -> int:
        """The token that follows `ids`, prompt and reply so far."""
        scores_V = logits_V.to("cpu", torch.float32, copy=True)
        if self._penalty is not None:
            scores_V = self._penalty(torch.tensor([ids]), scores_V[None])[0]
        scores_V[self._suppressed] = -torch.inf
        if self._sampling.temperature == 0:
            return int(scores_V.argmax())
        probabilities_V = (scores_V / self._sampling.temperature).softmax(0)
        probabilities_V, order_V = probabilities_V.sort(descending=True, stable=True)
        before_V = probabilities_V.cumsum(0) - probabilities_V
        probabilities_V[before_V >= self._sampling.top_p] = 0  # the most probable token always stays
        probabilities_V[0] = probabilities_V[0].clamp(min=torch.finfo(torch.float32).tiny)
        return int(order_V[torch.multinomial(probabilities_V, 1, generator=self._generator)])


def check_generation(config: GenerationConfig) -> None:
    """Raises ValueError for a setting of the generation config that `TokenChooser` does not apply."""
    unknown = sorted(name for name, value in config.to_diff_dict().items() if value)
    unknown = [name for name in unknown if name not in _HARMLESS | _APPLIED]
    if unknown:
        raise ValueError(f"the server does not apply {', '.join(unknown)} of generation_config.json: remove it there")


def end_tokens(config: GenerationConfig) -> frozenset[int]:
    """The tokens that end a reply."""
    ends = config.eos_token_id
    return frozenset([] if ends is None else [ends] if isinstance(ends, int) else ends)


class TextStream:
    """Turns tokens into pieces of text as soon as they are certain; joined, they are the stripped text of all tokens.

    Held back are blanks (the end of a reply is stripped), characters whose bytes are not complete, and what may be the
    beginning of a stop string. `text` is everything given out.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()):
        self._tokenizer, self._stops = tokenizer, stops
        self._tokens: list[int] = []
        self._decoded = ""
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Take in a token; returns the piece of text that is now certain. Sets `stopped` at a stop string."""
        self._tokens.append(token)
        self._decoded = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        places = [place for place in map(self._decoded.find, self._stops) if place >= 0]
        if places:
            self.stopped = True
            self._decoded = self._decoded[: min(places)]
            return ""
        certain = self._decoded.rstrip("\ufffd")
        for stop in self._stops:
            held = max((n for n in range(1, len(stop)) if certain.endswith(stop[:n])), default=0)
            certain = certain[: len(certain) - held] if held else certain
        return self._give(certain.strip())

    def finish(self) -> str:
        """The last piece."""
        return self._give(self._decoded.strip())

    def _give(self, text: str) -> str:
        if not text.startswith(self.text):  # a tokenizer that rewrites what it said: wait until it says more
            return ""
        piece = text[len(self.text) :]
        self.text = text
        return piece
