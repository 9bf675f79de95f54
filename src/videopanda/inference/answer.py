"""Answer questions about a video: one call, a batch of questions, or a chat.

    import videopanda
    print(videopanda.answer("clip.mp4", "What colour is the circle?"))

    model, processor = load("path/to/checkpoint")            # None: the small model that comes with the package
    for answer in ask(model, processor, "clip.mp4", ["How many objects are there?", "Which way does the circle move?"]):
        print(answer.answer, answer.frame_times)

Decoding is greedy. A clip is read and encoded once, however many questions follow; each question is answered exactly as
if it were the only one. Prompts come from the chat template of the processor.
"""

import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from videopanda.inference.clip import EncodedClip, Request, look
from videopanda.inference.clip import encode as encode  # for those who hold decoded clips
from videopanda.inference.generation import PLAIN, Generation, prefill
from videopanda.inference.load import load
from videopanda.inference.visual_cache import VisualCache
from videopanda.models.videopanda import (
    VideoPandaForConditionalGeneration,
    VideoPandaProcessor,
    VideoPandaVisualOutput,
)
from videopanda.plan.planner import DoesNotFitError

MAX_NEW_TOKENS = 64

Message = dict[str, Any]  # of a chat template: {"role": …, "content": […]}


@dataclass(frozen=True)
class Answer:
    """A reply and how it came about.

    frame_times: seconds at which the frames that the model saw are first shown.
    frame_indices: their numbers in the file; None for frames that no file was read for.
    visual_tokens: number of tokens that the clip takes in the language model.
    decoder: what decoded the file, with its version; None for frames that no file was read for.
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


@torch.inference_mode()
def reply(
    model: VideoPandaForConditionalGeneration,
    processor: Any,
    prompts: Sequence[tuple[Sequence[Message], EncodedClip | None]],
    max_new_tokens: int = MAX_NEW_TOKENS,
    *,
    remember: bool = False,
    generation: Generation = PLAIN,
) -> list[str]:
    """Greedy replies to conversations, each about one clip or, with None, about no clip, in one batch.

    Conversations about the same clip share the work for its tokens. With `remember`, where all are about one clip, the
    clip keeps what the language model made of it (keys and values of all layers), and later calls read only what
    follows the clip.

    Raises:
        DoesNotFitError: a conversation does not fit into the context of the language model.
    """
    texts = []
    for messages, clip in prompts:
        text = processor.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        texts.append(text if clip is None else text.replace(processor.video_token, clip.marker, 1))
    rows: list[list[int]] = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
    length, limit = max(map(len, rows)), model.config.text_config.max_position_embeddings
    if length + max_new_tokens > limit:
        raise DoesNotFitError(
            f"a prompt of {length} tokens and a reply of up to {max_new_tokens} do not fit into the {limit} tokens of "
            "the language model: use fewer frames or a shorter conversation"
        )
    clips = [clip for _, clip in prompts]
    if generation.prompt_lookup and len(rows) > 1:
        return [
            *reply(model, processor, prompts[:1], max_new_tokens, remember=remember, generation=generation),
            *reply(model, processor, prompts[1:], max_new_tokens, remember=remember, generation=generation),
        ]
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, **generation.arguments()}
    starts = _shared_starts(rows, clips, processor.video_token_id) if generation.shares_starts else None
    chunk = generation.prefill_chunk
    if starts is None or (len(starts) == len(rows) and not remember and not chunk):  # nothing to share
        ids, mask = _left_padded(rows, processor.tokenizer, model.device)
        options |= _visuals([clip for clip in clips if clip is not None])
    else:
        ids, mask, options[model.cache_name] = _read_starts(
            model, processor.tokenizer, rows, clips, starts, remember, chunk
        )
    output = model.generate(input_ids=ids, attention_mask=mask, **options)
    replies = processor.tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in replies]


def _visuals(clips: Sequence[EncodedClip]) -> dict[str, Any]:
    """The model's arguments for clips that are encoded already."""
    tokens = [clip.tokens for clip in clips]
    return {"mm_encoder_outputs": {"video": VideoPandaVisualOutput(pooler_output=tokens)}} if tokens else {}


def _left_padded(rows: Sequence[Sequence[int]], tokenizer: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, (rows, longest row)."""
    filler = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    longest = max(map(len, rows))
    ids = torch.tensor([[filler] * (longest - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def _shared_starts(
    rows: Sequence[Sequence[int]], clips: Sequence[EncodedClip | None], video_token_id: int
) -> dict[int, list[int]] | None:
    """The tokens up to the end of each clip, by the clip's id; None where sharing is impossible."""
    starts: dict[int, list[int]] = {}
    for row, clip in zip(rows, clips):
        if clip is None:
            return None
        end = len(row) - row[::-1].index(video_token_id)
        if starts.setdefault(id(clip), list(row[:end])) != row[:end]:
            return None
    return starts


def _read_starts(
    model: VideoPandaForConditionalGeneration,
    tokenizer: Any,
    rows: Sequence[Sequence[int]],
    clips: Sequence[EncodedClip | None],
    starts: dict[int, list[int]],
    remember: bool,
    chunk: int,
) -> tuple[Tensor, Tensor, Any]:
    """Run the shared starts once. Returns ids and mask of all rows, padded around their start, and the cache."""
    distinct = {id(clip): clip for clip in clips if clip is not None}
    start_ids, start_mask = _left_padded([starts[key] for key in distinct], tokenizer, model.device)
    first = next(iter(distinct.values()))
    known = first.read_starts if remember and len(distinct) == 1 else {}
    key = tuple(starts[id(first)])
    if key not in known:
        tokens = torch.cat([clip.tokens for clip in distinct.values()])
        known[key] = prefill(model, start_ids, start_mask, tokens, chunk)
    cache = deepcopy(known[key]) if known is first.read_starts else known[key]  # generation writes into it
    numbers = {key: number for number, key in enumerate(distinct)}
    owners = torch.tensor([numbers[id(clip)] for clip in clips], device=model.device)
    cache.batch_select_indices(owners)
    ends = [row[len(starts[id(clip)]) :] for row, clip in zip(rows, clips)]
    end_ids, end_mask = _left_padded(ends, tokenizer, model.device)
    ids = torch.cat([start_ids[owners], end_ids], dim=1)  # (rows, longest start + longest end)
    mask = torch.cat([start_mask[owners], end_mask], dim=1)
    return ids, mask, cache


def question_messages(processor: Any, question: str, has_video: bool = True) -> list[Message]:
    """The conversation that asks one question.

    Raises:
        ValueError: the question is empty or contains a placeholder of the model.
    """
    if not question.strip():
        raise ValueError("the question is empty")
    for token in (processor.video_token, processor.image_token):
        if token in question:
            raise ValueError(f"the question must not contain {token}: the video is put in front of it anyway")
    video = [{"type": "video"}] if has_video else []
    return [{"role": "user", "content": [*video, {"type": "text", "text": question}]}]


class Chat:
    """A conversation about one video, which is read and encoded once.

    chat = Chat(model, processor, "clip.mp4")
    chat.ask("How many objects are there?").answer
    chat.ask("Which one is the largest?").answer        # sees the first question and its answer

    With `remember` the language model, too, reads the clip only once; this keeps its keys and values in memory. With a
    `cache` a clip that was encoded before, by any process, is not even read.

    Raises:
        VideoReadError: the video cannot be read.
        DoesNotFitError: the clip does not fit into the context of the language model, or its cost into the memory.
    """

    def __init__(
        self,
        model: VideoPandaForConditionalGeneration,
        processor: Any,
        video: Any,
        *,
        num_frames: int | None = None,
        start: float | None = None,
        end: float | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        remember: bool = True,
        cache: VisualCache | None = None,
        generation: Generation = PLAIN,
    ):
        self.model, self.processor, self.max_new_tokens = model, processor, max_new_tokens
        self.remember, self.generation = remember, generation
        self.messages: list[Message] = []
        if num_frames is None and not hasattr(video, "frames"):
            num_frames = processor.video_processor.num_frames
        request = Request(video, num_frames, start, end, max_new_tokens)
        self.look, self._costs = look(model, processor, request, cache)
        self._encode_seconds = self._costs.pop("encode")

    @property
    def clip(self) -> EncodedClip:
        """The clip as the language model takes it in."""
        return self.look.clip

    def ask(self, question: str) -> Answer:
        """Answer a question in the light of all earlier ones. Timings of later questions hold only their own cost."""
        messages = [*self.messages, *question_messages(self.processor, question, has_video=not self.messages)]
        (answer,) = self._answers([question], [messages])
        self.messages = [*messages, {"role": "assistant", "content": [{"type": "text", "text": answer.answer}]}]
        return answer

    def ask_apart(self, questions: Sequence[str]) -> list[Answer]:
        """Answer questions in one batch; none sees another, nor what was said before."""
        return self._answers(questions, [question_messages(self.processor, question) for question in questions])

    def _answers(self, questions: Sequence[str], conversations: Sequence[Sequence[Message]]) -> list[Answer]:
        began = time.perf_counter()
        prompts = [(messages, self.clip) for messages in conversations]
        ways: dict[str, Any] = {"remember": self.remember, "generation": self.generation}
        texts = reply(self.model, self.processor, prompts, self.max_new_tokens, **ways)
        timings = {**self._costs, "generate": self._encode_seconds + time.perf_counter() - began}
        self._costs, self._encode_seconds = {"decode": 0.0, "preprocess": 0.0}, 0.0
        return [
            Answer(
                question=question,
                answer=text,
                frame_times=self.look.frame_times,
                frame_indices=self.look.frame_indices,
                visual_tokens=len(self.clip.tokens),
                decoder=self.look.decoder,
                timings=timings,
                model=self.model.name_or_path,
            )
            for question, text in zip(questions, texts)
        ]


def ask(
    model: VideoPandaForConditionalGeneration,
    processor: Any,
    video: Any,
    questions: Sequence[str],
    *,
    num_frames: int | None = None,
    start: float | None = None,
    end: float | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    cache: VisualCache | None = None,
    generation: Generation = PLAIN,
) -> list[Answer]:
    """Answer several questions about one video in one batch, each on its own.

    Args:
        video: anything that `read_video` takes, or an object with `.frames`, `.timestamps` and `.duration`.
        questions: at least one question.
        num_frames: frames to look at, uniform in time; default the number that the processor was saved with.
        start, end: the part of the video to look at, in seconds.
        max_new_tokens: longest answer.
        cache: visual tokens on disk, which are used and added to.
        generation: how replies are made; all ways give the same words.

    Raises:
        VideoReadError: the video cannot be read.
        DoesNotFitError: the clip fits neither into the context nor into the memory; the message says what would.
        ValueError: no or empty questions, or a range outside the video.
    """
    if isinstance(questions, str) or not questions:
        raise ValueError("questions must be a list of one or more strings")
    for question in questions:  # a bad one is told before the video is read
        question_messages(processor, question)
    chat = Chat(
        model,
        processor,
        video,
        num_frames=num_frames,
        start=start,
        end=end,
        max_new_tokens=max_new_tokens,
        remember=False,  # all questions go in one batch, which shares the clip anyway
        cache=cache,
        generation=generation,
    )
    return chat.ask_apart(questions)


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
def _load_once(model: str | None) -> tuple[VideoPandaForConditionalGeneration, VideoPandaProcessor]:
    return load(model)
