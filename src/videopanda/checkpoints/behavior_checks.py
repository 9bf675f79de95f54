"""Checks that run the model: greedy answers with and without a cache, alone and in a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from videopanda.checkpoints.weight_checks import Check
from videopanda.models.load import load_checkpoint

SEED = 0
NEW_TOKENS = 8
FLOAT32_LIMIT = 2_000_000_000  # parameters up to which the language model runs in float32, else in its own type
# How close the two best words may be for rounding to choose between them.
NEAR_TIE = {torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}


@dataclass(frozen=True)
class SyntheticClip:
    """Frames without a file."""

    frames: np.ndarray
    timestamps: tuple[float, ...]
    duration: float


def make_clip(processor: Any, rows: int, num_frames: int) -> SyntheticClip:
    """A seeded clip of `rows` rows of cells, as wide as the canvas: few visual tokens."""
    video = processor.video_processor
    shape = (num_frames, rows * video.cell_size, video.max_cells * video.cell_size, 3)
    frames = np.random.default_rng(SEED + rows).integers(0, 256, shape, dtype=np.uint8)
    return SyntheticClip(frames, tuple(t + 0.5 for t in range(num_frames)), float(num_frames))


def check_greedy(folder: Path, config: Any, num_parameters: int) -> Check:
    """Greedy answers are the same with and without key-value cache, and alone and in a padded batch."""
    dtype: Any = torch.float32 if num_parameters <= FLOAT32_LIMIT else config.dtype or torch.float32
    try:
        model, processor = load_checkpoint(folder, dtype)
        model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        frames = processor.video_processor.num_frames
        prompts: list[tuple[str, SyntheticClip | None]] = [
            ("What happens in the video?", make_clip(processor, 1, frames)),
            ("Which way does it move, and what colour is it?", make_clip(processor, 2, max(1, frames // 2))),
            ("Hello.", None),
        ]
        alone = [answer(model, processor, [prompt]) for prompt in prompts]
        without = [answer(model, processor, [prompt], use_cache=False) for prompt in prompts]
        together = answer(model, processor, prompts)
    except (OSError, ValueError) as error:
        return Check.of("greedy", [f"processor and model do not answer: {str(error).strip().splitlines()[0]}"], "")
    tie = NEAR_TIE.get(dtype, 1e-3)
    reasons = []
    for number, (question, _) in enumerate(prompts):
        one = GreedyAnswer(alone[number].tokens[0], alone[number].margins[0])
        for how, other in (("without cache", without[number].tokens[0]), ("in a batch", together.tokens[number])):
            step = first_difference(one, other, tie)
            if step is not None:
                reasons.append(f"{question!r}: token {step + 1} differs {how}")
    summary = f"{NEW_TOKENS} tokens of {len(prompts)} prompts are equal with and without cache, alone and in a batch"
    tokens = {question: alone[number].tokens[0].tolist() for number, (question, _) in enumerate(prompts)}
    return Check.of("greedy", reasons, "" if reasons else summary, tokens=tokens)


@dataclass(frozen=True)
class GreedyAnswer:
    """The chosen tokens and the margin of each over the second best; one row per prompt, or a single row."""

    tokens: Tensor
    margins: Tensor


@torch.inference_mode()
def answer(
    model: Any, processor: Any, prompts: Sequence[tuple[str, SyntheticClip | None]], use_cache: bool = True
) -> GreedyAnswer:
    """Greedy answers of `NEW_TOKENS` tokens to questions, each with or without a clip, in one batch."""
    texts = []
    for question, clip in prompts:
        video = [] if clip is None else [{"type": "video"}]
        messages = [{"role": "user", "content": [*video, {"type": "text", "text": question}]}]
        texts.append(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    clips = [clip for _, clip in prompts if clip is not None]
    inputs = processor(text=texts, videos=clips or None, return_tensors="pt").to(model.device, model.dtype)
    out = model.generate(
        **inputs,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        num_beams=1,
        use_cache=use_cache,
        return_dict_in_generate=True,
        output_scores=True,
    )
    best = torch.stack(out.scores, dim=1).float().topk(2).values  # (prompts, new tokens, 2)
    return GreedyAnswer(out.sequences[:, inputs["input_ids"].shape[1] :].cpu(), (best[..., 0] - best[..., 1]).cpu())


def first_difference(one: GreedyAnswer, other: Tensor, tie: float) -> int | None:
    """First step at which two answers differ; None if there is none, or if the two best tokens are tied there."""
    steps = (one.tokens != other).nonzero()
    if not len(steps):
        return None
    step = int(steps[0])
    return None if float(one.margins[step]) <= tie else step
