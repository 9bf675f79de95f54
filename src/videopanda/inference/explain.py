"""Which frames and regions an answer depends on: how far its probability falls without their visual tokens.

    explanation = explain(model, processor, "clip.mp4", "Which colour does the circle become?")
    explanation.frames[5].fall          # 0.93: without frame 5 the answer is nearly ruled out

Occlusion (Zeiler and Fergus, 1311.2901), applied to visual tokens: those of a frame, or of a region of it, are replaced
by the tokens of a clip that shows nothing, and the probability of the same answer is computed again. No approximation
is made; what comes before the first changed token is prefilled once for all. Where several frames show the same, no
single one of them is missed. Therefore each frame is also shown alone, all others being empty; the ranking adds both,
the first and the last term of a Shapley value. The vision part may carry traces of a frame into the tokens of its
neighbors, which stay.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from videopanda.inference.answer import Chat, build_prompt, question_messages
from videopanda.inference.batch import Batch, Prompt, prefill
from videopanda.inference.clip import encode_prepared, prepare_clips
from videopanda.inference.kv_prefix import CacheLayout, KVPrefix
from videopanda.inference.reply import Answer

REGIONS = 4  # maximum rows and columns of regions per frame
FRAMES_WITH_REGIONS = 3  # the most important ones


class _Blank(NamedTuple):
    """Frames without a file."""

    frames: Any
    timestamps: tuple[float, ...]
    duration: float


@dataclass(frozen=True)
class FrameEffect:
    """A frame that was knocked out.

    fall: of the answer's probability: with all frames, minus without this one.
    alone: rise of its probability: with this frame only, minus with none.
    weight: sum of the same two differences for log-probabilities; the ranking uses this.
    """

    time: float
    index: int | None
    fall: float
    alone: float
    weight: float


@dataclass(frozen=True)
class RegionEffect:
    """A region that was knocked out in one frame; its box is in fractions of the picture's width and height."""

    frame: int
    left: float
    top: float
    right: float
    bottom: float
    fall: float


@dataclass(frozen=True)
class Explanation:
    """An answer, its probability, and what each frame, and regions of the most important ones, contribute."""

    answer: Answer
    probability: float
    frames: tuple[FrameEffect, ...]
    regions: tuple[RegionEffect, ...]

    @property
    def ranking(self) -> list[int]:
        """Places of the frames, the one that matters most first."""
        return sorted(range(len(self.frames)), key=lambda place: -self.frames[place].weight)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **self.answer.as_dict(),
            "probability": self.probability,
            "frames": [asdict(frame) for frame in self.frames],
            "regions": [asdict(region) for region in self.regions],
        }


def explain(
    model: Any, processor: Any, video: Any, question: str, *, regions: bool = True, **options: Any
) -> Explanation:
    """Answer a question and measure which frames and regions the answer depends on; `options` are those of `Chat`.

    Raises:
        ValueError: the family does not say where its visual tokens come from, or as `ask`.
    """
    chat = Chat(model, processor, video, **options)
    answer, clip = chat.ask(question), chat.clip
    if clip.layout is None:
        raise ValueError("this model family does not report which frame a visual token comes from")
    scorer = _Scorer(chat, answer)
    frame_V = clip.layout[:, 0].cpu()
    places = sorted(set(frame_V.tolist()) - {-1})
    whole = scorer.log_probability(None)
    nothing = scorer.log_probability(frame_V >= 0)
    effects = {}
    for place in places:
        without, alone = scorer.log_probability(frame_V == place), scorer.log_probability(frame_V != place)
        fall, rise = math.exp(whole) - math.exp(without), math.exp(alone) - math.exp(nothing)
        effects[place] = (fall, rise, whole - without + alone - nothing)
    indices = answer.frame_indices or [None] * len(answer.frame_times)
    frames = tuple(
        FrameEffect(moment, index, *effects.get(place, (0.0, 0.0, 0.0)))
        for place, (moment, index) in enumerate(zip(answer.frame_times, indices))
    )
    explanation = Explanation(answer, math.exp(whole), frames, ())
    if not regions:
        return explanation
    parts = []
    for place in explanation.ranking[:FRAMES_WITH_REGIONS]:
        for box, mask_V in _regions(clip.layout.cpu(), place):
            value = scorer.log_probability(mask_V)
            parts.append(RegionEffect(place, *box, math.exp(whole) - math.exp(value)))
    return replace(explanation, regions=tuple(parts))


def _regions(layout_V4: Tensor, frame: int) -> list[tuple[tuple[float, float, float, float], Tensor]]:
    """Regions of a frame, of one or more cells: their boxes, and the tokens of each, bool (V,)."""
    is_cell_V = (layout_V4[:, 0] == frame) & (layout_V4[:, 1] >= 0) & (layout_V4[:, 2] >= 0)
    if not is_cell_V.any():
        return []
    low, high = layout_V4[is_cell_V, 1:3].min(0).values, layout_V4[is_cell_V, 1:3].max(0).values
    height, width = (high - low + 1).tolist()
    rows, columns = min(height, REGIONS), min(width, REGIONS)
    row_V, column_V = (layout_V4[:, 1] - low[0]) * rows // height, (layout_V4[:, 2] - low[1]) * columns // width
    found = []
    for row in range(rows):
        for column in range(columns):
            inside_V = is_cell_V & (row_V == row) & (column_V == column)
            if not inside_V.any():
                continue
            first, last = (layout_V4[inside_V, 1:3] - low).min(0).values, (layout_V4[inside_V, 1:3] - low).max(0).values
            (top, left), (bottom, right) = first.tolist(), (last + 1).tolist()
            found.append(((left / width, top / height, right / width, bottom / height), inside_V))
    return found


class _Scorer:
    """Log-probabilities of one answer to one question, with some visual tokens knocked out."""

    def __init__(self, chat: Chat, answer: Answer):
        self.model, self.clip = chat.engine.model, chat.clip
        self.layout = CacheLayout.of(self.model.config.text_config)
        self.ids = build_prompt(chat.processor, question_messages(chat.processor, answer.question), [self.clip])
        self.answer = answer.token_ids
        token = chat.processor.image_token_id if self.clip.kind == "image" else chat.processor.video_token_id
        self.columns = [place for place, id_ in enumerate(self.ids) if id_ == token]
        self.blank_VE = _blank_tokens(chat)
        self.whole: KVPrefix | None = None

    @torch.inference_mode()
    def log_probability(self, knocked_out_V: Tensor | None) -> float:
        """Log-probability of the answer without these tokens; None: with all. The first call must be with all."""
        assert self.clip.tokens is not None
        if knocked_out_V is None:
            prompt = Prompt(self.ids, [self.clip])
        else:
            mask_V1 = knocked_out_V[:, None].to(self.clip.tokens.device)
            tokens_VE = torch.where(mask_V1, self.blank_VE, self.clip.tokens)
            prompt = self._after_what_is_known(tokens_VE, int(knocked_out_V.nonzero()[0]))
        (kv,), logits_BV = prefill(self.model, self.layout, [prompt])
        if knocked_out_V is None:
            self.whole = kv.clone()
        return self._score(kv, logits_BV)

    def _after_what_is_known(self, tokens_VE: Tensor, first: int) -> Prompt:
        """The prompt from the first changed token on, after the KV cache of what precedes it."""
        assert self.whole is not None
        changed, start = self.clip, self.columns[first]
        if self.whole.is_ragged or self.layout.has_states or start == 0:
            return Prompt(self.ids, [replace(changed, tokens=tokens_VE)])
        layout = None if changed.layout is None else changed.layout[first:]
        rest = replace(changed, tokens=tokens_VE[first:], layout=layout)
        return Prompt(self.ids[start:], [rest], self.whole.cut(start))

    def _score(self, kv: KVPrefix, logits_BV: Tensor) -> float:
        batch: Batch[str] = Batch(self.model, self.layout)
        batch.join(["answer"], [kv])
        total = 0.0
        for place, token in enumerate(self.answer):
            if place:
                logits_BV = batch.step([self.answer[place - 1]])
            total += float(logits_BV[0].float().log_softmax(-1)[token])
        return total


def _blank_tokens(chat: Chat) -> Tensor:
    """The visual tokens (V, E) of a clip of the same size and times that shows nothing: its mean color everywhere."""
    clip = chat.clip
    if clip.frames is None or clip.tokens is None:
        raise ValueError("a clip from the disk cache has no frames: explain without a cache")
    color = np.mean([np.asarray(frame).mean((0, 1)) for frame in clip.frames], axis=0).round().astype(np.uint8)
    frames: Any = [np.broadcast_to(color, np.shape(frame)) for frame in clip.frames]
    if len({np.shape(frame) for frame in frames}) == 1:
        frames = np.stack(frames)
    (blank,) = prepare_clips(chat.processor, [_Blank(frames, clip.times, 1.0)], clip.kind)
    encode_prepared(chat.engine.model, [blank])
    if blank.tokens is None or blank.tokens.shape != clip.tokens.shape:
        raise ValueError("this model family gives an empty clip of the same size a different number of visual tokens")
    return blank.tokens


def picture(explanation: Explanation) -> Any:
    """The frames with a bar under each, and the regions that matter, as a PIL image.

    Raises:
        ValueError: the clip came from the disk cache, which keeps no frames.
    """
    from videopanda.video.evidence_sheet import evidence_sheet

    answer = explanation.answer
    if answer.frames is None:
        raise ValueError("a clip from the disk cache has no frames: explain without a cache")
    most = max((region.fall for region in explanation.regions), default=0.0) or 1.0
    boxes: dict[int, list[tuple[float, float, float, float, float]]] = {}
    for region in explanation.regions:
        box = (region.left, region.top, region.right, region.bottom, min(1.0, max(0.0, region.fall / most)))
        boxes.setdefault(region.frame, []).append(box)
    title = f"{answer.question}  {answer.answer}  ({explanation.probability:.0%})"
    falls = [frame.fall for frame in explanation.frames]
    return evidence_sheet(answer.frames, answer.frame_times, falls, boxes, title)
