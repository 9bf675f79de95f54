"""Answer questions about a video: one call, a batch of questions, or a chat.

    import videopanda
    print(videopanda.answer("clip.mp4", "What color is the circle?"))

    model, processor = load("path/to/checkpoint")            # None: the small model that comes with the package
    for answer in ask(model, processor, "clip.mp4", ["How many objects are there?", "Which way does the circle move?"]):
        print(answer.answer, answer.frame_times)

Decoding is greedy. A clip is read and encoded once, however many questions follow; each question is answered exactly as
if it were the only one. Prompts come from the chat template of the processor.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

from videopanda.inference.clip import ClipSource, EncodedClip, encode_clip
from videopanda.inference.engine import MAX_NEW_TOKENS, Engine, Failed, GenerateRequest
from videopanda.inference.load import load
from videopanda.inference.visual_cache import TokenDiskCache

Message = dict[str, Any]  # of a chat template: {"role": …, "content": […]}


@dataclass(frozen=True)
class Answer:
    """An answer and its provenance.

    frame_times: seconds at which the frames that the model saw are first shown.
    frame_indices: their numbers in the file; None if no file was read.
    visual_tokens: number of tokens that the clip takes in the language model.
    decoder: what decoded the file, with its version; None if no file was read.
    timings: seconds for "decode", "preprocess" and "generate" (encoding included), of the whole batch of questions.
    model: folder of the checkpoint.
    """

    question: str
    answer: str
    frame_times: tuple[float, ...]
    frame_indices: tuple[int, ...] | None
    visual_tokens: int
    decoder: str | None
    timings: dict[str, float]
    model: str


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

    A still picture may be passed where the conversation says video: it is shown as an image.

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
    chat.ask("Which one is the largest?").answer        # sees the first question and its answer

    The clip keeps its KV cache, so that later questions prefill only the tokens after it. With a `cache`, a clip that
    any process has encoded before is not even read.

    Raises:
        VideoReadError: the video cannot be read.
        DoesNotFitError: the clip does not fit into the context window or into memory.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        video: Any,
        *,
        num_frames: int | None = None,
        start: float | None = None,
        end: float | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        cache: TokenDiskCache | None = None,
        keep_prefix: bool = True,
    ):
        self.processor, self.max_new_tokens = processor, max_new_tokens
        self.engine = Engine(model, processor, keep_prefixes=keep_prefix)
        self.messages: list[Message] = []
        if num_frames is None and not hasattr(video, "frames"):
            num_frames = processor.video_processor.num_frames
        source = ClipSource(video, num_frames, start, end)
        self.clip, self._costs = encode_clip(model, processor, source, max_new_tokens, cache)
        self._encode_seconds = self._costs.pop("encode")

    def ask(self, question: str) -> Answer:
        """Answer a question, given the earlier ones. Timings of later questions include only their own cost."""
        messages = [*self.messages, *question_messages(self.processor, question, has_video=not self.messages)]
        (answer,) = self._answers([question], [messages])
        self.messages = [*messages, {"role": "assistant", "content": [{"type": "text", "text": answer.answer}]}]
        return answer

    def ask_each(self, questions: Sequence[str]) -> list[Answer]:
        """Answer questions in one batch; none sees another, or the earlier conversation."""
        return self._answers(questions, [question_messages(self.processor, question) for question in questions])

    def _answers(self, questions: Sequence[str], conversations: Sequence[Sequence[Message]]) -> list[Answer]:
        began = time.perf_counter()
        prompts = [build_prompt(self.processor, messages, [self.clip]) for messages in conversations]
        results = self.engine.generate(
            [GenerateRequest(prompt, [self.clip], self.max_new_tokens) for prompt in prompts]
        )
        timings = {**self._costs, "generate": self._encode_seconds + time.perf_counter() - began}
        self._costs, self._encode_seconds = {"decode": 0.0, "preprocess": 0.0}, 0.0
        answers = []
        for question, result in zip(questions, results):
            if isinstance(result, Failed):
                raise result.error
            answers.append(
                Answer(
                    question=question,
                    answer=result.text,
                    frame_times=self.clip.times,
                    frame_indices=self.clip.indices,
                    visual_tokens=self.clip.num_tokens,
                    decoder=self.clip.decoder,
                    timings=timings,
                    model=self.engine.model.name_or_path,
                )
            )
        return answers


def ask(
    model: Any,
    processor: Any,
    video: Any,
    questions: Sequence[str],
    *,
    num_frames: int | None = None,
    start: float | None = None,
    end: float | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    cache: TokenDiskCache | None = None,
) -> list[Answer]:
    """Answer several questions about one video in one batch, each on its own.

    Args:
        video: anything that `read_video` takes, or an object with `.frames`, `.timestamps` and `.duration`.
        questions: at least one question.
        num_frames: number of frames, uniform in time; default the number that the processor was saved with.
        start, end: range of the video, in seconds.
        max_new_tokens: maximum length of an answer.
        cache: visual tokens on disk, read and added to.

    Raises:
        VideoReadError: the video cannot be read.
        DoesNotFitError: the clip does not fit into the context window or into memory; the message says what would.
        ValueError: no or empty questions, or a range outside the video.
    """
    if isinstance(questions, str) or not questions:
        raise ValueError("questions must be a list of one or more strings")
    for question in questions:  # refused before the video is read
        question_messages(processor, question)
    chat = Chat(
        model,
        processor,
        video,
        num_frames=num_frames,
        start=start,
        end=end,
        max_new_tokens=max_new_tokens,
        cache=cache,
        keep_prefix=False,  # the questions are answered together, so they share it anyway
    )
    return chat.ask_each(questions)


@overload
def answer(
    video: Any,
    question: str,
    *,
    model: str | Path | None = None,
    num_frames: int | None = None,
    start: float | None = None,
    end: float | None = None,
) -> str: ...


@overload
def answer(
    video: Any,
    question: Sequence[str],
    *,
    model: str | Path | None = None,
    num_frames: int | None = None,
    start: float | None = None,
    end: float | None = None,
) -> list[str]: ...


def answer(
    video: Any,
    question: str | Sequence[str],
    *,
    model: str | Path | None = None,
    num_frames: int | None = None,
    start: float | None = None,
    end: float | None = None,
) -> str | list[str]:
    """Answer one question about a video, or a list of them, for which the video is read and encoded once.

    The last model used stays loaded. See `ask` for arguments and errors.
    """
    network, processor = _load_once(None if model is None else str(model))
    questions = [question] if isinstance(question, str) else question
    answers = ask(network, processor, video, questions, num_frames=num_frames, start=start, end=end)
    replies = [answer.answer for answer in answers]
    return replies[0] if isinstance(question, str) else replies


@lru_cache(maxsize=1)
def _load_once(model: str | None) -> tuple[Any, Any]:
    return load(model)
