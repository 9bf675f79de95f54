"""What an engine is asked and what it tells: requests, their events, and work that takes several rounds of requests.

steps = search(processor, video, description)       # a generator that yields requests and gets their replies
found = run(engine.generate, steps)                 # or `advance` it, as the server does
"""

import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch

from videopanda.inference.clip import EncodedClip
from videopanda.inference.detokenizer import IncrementalDetokenizer
from videopanda.inference.grammar import Constraint
from videopanda.inference.sampling import Sampling

MAX_NEW_TOKENS = 64
ONE_AT_A_TIME = threading.Lock()  # several threads may share a model, and hooks set its masks

T = TypeVar("T")


@dataclass(frozen=True)
class ChangedTokens:
    """Visual tokens (V, E) in place of those of a clip. The ones before `first` are the same."""

    tokens: torch.Tensor
    first: int


@dataclass(frozen=True)
class GenerateRequest:
    """A prompt that waits for a reply.

    prompt_ids: token ids, with one placeholder per visual token; see `build_prompt`.
    clips: what the placeholders stand for, in order.
    stop: strings that end the reply; they are not part of it.
    decode_seconds: what reading the files took, for the statistics.
    first_tokens: token ids whose probabilities as the first token of the reply are reported.
    constraint: what the reply must be, such as JSON of a schema.
    scored: the token ids of a reply whose probability is reported; nothing else is generated.
    changed: visual tokens in place of those of the only clip, which is encoded already.
    """

    prompt_ids: Sequence[int]
    clips: Sequence[EncodedClip] = ()
    max_new_tokens: int = MAX_NEW_TOKENS
    sampling: Sampling = field(default_factory=Sampling)
    stop: Sequence[str] = ()
    decode_seconds: float = 0.0
    first_tokens: Sequence[int] = ()
    constraint: Constraint | None = None
    scored: Sequence[int] = ()
    changed: ChangedTokens | None = None


@dataclass
class RequestStats:
    """What a reply cost.

    cached_tokens: tokens of the prompt that were already in a KV cache.
    seconds: "decode" (reading the files; 0 for clips in memory), "queue", "encode", "prefill", "generate"; steps are
        shared with other sequences.
    """

    frame_times: list[tuple[float, ...]]
    prompt_tokens: int
    visual_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TextDelta:
    """The next piece of a reply."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The end of a reply, with all of its text and its token ids, the end token included.

    first_probabilities: of the request's `first_tokens`, whatever the sampling.
    log_probability: of the request's `scored` reply; 0 without one.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    token_ids: tuple[int, ...]
    stats: RequestStats
    first_probabilities: tuple[float, ...] = ()
    log_probability: float = 0.0


@dataclass(frozen=True)
class Failed:
    """There will be no (more) reply."""

    error: Exception


Callback = Callable[[TextDelta | Finished | Failed], object]


class ActiveSequence:
    """A running or waiting request. Only the engine changes it, except for `cancel`."""

    def __init__(self, request: GenerateRequest, callback: Callback, detokenizer: IncrementalDetokenizer):
        self.request, self.callback, self.detokenizer = request, callback, detokenizer
        self.ids = list(request.prompt_ids)
        self.generator = request.sampling.generator()
        self.stats = RequestStats([clip.times for clip in request.clips], len(self.ids))
        self.stats.seconds["decode"] = request.decode_seconds
        self.cancelled = self.ended = False
        self.constraint = None if request.constraint is None else request.constraint.fresh()
        self.first_probabilities: tuple[float, ...] = ()
        self.log_probability = 0.0
        self.since = time.perf_counter()  # when it was queued; later, when its first token was generated

    def cancel(self) -> None:
        """Cancel the request; the engine drops the sequence before its next step."""
        self.cancelled = True

    @property
    def max_tokens(self) -> int:
        """Length of the sequence if the reply reaches its maximum length."""
        return len(self.request.prompt_ids) + self.request.max_new_tokens

    def score(self, logits_V: torch.Tensor) -> int:
        """The next token of the `scored` reply, whose log-probability is added."""
        token = self.request.scored[len(self.ids) - len(self.request.prompt_ids)]
        self.log_probability += float(logits_V.float().log_softmax(-1)[token])
        return token


# -- work in several rounds --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Round:
    """Requests whose replies are needed next, and how many more are expected after them."""

    requests: Sequence[GenerateRequest]
    expected: int


Steps = Generator[Round, Sequence[Finished], T]
Progress = Callable[[int, int], object]  # requests that are done, and how many there will be


def advance(steps: Steps[T], replies: Sequence[Finished] | None) -> Round | T:
    """The next requests, given the replies to the ones before, or the result."""
    try:
        return next(steps) if replies is None else steps.send(replies)
    except StopIteration as done:
        return done.value


def run(
    generate: Callable[[Sequence[GenerateRequest]], list[Finished | Failed]],
    steps: Steps[T],
    progress: Progress | None = None,
) -> T:
    """The result, with an engine in this thread. `progress` is called before every round and after the last.

    Raises what a request failed with.
    """
    replies: list[Finished] | None = None
    done = 0
    while isinstance(found := advance(steps, replies), Round):
        if progress is not None:
            progress(done, done + len(found.requests) + found.expected)
        replies = []
        with ONE_AT_A_TIME:
            for reply in generate(found.requests):
                if isinstance(reply, Failed):
                    raise reply.error
                replies.append(reply)
        done += len(found.requests)
    if progress is not None:
        progress(done, done)
    return found
