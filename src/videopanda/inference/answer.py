"""Answer questions about a video: one call, a batch of questions, or a chat.

    import videopanda
    print(videopanda.answer("clip.mp4", "What color is the circle?"))

    model, processor = videopanda.load("path/to/checkpoint")   # without a path: the bundled model
    chat = videopanda.Chat(model, processor, "clip.mp4")
    for text in chat.stream("How many objects are there?"):
        print(text, end="", flush=True)

Decoding is greedy by default. A clip is read and encoded once for any number of questions; each question is
answered exactly as if it were the only one. Prompts come from the chat template of the processor.
"""

import asyncio
import re
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Generator, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

from videopanda.inference.clip import ClipSource, EncodedClip, encode_clip
from videopanda.inference.engine import Engine
from videopanda.inference.load import load
from videopanda.inference.reply import Answer
from videopanda.inference.request import MAX_NEW_TOKENS, ONE_AT_A_TIME, Failed, Finished, GenerateRequest, TextDelta
from videopanda.inference.sampling import GREEDY, Sampling
from videopanda.inference.stream_encoder import encode_long
from videopanda.inference.visual_cache import TokenDiskCache
from videopanda.video.activity import Rule, chosen_times
from videopanda.video.read import read_video

Message = dict[str, Any]  # of a chat template: {"role": …, "content": […]}


def question_messages(processor: Any, question: str, has_video: bool = True) -> list[Message]:
    """The conversation that asks one question.

    Raises:
        ValueError: the question is empty or contains a placeholder of the model.
    """
    if not question.strip():
        raise ValueError("the question is empty")
    for token in (processor.video_token, processor.image_token):
        if token in question:
            raise ValueError(f"the question must not contain {token}: the video placeholder is added automatically")
    video = [{"type": "video"}] if has_video else []
    return [{"role": "user", "content": [*video, {"type": "text", "text": question}]}]


def build_prompt(processor: Any, messages: Sequence[Message], clips: Sequence[EncodedClip] = ()) -> list[int]:
    """The token ids of a conversation whose video and image parts stand for `clips`, in order.

    A still picture can be passed for a video part: it is shown as an image.

    Raises:
        ValueError: parts and clips differ in number or kind.
    """
    messages = _with_images(messages, clips)
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    tokens = {processor.video_token: "video", processor.image_token: "image"}
    pattern = "|".join(map(re.escape, tokens))
    kinds = [tokens[token] for token in re.findall(pattern, text)]
    if kinds != [clip.kind for clip in clips]:
        given = ", ".join(clip.kind for clip in clips) or "nothing"
        raise ValueError(f"the conversation shows {', '.join(kinds) or 'nothing'}, but got {given}")
    texts = iter(clips)
    text = re.sub(pattern, lambda _: next(texts).placeholder_text, text)
    return list(processor.tokenizer([text], add_special_tokens=False)["input_ids"][0])


def _with_images(messages: Sequence[Message], clips: Sequence[EncodedClip]) -> list[Message]:
    """The conversation with an image part for each still picture that stands for a video, if all else fits."""
    kinds = [clip.kind for clip in clips]
    parts = [part for message in messages if not isinstance(message["content"], str) for part in message["content"]]
    visuals = [part for part in parts if part["type"] in ("video", "image")]
    fit = len(visuals) == len(kinds) and all(part["type"] in ("video", kind) for part, kind in zip(visuals, kinds))
    if not fit:
        return list(messages)
    shown = {id(part): {"type": kind} for part, kind in zip(visuals, kinds) if part["type"] != kind}
    return [
        message
        if isinstance(message["content"], str)
        else {**message, "content": [shown.get(id(part), part) for part in message["content"]]}
        for message in messages
    ]


class Chat:
    """A conversation about one video, which is read and encoded once.

        chat = Chat(model, processor, "clip.mp4")
        chat.ask("How many objects are there?").answer
        for text in chat.stream("Which one is the largest?"):      # sees the first question and its answer
            print(text, end="", flush=True)

    `aask` and `astream` are the same for programs that use asyncio. The clip keeps its KV cache, so that later
    questions prefill only the tokens after it. With a `cache`, a clip that any process has already encoded is not
    even read.

    Args:
        video: anything that `read_video` takes, an object with `.frames`, `.timestamps` and `.duration`, or an
            `EncodedClip`, such as that of a `VideoSession`.
        num_frames: number of frames, uniform in time; default: the number saved with the processor.
        fps: frames per second of the video, instead of `num_frames`.
        start: start of the range, in seconds.
        end: end of the range, in seconds.
        max_new_tokens: maximum length of an answer.
        sampling: how tokens are chosen, such as `videopanda.Sampling(temperature=0.8, seed=1)`; default: greedily.
        cache: visual tokens on disk, which are used and extended; those of a memory are not kept.
        keep_prefix: keep the KV cache of the clip for later questions.
        max_visual_tokens: read the whole video at `fps` (default 1) in constant memory, and merge tokens beyond
            this number; see `VideoSession`, also for `last_frames`. Default: with `fps`, what the model was trained
            with.
        frames_by: choose `num_frames` frames of a file by "motion" or "scenes"; see `chosen_times`.

    Raises:
        VideoReadError: the video cannot be read.
        DoesNotFitError: the clip does not fit into the context window or into memory; the message says what would.
        ValueError: a range outside the video, or choices that do not go together.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        video: Any,
        *,
        num_frames: int | None = None,
        fps: float | None = None,
        start: float | None = None,
        end: float | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        sampling: Sampling = GREEDY,
        cache: TokenDiskCache | None = None,
        keep_prefix: bool = True,
        max_visual_tokens: int | None = None,
        last_frames: int = 0,
        frames_by: Rule | None = None,
    ):
        self.processor, self.max_new_tokens, self.sampling = processor, max_new_tokens, sampling
        self.engine = Engine(model, processor, keep_prefixes=keep_prefix)
        self.messages: list[Message] = []
        has_memory = max_visual_tokens is not None or bool(last_frames)
        if fps is not None and num_frames is None and not has_memory and not hasattr(video, "frames"):
            max_visual_tokens = processor.video_processor.max_visual_tokens
        if isinstance(video, EncodedClip):
            if (num_frames, fps, start, end, frames_by) != (None,) * 5 or has_memory:
                raise ValueError("this clip is already encoded: omit what chooses frames of a file")
            self.clip, self._costs = video, {"decode": 0.0, "preprocess": 0.0, "encode": 0.0}
        elif frames_by is not None:
            if (fps, start, end) != (None,) * 3 or has_memory:
                raise ValueError(
                    "frames_by chooses num_frames frames of a whole file: omit fps, start, end, max_visual_tokens and "
                    "last_frames"
                )
            if hasattr(video, "frames"):
                raise ValueError("frames_by chooses frames of a file; these frames are already decoded")
            began, rules = time.perf_counter(), processor.video_processor
            times, reasons = chosen_times(video, rules.num_frames if num_frames is None else num_frames, frames_by)
            read = read_video(video, timestamps=times, background=rules.background)
            chosen = time.perf_counter() - began
            with ONE_AT_A_TIME:
                source = ClipSource(read, None, None, None)
                self.clip, self._costs = encode_clip(model, processor, source, max_new_tokens)
            self.clip.selection, self._costs["decode"] = tuple(reasons), chosen
        elif max_visual_tokens is not None or last_frames:
            if num_frames is not None:
                raise ValueError(
                    "max_visual_tokens and last_frames read the whole video: pass fps instead of num_frames"
                )
            with ONE_AT_A_TIME:
                self.clip, self._costs, _ = encode_long(
                    model,
                    processor,
                    video,
                    fps=1.0 if fps is None else fps,
                    max_visual_tokens=max_visual_tokens,
                    last_frames=last_frames,
                    start=start,
                    end=end,
                )
        else:
            if num_frames is None and fps is None and not hasattr(video, "frames"):
                num_frames = processor.video_processor.num_frames
            source = ClipSource(video, num_frames, start, end, fps)
            with ONE_AT_A_TIME:
                self.clip, self._costs = encode_clip(model, processor, source, max_new_tokens, cache)
        self._encode_seconds = self._costs.pop("encode")
        self._turn = threading.Lock()  # held while an answer is being generated

    def ask(self, question: str) -> Answer:
        """Answer a question, given the earlier ones. Timings of later questions include only their own cost."""
        pieces = self.stream(question)
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                return end.value

    def stream(self, question: str) -> Generator[str, None, Answer]:
        """The answer to a question, given the earlier ones, piece by piece as it is generated.

        The generator returns the `Answer`. If it is closed early, the conversation keeps only the earlier turns.

        Raises:
            ValueError: the question is empty, or the previous answer is still being generated.
        """
        messages = [*self.messages, *question_messages(self.processor, question, has_video=not self.messages)]
        if not self._turn.acquire(blocking=False):
            raise ValueError("this chat is still answering: exhaust or close the stream of the previous question first")
        try:
            began = time.perf_counter()
            events: deque[TextDelta | Finished | Failed] = deque()
            sequence = self.engine.submit(self._request(messages), events.append)
            try:
                while True:
                    while not events:
                        with ONE_AT_A_TIME:
                            self.engine.step()
                    event = events.popleft()
                    if not isinstance(event, TextDelta):
                        break
                    yield event.text
            finally:
                sequence.cancel()
            answer = self._answer(question, event, self._timings(began))
            self.messages = [*messages, {"role": "assistant", "content": [{"type": "text", "text": answer.answer}]}]
            return answer
        finally:
            self._turn.release()

    async def aask(self, question: str) -> Answer:
        """Like `ask`, but in a thread, so that the event loop stays free."""
        return await asyncio.to_thread(self.ask, question)

    def astream(self, question: str) -> AsyncGenerator[str, None]:
        """Like `stream`, but in a thread, so that the event loop stays free."""
        return _in_thread(self.stream(question))

    def ask_each(self, questions: Sequence[str]) -> list[Answer]:
        """Answer questions in one batch; none sees the others or the earlier conversation."""
        began = time.perf_counter()
        requests = [self._request(question_messages(self.processor, question)) for question in questions]
        with ONE_AT_A_TIME:
            results = self.engine.generate(requests)
        timings = self._timings(began)
        return [self._answer(question, result, timings) for question, result in zip(questions, results)]

    def _request(self, messages: Sequence[Message]) -> GenerateRequest:
        prompt = build_prompt(self.processor, messages, [self.clip])
        return GenerateRequest(prompt, [self.clip], self.max_new_tokens, self.sampling)

    def _timings(self, began: float) -> dict[str, float]:
        """Seconds since `began`, and what the clip cost if this is its first answer."""
        timings = {**self._costs, "generate": self._encode_seconds + time.perf_counter() - began}
        self._costs, self._encode_seconds = {"decode": 0.0, "preprocess": 0.0}, 0.0
        return timings

    def _answer(self, question: str, result: Finished | Failed, timings: dict[str, float]) -> Answer:
        if isinstance(result, Failed):
            raise result.error
        return Answer(
            question=question,
            answer=result.text,
            frame_times=self.clip.times,
            frame_indices=self.clip.indices,
            visual_tokens=self.clip.num_tokens,
            prompt_tokens=result.stats.prompt_tokens,
            completion_tokens=result.stats.completion_tokens,
            finish_reason=result.finish_reason,
            decoder=self.clip.decoder,
            timings=timings,
            model=self.engine.model.name_or_path,
            token_ids=result.token_ids,
            selection=self.clip.selection,
            frames=self.clip.frames,
        )


async def _in_thread(pieces: Generator[str, None, Any]) -> AsyncGenerator[str, None]:
    """The pieces of a generator, each generated in a thread."""
    done, step = object(), None
    try:
        while True:
            step = asyncio.ensure_future(asyncio.to_thread(next, pieces, done))
            if (text := await asyncio.shield(step)) is done:
                return
            yield str(text)
    finally:
        if step is not None:  # cancelled, perhaps while the thread is in the generator, which cannot be closed then
            await asyncio.wait([step])
        pieces.close()


def ask(model: Any, processor: Any, video: Any, questions: Sequence[str], **options: Any) -> list[Answer]:
    """Answer several questions about one video in one batch, each on its own; `options` are those of `Chat`.

    Raises:
        VideoReadError: the video cannot be read.
        DoesNotFitError: the clip does not fit into the context window or into memory; the message says what would.
        ValueError: no or empty questions, or a range outside the video.
    """
    questions = question_list(questions)
    for question in questions:  # refused before the video is read
        question_messages(processor, question)
    # The questions are answered together, so they share the prefix anyway.
    return Chat(model, processor, video, keep_prefix=False, **options).ask_each(questions)


def question_list(questions: Any) -> list[str]:
    """Questions as a list, read once. Raises ValueError for anything but one or more strings."""
    found = [] if isinstance(questions, str | bytes) or not isinstance(questions, Iterable) else list(questions)
    if not found or not all(isinstance(question, str) for question in found):
        raise ValueError("questions must be a list of one or more strings")
    return found


@overload
def answer(video: list[Any] | tuple[Any, ...], question: str, **options: Any) -> list[Answer]: ...
@overload
def answer(video: list[Any] | tuple[Any, ...], question: Sequence[str], **options: Any) -> list[list[Answer]]: ...
@overload
def answer(video: Any, question: str, **options: Any) -> Answer: ...
@overload
def answer(video: Any, question: Sequence[str], **options: Any) -> list[Answer]: ...
def answer(
    video: Any, question: str | Sequence[str], *, model: str | Path | tuple[Any, Any] | None = None, **options: Any
) -> Answer | list[Answer] | list[list[Answer]]:
    """Answer one question about a video, or a list of them, for which the video is read and encoded once.

    A list of videos gives a list with the answers about each. `model` is a folder, what `load` returned, or None for
    the bundled model; the last one used stays loaded. `options` are those of `Chat`; see `ask` for errors.
    """
    questions = [question] if isinstance(question, str) else question_list(question)
    loaded = loaded_model(model)
    videos = list(video) if isinstance(video, list | tuple) else [video]
    answers = [ask(*loaded, one, questions, **options) for one in videos]
    replies: list[Any] = [each[0] for each in answers] if isinstance(question, str) else answers
    return replies if isinstance(video, list | tuple) else replies[0]


def stream(
    video: Any, question: str, *, model: str | Path | tuple[Any, Any] | None = None, **options: Any
) -> Generator[str, None, Answer]:
    """The answer to one question about a video, piece by piece as it is generated. See `answer`."""
    return (yield from Chat(*loaded_model(model), video, keep_prefix=False, **options).stream(question))


async def aanswer(video: Any, question: Any, **options: Any) -> Any:
    """Like `answer`, but in a thread, so that the event loop stays free."""
    return await asyncio.to_thread(lambda: answer(video, question, **options))


def astream(video: Any, question: str, **options: Any) -> AsyncGenerator[str, None]:
    """Like `stream`, but in a thread, so that the event loop stays free."""
    return _in_thread(stream(video, question, **options))


def loaded_model(model: str | Path | tuple[Any, Any] | None) -> tuple[Any, Any]:
    """Model and processor: as given, of a folder, or, for None, of this package; the last one stays loaded."""
    return model if isinstance(model, tuple) else _load_once(None if model is None else str(model))


@lru_cache(maxsize=1)
def _load_once(model: str | None) -> tuple[Any, Any]:
    return load(model)
