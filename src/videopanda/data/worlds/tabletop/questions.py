"""Questions with true answers, and captions, for a scene on the table.

Fifteen families, each asked only where the scene makes the answer certain, with answers balanced by construction as in
Scenes. Questions are also about things in the air or in the box; the direction of a move only with a still camera.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from videopanda.data.worlds.scenes.questions import (
    Question,
    captions,
    frame_times,
    in_random_order,
    in_seconds,
    pairs,
    pick,
)
from videopanda.data.worlds.scenes.world import COLOURS
from videopanda.data.worlds.tabletop.world import FAR, NEAR, PATTERNED, SHAPES, WIDTH, Solid, TabletopScene

FAMILIES = (
    "colour",
    "shape",
    "material",
    "size",
    "count",
    "existence",
    "spatial_relation",
    "motion_direction",
    "appearance_order",
    "fall",
    "collision",
    "containment",
    "camera",
    "event_count",
    "duration",
)


def make_questions(scene: TabletopScene, rng: np.random.Generator) -> list[Question]:
    """All questions that can be asked about a scene, thinned for balance, in random order."""
    return in_random_order((question for ask in _ASKERS for question in ask(scene, rng)), rng)


def make_captions(scene: TabletopScene, num_frames: int) -> list[Question]:
    """The description of the whole clip, then of each of `num_frames` frames that are uniform in time."""
    times = frame_times(scene.duration, num_frames)
    return captions(describe(scene), [describe_moment(scene, time) for time in times])


# -- captions ----------------------------------------------------------------------------------------------------------
def place(x: float, y: float) -> str:
    """One of nine places on the table: "front left", "front", …, "middle", …, "back right"."""
    row = "front" if y < NEAR + (FAR - NEAR) / 3 else "back" if y > NEAR + 2 * (FAR - NEAR) / 3 else ""
    column = "left" if x < -WIDTH / 3 else "right" if x > WIDTH / 3 else ""
    return f"{row} {column}".strip() or "middle"


def looks(thing: Solid) -> str:
    """All that it looks like, as "small striped red ball"."""
    material = "" if thing.material == "plain" else f"{thing.material} "
    return f"{thing.size} {material}{thing.name}"


def seen(thing: Solid, second: float) -> bool:
    """Whether it is in the picture: one that drops in is above it before."""
    return thing.position(second)[2] < 3.0


def describe_moment(scene: TabletopScene, second: float) -> str:
    """What the picture shows at one second."""
    parts = []
    for thing in scene.things:
        x, y, z = thing.position(second)
        if seen(thing, second):
            where = "in the box" if thing.boxed is not None and second >= thing.boxed else place(x, y)
            high = ", in the air" if z > 0.3 and not (thing.pedestal and thing.position(0)[2] == z) else ""
            parts.append(f"{looks(thing)} {where}{high}")
    return ", ".join(parts) or "an empty table"


def describe(scene: TabletopScene) -> str:
    """The life of every thing, and what the camera does."""
    parts = []
    for thing in scene.things:
        life = "stays"
        if thing.heading:
            life = f"moves {thing.heading}"
        elif thing.falls is not None:
            life = f"falls at {in_seconds(thing.falls)}"
        elif thing.drops is not None:
            life = f"drops in at {in_seconds(thing.drops)}"
        elif thing.boxed is not None:
            life = "is put into the box"
        elif thing.hits:
            life = f"hits the {thing.hits}"
        elif any(other.hits == thing.name for other in scene.things):
            life = "is hit"
        parts.append(f"{looks(thing)} {life}")
    return "; ".join([*parts, f"camera moves {scene.camera}" if scene.camera else "camera stays"])


# -- helpers -----------------------------------------------------------------------------------------------------------
def _refer(scene: TabletopScene, thing: Solid, rng: np.random.Generator) -> str:
    """A name that only this thing has: in full, or its shape or color alone."""
    names = [thing.name]
    if sum(other.shape == thing.shape for other in scene.things) == 1:
        names.append(thing.shape)
    if sum(other.colour == thing.colour for other in scene.things) == 1:
        names.append(f"{thing.colour} object")
    return names[rng.integers(len(names))]


# -- families ----------------------------------------------------------------------------------------------------------
def _ask_colour(scene: TabletopScene, rng: np.random.Generator) -> Iterator[Question]:
    for thing in scene.things:
        if sum(other.shape == thing.shape for other in scene.things) == 1:
            wording = pick(rng, "What colour is the {}?", "What is the colour of the {}?")
            yield Question("colour", wording.format(thing.shape), thing.colour)


def _ask_shape(scene: TabletopScene, rng: np.random.Generator) -> Iterator[Question]:
    for thing in scene.things:
        if sum(other.colour == thing.colour for other in scene.things) == 1:
            yield Question("shape", f"What is the {thing.colour} object?", thing.shape)


def _ask_material(scene: TabletopScene, rng: np.random.Generator) -> Iterator[Question]:
    for thing in scene.things:
        # Teapots and pandas are plain, so a name would give it away.
        if thing.shape in PATTERNED and sum(other.colour == thing.colour for other in scene.things) == 1:
            wording = pick(rng, "What pattern does the {} object have?", "What is the pattern of the {} object?")
            yield Question("material", wording.format(thing.colour), thing.material)


def _ask_size(scene: TabletopScene, rng: np.random.Generator) -> Iterator[Question]:
    for thing in scene.things:
        special = thing.pedestal or thing.boxed is not None  # these are always small
        if not special and not (thing.size == "small" and rng.random() < 0.25):
            wording = pick(rng, "Is the {} small or large?", "Is the {} large or small?")
            yield Question("size", wording.format(_refer(scene, thing, rng)), thing.size)


def _ask_count(scene: TabletopScene, rng: np.random.Generator) -> Iterator[Question]:
    keep = {1: 0.3, 2: 0.75}
    yield Question("count", "How many objects are there in total?", str(len(scene.things)))
    for key, plural in (("shape", "{}s"), ("colour", "{} objects"), ("material", "{} objects")):
        for value, n in Counter(getattr(thing, key) for thing in scene.things).items():
            if rng.random() < keep.get(n, 1.0):
                yield Question("count", f"How many {plural.format(value)} are there?", str(n))


def _ask_existence(scene: TabletopScene, rng: np.random.Generator) -> Iterator[Question]:
    names = {thing.name for thing in scene.things}
    wording = pick(rng, "Is there a {}?", "Does a {} appear in the video?")
    for thing in scene.things:
        if rng.random() < 0.5:
            yield Question("existence", wording.format(thing.name), "yes")
            continue
        # A near miss: right color with a wrong shape, or the other way round.
        near = [f"{thing.colour} {shape}" for shape in SHAPES] + [f"{colour} {thing.shape}" for colour in COLOURS]
        absent = [name for name in near if name not in names]
        yield Question("existence", wording.format(absent[rng.integers(len(absent))]), "no")


def _ask_relation(scene: TabletopScene, rng: np.random.Generator) -> Iterator[Question]:
    for moment, second in (("at the start", 0.0), ("at the end", scene.duration - 1e-3)):
        there = [thing for thing in scene.things if seen(thing, second)]
        for a, b in pairs(there, rng):
            (ax, ay, _), (bx, by, _) = a.position(second), b.position(second)
            names = _refer(scene, a, rng), _refer(scene, b, rng)
            if abs(ax - bx) > 0.8 and rng.random() < 0.5:
                question = f"Is the {names[0]} left or right of the {names[1]} {moment}?"
                yield Question("spatial_relation", question, "left" if ax < bx else "right")
            elif abs(ay - by) > 0.8 and not (a.pedestal or b.pedestal):
                question = f"Is the {names[0]} in front of or behind the {names[1]} {moment}?"
                yield Question("spatial_relation", question, "in front" if ay < by else "behind")


def _ask_direction(scene: TabletopScene, rng: np.random.Generator) -> Iterator[Question]:
    for thing in scene.things:
        if thing.heading and not scene.camera:
            wording = pick(rng, "Which way does the {} move?", "In which direction does the {} move?")
            yield Question("motion_direction", wording.format(_refer(scene, thing, rng)), thing.heading)


def _ask_order(scene: TabletopScene, rng: np.random.Generator) -> Iterator[Question]:
    for a, b in pairs([thing for thing in scene.things if thing.drops is not None], rng):
        assert a.drops is not None
        assert b.drops is not None
        if abs(a.drops - b.drops) > 0.5:
            word = pick(rng, "first", "last")
            answer = a if (a.drops < b.drops) == (word == "first") else b
            yield Question("appearance_order", f"Which appears {word}, the {a.name} or the {b.name}?", answer.name)


def _ask_fall(scene: TabletopScene, rng: np.random.Generator) -> Iterator[Question]:
    high = [thing for thing in scene.things if thing.pedestal]
    falling = [thing for thing in high if thing.falls is not None]
    for thing in high:
        if len(high) > 1 and (thing.falls is not None or rng.random() < 1 / (len(high) - 1)):
            yield Question("fall", f"Does the {_refer(scene, thing, rng)} fall?", "yes" if thing.falls else "no")
    if len(falling) == 1 and len(high) > 1:
        yield Question("fall", pick(rng, "Which object falls?", "What falls down?"), falling[0].name)
        _, x, *_ = falling[0].path[0]
        side = "left" if falling[0].path[-1][1] < x else "right"
        yield Question("fall", f"To which side does the {falling[0].name} fall?", side)


def _ask_collision(scene: TabletopScene, rng: np.random.Generator) -> Iterator[Question]:
    for thing in scene.things:
        if thing.hits:
            yield Question("collision", f"What does the {_refer(scene, thing, rng)} hit?", thing.hits)
            yield Question("collision", f"What hits the {thing.hits}?", thing.name)


def _ask_containment(scene: TabletopScene, rng: np.random.Generator) -> Iterator[Question]:
    if scene.box is None:
        return
    inside = [thing for thing in scene.things if thing.boxed is not None]
    outside = [thing for thing in scene.things if thing.boxed is None]
    yield Question("containment", "How many objects are in the box at the end?", str(len(inside)))
    if len(inside) == 1:
        yield Question("containment", "What is put into the box?", inside[0].name)
    for chosen, answer in ((inside, "yes"), (outside, "no")):
        if chosen:
            thing = chosen[rng.integers(len(chosen))]
            yield Question("containment", f"Is the {_refer(scene, thing, rng)} in the box at the end?", answer)


def _ask_camera(scene: TabletopScene, rng: np.random.Generator) -> Iterator[Question]:
    if scene.theme == "camera":
        yield Question("camera", "How does the camera move?", scene.camera or "not at all")


def _ask_events(scene: TabletopScene, rng: np.random.Generator) -> Iterator[Question]:
    counts = {
        "How many objects drop in from above?": sum(thing.drops is not None for thing in scene.things),
        "How many objects move across the table?": sum(thing.heading is not None for thing in scene.things),
        "How many objects stand on a pedestal at the start?": sum(thing.pedestal for thing in scene.things),
        "How many collisions are there?": sum(thing.hits is not None for thing in scene.things),
    }
    for question, n in counts.items():
        # Most scenes have none of most events; without this, "0" would be right nearly always.
        if rng.random() < {0: 0.1, 1: 0.45}.get(n, 1.0):
            yield Question("event_count", question, str(n))


def _ask_duration(scene: TabletopScene, rng: np.random.Generator) -> Iterator[Question]:
    for thing in scene.things:
        name = _refer(scene, thing, rng)
        if thing.falls is not None:
            yield Question("duration", f"When does the {name} fall?", in_seconds(thing.falls))
        if thing.drops is not None:
            yield Question("duration", f"When does the {name} appear?", in_seconds(thing.drops))


_ASKERS = (
    _ask_colour,
    _ask_shape,
    _ask_material,
    _ask_size,
    _ask_count,
    _ask_existence,
    _ask_relation,
    _ask_direction,
    _ask_order,
    _ask_fall,
    _ask_collision,
    _ask_containment,
    _ask_camera,
    _ask_events,
    _ask_duration,
)
