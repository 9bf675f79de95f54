"""One model, many conversations: one thread that owns the model answers all of them, in steps that they share.

    engine = Engine(*load(folder), Limits())
    job = engine.submit(Question(messages, visuals), listener)    # listener gets Piece, Piece, …, Finished or Failed
    job.cancel()                                                  # the client went away
    engine.close()

Between two steps of the batch new conversations are read into it and finished ones leave. A clip is encoded once, and
the language model reads it once: later questions start behind it. Greedy answers are those of `videopanda answer`.
"""

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

import torch

from videopanda.inference.answer import MAX_NEW_TOKENS, EncodedClip, Message, encode
from videopanda.inference.batch import Batch, Row, read
from videopanda.inference.clip_cache import Visual, VisualCache
from videopanda.inference.sampling import Sampling, TextStream, TokenChooser, check_generation, end_tokens
from videopanda.models.videopanda import VideoPandaVisualOutput
from videopanda.plan.planner import DoesNotFitError, budget, planner_for
from videopanda.serving.errors import BusyError, ContextLengthError, StoppedError, UnfitError

READS_PER_STEP = 4  # prompts that are read while the others wait for their next token


@dataclass(frozen=True)
class Limits:
    """What the engine takes on.

    max_rows: conversations that are answered at the same time.
    max_waiting: conversations that may wait for their turn.
    max_positions: keys and values that the batch may hold, in tokens of all rows with their padding; None: as many as
        fit into the memory that is free when the engine starts.
    cache_bytes: memory for clips that were asked about before.
    """

    max_rows: int = 32
    max_waiting: int = 256
    max_positions: int | None = None
    cache_bytes: int = 1 << 30


@dataclass(frozen=True)
class Question:
    """A conversation that waits for a reply.

    messages: as for the chat template; their `video` and `image` parts stand for `visuals`, in order.
    decode_seconds: what reading the files took, for the record.
    """

    messages: Sequence[Message]
    visuals: Sequence[Visual] = ()
    max_new_tokens: int = MAX_NEW_TOKENS
    sampling: Sampling = field(default_factory=Sampling)
    stops: Sequence[str] = ()
    decode_seconds: float = 0.0


@dataclass
class Record:
    """What a reply cost. Seconds: "decode" (reading the files; 0 for clips in memory), "queue", "encode", "prefill",
    "generate"; steps are shared with other replies."""

    frame_times: list[tuple[float, ...]]
    visual_tokens: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    known_tokens: int = 0  # of the prompt: the language model had read them before
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Piece:
    """The next piece of a reply."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The end of a reply, with all of its text."""

    text: str
    reason: Literal["stop", "length"]
    record: Record


@dataclass(frozen=True)
class Failed:
    """There will be no (more) reply."""

    error: Exception


Listener = Callable[[Piece | Finished | Failed], object]


class Job:
    """A question on its way. The engine's thread alone changes it, except for `cancel`."""

    def __init__(self, question: Question, listener: Listener, stream: TextStream, chooser: TokenChooser):
        self.question, self.listener, self.max_new_tokens = question, listener, question.max_new_tokens
        self.stream, self.chooser = stream, chooser
        self.row = Row([])
        self.record = Record([visual.frame_times for visual in question.visuals])
        self.record.seconds["decode"] = question.decode_seconds
        self.cancelled = False
        self.since = time.perf_counter()  # when it was queued, later when its first token was there

    def cancel(self) -> None:
        """Nobody waits for the reply any more; the engine drops it before its next step."""
        self.cancelled = True

    @property
    def most_positions(self) -> int:
        """Length of the row if the reply becomes as long as it may."""
        return self.record.prompt_tokens + self.max_new_tokens


class _Failing:
    """Gives an error of its block to jobs, so that it ends them and not the thread."""

    def __init__(self, jobs: Sequence[Job]):
        self.jobs, self.failed = jobs, False

    def __enter__(self) -> "_Failing":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False
        self.failed = True
        for job in self.jobs:
            job.listener(Failed(error))
        return True


class Engine:
    """Answers questions in a thread of its own.

    Raises:
        ValueError: the checkpoint asks for a way of choosing tokens that is not applied here.
    """

    def __init__(self, model: Any, processor: Any, limits: Limits | None = None):
        check_generation(model.generation_config)
        self.model, self.processor, self.limits = model, processor, limits or Limits()
        self.context = int(model.config.text_config.max_position_embeddings)
        self.max_positions = self.limits.max_positions or self._positions_that_fit()
        self.visuals = VisualCache(self.limits.cache_bytes)
        self._ends = end_tokens(model.generation_config)
        self._batch = Batch(model)
        self._running: dict[Row, Job] = {}
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = self._drains = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def _positions_that_fit(self) -> int:
        """Keys and values for which there is memory beside the cache of clips, by the planner."""
        planner = planner_for(self.model, self.processor.video_processor)
        side = self.processor.video_processor.size["height"]
        short, longer = (planner.plan(1, side, side, new_tokens=count).kv_bytes for count in (1, 2))
        free = budget(self.model) - planner.weight_bytes - self.limits.cache_bytes
        # A step writes keys and values anew, one token longer, so that for a moment there are two of them.
        return min(self.limits.max_rows * self.context, max(1, free // (2 * (longer - short))))

    # -- what other threads call ---------------------------------------------------------------------------------------
    def submit(self, question: Question, listener: Listener) -> Job:
        """Queue a question. `listener` is called in the engine's thread and must return at once.

        Raises:
            BusyError: as many questions wait as may wait.
            StoppedError: the engine was closed.
        """
        stream = TextStream(self.processor.tokenizer, question.stops)
        job = Job(question, listener, stream, TokenChooser(self.model.generation_config, question.sampling))
        with self._changed:
            if self._closed or not self._thread.is_alive():
                raise StoppedError("the server is shutting down: ask again later")
            if len(self._waiting) >= self.limits.max_waiting:
                raise BusyError(f"{len(self._waiting)} questions are waiting already: ask again later")
            self._waiting.append(job)
            self._changed.notify()
        return job

    @property
    def load(self) -> tuple[int, int]:
        """How many questions are being answered, and how many wait."""
        return len(self._running), len(self._waiting)

    @property
    def is_alive(self) -> bool:
        """Whether questions are still answered."""
        return self._thread.is_alive() and not self._closed

    def close(self, drain: bool = False) -> None:
        """End the thread: after the answers that are under way with `drain`, else at once, failing them."""
        with self._changed:
            self._closed, self._drains = True, drain
            self._changed.notify()
        self._thread.join()

    # -- the engine's thread -------------------------------------------------------------------------------------------
    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while self._await_work():
                    self._drop_cancelled()
                    self._take_in()
                    if self._batch.rows:
                        self._step()
        finally:  # closed, or broken by a mistake in this program: nobody must wait for ever
            with self._changed:
                self._closed = True
                left = [*self._running.values(), *self._waiting]
                self._waiting.clear()
            for job in left:
                job.listener(Failed(StoppedError("the server stopped before the answer was complete")))

    def _await_work(self) -> bool:
        """Wait until there is something to do; False when the thread shall end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting or self._running)
            return not self._closed or bool(self._drains and (self._waiting or self._running))

    def _drop_cancelled(self) -> None:
        with self._changed:
            self._waiting = deque(job for job in self._waiting if not job.cancelled)
        self._running = {row: job for row, job in self._running.items() if not job.cancelled}
        self._batch.keep(list(self._running))

    def _take_in(self) -> None:
        """Read waiting prompts and let them join the batch, as far as there is room."""
        joining: list[Job] = []
        while len(joining) < READS_PER_STEP and (job := self._next_job(joining)):
            with _Failing([job]) as failing:
                self._read(job)
            if not failing.failed and self._advance(job):
                joining.append(job)
        if joining:
            with _Failing(joining) as failing:
                self._batch.join([job.row for job in joining])
            if not failing.failed:
                self._running |= {job.row: job for job in joining}

    def _next_job(self, joining: Sequence[Job]) -> Job | None:
        """The first in the queue, if it fits beside those that are there; what cannot be answered at all fails."""
        while self._waiting:
            job = self._waiting[0]
            with _Failing([job]) as failing:
                if not job.row.ids and not job.cancelled:
                    self._prepare(job)
            if failing.failed or job.cancelled:
                self._waiting.popleft()
                continue
            others = [*self._running.values(), *joining]
            longest = max([job.most_positions, self._batch.positions, *(other.most_positions for other in others)])
            fits = len(others) < self.limits.max_rows and (len(others) + 1) * longest <= self.max_positions
            if others and not fits:
                return None
            return self._waiting.popleft()
        return None

    def _prepare(self, job: Job) -> None:
        """Encode the clips of a question and make its token ids."""
        began = time.perf_counter()
        job.record.seconds["queue"] = began - job.since
        question = job.question
        for visual in question.visuals:
            if visual.encoded is None:
                self._require_fit(visual, question)
                visual.encoded = self._encode(visual)
                visual.video = None
                self.visuals.put(visual)
        job.record.seconds["encode"] = time.perf_counter() - began
        ids = self.token_ids(question)
        job.record.prompt_tokens = len(ids)
        job.record.visual_tokens = sum(len(visual.encoded.tokens) for visual in question.visuals if visual.encoded)
        job.max_new_tokens = self.room_for(len(ids), question.max_new_tokens)
        job.row.ids = ids

    def _require_fit(self, visual: Visual, question: Question) -> None:
        """See that a clip fits into context and memory before it is encoded. Raises ContextLengthError, UnfitError."""
        assert visual.video is not None
        frames, height, width, _ = visual.video.frames.shape
        planner = planner_for(self.model, self.processor.video_processor)
        try:
            planner.require_context(frames, height, width, text_tokens=0, new_tokens=1)
        except DoesNotFitError as error:
            raise ContextLengthError(str(error), "messages") from error
        room = self.context - self.processor.video_processor.token_count(frames, height, width)
        try:
            plan = planner.plan(frames, height, width, new_tokens=min(question.max_new_tokens, room))
            plan.require(budget(self.model))
        except DoesNotFitError as error:
            raise UnfitError(str(error)) from error

    def _encode(self, visual: Visual) -> EncodedClip:
        assert visual.video is not None
        if not visual.is_image:
            return encode(self.model, self.processor, [visual.video])[0]
        inputs = self.processor.video_processor.preprocess_images(visual.video.frames[0], return_tensors="pt")
        (encoded,) = self.model.encode(inputs, "image")
        return EncodedClip(self.processor.placeholder_text(inputs, 0, "image"), encoded.tokens)

    def token_ids(self, question: Question) -> list[int]:
        """The prompt of a question whose visuals are encoded."""
        processor = self.processor
        text = processor.apply_chat_template(list(question.messages), tokenize=False, add_generation_prompt=True)
        markers = (visual.encoded.marker for visual in question.visuals if visual.encoded is not None)
        places = "|".join(map(re.escape, (processor.video_token, processor.image_token)))
        text = re.sub(places, lambda _: next(markers), text)
        return list(processor.tokenizer([text], add_special_tokens=False)["input_ids"][0])

    def room_for(self, prompt_tokens: int, max_new_tokens: int) -> int:
        """The longest reply to a prompt of this length, up to `max_new_tokens`. Raises ContextLengthError."""
        limit = min(self.context, self.max_positions)
        if prompt_tokens >= limit:
            raise ContextLengthError(
                f"the prompt has {prompt_tokens:,} tokens; prompt and reply together can have {limit:,}: "
                "use fewer frames or a shorter conversation",
                "messages",
            )
        return min(max_new_tokens, limit - prompt_tokens)

    def _read(self, job: Job) -> None:
        """Run the prompt, from behind the last visual where that was read before, and choose the first token."""
        began = time.perf_counter()
        row, visuals = job.row, job.question.visuals
        end = self._end_of_visuals(row.ids)
        start = tuple(visual.key for visual in visuals), tuple(row.ids[:end])
        known = visuals[-1].starts.get(start, []) if visuals else []
        row.layers, logits_V = read(self.model, row.ids, known, {} if known else self._visual_inputs(visuals))
        if visuals and not known:
            # Copied: a view would keep the whole prompt in memory.
            layers = [(keys[:, :, :end].clone(), values[:, :, :end].clone()) for keys, values in row.layers]
            self.visuals.remember(visuals[-1], start, layers)
        job.record.known_tokens = end if known else 0
        row.ids.append(job.chooser(row.ids, logits_V))
        job.since = time.perf_counter()
        job.record.seconds["prefill"] = job.since - began

    def _end_of_visuals(self, ids: Sequence[int]) -> int:
        places = {self.processor.video_token_id, self.processor.image_token_id}
        return max((i + 1 for i, token in enumerate(ids) if token in places), default=0)

    def _visual_inputs(self, visuals: Sequence[Visual]) -> dict[str, Any]:
        outputs = {}
        for kind, is_image in (("video", False), ("image", True)):
            tokens = [v.encoded.tokens for v in visuals if v.is_image == is_image and v.encoded is not None]
            if tokens:
                outputs[kind] = VideoPandaVisualOutput(pooler_output=tokens)
        return {"mm_encoder_outputs": outputs} if outputs else {}

    def _step(self) -> None:
        """One more token for every row."""
        jobs = list(self._running.values())
        with _Failing(jobs) as failing:
            logits_BV = self._batch.step().to("cpu", torch.float32)
        if failing.failed:
            self._running, self._batch = {}, Batch(self.model)
            return
        going_on = {}
        for job, logits_V in zip(jobs, logits_BV):
            with _Failing([job]):
                job.row.ids.append(job.chooser(job.row.ids, logits_V))
                if self._advance(job):
                    going_on[job.row] = job
        self._running = going_on
        self._batch.keep(list(going_on))

    def _advance(self, job: Job) -> bool:
        """Tell the listener what the newest token gives. Returns whether the reply goes on."""
        token, record = job.row.ids[-1], job.record
        record.completion_tokens += 1
        piece = job.stream.push(token)
        if piece:
            job.listener(Piece(piece))
        ended = token in self._ends or job.stream.stopped
        if not ended and record.completion_tokens < job.max_new_tokens:
            return True
        record.seconds["generate"] = time.perf_counter() - job.since
        if last := job.stream.finish():
            job.listener(Piece(last))
        job.listener(Finished(job.stream.text, "stop" if ended else "length", record))
        return False
