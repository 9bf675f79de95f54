"""Chooses the next token of each sequence: greedily as `generate` does, or drawn with its own seed."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, RepetitionPenaltyLogitsProcessor

# Fields of a generation config that leave greedy answers as they are, and those that `Sampler` applies.
_IGNORED_FIELDS = {
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "transformers_version",
    "use_cache",
    "cache_implementation",
    "_from_model_config",
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "max_length",
    "max_new_tokens",
}
_SUPPORTED_FIELDS = {"suppress_tokens", "repetition_penalty"}


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: greedily at temperature 0, else sampled from the nucleus of mass `top_p`.

    repetition_penalty: in place of the checkpoint's own.
    seed: None draws differently each time.

    Raises:
        ValueError: a number out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.temperature, str) or not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be a number of at least 0, got {self.temperature!r}")
        if isinstance(self.top_p, str) or not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be a number above 0 and at most 1, got {self.top_p!r}")
        if self.repetition_penalty is not None and not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty must be a number above 0, got {self.repetition_penalty!r}")
        if self.seed is not None and not (isinstance(self.seed, int) and -(2**63) <= self.seed < 2**63):
            raise ValueError(f"seed must be an integer of 64 bits, got {self.seed!r}")

    def generator(self) -> torch.Generator:
        """The random numbers of one sequence, so that draws do not depend on its batch."""
        return torch.Generator().manual_seed(random.getrandbits(63) if self.seed is None else self.seed)


GREEDY = Sampling()


class Sampler:
    """Chooses tokens for a checkpoint.

    Raises:
        ValueError: its generation config sets a field that is not supported here, so answers would differ from those of
            `generate`.
    """

    def __init__(self, config: GenerationConfig, device: Any = "cpu"):
        unknown = {name for name, value in config.to_diff_dict().items() if value}
        if unknown := unknown - _IGNORED_FIELDS - _SUPPORTED_FIELDS:
            names = ", ".join(sorted(unknown))
            raise ValueError(f"generation_config.json sets {names}, which is not supported here: remove it there")
        self._suppressed = torch.tensor(config.suppress_tokens or [], dtype=torch.long, device=device)
        self._penalty = config.repetition_penalty or 1.0

    def __call__(
        self,
        logits_BV: Tensor,
        ids: Sequence[Sequence[int]],
        samplings: Sequence[Sampling],
        generators: Sequence[torch.Generator],
    ) -> list[int]:
        """The next token of each sequence; `ids` are prompt and reply so far."""
        scores_BV = logits_BV.to(torch.float32, copy=True)
        for row, sampling in enumerate(samplings):
            penalty = sampling.repetition_penalty or self._penalty
            if penalty != 1.0:
                seen = torch.tensor([list(ids[row])], device=scores_BV.device)
                scores_BV[row] = RepetitionPenaltyLogitsProcessor(penalty)(seen, scores_BV[row : row + 1])[0]
        scores_BV[:, self._suppressed] = -torch.inf
        tokens: list[int] = scores_BV.argmax(1).tolist()
        for row, sampling in enumerate(samplings):
            if sampling.temperature > 0:
                tokens[row] = _draw(scores_BV[row].cpu().double(), sampling, generators[row])
        return tokens


def _draw(scores_V: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    # In float64 and with a maximum of 0, no temperature, however small, turns the best score into infinity or NaN.
    probabilities_V = ((scores_V - scores_V.max()) / sampling.temperature).softmax(0)
    probabilities_V, order_V = probabilities_V.sort(descending=True, stable=True)
    before_V = probabilities_V.cumsum(0) - probabilities_V
    before_V[0] = -1.0  # the most probable token always stays
    probabilities_V[before_V >= sampling.top_p] = 0
    return int(order_V[torch.multinomial(probabilities_V, 1, generator=generator)])


def eos_token_ids(config: GenerationConfig) -> frozenset[int]:
    """The tokens that end a reply."""
    ids = config.eos_token_id
    return frozenset([] if ids is None else [ids] if isinstance(ids, int) else ids)
