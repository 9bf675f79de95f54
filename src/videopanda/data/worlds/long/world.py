"""The long world: rare visits of coloured shapes in hours of video, before any pixel is drawn.

    story = make_story(seed=0, split="test", index=3, minutes=30)
    story.visits, story.lamp, make_questions(story)

A *visit* is one shape that appears for a few seconds; it has a colour, a shape, a size and a motion. Two kinds of visit
are *needles*, which questions are about. Distractors share the needle's colour, shape, size or motion, three of
four at most: no single attribute, and no pair of them, gives a needle away. A *lamp* in the corner changes its colour
a few times, for questions about now and before. Everything is a pure function of (seed, split, index, minutes), and
each split has its own random numbers.

Units: seconds; in space the shorter side of the frame, origin top left.
"""

from dataclasses import dataclass

import numpy as np

from videopanda.data.worlds.scenes.world import COLOURS, SHAPES, SPLITS

VERSION = 1  # of the world: equal arguments give equal stories as long as it does not change
WIDTH, HEIGHT, FPS = 96, 72, 4.0
SIZES = {"small": 0.22, "large": 0.42}
MOTIONS = ("still", "left", "right")
FAMILIES = ("which", "when", "order", "count", "now", "before")
PARTS = ("first", "second", "third", "fourth", "fifth")
GAP_SECONDS = 3.0  # between visits
IDLE_SHARE = 0.6  # of the time in which nothing is shown but the lamp, at least


@dataclass(frozen=True, order=True)
class Kind:
    """What a visit looks like."""

    colour: str
    shape: str
    size: str
    motion: str

    @property
    def name(self) -> str:
        """How questions call it."""
        return f"{self.size} {self.colour} {self.shape} that {_motion(self)}"


def _motion(kind: Kind) -> str:
    return "stands still" if kind.motion == "still" else f"moves {kind.motion}"


@dataclass(frozen=True)
class Visit:
    """A shape and the seconds at which it is there."""

    kind: Kind
    start: float
    end: float
    height: float  # of its center


@dataclass(frozen=True)
class Story:
    """A long clip. visits: in order. needles: the kinds that are asked about, of which the first is the main one.
    lamp: second from which the lamp has a colour, in order; the first is 0.
    """

    seed: int
    split: str
    index: int
    seconds: float
    visits: tuple[Visit, ...]
    needles: tuple[Kind, Kind]
    lamp: tuple[tuple[float, str], ...]

    def times(self, kind: Kind) -> list[Visit]:
        """The visits of a kind."""
        return [visit for visit in self.visits if visit.kind == kind]

    def lamp_at(self, second: float) -> str:
        """The colour of the lamp."""
        return next(colour for start, colour in reversed(self.lamp) if start <= second)


@dataclass(frozen=True)
class LongQuestion:
    """A question with its answer. depth: where in the clip the answer is, from 0 to 1; needle_seconds: how long it is
    shown; None where the whole clip matters.
    """

    family: str
    question: str
    answer: str
    depth: float | None
    needle_seconds: float | None


def make_story(seed: int, split: str, index: int, minutes: float, needle_seconds: float = 8.0) -> Story:
    """Draw story `index` of a split.

    Args:
        minutes: length, 0.5 to 180.
        needle_seconds: how long each needle is shown; distractors last between half and twice that.

    Raises:
        ValueError: an unknown split, or a length out of range.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if not 0.5 <= minutes <= 180:
        raise ValueError(f"minutes must be between 0.5 and 180, got {minutes}")
    if not 1 <= needle_seconds <= 12:
        raise ValueError(f"a needle is shown for 1 to 12 seconds, not {needle_seconds}")
    seconds = 60.0 * minutes
    rng = np.random.default_rng([seed, SPLITS[split], index, round(60 * minutes), VERSION])
    needles = _needles(rng)
    often = int(rng.integers(2, 5)) if seconds >= 120 and rng.random() < 0.5 else 1
    kinds = [needles[0]] * often + [needles[1]]
    # Distractors fill what is left of the time that may be busy, 40 at most.
    room = int((1 - IDLE_SHARE) * seconds / (1.3 * needle_seconds)) - len(kinds)
    kinds += [_distractor(rng, needles) for _ in range(min(40, max(2, room)))]
    lengths = [needle_seconds * (1.0 if kind in needles else float(rng.uniform(0.5, 2.0))) for kind in kinds]
    return Story(seed, split, index, seconds, _placed(rng, kinds, lengths, seconds), needles, _lamp(rng, seconds))


def _needles(rng: np.random.Generator) -> tuple[Kind, Kind]:
    """Two kinds that differ in colour and shape."""
    colours = rng.permutation([colour for colour in COLOURS if colour != "white"])[:2]
    shapes = rng.permutation(SHAPES)[:2]
    a, b = (
        Kind(str(colour), str(shape), str(rng.choice(list(SIZES))), str(rng.choice(MOTIONS)))
        for colour, shape in zip(colours, shapes)
    )
    return a, b


def _distractor(rng: np.random.Generator, needles: tuple[Kind, Kind]) -> Kind:
    """A kind that shares two or three of the four attributes with a needle, and is none.

    One that shares shape, size and motion would be another answer to "which colour", so the colour is kept then.
    """
    needle = needles[int(rng.integers(2))]
    while True:
        fields = [needle.colour, needle.shape, needle.size, needle.motion]
        choices = [[c for c in COLOURS if c != "white"], list(SHAPES), list(SIZES), list(MOTIONS)]
        for place in rng.permutation(4)[: int(rng.integers(1, 3))]:
            fields[place] = str(rng.choice([value for value in choices[place] if value != fields[place]]))
        kind = Kind(*fields)
        taken = [(one.shape, one.size, one.motion) for one in needles]
        if kind not in needles and (kind.shape, kind.size, kind.motion) not in taken:
            return kind


def _placed(rng: np.random.Generator, kinds: list[Kind], lengths: list[float], seconds: float) -> tuple[Visit, ...]:
    """Visits in random order at random times, which do not overlap. In a very short clip all of them are shorter."""
    gaps = GAP_SECONDS * (len(kinds) + 1)
    shrink = min(1.0, (seconds - gaps) / sum(lengths))
    spare = seconds - gaps - shrink * sum(lengths)
    shares, now, visits = rng.dirichlet(np.ones(len(kinds) + 1)), 0.0, []
    for share, i in zip(shares, rng.permutation(len(kinds))):
        start = now + GAP_SECONDS + float(share) * spare
        now = start + shrink * lengths[i]
        visits.append(Visit(kinds[i], round(start, 2), round(now, 2), float(rng.uniform(0.4, 0.7))))
    return tuple(visits)


def _lamp(rng: np.random.Generator, seconds: float) -> tuple[tuple[float, str], ...]:
    """One to three changes of colour, each to one that the lamp has not had."""
    changes = int(rng.integers(1, 4))
    colours = rng.permutation(list(COLOURS))[: changes + 1]
    moments = np.sort(rng.uniform(0.05, 0.95, changes)) * seconds
    return tuple((round(float(moment), 2), str(colour)) for moment, colour in zip([0.0, *moments], colours))


def which(kind: Kind) -> str:
    """The question for the colour of a kind."""
    return f"Which colour has the {kind.size} {kind.shape} that {_motion(kind)}?"


def count(kind: Kind) -> str:
    """The question how often a kind appears."""
    return f"How many times does a {kind.name} appear?"


def when(kind: Kind) -> str:
    """The question in which fifth of the clip a kind appears."""
    return f"In which fifth of the video does the {kind.name} appear: first, second, third, fourth or fifth?"


def order(a: Kind, b: Kind) -> tuple[str, list[Kind]]:
    """The question which of two kinds appears first, and the kinds as it names them."""
    named = sorted([a, b], key=lambda kind: kind.name)
    return f"Which appears first: the {named[0].name}, or the {named[1].name}? Answer with its colour.", named


def part_of(depth: float) -> str | None:
    """The fifth in which a share of the clip lies; None near a border, where the answer would depend on rounding."""
    near = min(abs(5 * depth - border) for border in range(1, 5)) <= 0.1
    return None if near else PARTS[min(4, int(5 * depth))]


def lamp_questions(story: Story) -> list[LongQuestion]:
    """What the lamp shows at the end, and what it showed before that."""
    last = story.lamp[-1][1]
    before = f"Which colour had the lamp in the corner before it turned {last}?"
    return [
        LongQuestion("now", "Which colour has the lamp in the corner at the end?", last, None, None),
        LongQuestion("before", before, story.lamp[-2][1], story.lamp[-1][0] / story.seconds, None),
    ]


def make_questions(story: Story) -> list[LongQuestion]:
    """One question of each family that the story answers for certain."""
    main, other = story.needles
    shown = story.times(main)
    first = shown[0]
    depth = (first.start + first.end) / 2 / story.seconds if len(shown) == 1 else None
    length = first.end - first.start
    questions = [
        LongQuestion("which", which(main), main.colour, depth, length),
        LongQuestion("count", count(main), str(len(shown)), None, None),
        *lamp_questions(story),
    ]
    if depth is not None:
        part = part_of(depth)
        if part is not None:
            questions.append(LongQuestion("when", when(main), part, depth, length))
        text, named = order(main, other)
        earlier = min(named, key=lambda kind: story.times(kind)[0].start)
        questions.append(LongQuestion("order", text, earlier.colour, depth, length))
    return questions
