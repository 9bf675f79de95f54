"""Which frames and regions an answer depends on: how far its probability falls without their visual tokens.

    explanation = explain(model, processor, "clip.mp4", "Which colour does the circle become?")
    explanation.frames[5].fall          # 0.93: without frame 5 the answer is nearly ruled out

Occlusion (Zeiler and Fergus, 1311.2901), applied to visual tokens: those of a frame, or of a region of it, are replaced
by the tokens of a clip that shows nothing, and the probability of the same answer is computed again. No approximation
is made; what comes before the first changed token is prefilled once for all. If several frames show the same, the
answer needs no single one of them. Therefore each frame is also shown alone, with all others empty; the ranking adds
both, the first and the last term of a Shapley value. The vision part may carry traces of a frame into the tokens of its
neighbors, which stay.

The library and the server run one generator, `study`, which yields requests for an engine and gets their replies.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from videopanda.inference.answer import Chat, build_prompt, question_messages
from videopanda.inference.clip import EncodedClip, prepare_clips
from videopanda.inference.reply import Answer, as_html
from videopanda.inference.request import ChangedTokens, Finished, GenerateRequest, Progress, Round, Steps, run

REGIONS = 4  # maximum rows and columns of regions per frame
FRAMES_WITH_REGIONS = 3  # the most important ones
_TOGETHER = 8  # requests at a time
_OTHER_TOKENS = (
    "this model gives an empty clip of the same size other visual tokens, so frames cannot be knocked out: with hybrid "
    "resolution, choose hybrid.policy=every or ends"
)


class _Blank(NamedTuple):
    """Frames without a file."""

    frames: Any
    timestamps: tuple[float, ...]
    duration: float


@dataclass(frozen=True)
class FrameEffect:
    """What the probability of the answer loses without one frame, and gains with it alone.

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
    """What the probability loses without a region of a frame; box in fractions of the picture's width and height."""

    frame: int
    left: float
    top: float
    right: float
    bottom: float
    fall: float


@dataclass(frozen=True)
class Effects:
    """What each frame, and regions of the most important ones, contribute to the probability of an answer.

    probability: of the answer, with the whole clip.
    empty: with a clip that shows nothing.
    """

    probability: float
    empty: float
    frames: tuple[FrameEffect, ...]
    regions: tuple[RegionEffect, ...]

    @property
    def ranking(self) -> list[int]:
        """Indices of the frames, the most important one first."""
        return sorted(range(len(self.frames)), key=lambda place: -self.frames[place].weight)


@dataclass(frozen=True)
class Explanation(Effects):
    """An answer, and what it depends on."""

    answer: Answer

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        effects = asdict(Effects(self.probability, self.empty, self.frames, self.regions))
        return {**self.answer.as_dict(), **effects}

    def _repr_html_(self) -> str:
        return as_html(picture(self))


def explain(
    model: Any,
    processor: Any,
    video: Any,
    question: str,
    *,
    regions: bool = True,
    progress: Progress | None = None,
    **options: Any,
) -> Explanation:
    """Answer a question and measure which frames and regions the answer depends on; `options` are those of `Chat`.

    `progress` is called with the numbers of requests that are done, and of all.

    Raises:
        ValueError: the family does not say where its visual tokens come from, or as `ask`.
    """
    chat = Chat(model, processor, video, **options)
    frames = chat.clip.frames
    if frames is None:
        raise ValueError(
            "explain needs the frames of the clip, which neither a memory (fps, max_visual_tokens, last_frames) nor a "
            "cache keeps: pass num_frames"
        )
    answer, clip = chat.ask(question), chat.clip
    ids = build_prompt(processor, question_messages(processor, question), [clip])
    effects = run(chat.engine.generate, study(processor, clip, frames, ids, answer.token_ids, regions), progress)
    return Explanation(**vars(effects), answer=answer)


def study(
    processor: Any,
    clip: EncodedClip,
    frames: Sequence[np.ndarray] | np.ndarray,
    prompt_ids: Sequence[int],
    reply: Sequence[int],
    regions: bool = True,
) -> Steps[Effects]:
    """Yields requests that score a reply with frames or regions removed; returns their effects.

    Args:
        clip: the only one of the prompt, encoded.
        frames: its frames, T of uint8 (H, W, 3).
        prompt_ids, reply: token ids.

    Raises:
        ValueError: see `explain`.
    """
    if clip.layout is None or clip.tokens is None:
        raise ValueError("this model family does not report which frame a visual token comes from")
    tokens_VE, blank = clip.tokens, _blank(processor, clip, frames)

    def request(about: EncodedClip, changed: ChangedTokens | None = None) -> GenerateRequest:
        return GenerateRequest(prompt_ids, [about], len(reply), scored=reply, changed=changed)

    layout_V4 = clip.layout.cpu()
    frame_V = layout_V4[:, 0]
    places = sorted(set(frame_V.tolist()) - {-1})
    left = 2 * len(places)  # requests after the next round
    if regions and places:
        left += min(FRAMES_WITH_REGIONS, len(places)) * len(_regions(layout_V4, places[0]))
    whole, nothing = _scores((yield Round([request(clip), request(blank)], left)))
    if blank.layout is None or blank.tokens is None or not torch.equal(blank.layout.cpu(), layout_V4):
        raise ValueError(_OTHER_TOKENS)
    blank_VE = blank.tokens

    def log_probabilities(masks: Sequence[Tensor]) -> Steps[list[float]]:
        """Without the tokens of each mask (V,)."""
        nonlocal left
        found: list[float] = []
        for at in range(0, len(masks), _TOGETHER):
            requests = []
            for mask_V in masks[at : at + _TOGETHER]:
                if not mask_V.any():  # the only frame, kept alone
                    requests.append(request(clip))
                    continue
                changed_VE = torch.where(mask_V[:, None].to(tokens_VE.device), blank_VE, tokens_VE)
                requests.append(request(clip, ChangedTokens(changed_VE, int(mask_V.nonzero()[0]))))
            left = max(0, left - len(requests))  # frames may differ in their number of regions
            found += _scores((yield Round(requests, left)))
        return found

    without = yield from log_probabilities([frame_V == place for place in places])
    alone = yield from log_probabilities([frame_V != place for place in places])
    effects = {
        place: (math.exp(whole) - math.exp(minus), math.exp(only) - math.exp(nothing), whole - minus + only - nothing)
        for place, minus, only in zip(places, without, alone)
    }
    indices = clip.indices or [None] * len(clip.times)
    shown = tuple(
        FrameEffect(moment, index, *effects.get(place, (0.0, 0.0, 0.0)))
        for place, (moment, index) in enumerate(zip(clip.times, indices))
    )
    found = Effects(math.exp(whole), math.exp(nothing), shown, ())
    if not regions:
        return found
    parts = [(place, *part) for place in found.ranking[:FRAMES_WITH_REGIONS] for part in _regions(layout_V4, place)]
    scores = yield from log_probabilities([mask_V for _, _, mask_V in parts])
    falls = [math.exp(whole) - math.exp(score) for score in scores]
    boxes = tuple(RegionEffect(place, *box, fall) for (place, box, _), fall in zip(parts, falls))
    return Effects(found.probability, found.empty, shown, boxes)


def _scores(replies: Sequence[Finished]) -> list[float]:
    return [reply.log_probability for reply in replies]


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


def _blank(processor: Any, clip: EncodedClip, frames: Sequence[np.ndarray] | np.ndarray) -> EncodedClip:
    """A clip of the same size and times that shows nothing: the mean color everywhere."""
    color = np.mean([np.asarray(frame).mean((0, 1)) for frame in frames], axis=0).round().astype(np.uint8)
    empty: Any = [np.broadcast_to(color, np.shape(frame)) for frame in frames]
    if len({np.shape(frame) for frame in empty}) == 1:
        empty = np.stack(empty)
    (blank,) = prepare_clips(processor, [_Blank(empty, clip.times, 1.0)], clip.kind)
    token = processor.image_token if clip.kind == "image" else processor.video_token
    if blank.placeholder_text.count(token) != clip.placeholder_text.count(token):
        raise ValueError(_OTHER_TOKENS)
    return blank


def picture(explanation: Explanation) -> Any:
    """The frames with a bar under each, and the regions that matter, as a PIL image."""
    from videopanda.video.evidence_sheet import evidence_sheet

    answer = explanation.answer
    assert answer.frames is not None  # `explain` needed them
    most = max((region.fall for region in explanation.regions), default=0.0) or 1.0
    boxes: dict[int, list[tuple[float, float, float, float, float]]] = {}
    for region in explanation.regions:
        box = (region.left, region.top, region.right, region.bottom, min(1.0, max(0.0, region.fall / most)))
        boxes.setdefault(region.frame, []).append(box)
    title = f"{answer.question}  {answer.answer}  ({explanation.probability:.0%})"
    falls = [frame.fall for frame in explanation.frames]
    return evidence_sheet(answer.frames, answer.frame_times, falls, boxes, title)
