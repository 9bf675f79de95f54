"""When something happens in a video: intervals with a confidence, by questions about the whole and about windows of it.

    found = videopanda.find("clip.mp4", "the red circle turns white")
    found.intervals[0]                # Interval(start=2.5, end=3.5, confidence=0.91)

The video is read once, with more frames than the model takes. Overlapping windows, short and long, become clips of
their own, and the model is asked about each whether the description is true; the probability of "yes" is its score. The
interval is the one whose overlap with the windows, as a share of the shorter of both, fits the scores best by least
squares: the constant is the baseline of this description, which a model that says yes to anything raises everywhere;
the slope is what the interval adds to it, and the confidence.

What lasts ("the circle is white", told by a form of to be or to have) gets this interval, after a second pass over
windows around its ends. Anything else happens at some time, and to small models "a circle appears" is true as long as
the circle is there. So the model is asked when, about several choices of frames of the whole video. A reply states an
interval: the second around one time, or what is between two ("between 2.5 and 3.5 seconds", asked of a model that is
told the times of its frames). What most of them have in common, or those next to an end of the interval if they do not
agree, is reported, widened to a second. The confidence is then the share of these replies, or that of the windows if it
is less.

Nothing here is trained: it needs a model that says yes or no, and when. The library and the server run one generator,
`search`, which yields requests for an engine and gets their replies.

Dimensions: W windows; C candidate intervals.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from videopanda.inference.answer import build_prompt, loaded_model, question_messages
from videopanda.inference.clip import ClipSource, prepare_clips
from videopanda.inference.engine import Engine
from videopanda.inference.request import Finished, GenerateRequest, Progress, Round, Steps, run
from videopanda.video.read import read_video
from videopanda.video.times import TIME, is_marked, seconds_of

NUM_FRAMES = 32  # of the whole video: times are as exact as these are close
MOST_FRAMES = 512  # that can be searched: the model is asked about two windows for every three of them
LEAST = 0.45  # confidence of an interval that is reported
DENIED = 0.25  # a description that is less likely than this, over all windows, is denied
MOST_INTERVALS = 3
IS_TRUE, WHEN, EXACTLY_WHEN = (
    "Is it true that {description}?",
    "Tell me when {description}.",
    "Tell me exactly when {description}.",
)
_LASTS = re.compile(r"\b(is|are|was|were|has|have|had|there's|it's)\b", re.IGNORECASE)
_TO = re.compile(r"\s*(?:-|–|to|and|until)\s*")
_REPLY_TOKENS = 24
_CHOICES = 4  # choices of frames of the whole video
_TOGETHER = 8  # clips that are in memory at the same time

Window = tuple[int, int]  # first frame, and the one after the last


@dataclass(frozen=True)
class Interval:
    """Seconds from `start` to `end`, and a confidence from 0 to 1."""

    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class Found:
    """Where a description is true.

    intervals: the most likely one first; empty if the model does not see it at any time.
    most_likely: confidence of the best interval, reported or not.
    everywhere: mean score of the windows.
    reason: why there is no interval: the model denies the description, or it neither denies it nor singles out a time.
    windows: start, end and score of every window that was asked about.
    frame_times: seconds of the frames that were read.
    """

    description: str
    intervals: tuple[Interval, ...]
    most_likely: float
    everywhere: float
    reason: str
    windows: tuple[tuple[float, float, float], ...]
    frame_times: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def find(
    video: Any,
    description: str,
    *,
    model: str | Path | tuple[Any, Any] | None = None,
    num_frames: int | None = None,
    fps: float | None = None,
    start: float | None = None,
    end: float | None = None,
    progress: Progress | None = None,
) -> Found:
    """Find when something happens in a video; see the top of this module.

    Args:
        video: anything that `read_video` takes, or an object with `.frames`, `.timestamps` and `.duration`.
        description: a statement, such as "the red circle turns white".
        model: a folder, what `load` returned, or None for the bundled model.
        num_frames: frames of the video, uniform in time; default `NUM_FRAMES`.
        fps: frames per second of the video, instead.
        start: start of the range to search, in seconds.
        end: end of the range to search, in seconds.
        progress: called with the numbers of requests that are done, and of all, as far as known.

    Raises:
        VideoReadError: the video cannot be read.
        ValueError: no description, a still picture, a range outside the video, fewer than two frames.
    """
    check_description(description)
    ClipSource(video, num_frames, start, end, fps)  # refuses choices that do not go together
    network, processor = loaded_model(model)
    if not hasattr(video, "frames"):
        choice: dict[str, Any] = {"num_frames": num_frames or NUM_FRAMES} if fps is None else {"fps": fps}
        video = read_video(video, start=start, end=end, background=processor.video_processor.background, **choice)
    return run(Engine(network, processor).generate, search(processor, video, description), progress)


def check_description(description: str) -> None:
    """Raises ValueError for a description that says nothing."""
    if not description.strip(" \t\n.?!"):
        raise ValueError('the description is empty: say what happens, as in "the red circle turns white"')


def search(processor: Any, video: Any, description: str) -> Steps[Found]:
    """Yields requests about windows of a decoded video, gets their replies, and returns what was found.

    Raises:
        ValueError: see `find`.
    """
    check_description(description)
    if getattr(video, "is_still", False):
        raise ValueError("this is a still image, in which nothing can happen: pass a video")
    if len(video.frames) < 2:
        raise ValueError(
            "one frame is not enough to tell when something happens: pass more frames (num_frames or fps), or a longer "
            "range"
        )
    if len(video.frames) > MOST_FRAMES:
        raise ValueError(
            f"{len(video.frames):,} frames are more than the {MOST_FRAMES} that are searched at once: pass fewer "
            "(num_frames or fps), or a shorter range"
        )
    said = description.strip().rstrip(".?!")
    when_text = WHEN if processor.timestamps == "none" else EXACTLY_WHEN
    is_true, when = (question_messages(processor, text.format(description=said)) for text in (IS_TRUE, when_text))
    count = len(video.frames)
    size = min(processor.video_processor.num_frames, max(2, count // 2))
    yes_tokens, edges, scores = _yes_tokens(processor), _edges(video), dict[Window, float]()

    def ask(
        choices: Sequence[tuple[list[int], float]], messages: Any, later: int = 0, **fields: Any
    ) -> Steps[list[Finished]]:
        """Replies about clips: some of the frames, and the seconds that these stand for. `later`: questions after."""
        ends: list[Finished] = []
        for at in range(0, len(choices), _TOGETHER):
            requests = []
            for part in choices[at : at + _TOGETHER]:
                (clip,) = prepare_clips(processor, [_part(video, *part)])
                requests.append(GenerateRequest(build_prompt(processor, messages, [clip]), [clip], **fields))
            ends += yield Round(requests, len(choices) - at - len(requests) + later)
        return ends

    def score(windows: Sequence[Window], later: int = 0) -> Steps[None]:
        parts = [(_spread(window, size), float(edges[window[1]] - edges[window[0]])) for window in windows]
        replies = yield from ask(parts, is_true, later, max_new_tokens=1, first_tokens=yes_tokens)
        scores.update(zip(windows, (sum(reply.first_probabilities) for reply in replies)))

    lasts, choices = bool(_LASTS.search(said)), _choices(count, processor.video_processor.num_frames)
    yield from score(_coarse(count, size), later=size if lasts else len(choices))
    if lasts:
        yield from score([window for window in _fine(count, size, _fit(scores, count)) if window not in scores])
        intervals, most_likely = _lasting(scores, edges)
    else:
        whole = [(chosen, float(edges[-1] - edges[0])) for chosen in choices]
        replies = yield from ask(whole, when, max_new_tokens=_REPLY_TOKENS)
        first, last = float(edges[0]), float(edges[-1])
        origin = first if processor.timestamps == "none" else 0.0  # else the model is told times of the file
        stated = [_stated(reply.text, origin, first, last) for reply in replies]
        intervals, most_likely = _moment(stated, _fit(scores, count), edges)
    asked = tuple((float(edges[a]), float(edges[b]), value) for (a, b), value in sorted(scores.items()))
    everywhere, reason = float(np.mean(list(scores.values()))), ""
    if not intervals and everywhere < DENIED:
        reason = f"not found: the model does not see this at any time (at most {most_likely:.0%} likely)"
    elif not intervals:
        reason = (
            f"cannot tell when: at {everywhere:.0%} on average, the model neither denies this nor singles out a time: "
            "it may last throughout, or be of a kind that the model cannot see"
        )
    times = tuple(map(float, video.timestamps))
    return Found(description, tuple(intervals), most_likely, everywhere, reason, asked, times)


def _yes_tokens(processor: Any) -> list[int]:
    """The tokens with which a reply of "yes", and none of "no", may begin."""

    def firsts(*words: str) -> set[int]:
        texts = [space + word for word in words for space in ("", " ")]
        return {ids[0] for ids in processor.tokenizer(texts, add_special_tokens=False)["input_ids"]}

    found = sorted(firsts("yes", "Yes") - firsts("no", "No"))
    if not found:
        raise ValueError("the tokenizer of this model cannot tell yes from no by the first token")
    return found


# -- windows -----------------------------------------------------------------------------------------------------------
def _edges(video: Any) -> np.ndarray:
    """Seconds between which each frame stands for the video, (frames + 1,)."""
    times = np.asarray(video.timestamps, float)
    first, last = getattr(video, "start", 0.0), getattr(video, "end", video.duration)
    return np.concatenate([[first], (times[1:] + times[:-1]) / 2, [max(last, times[-1])]])


def _spread(window: Window, size: int) -> list[int]:
    """At most `size` frames of a window, evenly spread."""
    first, end = window
    count = min(size, end - first)
    return [first + int((i + 0.5) * (end - first) / count) for i in range(count)]


def _choices(count: int, size: int) -> list[list[int]]:
    """Choices of frames of the whole video, evenly spread, that have none in common."""
    if count <= size:
        return [list(range(count))]
    firsts = np.linspace(0, count / size, min(_CHOICES, count // size), endpoint=False)
    return [[int(first + i * count / size) for i in range(size)] for first in firsts]


def _part(video: Any, chosen: list[int], seconds: float) -> Any:
    """Some frames of a video as a clip of its own."""
    frames = video.frames[chosen] if isinstance(video.frames, np.ndarray) else [video.frames[i] for i in chosen]
    times = np.asarray(video.timestamps)[chosen]
    return SimpleNamespace(frames=frames, timestamps=times, duration=seconds)


def _coarse(count: int, size: int) -> list[Window]:
    """Windows of half, once and twice as many frames as the model takes; longer ones overlap by half."""
    found = set()
    for wanted, overlap in ((size // 2, 1), (size, 2), (2 * size, 2)):
        length = min(count, max(2, wanted))
        starts = np.linspace(0, count - length, max(1, -(-overlap * count // length) - overlap + 1)).round().astype(int)
        found |= {(int(first), int(first) + length) for first in starts}
    return sorted(found)


def _fine(count: int, size: int, fit: "_Fit") -> list[Window]:
    """Windows of half as many frames as the model takes that begin or end near an end of the interval."""
    length, found = min(count, max(2, size // 2)), set()
    for end in fit.window:
        found |= {(first, first + length) for first in range(end - length, end + 1)}
    return sorted(window for window in found if window[0] >= 0 and window[1] <= count)


# -- the interval that fits --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Fit:
    """The score of a window is `base`, plus `gain` times its overlap with the best interval."""

    window: Window
    base: float
    gain: float

    @property
    def confidence(self) -> float:
        """The gain, between 0 and 1."""
        return min(1.0, max(0.0, self.gain))


def _overlaps(windows_W2: np.ndarray, candidates_C2: np.ndarray) -> np.ndarray:
    """Frames in common, as a share of the shorter of both, (C, W)."""
    (a_W, b_W), (a_C1, b_C1) = windows_W2.T, candidates_C2.T[..., None]
    shared_CW = np.minimum(b_W, b_C1) - np.maximum(a_W, a_C1)
    return shared_CW.clip(min=0) / np.minimum(b_W - a_W, b_C1 - a_C1)


def _fit(scores: dict[Window, float], count: int) -> _Fit:
    """The interval that explains the scores best."""
    score_W = np.array(list(scores.values()))
    ends = sorted({*range(0, count + 1, -(-count // 128)), *(end for window in scores for end in window)})
    candidates_C2 = np.array([(a, b) for i, a in enumerate(ends) for b in ends[i + 1 :]])
    share_CW = _overlaps(np.array(list(scores)), candidates_C2)
    mean_C = share_CW.mean(1)
    covariance_C = ((share_CW - mean_C[:, None]) * (score_W - score_W.mean())).mean(1)
    variance_C = share_CW.var(1)
    gain_C = np.where(variance_C > 1e-6, covariance_C / np.maximum(variance_C, 1e-6), 0.0)
    explained_C = np.where(gain_C > 0, covariance_C * gain_C, 0.0)
    best = int(explained_C.argmax())
    gain = float(gain_C[best])
    first, end = candidates_C2[best].tolist()
    return _Fit((first, end), float(score_W.mean() - gain * mean_C[best]), gain)


def _lasting(scores: dict[Window, float], edges: np.ndarray) -> tuple[list[Interval], float]:
    """The intervals, each fitted to what the ones before it leave unexplained, and the highest confidence."""
    left, intervals, most_likely = dict(scores), list[Interval](), 0.0
    while len(intervals) < MOST_INTERVALS:
        fit = _fit(left, len(edges) - 1)
        most_likely = max(most_likely, fit.confidence)
        start, end = (float(edges[place]) for place in fit.window)
        if fit.confidence < LEAST or any(start < one.end and one.start < end for one in intervals):
            break
        intervals.append(Interval(start, end, fit.confidence))
        share_W = _overlaps(np.array(list(left)), np.array([fit.window]))[0]
        left = {window: score - fit.gain * share for (window, score), share in zip(left.items(), share_W.tolist())}
    return intervals, most_likely


# -- the time that is stated -------------------------------------------------------------------------------------------
def _stated(reply: str, origin: float, first: float, last: float) -> tuple[float, float] | None:
    """The interval that a reply states, within the video: the second around one time, or from one to another."""
    found, times = list(TIME.finditer(reply)), list[float]()
    for match, after in zip_longest(found, found[1:]):
        # "between 2.5 and 3.5 seconds": what stands before a time without a unit has its unit.
        if is_marked(match) or (after and is_marked(after) and _TO.fullmatch(reply[match.end() : after.start()])):
            times.append(origin + seconds_of(match))
    if not times:
        return None
    start, end = (times[0] - 0.5, times[0] + 0.5) if len(times) == 1 or times[1] <= times[0] else times[:2]
    start, end = max(first, start), min(last, end)
    return (start, end) if start < end else None


def _moment(stated: Sequence[tuple[float, float] | None], fit: _Fit, edges: np.ndarray) -> tuple[list[Interval], float]:
    """What the stated intervals have in common, widened to a second, and a confidence.

    Those count that overlap with the one that most others overlap with, or with the one nearest to an end of the fitted
    interval if several do so equally.
    """
    ends = [float(edges[place]) for place in fit.window if 0 < place < len(edges) - 1]
    known = [one for one in stated if one is not None]
    best: tuple[int, float, list[tuple[float, float]]] | None = None
    for one in known:
        middle, agreeing = sum(one) / 2, list[tuple[float, float]]()
        for other in sorted(known, key=lambda other: abs(sum(other) / 2 - middle)):
            if _shared([one, *agreeing, other]):
                agreeing.append(other)
        near = -min((abs(end - middle) for end in ends), default=0.0)
        best = max(best or (0, 0.0, []), (len(agreeing), near, agreeing))
    if best is None:
        return [], 0.0
    confidence = min(best[0] / len(stated), fit.confidence)
    start, end = _shared(best[2]) or best[2][0]
    middle, half = (start + end) / 2, max(0.5, (end - start) / 2)
    start, end = max(float(edges[0]), middle - half), min(float(edges[-1]), middle + half)
    return [Interval(start, end, confidence)] if confidence >= LEAST else [], confidence


def _shared(intervals: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    start, end = max(a for a, _ in intervals), min(b for _, b in intervals)
    return (start, end) if start < end else None
