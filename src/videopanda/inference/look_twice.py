"""Look twice: at the whole clip coarsely, then closely at the frames that the question pays attention to.

    for answer in ask_twice(model, processor, "lecture.mp4", ["Which colour has the small cross?"]):
        print(answer, answer.selection)

The first look is a memory of every second, for models that were trained with one or where `max_visual_tokens` is
given; else `FIRST_TIMES` as many frames as the second look, spread evenly. Families with frames of any size show it at
a quarter of the resolution. The language model then reads the question, and the attention of its tokens to the visual
tokens, the mean over heads and layers, says where to look again: the steps that receive most of it, at least twice as
densely and at full resolution. Nothing is trained for it, and every answer names its frames and their shares.

Dimensions: V visual tokens; S steps of the first look, each a frame or what a memory makes of several.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from videopanda.inference.answer import Chat, build_prompt, question_list, question_messages
from videopanda.inference.clip import ClipSource, EncodedClip, encode_clip
from videopanda.inference.reply import Answer
from videopanda.inference.request import MAX_NEW_TOKENS, ONE_AT_A_TIME
from videopanda.inference.stream_encoder import encode_long
from videopanda.models.attention import eager_attention, unmerged
from videopanda.models.visual import EncodedVisual
from videopanda.plan.planner import DoesNotFitError
from videopanda.video.read import read_video

FIRST_TIMES = 4
DENSER = 2  # frames of the second look per frame of the first


@dataclass(frozen=True, eq=False)
class FirstLook:
    """A clip seen coarsely. spans: first and last second (S, 2) of each step; costs: seconds, as of `encode_clip`."""

    source: Any
    clip: EncodedClip
    spans: tuple[tuple[float, float], ...]
    costs: dict[str, float]


def first_look(
    model: Any,
    processor: Any,
    source: Any,
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    max_visual_tokens: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> FirstLook:
    """Look at a whole file; `num_frames` are those of the second look, `fps` is for a memory.

    Raises:
        VideoReadError: the file cannot be read.
        ValueError: the model needs a whole clip, or the source is a still picture.
    """
    coarse, rules = copy.copy(processor), processor.video_processor
    coarse.video_processor = rules.coarse()
    whole = read_video(source, num_frames=1, background=rules.background, decoder="pyav", timeout=math.inf)
    if whole.is_still:
        raise ValueError("look_twice needs a video, and this is a still image")
    tokens = max_visual_tokens or processor.video_processor.max_visual_tokens
    if tokens is not None:
        rate = 1.0 if fps is None else fps
        with ONE_AT_A_TIME:
            clip, costs, log = encode_long(model, coarse, source, fps=rate, max_visual_tokens=tokens)
        spans = [(start, min(end + 1 / rate, whole.duration)) for start, end, _ in log.steps]
        return FirstLook(source, clip, tuple(spans), costs)
    count = FIRST_TIMES * (rules.num_frames if num_frames is None else num_frames)
    while True:
        try:
            with ONE_AT_A_TIME:
                clip, costs = encode_clip(model, coarse, ClipSource(source, count, None, None), max_new_tokens)
            break
        except DoesNotFitError:
            if count == 1:
                raise
            count = max(1, count // 2)
    middles = [(a + b) / 2 for a, b in zip(clip.times, clip.times[1:])]
    step = clip.times[-1] - middles[-1] if middles else 0.5
    edges = [max(0.0, clip.times[0] - step), *middles, min(clip.times[-1] + step, whole.duration)]
    frames = rules.frames_per_step
    spans = [(edges[i], edges[min(i + frames, len(edges) - 1)]) for i in range(0, len(clip.times), frames)]
    return FirstLook(source, clip, tuple(spans), costs)


@torch.inference_mode()
def attention_to(model: Any, processor: Any, clip: EncodedClip, question: str) -> Tensor:
    """The share of attention that each visual token receives from the tokens after the clip, (V,), with sum 1. Where
    the language model merges tokens, it does not here.

    Raises:
        ValueError: the language model has layers without full attention.
    """
    assert clip.tokens is not None
    ids_N = torch.tensor(build_prompt(processor, question_messages(processor, question), [clip]), device=model.device)
    is_visual_N = ids_N == model.config.video_token_id
    last = int(is_visual_N.nonzero().max()) + 1
    visual = {"video": [EncodedVisual(clip.tokens, clip.layout)]}
    with ONE_AT_A_TIME, unmerged(model):
        before = model(input_ids=ids_N[None, :last], mm_encoder_outputs=visual, use_cache=True, logits_to_keep=1)
        cache = {model.cache_name: before[model.cache_name]}
        with eager_attention(model):  # of the question, not the clip
            layers = model(input_ids=ids_N[None, last:], use_cache=True, output_attentions=True, **cache).attentions
    if not layers or any(layer is None or layer.shape[-1] != len(ids_N) for layer in layers):
        raise ValueError("look_twice needs full attention in every layer, which this language model does not have")
    share_V = torch.stack([layer[0].float().mean((0, 1)) for layer in layers]).mean(0)[is_visual_N]
    return share_V / share_V.sum()


def second_look(
    model: Any,
    processor: Any,
    first: FirstLook,
    question: str,
    *,
    num_frames: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> tuple[EncodedClip, dict[str, float]]:
    """The clip of the frames that a question pays attention to, in order of time, and what it cost."""
    rules = processor.video_processor
    total = rules.num_frames if num_frames is None else num_frames
    assert first.clip.layout is not None
    step_V = first.clip.layout[:, 0].cpu()
    share_S = torch.zeros(len(first.spans)).index_add(
        0, step_V, attention_to(model, processor, first.clip, question).cpu()
    )
    # Whole chunks, so that no token mixes two stretches.
    each = min(total, max(DENSER * rules.frames_per_step, model.chunk_frames or 1))
    chosen = share_S.argsort(descending=True, stable=True)[: max(1, total // each)]
    times: list[float] = []
    reasons: list[str] = []
    for place in sorted(chosen.tolist()):
        start, end = first.spans[place]
        times += [start + (end - start) * (i + 0.5) / each for i in range(each)]
        reasons += [f"{float(share_S[place]):.1%} of the attention is on {start:.2f} to {end:.2f} s"] * each
    video = read_video(first.source, timestamps=times, background=rules.background)
    with ONE_AT_A_TIME:
        clip, costs = encode_clip(model, processor, ClipSource(video, None, None, None), max_new_tokens)
    clip.selection = tuple(reasons)
    return clip, costs


def ask_twice(
    model: Any,
    processor: Any,
    video: Any,
    questions: Sequence[str],
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    max_visual_tokens: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    **options: Any,
) -> list[Answer]:
    """Answer questions about a file, each from the frames that it pays attention to; `options` are those of `Chat`.

    Raises:
        VideoReadError: the video cannot be read.
        DoesNotFitError: the frames of the second look do not fit.
        ValueError: no or empty questions, or as `first_look` and `attention_to`.
    """
    questions = question_list(questions)
    for question in questions:  # refused before the video is read
        question_messages(processor, question)
    if fps is not None and max_visual_tokens is None and processor.video_processor.max_visual_tokens is None:
        raise ValueError("fps is that of a memory: omit it, or pass max_visual_tokens, too")
    first = first_look(
        model,
        processor,
        video,
        num_frames=num_frames,
        fps=fps,
        max_visual_tokens=max_visual_tokens,
        max_new_tokens=max_new_tokens,
    )
    answers, before = [], first.costs
    for question in questions:
        clip, costs = second_look(
            model, processor, first, question, num_frames=num_frames, max_new_tokens=max_new_tokens
        )
        answer = Chat(model, processor, clip, max_new_tokens=max_new_tokens, **options).ask(question)
        spent = {name: before.get(name, 0.0) + costs[name] for name in costs}
        spent["generate"] = spent.pop("encode") + answer.timings["generate"]
        answers.append(replace(answer, timings=spent))
        before = {}
    return answers
