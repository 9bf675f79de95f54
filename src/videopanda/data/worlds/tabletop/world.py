"""The 3-D world: what is on the table and when, before any pixel is drawn.

Like Scenes, a scene is a pure function of (seed, split, index) with exact ground truth, here of solid things with a
material that roll, fall off pedestals, drop in from above, hit each other and are put into a box, under a camera that
may move. Motion follows mechanics in closed form: free fall with bounces, and a thing that is hit takes over the
velocity and slows down by friction.

    scene = make_scene(seed=0, split="test", index=7)
    [thing.name for thing in scene.things]        # ['red ball', 'blue cube']

Units: seconds; space in decimetres: x right, y away from the camera, z up, the table at z = 0.
"""

from dataclasses import dataclass, replace

import numpy as np

from videopanda.data.worlds.scenes.world import COLOURS, FRAME_RATES, SPLITS

SHAPES = ("ball", "cube", "cylinder", "cone", "teapot", "panda")
MATERIALS = ("plain", "striped", "checkered", "dotted")
PATTERNED = SHAPES[:4]  # the others are plain
SIZES = {"small": (0.40, 0.46), "large": (0.62, 0.70)}  # half of the width
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "closer": (0.0, -1.0), "away": (0.0, 1.0)}
CAMERA_MOVES = {"left": (-1.6, 0.0), "right": (1.6, 0.0), "closer": (0.0, -1.0), "away": (0.0, 1.0)}
FRAME_SIZES = ((160, 120), (192, 144), (128, 128), (176, 176), (192, 108), (256, 144))
DURATIONS = (4, 6, 8)
FLOORS = ("plain", "wood", "tiles", "cloth")
THEMES = ("still", "roll", "order", "fall", "collide", "contain", "camera", "crowd")

WIDTH, NEAR, FAR = 2.1, -1.3, 1.7  # the table: |x| and the range of y where things are put
PEDESTAL = 1.1  # height
BOX = 0.85  # half of the width of the box
WALL = 0.55  # its height
GRAVITY, BOUNCE, FRICTION = 9.81, 0.45, 0.4  # dm/s² (slow enough to be seen), share of speed, share lost per second


@dataclass(frozen=True)
class Solid:
    """One thing and its whole life."""

    shape: str
    colour: str
    material: str
    size: str
    radius: float  # half of its width
    path: tuple[tuple[float, float, float, float], ...]  # (second, x, y, z of its bottom), linear in between
    heading: str | None = None  # key of DIRECTIONS for one straight move
    pedestal: bool = False  # whether it stands on one at the start
    falls: float | None = None  # second at which it leaves its pedestal
    drops: float | None = None  # second at which it lands after dropping in from above
    hits: str | None = None  # name of the thing that it runs into
    boxed: float | None = None  # second from which it is in the box

    @property
    def name(self) -> str:
        """How questions call it: color, shape."""
        return f"{self.colour} {self.shape}"

    def position(self, second: float) -> tuple[float, float, float]:
        """Place (x, y, z) of the middle of its bottom at `second`."""
        times, *axes = zip(*self.path)
        return tuple(float(np.interp(second, times, axis)) for axis in axes)  # type: ignore[return-value]


@dataclass(frozen=True)
class TabletopScene:
    """Everything that a clip shows."""

    seed: int
    split: str
    index: int
    theme: str
    width: int
    height: int
    fps: float
    duration: float
    things: tuple[Solid, ...]
    box: tuple[float, float] | None  # x, y of the open box
    camera: str | None  # key of CAMERA_MOVES
    floor: str
    floor_colour: tuple[int, int, int]
    light: tuple[float, float]  # degrees: around the table, above the horizon
    draw_seed: int

    def camera_shift(self, second: float) -> tuple[float, float]:
        """How far (right, away) the camera is from its usual place, at `second`; it starts half a move off."""
        across, along = CAMERA_MOVES[self.camera] if self.camera else (0.0, 0.0)
        share = min(1.0, max(0.0, second / self.duration)) - 0.5
        return across * share, along * share


def make_scene(seed: int, split: str, index: int, max_things: int = 4) -> TabletopScene:
    """Draw scene `index` of a split. Equal arguments give equal scenes on every machine.

    Raises:
        ValueError: the split is not one of train, validation, test.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    rng = np.random.default_rng([seed, SPLITS[split], index, 3])
    width, height = FRAME_SIZES[rng.integers(len(FRAME_SIZES))]
    theme = THEMES[rng.integers(len(THEMES))]
    stage = _Placement(rng, float(rng.choice(DURATIONS)), max_things)
    stage.play(theme)
    gray = rng.uniform(90, 190)
    return TabletopScene(
        seed=seed,
        split=split,
        index=index,
        theme=theme,
        width=width,
        height=height,
        fps=float(rng.choice(FRAME_RATES)),
        duration=stage.duration,
        things=tuple(stage.things[i] for i in rng.permutation(len(stage.things))),
        box=stage.box,
        camera=str(rng.choice(list(CAMERA_MOVES))) if theme == "camera" and rng.random() < 0.8 else None,
        floor=str(rng.choice(FLOORS)),
        floor_colour=tuple(int(v) for v in np.clip(gray + rng.uniform(-15, 15, 3), 70, 200)),  # type: ignore[arg-type]  # three
        light=(float(rng.uniform(-60, 60)), float(rng.uniform(40, 65))),
        draw_seed=int(rng.integers(2**31)),
    )


class _Placement:
    """Places things one after another; a thing that would touch or hide another is drawn again."""

    def __init__(self, rng: np.random.Generator, duration: float, max_things: int):
        self.rng, self.duration, self.max_things = rng, duration, max_things
        self.things: list[Solid] = []
        self.box: tuple[float, float] | None = None

    def play(self, theme: str) -> None:
        """Put on the table what the theme needs, then some bystanders."""
        rng = self.rng
        several = self.max_things >= 2
        shared: dict[str, str] = {}
        if theme == "roll":
            for _ in range(rng.integers(1, min(2, self.max_things) + 1)):
                self.add(self.rolling)
        elif theme == "order" and several:
            first, second = sorted(rng.choice(np.arange(1, int(self.duration)), 2, replace=False))
            self.add(lambda thing: self.dropping(thing, first))
            self.add(lambda thing: self.dropping(thing, second))
        elif theme == "fall":
            self.add(self.falling)
            self.add(self.raised)
        elif theme == "collide" and several:
            self.collide()
        elif theme == "contain":
            self.contain()
        elif theme == "crowd":
            key = ("shape", "colour", "material")[rng.integers(3)]
            shared = {key: str(rng.choice({"shape": SHAPES, "colour": list(COLOURS), "material": MATERIALS}[key]))}
        wanted = int(rng.integers(1, self.max_things + 1))
        for _ in range(wanted - len(self.things)):
            draw = rng.random()
            if theme == "fall" and draw < 0.5:
                self.add(self.raised)
            elif theme in ("order", "roll") and draw < 0.2:
                self.add(lambda thing: self.dropping(thing, int(rng.integers(1, int(self.duration)))))
            else:
                self.add(lambda thing: self.resting(_as(thing, shared)))

    # -- single things -------------------------------------------------------------------------------------------------
    def body(self) -> Solid:
        """A thing with looks but no place yet."""
        size = str(self.rng.choice(list(SIZES)))
        shape = str(self.rng.choice(SHAPES))
        return Solid(
            shape=shape,
            colour=str(self.rng.choice(list(COLOURS))),
            material=str(self.rng.choice(MATERIALS)) if shape in PATTERNED else "plain",
            size=size,
            radius=float(self.rng.uniform(*SIZES[size])),
            path=(),
        )

    def spot(self, thing: Solid) -> tuple[float, float]:
        """A random place on the table."""
        room = WIDTH - thing.radius / 2
        return float(self.rng.uniform(-room, room)), float(self.rng.uniform(NEAR, FAR))

    def resting(self, thing: Solid) -> Solid:
        """Stays where it is."""
        return replace(thing, path=((0.0, *self.spot(thing), 0.0),))

    def rolling(self, thing: Solid) -> Solid:
        """One straight move over the whole clip."""
        heading = str(self.rng.choice(list(DIRECTIONS)))
        along = DIRECTIONS[heading]
        x, y = self.spot(thing)
        way = float(self.rng.uniform(1.6, 2.8) if along[0] else self.rng.uniform(1.5, 2.4))
        start, stop = (x, y), (x + along[0] * way, y + along[1] * way)
        # The way lies in the middle of the table.
        right = -(start[0] + stop[0]) / 2 if along[0] else 0.0
        back = (NEAR + FAR) / 2 - (start[1] + stop[1]) / 2 if along[1] else 0.0
        first, last = ((x + right, y + back, 0.0) for x, y in (start, stop))
        return replace(thing, heading=heading, path=((0.0, *first), (self.duration, *last)))

    def raised(self, thing: Solid) -> Solid:
        """Stands on a pedestal, all the time."""
        small = replace(thing, size="small", radius=float(self.rng.uniform(*SIZES["small"])))
        return replace(small, pedestal=True, path=((0.0, *self.spot(small), PEDESTAL),))

    def falling(self, thing: Solid) -> Solid:
        """Leaves its pedestal to the left or right at a whole second, and bounces."""
        thing = self.raised(thing)
        second = float(self.rng.integers(1, int(self.duration) - 1)) + float(self.rng.uniform(-0.05, 0.05))
        (_, x, y, z) = thing.path[0]
        x = float(np.clip(x, -1.1, 1.1))
        side = 0.9 if self.rng.random() < 0.5 else -0.9
        down = bounces(z)
        end = down[-1][0]
        way = [(second + t, x + side * min(1.0, t / end + 0.001), y, height) for t, height in down]
        return replace(thing, falls=second, path=((0.0, x, y, z), (second - 0.01, x, y, z), *way))

    def dropping(self, thing: Solid, second: int) -> Solid:
        """Comes from above the picture and lands at a whole second."""
        x, y = self.spot(thing)
        height = 5.0
        lands = second + float(self.rng.uniform(-0.05, 0.05))
        down = bounces(height)
        begins = lands - (2 * height / GRAVITY) ** 0.5
        way = tuple((begins + t, x, y, z) for t, z in down)
        return replace(thing, drops=lands, path=((begins - 0.01, x, y, height), *way))

    # -- pairs and the box -------------------------------------------------------------------------------------------
    def collide(self) -> None:
        """One thing runs into another, stops, and the other moves on."""
        for _ in range(30):
            a, b = self.body(), self.body()
            sign = 1.0 if self.rng.random() < 0.5 else -1.0
            y = float(self.rng.uniform(NEAR, FAR))
            gap = a.radius + b.radius
            start, rest = -sign * float(self.rng.uniform(1.9, 2.4)), sign * float(self.rng.uniform(-0.1, 0.5))
            touch = rest - sign * gap
            when = float(self.rng.uniform(0.3, 0.45)) * self.duration
            speed = abs(touch - start) / when
            pushed = [
                (when + t, rest + sign * speed * float(1 - np.exp(-FRICTION * t)) / FRICTION, y, 0.0)
                for t in np.linspace(0, self.duration - when, 12).tolist()
            ]
            pair = (
                replace(a, path=((0.0, start, y, 0.0), (when, touch, y, 0.0)), hits=b.name),
                replace(b, path=((0.0, rest, y, 0.0), *pushed)),
            )
            if a.name != b.name and abs(touch - start) > 0.5 and abs(pushed[-1][1]) < 2.8:
                self.things += pair
                return

    def contain(self) -> None:
        """A thing is lifted and put into the box."""
        self.box = float(self.rng.uniform(-1.0, 1.0)), float(self.rng.uniform(-0.3, 0.6))
        for _ in range(int(self.rng.integers(0, min(2, self.max_things) + 1))):
            self.add(self.boxing)

    def boxing(self, thing: Solid) -> Solid:
        """Is lifted from its place, carried over the box, and lowered into it."""
        assert self.box
        thing = replace(thing, size="small", radius=float(self.rng.uniform(*SIZES["small"])))
        x, y = self.spot(thing)
        inside = [other for other in self.things if other.boxed is not None]
        across = 0.38 if inside and inside[0].path[-1][1] < self.box[0] else -0.38
        begins = float(self.rng.uniform(0.1, 0.5)) * self.duration
        ends = begins + float(self.rng.uniform(0.25, 0.35)) * self.duration
        high = WALL + 0.7
        goal = self.box[0] + across, self.box[1]
        third = (ends - begins) / 3
        path = ((begins, x, y, 0.0), (begins + third, x, y, high), (ends - third, *goal, high), (ends, *goal, 0.0))
        return replace(thing, path=path, boxed=ends)

    # -- placing -----------------------------------------------------------------------------------------------------
    def add(self, make) -> None:
        """Try some bodies and places; leave the thing out when the table is too full."""
        if len(self.things) >= self.max_things:
            return
        for _ in range(40):
            thing = make(self.body())
            if self.fits(thing):
                self.things.append(thing)
                return

    def fits(self, new: Solid) -> bool:
        """No second thing of that name, and none that touches or hides another for long."""
        times = np.linspace(0, self.duration, 17)
        here = np.array([new.position(t) for t in times])
        if self.box and new.boxed is None:
            away = np.abs(here[:, :2] - self.box)
            if ((away[:, 0] < BOX + new.radius + 0.1) & (away[:, 1] < BOX + new.radius + 0.4)).any():
                return False
        elif self.box and np.abs(here[0, :2] - self.box).max() < BOX + new.radius + 0.2:
            return False
        for old in self.things:
            if old.name == new.name:
                return False
            if old.boxed is not None and new.boxed is not None:
                old_span, new_span = (old.path[0][0], old.boxed), (new.path[0][0], new.boxed)
                if old_span[0] < new_span[1] and new_span[0] < old_span[1]:
                    return False
                if abs(old.path[0][1] - new.path[0][1]) < 1.0:
                    return False
                continue
            there = np.array([old.position(t) for t in times])
            across, along = np.abs(here[:, 0] - there[:, 0]), np.abs(here[:, 1] - there[:, 1])
            reach = old.radius + new.radius
            near = (across < 0.8 * reach + 0.1) & (along < max(reach + 0.1, 1.2))
            touch = (np.hypot(across, along) < reach + 0.05) & (np.abs(here[:, 2] - there[:, 2]) < reach)
            if touch.any() or near.sum() > (3 if new.heading or old.heading else 0):
                return False
        return True


def bounces(height: float) -> list[tuple[float, float]]:
    """(second, height) of a thing that is let go at `height`: free fall, then bounces until it lies still."""
    found = [(0.0, height)]
    begins, speed = 0.0, 0.0  # of the present arc, upwards
    low = height
    while True:
        takes = (speed + (speed**2 + 2 * GRAVITY * low) ** 0.5) / GRAVITY
        for share in (0.25, 0.5, 0.75, 1.0):
            t = share * takes
            found.append((begins + t, max(0.0, low + speed * t - GRAVITY * t * t / 2)))
        landing = GRAVITY * takes - speed
        begins, speed, low = begins + takes, BOUNCE * landing, 0.0
        if speed < 0.4:
            return found


def _as(thing: Solid, shared: dict[str, str]) -> Solid:
    changed = replace(thing, **shared)  # type: ignore[arg-type]
    return changed if changed.shape in PATTERNED else replace(changed, material="plain")
