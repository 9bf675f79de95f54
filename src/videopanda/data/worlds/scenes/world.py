"""The generated world: what is in a scene and when, before any pixel is drawn.

A scene is a handful of coloured shapes on a background, with exact ground truth: who is where at which second, who
appears, vanishes, turns another colour, collides. It is a pure function of (seed, split, index):

    scene = make_scene(seed=0, split="test", index=7)
    [thing.name for thing in scene.things]        # ['red circle', 'blue square']

Units: seconds for time; for space, one unit is the shorter side of the frame, origin top left, x right, y down.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Split = Literal["train", "validation", "test"]
SPLITS: dict[str, int] = {"train": 0, "validation": 1, "test": 2}

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 235),
    "yellow": (235, 215, 45),
    "purple": (165, 55, 200),
    "cyan": (50, 210, 215),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = {"small": (0.23, 0.27), "large": (0.40, 0.48)}  # diameter, in shorter sides
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}

# Width, height of the files that are written: 4:3, square, 16:9 and 3:4, several sizes each.
FRAME_SIZES = ((160, 120), (192, 144), (128, 128), (176, 176), (192, 108), (256, 144), (120, 160), (144, 192))
FRAME_RATES = (10.0, 12.0, 15.0, 24.0, 25.0, 30.0)
DURATIONS = (4, 6, 8)  # seconds; with 8 uniform frames every whole second falls between two different pairs of frames
BACKGROUNDS = ("plain", "gradient", "blobs", "stripes", "checks")

# What a scene is mainly about. Each theme makes sure that some family of questions has something to ask.
THEMES = ("still", "move", "race", "order", "change", "visit", "collide", "crowd")


@dataclass(frozen=True)
class Thing:
    """One object and its whole life."""

    shape: str
    colour: str
    size: str
    diameter: float  # shorter sides
    path: tuple[tuple[float, float, float], ...]  # (second, x, y) key points, linear in between, held outside
    enters: float = 0.0  # second at which it is first seen
    leaves: float = float("inf")  # second from which it is no longer seen
    turns: tuple[float, str] | None = None  # (second, new colour)
    heading: str | None = None  # key of DIRECTIONS for one straight move, None when still or bouncing
    role: Literal["", "ordered", "collides"] = ""  # part of a pair whose order or collision can be asked about

    @property
    def name(self) -> str:
        """How questions call it: first colour, shape."""
        return f"{self.colour} {self.shape}"

    def position(self, second: float) -> tuple[float, float]:
        """Center (x, y) at `second`."""
        times, xs, ys = zip(*self.path)
        return float(np.interp(second, times, xs)), float(np.interp(second, times, ys))

    def positions(self, seconds: np.ndarray) -> np.ndarray:
        """Centers at many times, (N, 2)."""
        times, xs, ys = zip(*self.path)
        return np.stack([np.interp(seconds, times, xs), np.interp(seconds, times, ys)], axis=1)

    def visible(self, second: float) -> bool:
        """Whether it is shown at `second`."""
        return self.enters <= second < self.leaves

    def colour_at(self, second: float) -> str:
        """Name of its colour at `second`."""
        return self.turns[1] if self.turns and second >= self.turns[0] else self.colour

    @property
    def travel(self) -> float:
        """Length of its path, in shorter sides."""
        points = np.array([(x, y) for _, x, y in self.path])
        return float(np.linalg.norm(np.diff(points, axis=0), axis=1).sum())


@dataclass(frozen=True)
class Background:
    """The background of the objects."""

    kind: str  # one of BACKGROUNDS
    colours: tuple[tuple[int, int, int], tuple[int, int, int]]
    scale: float  # size of its pattern, in shorter sides
    pan: tuple[float, float]  # how fast the pattern slides (a moving camera), in shorter sides per second
    noise: int  # largest deviation of the sensor noise, in gray levels
    seed: int


@dataclass(frozen=True)
class Scene:
    """Everything that a clip shows. `things` are in drawing order: later ones cover earlier ones."""

    seed: int
    split: str
    index: int
    theme: str
    width: int
    height: int
    fps: float
    duration: float
    background: Background
    things: tuple[Thing, ...]

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height in shorter sides."""
        side = min(self.width, self.height)
        return self.width / side, self.height / side


@dataclass(frozen=True)
class Difficulty:
    """How hard the scenes are: the dial of the training curriculum. The default is the world that tests use."""

    max_things: int = 4
    themes: tuple[str, ...] = THEMES
    plain: bool = False  # a plain, still, noise-free background


def make_scene(seed: int, split: str, index: int, difficulty: Difficulty | None = None) -> Scene:
    """Draw scene `index` of a split. Equal arguments give equal scenes on every machine.

    Raises:
        ValueError: the split is not one of train, validation, test.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    difficulty = difficulty or Difficulty()
    rng = np.random.default_rng([seed, SPLITS[split], index])
    width, height = FRAME_SIZES[rng.integers(len(FRAME_SIZES))]
    duration = float(rng.choice(DURATIONS))
    stage = _Stage(rng, width, height, duration, difficulty.max_things)
    theme = str(rng.choice(difficulty.themes))
    stage.play(theme)
    return Scene(
        seed=seed,
        split=split,
        index=index,
        theme=theme,
        width=width,
        height=height,
        fps=float(rng.choice(FRAME_RATES)),
        duration=duration,
        background=_make_background(rng, difficulty.plain),
        things=tuple(stage.things[i] for i in rng.permutation(len(stage.things))),
    )


def _make_background(rng: np.random.Generator, plain: bool) -> Background:
    # Dim and nearly gray, so that every colour stands out from it.
    def shade() -> tuple[int, int, int]:
        return tuple(int(c) for c in np.clip(rng.uniform(10, 70) + rng.uniform(-10, 10, 3), 0, 80))  # type: ignore[return-value]

    moving = rng.random() < 0.4
    return Background(
        kind="plain" if plain else str(rng.choice(BACKGROUNDS)),
        colours=(shade(), shade()),
        scale=float(rng.uniform(0.15, 0.6)),
        pan=tuple(float(v) for v in rng.uniform(-0.12, 0.12, 2)) if moving and not plain else (0.0, 0.0),  # type: ignore[arg-type]
        noise=0 if plain or rng.random() < 0.3 else int(rng.integers(2, 12)),
        seed=int(rng.integers(2**31)),
    )


class _Stage:
    """Places things one after another; a thing that would hide another for long is drawn again."""

    def __init__(self, rng: np.random.Generator, width: int, height: int, duration: float, max_things: int):
        self.rng = rng
        side = min(width, height)
        self.extent = (width / side, height / side)
        self.duration = duration
        self.max_things = max_things
        self.things: list[Thing] = []
        self.free_colours = [str(c) for c in rng.permutation(list(COLOURS))]

    # -- themes ----------------------------------------------------------------------------------------------------
    def play(self, theme: str) -> None:
        """Put on the stage what the theme needs, then some bystanders."""
        rng = self.rng
        pair = self.max_things >= 2
        if theme == "move":
            self.add(self.moving)
        elif theme == "race" and pair:
            self.race()
        elif theme == "order" and pair:
            self.order()
        elif theme == "change":
            for _ in range(rng.integers(1, min(3, self.max_things) + 1)):
                self.add(self.changing)
        elif theme == "visit":
            for _ in range(rng.integers(1, min(3, self.max_things) + 1)):
                self.add(self.visiting)
        elif theme == "collide" and pair:
            self.collide()
        elif theme == "crowd":
            self.crowd()
        wanted = int(rng.integers(1, self.max_things + 1))
        for _ in range(wanted - len(self.things)):
            draw = rng.random()
            make = self.still if theme == "still" or draw < 0.5 else self.moving if draw < 0.75 else self.visiting
            self.add(make)
        if not self.things:
            self.add(self.still)

    def race(self) -> None:
        """Two things that start together, move for the whole clip, one at least twice as fast."""
        lanes = self.rng.permutation([0.25, 0.75])
        vertical = self.rng.random() < 0.5
        for lane, share in zip(lanes, (self.rng.uniform(0.16, 0.3), self.rng.uniform(0.65, 0.95))):
            heading = str(self.rng.choice(["up", "down"] if vertical else ["left", "right"]))
            self.add(lambda t, h=heading, s=share, at=lane: self.moving(t, h, s, at))

    def order(self) -> None:
        """Two things that come and go one after the other; how long each stays says nothing about the order."""
        last = int(self.duration) - 1
        first_in = int(self.rng.integers(1, last - 1))
        second_in = int(self.rng.integers(first_in + 1, last))
        # Which one stays longer is a coin toss: both draw from the same range.
        longest = min(int(self.duration) // 2 - 1, int(self.duration) - second_in)
        stays = [int(s) for s in self.rng.integers(1, longest + 1, 2)]
        for start, stay in zip((first_in, second_in), stays):
            self.add(lambda t, a=start, b=start + stay: replace(self.staying(t, a, b), role="ordered"))

    def collide(self) -> None:
        """Two things that run into each other, bounce and go back."""
        rng = self.rng
        for _ in range(20):
            a, b = self.body(), self.body()
            axis = 0 if rng.random() < 0.5 else 1
            length, across = self.extent[axis], self.extent[1 - axis]
            gap = (a.diameter + b.diameter) / 2
            meet = rng.uniform(0.4, 0.6) * length
            lane = rng.uniform(0.25, 0.75) * across
            when = rng.uniform(0.4, 0.6) * self.duration
            starts = (a.diameter / 2, length - b.diameter / 2)
            stops = (meet - gap / 2, meet + gap / 2)
            pair = []
            for thing, start, stop in zip((a, b), starts, stops):
                points = [(0.0, start), (when, stop), (self.duration, start)]
                path = tuple((t, p, lane) if axis == 0 else (t, lane, p) for t, p in points)
                pair.append(replace(thing, path=path, role="collides"))
            far = all(abs(stop - start) > 0.08 for start, stop in zip(starts, stops))
            if far and a.name != b.name and all(self.fits(thing) for thing in pair):
                self.things += pair
                return

    def crowd(self) -> None:
        """Several still things that share a colour or a shape, for counting."""
        shared_shape = str(self.rng.choice(SHAPES)) if self.rng.random() < 0.5 else None
        shared_colour = None if shared_shape else str(self.rng.choice(list(COLOURS)))
        for _ in range(self.rng.integers(1, self.max_things + 1)):
            self.add(lambda t: self.still(replace(t, shape=shared_shape or t.shape, colour=shared_colour or t.colour)))

    # -- single things -----------------------------------------------------------------------------------------------
    def body(self) -> Thing:
        """A thing with looks but no place yet."""
        size = str(self.rng.choice(list(SIZES)))
        return Thing(
            shape=str(self.rng.choice(SHAPES)),
            colour=str(self.rng.choice(list(COLOURS))),
            size=size,
            diameter=float(self.rng.uniform(*SIZES[size])),
            path=(),
        )

    def spot(self, thing: Thing) -> tuple[float, float]:
        """A random place where the whole thing is inside the frame."""
        r = thing.diameter / 2
        return tuple(float(self.rng.uniform(r, side - r)) for side in self.extent)  # type: ignore[return-value]

    def still(self, thing: Thing) -> Thing:
        """Stays where it is, all the time."""
        return replace(thing, path=((0.0, *self.spot(thing)),))

    def moving(
        self, thing: Thing, heading: str | None = None, share: float | None = None, lane: float | None = None
    ) -> Thing:
        """One straight move over the whole clip, `share` of the way that the frame allows."""
        heading = heading or str(self.rng.choice(list(DIRECTIONS)))
        axis = 0 if heading in ("left", "right") else 1
        r = thing.diameter / 2
        room = self.extent[axis] - 2 * r
        length = room * (share or self.rng.uniform(0.4, 0.95))
        low = r + self.rng.uniform(0, room - length)
        start, stop = (low, low + length) if heading in ("right", "down") else (low + length, low)
        across_room = self.extent[1 - axis] - 2 * r
        across = r + across_room * (lane if lane is not None else self.rng.random())
        points = ((0.0, start), (self.duration, stop))
        path = tuple((t, p, across) if axis == 0 else (t, across, p) for t, p in points)
        return replace(thing, path=path, heading=heading)

    def staying(self, thing: Thing, enters: int, leaves: int) -> Thing:
        """Is there from one whole second to another."""
        jitter = self.rng.uniform(-0.05, 0.05, 2)
        return replace(
            self.still(thing),
            enters=enters + float(jitter[0]) if enters > 0 else 0.0,
            leaves=leaves + float(jitter[1]) if leaves < self.duration else float("inf"),
        )

    def visiting(self, thing: Thing) -> Thing:
        """Appears, vanishes, or both, at whole seconds."""
        last = int(self.duration) - 1
        kind = self.rng.integers(3)
        if kind == 0:
            return self.staying(thing, int(self.rng.integers(1, last + 1)), int(self.duration))
        if kind == 1:
            return self.staying(thing, 0, int(self.rng.integers(1, last + 1)))
        enters = int(self.rng.integers(1, last))
        return self.staying(thing, enters, int(self.rng.integers(enters + 1, last + 1)))

    def changing(self, thing: Thing) -> Thing:
        """Turns another colour at a whole second."""
        second = float(self.rng.integers(1, int(self.duration))) + float(self.rng.uniform(-0.05, 0.05))
        new = str(self.rng.choice([c for c in COLOURS if c != thing.colour]))
        return replace(self.still(thing), turns=(second, new))

    # -- placing -------------------------------------------------------------------------------------------------------
    def add(self, make) -> None:
        """Try some bodies and places; leave the thing out when the stage is too full."""
        if len(self.things) >= self.max_things:
            return
        for _ in range(25):
            thing = make(self.body())
            if self.fits(thing):
                self.things.append(thing)
                return

    def fits(self, new: Thing) -> bool:
        """No second thing of that name or of a colour that another one turns into, and no long overlap."""
        for old in self.things:
            if old.name == new.name:
                return False
            if (old.turns and old.turns[1] == new.colour) or (new.turns and new.turns[1] in (old.colour,)):
                return False
            if old.turns and new.turns and old.turns[1] == new.turns[1] and old.shape == new.shape:
                return False
        times = np.linspace(0, self.duration, 17)
        here = new.positions(times)
        for old in self.things:
            near = np.linalg.norm(here - old.positions(times), axis=1) < 0.55 * (new.diameter + old.diameter)
            # Things that move may pass over others (occlusion) for at most an eighth of the clip.
            allowed = 2 if (new.heading or old.heading) and "collides" not in (new.role, old.role) else 0
            if near.sum() > allowed:
                return False
        return True
