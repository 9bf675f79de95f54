"""Questions with true answers, and captions, for a scene.

Twelve families, each asked only where the scene makes the answer certain. Answers are balanced by construction (pairs
in random order, "no" as likely as "yes", rare counts kept more often), so a model that ignores the video scores low.

    for q in make_questions(scene, rng):
        print(q.family, q.question, q.answer)     # motion_direction  Which way does the red circle move?  left
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from videopanda.data.worlds.scenes.world import COLOURS, SHAPES, Scene, Thing

FAMILIES = (
    "colour",
    "shape",
    "size",
    "count",
    "existence",
    "spatial_relation",
    "motion_direction",
    "speed",
    "appearance_order",
    "state_change",
    "event_count",
    "duration",
)
T = TypeVar("T")
DESCRIBE = "Describe the video."
DESCRIBE_FRAME = "Describe frame {number}."


@dataclass(frozen=True)
class Question:
    """One question and its only right answer. Captions carry the family "caption"."""

    family: str
    question: str
    answer: str


def make_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """All questions that can be asked about a scene, thinned for balance, in random order."""
    return in_random_order((question for ask in _ASKERS for question in ask(scene, rng)), rng)


def in_random_order(questions: Iterable[Question], rng: np.random.Generator) -> list[Question]:
    """The questions, shuffled."""
    asked = list(questions)
    return [asked[i] for i in rng.permutation(len(asked))]


def make_captions(scene: Scene, num_frames: int) -> list[Question]:
    """The description of the whole clip, then of each of `num_frames` frames that are uniform in time."""
    times = frame_times(scene.duration, num_frames)
    return captions(describe(scene), [describe_moment(scene, time) for time in times])


def brief_captions(scene: Scene) -> list[Question]:
    """The caption of a clip as short as those of the web: what is there, and not where, when, or what it does."""
    return captions(f"{', '.join(dict.fromkeys(f'a {thing.name}' for thing in scene.things))}.", [])


def frame_times(duration: float, num_frames: int) -> list[float]:
    """Seconds of `num_frames` frames that are uniform in time."""
    return [(i + 0.5) * duration / num_frames for i in range(num_frames)]


def captions(clip: str, frames: Sequence[str]) -> list[Question]:
    """The caption of a clip, then those of its frames."""
    numbered = [
        Question("caption", DESCRIBE_FRAME.format(number=number), text) for number, text in enumerate(frames, 1)
    ]
    return [Question("caption", DESCRIBE, clip), *numbered]


# -- captions ----------------------------------------------------------------------------------------------------------
def place(x: float, y: float) -> str:
    """One of nine places: "top left", "top", ..., "centre", ..., "bottom right". (x, y) in widths and heights."""
    row = ("top", "", "bottom")[min(2, int(3 * y))]
    column = ("left", "", "right")[min(2, int(3 * x))]
    return f"{row} {column}".strip() or "centre"


def region(scene: Scene, thing: Thing, second: float) -> str:
    """The place of a thing's center."""
    (x, y), (width, height) = thing.position(second), scene.extent
    return place(x / width, y / height)


def _reading_order(scene: Scene, thing: Thing, second: float) -> tuple[int, float]:
    (x, y), (_, height) = thing.position(second), scene.extent
    return int(3 * y / height), x


def describe_moment(scene: Scene, second: float) -> str:
    """What is seen at one moment, in reading order: "small red circle top left, large blue square centre"."""
    return ", ".join(phrases(scene, second)) or "nothing"


def phrases(scene: Scene, second: float) -> list[str]:
    """The parts of that description, one per thing."""
    seen = sorted((t for t in scene.things if t.visible(second)), key=lambda t: _reading_order(scene, t, second))
    return [f"{t.size} {t.colour_at(second)} {t.shape} {region(scene, t, second)}" for t in seen]


def describe(scene: Scene) -> str:
    """The life of every thing, by order of appearance, then reading order."""
    things = sorted(scene.things, key=lambda t: (round(t.enters), *_reading_order(scene, t, t.enters)))
    return " ".join(_life(scene, thing) for thing in things)


def _life(scene: Scene, thing: Thing) -> str:
    parts = [f"A {thing.size} {thing.name}, {region(scene, thing, thing.enters)}"]
    if thing.enters > 0:
        parts.append(f"appears at {in_seconds(thing.enters)}")
    if thing.heading:
        parts.append(f"moves {thing.heading}")
    if thing.role == "collides":
        parts.append("collides")
    if thing.turns:
        parts.append(f"turns {thing.turns[1]} at {in_seconds(thing.turns[0])}")
    if thing.leaves < scene.duration:
        parts.append(f"vanishes at {in_seconds(thing.leaves)}")
    return ", ".join(parts) + "."


def in_seconds(value: float) -> str:
    """A time as an answer says it: "3 seconds"."""
    whole = round(value)
    return f"{whole} second" if whole == 1 else f"{whole} seconds"


# -- questions ---------------------------------------------------------------------------------------------------------
def pick(rng: np.random.Generator, *wordings: str) -> str:
    """One of the wordings at random."""
    return wordings[rng.integers(len(wordings))]


def _unique(values: list[str], value: str) -> bool:
    return values.count(value) == 1


def _all_colours(scene: Scene) -> list[str]:
    return [t.colour for t in scene.things] + [t.turns[1] for t in scene.things if t.turns]


def _refer(scene: Scene, thing: Thing, rng: np.random.Generator) -> str:
    """A thing by its full name or, where one thing only fits, by its shape or its colour alone.

    Full names alone would let a model get by with colours: they are nearly always different.
    """
    names = [thing.name]
    if _unique([t.shape for t in scene.things], thing.shape):
        names += [thing.shape] * 2
    if _unique(_all_colours(scene), thing.colour):
        names.append(f"{thing.colour} object")
    return pick(rng, *names)


def _ask_colour(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    shapes = [t.shape for t in scene.things]
    sized = [f"{t.size} {t.shape}" for t in scene.things]
    for thing in scene.things:
        name = thing.shape if _unique(shapes, thing.shape) else f"{thing.size} {thing.shape}"
        if thing.turns is None and (name == thing.shape or _unique(sized, name)):
            wording = pick(rng, "What colour is the {}?", "What is the colour of the {}?")
            yield Question("colour", wording.format(name), thing.colour)


def _ask_shape(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    for thing in scene.things:
        if _unique(_all_colours(scene), thing.colour):
            wording = pick(rng, "What shape is the {} object?", "What is the shape of the {} object?")
            yield Question("shape", wording.format(thing.colour), thing.shape)


def _ask_size(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    for thing in scene.things:
        # Large things find a place less often: without this, "small" would be right two times in three.
        if thing.size == "small" and rng.random() < 0.45:
            continue
        wording = pick(rng, "Is the {} small or large?", "Is the {} large or small?")
        yield Question("size", wording.format(_refer(scene, thing, rng)), thing.size)


def _ask_count(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    keep = {1: 0.35, 2: 0.8}
    total = len(scene.things)
    wording = pick(rng, "How many objects are there in total?", "How many objects does the video show in total?")
    yield Question("count", wording, str(total))
    for shape, n in Counter(t.shape for t in scene.things).items():
        if rng.random() < keep.get(n, 1.0):
            plural = "crosses" if shape == "cross" else f"{shape}s"
            yield Question("count", f"How many {plural} are there?", str(n))
    if not any(t.turns for t in scene.things):
        for colour, n in Counter(t.colour for t in scene.things).items():
            if rng.random() < keep.get(n, 1.0):
                yield Question("count", f"How many {colour} objects are there?", str(n))


def _ask_existence(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    wording = pick(rng, "Is there a {}?", "Does a {} appear in the video?")
    for thing in scene.things:
        if rng.random() < 0.5:
            yield Question("existence", wording.format(thing.name), "yes")
            continue
        yield Question("existence", wording.format(near_miss(scene, thing, rng)), "no")


def near_miss(scene: Scene, thing: Thing, rng: np.random.Generator) -> str:
    """A name that nothing in the scene ever has: the colour of a thing with another shape, or the other way round."""
    names = {t.name for t in scene.things} | {f"{t.turns[1]} {t.shape}" for t in scene.things if t.turns}
    near = [f"{thing.colour} {s}" for s in SHAPES] + [f"{c} {thing.shape}" for c in COLOURS]
    return pick(rng, *(name for name in near if name not in names))


def pairs(things: Sequence[T], rng: np.random.Generator) -> Iterator[tuple[T, T]]:
    """Every pair once, in random order within the pair."""
    for i, first in enumerate(things):
        for second in things[i + 1 :]:
            yield (first, second) if rng.random() < 0.5 else (second, first)


def _ask_relation(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    for moment, second in (("at the start", 0.0), ("at the end", scene.duration - 1e-3)):
        seen = [t for t in scene.things if t.visible(second)]
        for a, b in pairs(seen, rng):
            (ax, ay), (bx, by) = a.position(second), b.position(second)
            if abs(ax - bx) > 0.25 and rng.random() < 0.5:
                question = f"Is the {_refer(scene, a, rng)} left or right of the {_refer(scene, b, rng)} {moment}?"
                yield Question("spatial_relation", question, "left" if ax < bx else "right")
            elif abs(ay - by) > 0.25:
                question = f"Is the {_refer(scene, a, rng)} above or below the {_refer(scene, b, rng)} {moment}?"
                yield Question("spatial_relation", question, "above" if ay < by else "below")


def _ask_direction(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    for thing in scene.things:
        if thing.heading:
            wording = pick(rng, "Which way does the {} move?", "In which direction does the {} move?")
            yield Question("motion_direction", wording.format(_refer(scene, thing, rng)), thing.heading)


def _ask_speed(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    for a, b in pairs([t for t in scene.things if t.heading], rng):
        if max(a.travel, b.travel) > 1.9 * min(a.travel, b.travel):
            word = pick(rng, "faster", "more slowly")
            fast, slow = (a, b) if a.travel > b.travel else (b, a)
            answer = fast if word == "faster" else slow
            yield Question("speed", f"Which moves {word}, the {a.name} or the {b.name}?", answer.name)


def _ask_order(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    # Only pairs whose stays are drawn alike: otherwise "seen in more frames" would betray "came first".
    for a, b in pairs([t for t in scene.things if t.role == "ordered"], rng):
        word = pick(rng, "first", "last")
        early, late = (a, b) if a.enters < b.enters else (b, a)
        answer = early if word == "first" else late
        yield Question("appearance_order", f"Which appears {word}, the {a.name} or the {b.name}?", answer.name)


def _ask_change(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    changing = [t for t in scene.things if t.turns]
    for thing in changing:
        assert thing.turns
        wording = pick(rng, "What colour does the {} turn?", "Which colour does the {} become?")
        yield Question("state_change", wording.format(_refer(scene, thing, rng)), thing.turns[1])
    if len(changing) == 1 and len(scene.things) > 1:
        yield Question("state_change", "Which object changes colour?", changing[0].name)


def _ask_events(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    counts = {
        "How many objects appear after the start?": sum(t.enters > 0 for t in scene.things),
        "How many objects vanish before the end?": sum(t.leaves < scene.duration for t in scene.things),
        "How many objects change colour?": sum(t.turns is not None for t in scene.things),
        "How many collisions are there?": sum(t.role == "collides" for t in scene.things) // 2,
    }
    for question, n in counts.items():
        # Most scenes have none of most events; without this, "0" would be right nearly always.
        if rng.random() < {0: 0.12, 1: 0.6}.get(n, 1.0):
            yield Question("event_count", question, str(n))


def _ask_duration(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    for thing in scene.things:
        name = _refer(scene, thing, rng)
        if thing.enters > 0:
            yield Question("duration", f"When does the {name} appear?", in_seconds(thing.enters))
        if thing.leaves < scene.duration:
            yield Question("duration", f"When does the {name} vanish?", in_seconds(thing.leaves))
        if thing.turns:
            yield Question("duration", f"When does the {name} change colour?", in_seconds(thing.turns[0]))
        if thing.enters > 0 and thing.leaves < scene.duration:
            stay = in_seconds(round(thing.leaves) - round(thing.enters))
            yield Question("duration", f"How long is the {name} visible?", stay)


_ASKERS = (
    _ask_colour,
    _ask_shape,
    _ask_size,
    _ask_count,
    _ask_existence,
    _ask_relation,
    _ask_direction,
    _ask_speed,
    _ask_order,
    _ask_change,
    _ask_events,
    _ask_duration,
)
