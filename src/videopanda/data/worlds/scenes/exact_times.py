"""Questions about times as exact as the frames tell: "between 2.5 and 3.5 seconds".

A clip with such questions is a part of a scene at another speed, seen at other moments than usual, so that only the
times in front of its frames tell when something happens. Two kinds are asked: exactly when something happens, answered
by the times of the frames before and after it, and whether a statement is true of this part.

    clip = part_of(make_scene(0, "train", 7), 8, rng)      # frames at clip.times
    exact_questions(clip, rng)[0].question                 # Tell me exactly when the red circle turns white.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from videopanda.data.worlds.scenes.questions import Question, in_random_order, near_miss, pick
from videopanda.data.worlds.scenes.wordings import expand, in_style
from videopanda.data.worlds.scenes.world import COLOURS, Scene

# Statements in the present, with "|" before their verb without "s".
_APPEARS = "the {a} (appears|shows up|comes in|comes into view|is seen for the first time|becomes visible|turns up)"
_VANISHES = "the {a} (vanishes|disappears|goes away|leaves|is gone|stops being visible)"
_TURNS = "the {a} (turns|becomes|changes to|goes|switches to|turns into) {new}"
_CHANGES = "the {a} (changes|switches) (its |)(colour|color)"
_HITS = "the {a} (hits|bumps into|runs into|collides with|crashes into|touches|meets) the {b}"
_COLLIDE = "the {a} and the {b} (collide|hit each other|meet|crash|bump into each other|touch)"
_VISIBLE = "the {a} is (visible|there|seen|shown|in the picture)"
_IS_NOW = "(there is a {new} {shape}|the {shape} is {new})"

EVENTFUL = ("order", "change", "visit", "collide")  # themes of scenes in which something happens

_WHEN = (
    "(Tell me|Say|Find out|Show me|Let me know) (exactly|precisely) when {s}.",
    "(Exactly|Precisely) when is it that {s}?",
    "When (exactly|precisely) is it that {s}?",
    "(At|In) (what|which) exact (time|moment) is it that {s}?",
    "(What is|What's|Give me|State|I need) the exact (time|moment) (when|at which) {s}(.|)",
    "To (a|the nearest) tenth of a second, when is it that {s}?",
    "When is it that {s}? (To a tenth of a second|Be exact|Exactly|To one decimal)(, please|).",
    "Between which (two |)(frames|times|moments) is it that {s}?",
    "(Find|Locate|Name) the (exact |)moment (when|at which) {s}, to a tenth of a second.",
    "{s}: exactly when?",
)
_TRUE = (
    "Is it true that {s}?",
    "Is it (right|correct|so) that {s}?",
    "True or false: {s}? (Say|Answer) yes or no.",
    "Does it happen that {s}?",
)


@dataclass(frozen=True)
class ScenePart:
    """Part of a scene: the frames at `times`, and the seconds that it lasts."""

    scene: Scene
    times: tuple[float, ...]
    duration: float
    is_whole: bool


def part_of(scene: Scene, num_frames: int, rng: np.random.Generator) -> ScenePart:
    """The scene at another speed, as a whole or a part of it, with frames evenly spread from a random moment on."""
    scene = at_speed(scene, float(rng.uniform(0.6, 1.7)))
    is_whole = bool(rng.random() < 0.6)
    length = scene.duration if is_whole else scene.duration * float(rng.uniform(0.25, 0.8))
    start = float(rng.uniform(0, scene.duration - length))
    step, first = length / num_frames, float(rng.uniform(0.05, 0.95))
    times = start + (np.arange(num_frames) + first) * step
    return ScenePart(scene, tuple(float(t) for t in np.floor(times * scene.fps + 1e-6) / scene.fps), length, is_whole)


def at_speed(scene: Scene, factor: float) -> Scene:
    """The same scene, lasting `factor` times as long."""
    across, down = scene.background.pan
    return replace(
        scene,
        duration=scene.duration * factor,
        background=replace(scene.background, pan=(across / factor, down / factor)),
        things=tuple(
            replace(
                thing,
                path=tuple((second * factor, x, y) for second, x, y in thing.path),
                enters=thing.enters * factor,
                leaves=thing.leaves * factor,
                turns=thing.turns and (thing.turns[0] * factor, thing.turns[1]),
            )
            for thing in scene.things
        ),
    )


def exact_questions(part: ScenePart, rng: np.random.Generator) -> list[Question]:
    """Questions about exact times of this part, in several wordings, and some about what is true of it, shuffled.

    Copying the times in front of frames is learned slowly, so some questions ask for nothing else.
    """
    found = [question for _ in range(3) for question in _when(part, rng)]
    found += _frame_times(part, rng)
    found += [*_whether(part, rng), *_whether(part, rng)][:6]
    return in_random_order({question.question: question for question in found}.values(), rng)


def visible_events(part: ScenePart, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """What happens between two of the frames, as a statement, and when: "between 2.5 and 3.5 seconds"."""
    for statement, second in _events(part.scene, rng):
        after = bisect_left(part.times, second)
        if 0 < after < len(part.times):
            yield statement, f"between {part.times[after - 1]:.1f} and {part.times[after]:.1f} seconds"


def _when(part: ScenePart, rng: np.random.Generator) -> Iterator[Question]:
    for statement, answer in visible_events(part, rng):
        yield _asked(_WHEN, statement, answer, rng)


def _frame_times(part: ScenePart, rng: np.random.Generator) -> Iterator[Question]:
    shown = [f"{second:.1f}" for second in part.times]
    text = pick(rng, "When are the frames shown?", "At what times are the frames?", "List the times of all frames.")
    yield Question("exact_time", text, f"{', '.join(shown)} seconds")
    for number in rng.permutation(len(shown))[:3]:
        text = pick(rng, "When is frame {} shown?", "What is the time of frame {}?", "At what time is frame {}?")
        yield Question("exact_time", text.format(number + 1), f"{shown[number]} seconds")


def _whether(part: ScenePart, rng: np.random.Generator) -> Iterator[Question]:
    scene, times = part.scene, part.times
    for statement, second in _events(scene, rng):
        inside = 0 < bisect_left(times, second) < len(times)
        if inside and rng.random() < 0.5:
            yield _asked(_TRUE, statement, "yes", rng)
        elif not inside:
            yield _asked(_TRUE, statement, "no", rng)
    for thing in scene.things:
        other = near_miss(scene, thing, rng)
        if rng.random() < 0.4:
            pattern = pick(rng, _APPEARS, _VANISHES, _VISIBLE, _TURNS)
            statement = pattern.replace("{a}", other).replace("{new}", pick(rng, *COLOURS))
            yield _asked(_TRUE, expand(statement, rng), "no", rng)
        shown = [thing.visible(second) for second in times]
        if not any(shown) or (all(shown) and rng.random() < 0.5):
            yield _asked(_TRUE, expand(_VISIBLE.format(a=thing.name), rng), "yes" if all(shown) else "no", rng)
        if thing.turns and all(shown):
            before = bisect_right(times, thing.turns[0])
            if before in (0, len(times)):
                names = {"new": thing.turns[1], "shape": thing.shape}
                yield _asked(_TRUE, expand(_IS_NOW.format(**names), rng), "no" if before else "yes", rng)


def _events(scene: Scene, rng: np.random.Generator) -> Iterator[tuple[str, float]]:
    """Everything that happens, as a statement, and its second."""
    for thing in scene.things:
        a = thing.shape if sum(t.shape == thing.shape for t in scene.things) == 1 and rng.random() < 0.3 else thing.name
        if thing.enters > 0:
            yield expand(_APPEARS.format(a=a), rng), thing.enters
        if thing.leaves < scene.duration:
            yield expand(_VANISHES.format(a=a), rng), thing.leaves
        if thing.turns:
            pattern = _TURNS if rng.random() < 0.75 else _CHANGES
            yield expand(pattern.format(a=a, new=thing.turns[1]), rng), thing.turns[0]
    pair = [thing for thing in scene.things if thing.role == "collides"]
    if len(pair) == 2:
        a, b = (pair[i].name for i in rng.permutation(2))
        yield expand(pick(rng, _HITS, _COLLIDE).format(a=a, b=b), rng), pair[0].path[1][0]


def _asked(frames: tuple[str, ...], statement: str, answer: str, rng: np.random.Generator) -> Question:
    text = expand(pick(rng, *frames), rng).format(s=statement)
    text = text[0].upper() + text[1:]
    return Question("exact_time", text if rng.random() < 0.7 else in_style(text, rng), answer)
