"""One model, many requests: sequences join and leave a batch between its steps, and share KV prefixes of clips.

    engine = Engine(*load(folder))
    results = engine.generate([GenerateRequest(prompt_ids, clips)])       # in this thread, in the order of the requests

    sequence = engine.submit(request, callback)      # callback gets TextDelta, TextDelta, …, Finished or Failed
    while engine.has_work:
        engine.step()

A clip is encoded once, and its prompt is prefilled once up to its last visual token: later requests continue from its
KV cache. Everything that queries a model uses this: `answer` and `Chat`, evaluation, and the server (`engine_thread`).
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

import torch

from videopanda.inference.batch import Batch, Prompt, groups, prefill
from videopanda.inference.clip import ClipMemoryCache, EncodedClip, PrefixKey, encode_prepared, require_fit
from videopanda.inference.detokenizer import IncrementalDetokenizer
from videopanda.inference.errors import ConstraintError, EngineStoppedError, QueueFullError
from videopanda.inference.kv_prefix import CacheLayout, KVPrefix
from videopanda.inference.request import ActiveSequence, Callback, Failed, Finished, GenerateRequest, TextDelta
from videopanda.inference.sampling import Sampler, eos_token_ids
from videopanda.models.configuration import context_length
from videopanda.plan.planner import DoesNotFitError, budget, planner_for

MAX_PREFILLS_PER_STEP = 4  # while other sequences wait for their next token

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """Capacity limits of the engine.

    max_num_seqs: sequences that are generated at the same time.
    max_queue: requests that may wait; None: any number.
    max_kv_tokens: size of the batch's KV cache, in tokens of all sequences with padding; None: as many as fit into the
        free memory when the limit is first needed.
    cache_bytes: memory for clips of earlier requests, with their KV caches.
    """

    max_num_seqs: int = 32
    max_queue: int | None = None
    max_kv_tokens: int | None = None
    cache_bytes: int = 0


class Engine:
    """Generates replies in the thread that calls it.

    keep_prefixes: clips keep the KV caches of their prompts; otherwise they are only shared among requests that are
        admitted together.

    Raises:
        ValueError: the backbone, or a field of the generation config, is not supported.
    """

    def __init__(self, model: Any, processor: Any, limits: Limits | None = None, *, keep_prefixes: bool = False):
        self.model, self.processor, self.limits = model, processor, limits or Limits()
        self.keep_prefixes = keep_prefixes
        self.clips = ClipMemoryCache(self.limits.cache_bytes)
        config = model.config.text_config
        self.context = context_length(config)
        self._layout = CacheLayout.of(config)
        self._sampler = Sampler(model.generation_config, model.device)
        self._eos_token_ids = eos_token_ids(model.generation_config)
        self._placeholders = {processor.video_token_id, processor.image_token_id}
        self._batch: Batch[ActiveSequence] = Batch(model, self._layout)
        self._admitted: list[ActiveSequence] = []  # replies that are not finished, in the batch or about to join it
        self._waiting: deque[ActiveSequence] = deque()
        self._lock = threading.RLock()  # of the queue

    @cached_property
    def max_kv_tokens(self) -> int:
        """Tokens that the batch's KV cache may hold, with padding."""
        if self.limits.max_kv_tokens is not None:
            return self.limits.max_kv_tokens
        planner = planner_for(self.model, self.processor.video_processor)
        per_token, per_sequence = planner.sequence_bytes()
        free = budget(self.model) - planner.weight_bytes - self.limits.cache_bytes
        # A step rewrites the KV cache, one token longer: for a moment there are two copies.
        tokens = (free // 2 - self.limits.max_num_seqs * per_sequence) // max(1, per_token)
        return min(self.limits.max_num_seqs * self.context, max(1, tokens))

    # -- requests ------------------------------------------------------------------------------------------------------
    def generate(self, requests: Sequence[GenerateRequest]) -> list[Finished | Failed]:
        """The replies to all requests, in their order. A failed request does not affect the others."""
        results: dict[int, Finished | Failed] = {}

        def collect(place: int, event: TextDelta | Finished | Failed) -> None:
            if not isinstance(event, TextDelta):
                results[place] = event

        for place, request in enumerate(requests):
            try:
                self.submit(request, partial(collect, place))
            except DoesNotFitError as error:
                results[place] = Failed(error)
        while self.has_work:
            self.step()
        return [results[place] for place in range(len(requests))]

    def submit(self, request: GenerateRequest, callback: Callback) -> ActiveSequence:
        """Queue a request. `callback` is called by `step` and must return at once.

        Raises:
            DoesNotFitError: prompt and reply do not fit; the message says by how much.
            QueueFullError: too many requests are waiting.
        """
        self.check_fit(len(request.prompt_ids), request.max_new_tokens)
        sequence = ActiveSequence(request, callback, IncrementalDetokenizer(self.processor.tokenizer, request.stop))
        with self._lock:
            if self.limits.max_queue is not None and len(self._waiting) >= self.limits.max_queue:
                raise QueueFullError(f"{len(self._waiting)} requests are already waiting: retry later")
            self._waiting.append(sequence)
        return sequence

    def check_fit(self, prompt_tokens: int, max_new_tokens: int) -> None:
        """Check that a prompt and its reply fit into context and KV cache. Raises DoesNotFitError."""
        # A server measures memory at startup; otherwise it is measured only when sequences share it.
        limit = min(self.context, self.limits.max_kv_tokens or vars(self).get("max_kv_tokens", self.context))
        if prompt_tokens + max_new_tokens > limit:
            raise DoesNotFitError(
                f"a prompt of {prompt_tokens} tokens and up to {max_new_tokens} new tokens exceed the "
                f"{limit} tokens that can be held: use fewer frames, a shorter conversation, or a shorter reply"
            )

    def room_for(self, prompt_tokens: int) -> int:
        """The longest reply to a prompt of this length. Raises DoesNotFitError if there is none."""
        limit = min(self.context, self.max_kv_tokens)
        if prompt_tokens >= limit:
            raise DoesNotFitError(
                f"the prompt has {prompt_tokens:,} tokens; prompt and reply together can have {limit:,}: "
                "use fewer frames or a shorter conversation"
            )
        return limit - prompt_tokens

    @property
    def load(self) -> tuple[int, int]:
        """How many sequences are being generated, and how many wait."""
        return len(self._batch.sequences), len(self._waiting)

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do."""
        return any(self.load)

    def fail_all(self, error: Exception) -> None:
        """End every request with an error."""
        with self._lock:
            sequences = [*self._admitted, *self._waiting]
            self._waiting.clear()
        self._batch = Batch(self.model, self._layout)
        _end(sequences, error)

    # -- steps ---------------------------------------------------------------------------------------------------------
    @torch.inference_mode()
    def step(self) -> None:
        """Admit waiting requests as far as there is room, and add a token to every sequence."""
        try:
            self._drop_cancelled()
            self._admit()
            if self._batch.sequences:
                self._decode()
        except EngineStoppedError:
            raise
        except Exception as error:
            if not self._admitted:  # no sequence to fail: the next step would fail, too
                raise
            self._batch = Batch(self.model, self._layout)
            self._fail(self._admitted, error)
        self._admitted = [one for one in self._admitted if not one.ended]

    def _drop_cancelled(self) -> None:
        with self._lock:
            for sequence in [one for one in self._waiting if one.cancelled]:
                self._waiting.remove(sequence)
        if any(one.cancelled for one in self._admitted):
            self._admitted = [one for one in self._admitted if not one.cancelled]
            self._batch.keep([one for one in self._batch.sequences if not one.cancelled])

    def _admit(self) -> None:
        admitted: list[ActiveSequence] = []
        most = MAX_PREFILLS_PER_STEP if self._batch.sequences else self.limits.max_num_seqs
        while len(admitted) < most and (sequence := self._next_admissible(admitted)):
            admitted.append(sequence)
        if admitted:
            prefixes = self._prefixes(admitted)
            self._prefill([one for one in admitted if not one.ended], prefixes)

    def _next_admissible(self, admitted: Sequence[ActiveSequence]) -> ActiveSequence | None:
        """The first in the queue, with its clips encoded, if it fits in addition to the running ones."""
        while self._waiting:
            sequence = self._waiting[0]
            others = [*self._batch.sequences, *admitted]
            if others:
                longest = max([sequence.max_tokens, self._batch.columns, *(other.max_tokens for other in others)])
                if len(others) >= self.limits.max_num_seqs or (len(others) + 1) * longest > self.max_kv_tokens:
                    return None
            with self._lock:
                self._waiting.popleft()
            if sequence.cancelled:
                continue
            self._admitted.append(sequence)
            try:
                self._encode(sequence)
            except Exception as error:
                self._fail([sequence], error)
                continue
            return sequence
        return None

    def _encode(self, sequence: ActiveSequence) -> None:
        began = time.perf_counter()
        stats, request = sequence.stats, sequence.request
        stats.seconds["queue"] = began - sequence.since
        for clip in request.clips:
            if clip.tokens is None:
                if clip.source_shape is not None:
                    require_fit(self.model, self.processor, clip.source_shape, request.max_new_tokens)
                encode_prepared(self.model, [clip])
                self.clips.put(clip)
        stats.seconds["encode"] = time.perf_counter() - began
        stats.visual_tokens = sum(clip.num_tokens for clip in request.clips)

    # -- prefill -------------------------------------------------------------------------------------------------------
    def _prefix_key(self, request: GenerateRequest) -> PrefixKey:
        """The key of the KV cache of a prompt up to its last visual token."""
        ids = request.prompt_ids
        end = next((i for i in range(len(ids), 0, -1) if ids[i - 1] in self._placeholders), 0)
        return tuple(clip.key for clip in request.clips), tuple(ids[:end])

    def _prefixes(self, sequences: Sequence[ActiveSequence]) -> dict[PrefixKey, KVPrefix]:
        """KV caches that these sequences continue: kept by their clips, or prefilled now because they are shared."""
        asking: dict[PrefixKey, list[ActiveSequence]] = {}
        for sequence in sequences:
            if sequence.request.clips:
                asking.setdefault(self._prefix_key(sequence.request), []).append(sequence)
        found: dict[PrefixKey, KVPrefix] = {}
        missing: list[PrefixKey] = []
        for key, those in asking.items():
            clip = those[0].request.clips[-1]
            if key in clip.kv_prefixes:
                found[key] = clip.kv_prefixes[key]
                for sequence in those:
                    sequence.stats.cached_tokens = len(key[1])
            elif self.keep_prefixes or len(those) > 1:
                missing.append(key)
                for sequence in those[1:]:
                    sequence.stats.cached_tokens = len(key[1])
        prompts = {}
        for key in missing:
            prompts[key], cached = _continued(key, asking[key][0].request.clips)
            asking[key][0].stats.cached_tokens = cached
        for group in groups(list(prompts.values()), self._layout):
            keys = [missing[place] for place in group]
            began = time.perf_counter()
            try:
                kvs, _ = prefill(self.model, self._layout, [prompts[key] for key in keys])
            except Exception as error:
                self._fail([sequence for key in keys for sequence in asking[key]], error)
                continue
            for key, kv in zip(keys, kvs):
                found[key] = kv if len(kvs) == 1 else kv.clone()  # a row of several keeps the others alive
                for sequence in asking[key]:
                    sequence.stats.seconds["prefill"] = time.perf_counter() - began
                if self.keep_prefixes:
                    clip = asking[key][0].request.clips[-1]
                    clip.keep_prefix(key, found[key])
                    if self.limits.cache_bytes:
                        self.clips.put(clip)
        return found

    def _prefill(self, sequences: Sequence[ActiveSequence], prefixes: dict[PrefixKey, KVPrefix]) -> None:
        """Prefill prompts from the end of their prefixes on, and let the sequences join that do not end at once."""
        prompts = []
        for sequence in sequences:
            key = self._prefix_key(sequence.request)
            if sequence.request.changed is not None:
                prompts.append(self._changed_prompt(sequence, prefixes.get(key)))
            elif key in prefixes:
                prompts.append(Prompt(sequence.ids[len(key[1]) :], (), prefixes[key]))
            else:
                prompts.append(Prompt(sequence.ids, sequence.request.clips))
        for group in groups(prompts, self._layout):
            self._prefill_group([sequences[place] for place in group], [prompts[place] for place in group])

    def _changed_prompt(self, sequence: ActiveSequence, prefix: KVPrefix | None) -> Prompt:
        """A prompt with other visual tokens, after what the unchanged one has in common with it."""
        (clip,), changed = sequence.request.clips, sequence.request.changed
        assert changed is not None
        places = [place for place, id_ in enumerate(sequence.ids) if id_ in self._placeholders]
        start, first = places[changed.first], changed.first
        if prefix is None or prefix.is_ragged or self._layout.has_states or start == 0:
            prefix, start, first = None, 0, 0
        sequence.stats.cached_tokens = start
        layout = None if clip.layout is None else clip.layout[first:]
        rest = replace(clip, tokens=changed.tokens[first:], layout=layout)
        return Prompt(sequence.ids[start:], [rest], None if prefix is None else prefix.cut(start))

    def _prefill_group(self, sequences: list[ActiveSequence], prompts: list[Prompt]) -> None:
        began = time.perf_counter()
        try:
            kvs, logits_BV = prefill(self.model, self._layout, prompts)
            for sequence, logits_V in zip(sequences, logits_BV):
                if wanted := list(sequence.request.first_tokens):
                    sequence.first_probabilities = tuple(logits_V.float().softmax(-1)[wanted].tolist())
            tokens = self._choose(sequences, logits_BV)
        except Exception as error:
            if len(sequences) == 1:
                self._fail(sequences, error)
            else:  # find the one that fails
                for sequence, prompt in zip(sequences, prompts):
                    self._prefill_group([sequence], [prompt])
            return
        now = time.perf_counter()
        for sequence in sequences:
            sequence.stats.seconds["prefill"] = sequence.stats.seconds.get("prefill", 0.0) + now - began
            sequence.since = now
        joining = [place for place, pair in enumerate(zip(sequences, tokens)) if self._emit(*pair)]
        if joining:
            self._batch.join([sequences[place] for place in joining], [kvs[place] for place in joining])

    # -- decode --------------------------------------------------------------------------------------------------------
    def _decode(self) -> None:
        sequences = list(self._batch.sequences)
        logits_BV = self._batch.step([sequence.ids[-1] for sequence in sequences])
        tokens = self._choose(sequences, logits_BV)
        self._batch.keep([sequence for sequence, token in zip(sequences, tokens) if self._emit(sequence, token)])

    def _choose(self, sequences: Sequence[ActiveSequence], logits_BV: torch.Tensor) -> list[int]:
        for row, sequence in enumerate(sequences):
            if sequence.constraint is not None:
                try:
                    sequence.constraint.restrict(logits_BV[row])
                except ConstraintError as error:
                    self._fail([sequence], error)
        tokens = self._sampler(
            logits_BV,
            [sequence.ids for sequence in sequences],
            [sequence.request.sampling for sequence in sequences],
            [sequence.generator for sequence in sequences],
        )
        for row, sequence in enumerate(sequences):
            if sequence.request.scored:
                tokens[row] = sequence.score(logits_BV[row])
        return tokens

    def _emit(self, sequence: ActiveSequence, token: int) -> bool:
        """Add a token and emit its text. Returns whether the sequence continues."""
        if sequence.ended:
            return False
        stats, request = sequence.stats, sequence.request
        try:
            sequence.ids.append(token)
            if sequence.constraint is not None:
                sequence.constraint.accept(token)
            stats.completion_tokens += 1
            if delta := sequence.detokenizer.push(token):
                sequence.callback(TextDelta(delta))
            ended = token in self._eos_token_ids or sequence.detokenizer.stopped
            if not ended and stats.completion_tokens < request.max_new_tokens:
                return True
            stats.seconds["generate"] = time.perf_counter() - sequence.since
            if rest := sequence.detokenizer.finish():
                sequence.callback(TextDelta(rest))
            sequence.ended = True
            reply = tuple(sequence.ids[len(request.prompt_ids) :])
            reason: Literal["stop", "length"] = "stop" if ended else "length"
            text, first = sequence.detokenizer.text, sequence.first_probabilities
            sequence.callback(Finished(text, reason, reply, stats, first, sequence.log_probability))
        except Exception as error:  # of the detokenizer or the callback
            self._fail([sequence], error)
        return False

    def _fail(self, sequences: Sequence[ActiveSequence], error: Exception) -> None:
        """End sequences with an error. Raises EngineStoppedError if the device no longer works."""
        if not isinstance(error, ValueError):
            _LOG.error("%d sequences failed", len(sequences), exc_info=error)
        error.__traceback__ = None  # its frames hold tensors
        _end(sequences, error)
        if self.model.device.type == "cuda":
            try:
                torch.cuda.empty_cache()
                torch.zeros(1, device=self.model.device).item()
            except RuntimeError as broken:
                raise EngineStoppedError(f"the device no longer works: {broken}") from broken


def _continued(key: PrefixKey, clips: Sequence[EncodedClip]) -> tuple[Prompt, int]:
    """The prompt that a key names, without the part that an earlier clip keeps, and the length of that part.

    So the second video of a conversation does not cost the first one again.
    """
    of_clips, ids = key
    for clip in reversed(clips[:-1]):
        for (held_clips, held_ids), kv in clip.kv_prefixes.items():
            if of_clips[: len(held_clips)] == held_clips and ids[: len(held_ids)] == held_ids:
                return Prompt(ids[len(held_ids) :], clips[len(held_clips) :], kv), len(held_ids)
    return Prompt(ids, clips), 0


def _end(sequences: Sequence[ActiveSequence], error: Exception) -> None:
    """End sequences with an error."""
    for sequence in sequences:
        if sequence.ended:
            continue
        sequence.ended = True
        try:
            sequence.callback(Failed(error))
        except Exception as failure:  # nobody is listening anymore
            _LOG.error("a callback failed", exc_info=failure)
