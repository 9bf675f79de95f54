"""What Scenes does not show: questions that a scene does not answer, and clips of other worlds. Both are declined.

    unanswerable(scene, rng)         # What colour is the triangle?  I cannot tell from this video.  (it has none)
    outside_frames(rng, 8)           # uint8 (8, height, width, 3): textures, landscapes, test patterns, noise, nothing

The clips are generated like the world itself, so that a model learns to decline without any footage; whether it then
declines real footage is measured on clips that it was never trained on.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from videopanda.data.worlds.scenes.questions import Question
from videopanda.data.worlds.scenes.wordings import DECLINE
from videopanda.data.worlds.scenes.world import COLOURS, SHAPES, SIZES, Scene

_SIZES = ((160, 120), (176, 144), (128, 128), (192, 108), (256, 144), (108, 192), (120, 160), (200, 84), (240, 100))


def unanswerable(scene: Scene, rng: np.random.Generator) -> Question:
    """A question as Scenes writes it, about an object that is not there or something that an object does not do."""
    things = scene.things
    idle = [t for t in things if t.turns is None]
    if rng.random() < 0.25 and idle:
        thing = idle[int(rng.integers(len(idle)))]
        wrong = [f"What colour does the {thing.name} turn?", f"When does the {thing.name} change colour?"]
        if thing.travel == 0:
            wrong += [f"Which way does the {thing.name} move?"] * 2
        if thing.enters == 0:
            wrong.append(f"When does the {thing.name} appear?")
        if thing.leaves >= scene.duration:
            wrong.append(f"When does the {thing.name} vanish?")
        if len(idle) == len(things) > 1:
            wrong.append("Which object changes colour?")
        return Question("outside", wrong[int(rng.integers(len(wrong)))], DECLINE)
    a = _absent(scene, rng)
    b = things[int(rng.integers(len(things)))].name
    pair = f"the {a} or the {b}" if rng.random() < 0.5 else f"the {b} or the {a}"
    first, second = (a, b) if rng.random() < 0.5 else (b, a)
    moment = ("at the start", "at the end")[int(rng.integers(2))]
    questions = [
        *(f"What colour is the {a}?", f"What is the colour of the {a}?") * (not a.endswith("object")),
        *(f"What shape is the {a}?", f"What is the shape of the {a}?") * a.endswith("object"),
        f"Is the {a} small or large?",
        f"Which way does the {a} move?",
        f"In which direction does the {a} move?",
        f"What colour does the {a} turn?",
        f"Which colour does the {a} become?",
        f"When does the {a} {('appear', 'vanish', 'change colour')[int(rng.integers(3))]}?",
        f"How long is the {a} visible?",
        f"Is the {first} {('left or right of', 'above or below')[int(rng.integers(2))]} the {second} {moment}?",
        f"Which moves {('faster', 'more slowly')[int(rng.integers(2))]}, {pair}?",
        f"Which appears {('first', 'last')[int(rng.integers(2))]}, {pair}?",
    ]
    return Question("outside", questions[int(rng.integers(len(questions)))], DECLINE)


def _absent(scene: Scene, rng: np.random.Generator) -> str:
    """What questions would call an object that the scene never shows; mostly one that is nearly there."""
    ever = {(t.colour, t.shape) for t in scene.things} | {(t.turns[1], t.shape) for t in scene.things if t.turns}
    shapes, colours = {shape for _, shape in ever}, {colour for colour, _ in ever}
    names = [f"{c} {s}" for c in COLOURS for s in SHAPES if (c, s) not in ever]
    near = [name for name in names if name.split()[0] in colours or name.split()[1] in shapes]
    alone = [s for s in SHAPES if s not in shapes]
    objects = [f"{c} object" for c in COLOURS if c not in colours]
    sized = {(t.size, t.shape) for t in scene.things}
    there = [shape for shape in SHAPES if shape in shapes]  # not in the order of a set, which differs between processes
    odd = [f"{size} {shape}" for size in SIZES for shape in there if (size, shape) not in sized]
    kinds = [names for names in (near, near, alone, alone, objects, odd, names) if names]
    chosen = kinds[int(rng.integers(len(kinds)))]
    return str(chosen[int(rng.integers(len(chosen)))])


def outside_frames(rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """Frames of a clip that shows no scene, uint8 (`num_frames`, height, width, 3)."""
    width, height = _SIZES[int(rng.integers(len(_SIZES)))]
    weights = np.array([0.3, 0.14, 0.26, 0.1, 0.08, 0.06, 0.06])
    make = _PICTURES[int(rng.choice(len(_PICTURES), p=weights))]
    cut = int(rng.integers(1, num_frames)) if num_frames > 1 and rng.random() < 0.15 else num_frames
    first = _filmed(make(rng, width * 3 // 2, height * 3 // 2), rng, cut, width, height)
    if cut < num_frames:
        first += _filmed(make(rng, width * 3 // 2, height * 3 // 2), rng, num_frames - cut, width, height)
    return _developed(np.stack([np.asarray(frame) for frame in first]), rng)


def _filmed(canvas: Image.Image, rng: np.random.Generator, num: int, width: int, height: int) -> list[Image.Image]:
    """Pan, zoom or shake over a larger picture, past which something may move."""
    room = np.array([canvas.width - width, canvas.height - height], float)
    start, stop = rng.random(2), rng.random(2)
    if rng.random() < 0.4:
        stop = start
    shake = rng.choice([0.0, 0.02, 0.1])
    zoom = rng.uniform(0.6, 1.0, 2) if rng.random() < 0.4 else np.ones(2)
    things = [_Passer(rng, width, height) for _ in range(int(rng.integers(0, 4)))] if rng.random() < 0.6 else []
    frames = []
    for i in range(num):
        share = i / max(1, num - 1)
        corner = np.clip(start + (stop - start) * share + shake * rng.standard_normal(2), 0, 1) * room
        size = np.array([width, height]) * (zoom[0] + (zoom[1] - zoom[0]) * share)
        frame = canvas.resize((width, height), Image.Resampling.BILINEAR, (*corner, *(corner + size)))
        for thing in things:
            thing.draw(frame, share)
        frames.append(frame)
    return frames


class _Passer:
    """A blob of several parts, with shading, that wobbles through the picture: about what a person looks like here."""

    def __init__(self, rng: np.random.Generator, width: int, height: int):
        scale = rng.uniform(0.15, 0.7) * height
        self.parts = [
            (rng.uniform(-0.3, 0.3, 2) * scale, rng.uniform(0.08, 0.35, 2) * scale, _natural(rng))
            for _ in range(int(rng.integers(2, 7)))
        ]
        self.path = rng.uniform(0, 1, (3, 2)) * (width, height)
        self.wobble = rng.uniform(0, 0.08) * scale * rng.standard_normal((12, 2))

    def draw(self, frame: Image.Image, share: float) -> None:
        pen = ImageDraw.Draw(frame)
        a, b, c = self.path
        middle = (1 - share) ** 2 * a + 2 * share * (1 - share) * b + share**2 * c + self.wobble[int(share * 11)]
        for offset, half, colour in self.parts:
            low, high = middle + offset - half, middle + offset + half
            pen.ellipse((*low, *high), fill=colour)
            pen.ellipse((*(low + half * 0.2), *(high - half * 0.6)), fill=tuple(min(255, v + 18) for v in colour))


def _natural(rng: np.random.Generator) -> tuple[int, ...]:
    """Mostly earthy and grayish, seldom bright."""
    gray = rng.uniform(10, 240)
    tint = rng.normal(0, 1, 3) * rng.choice([6.0, 20.0, 50.0], p=[0.4, 0.4, 0.2]) + (6, 0, -6)
    return tuple(int(v) for v in np.clip(gray + tint, 0, 255))


def _leaves(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Overlapping shapes of all sizes, as in the dead leaves model of natural pictures."""
    picture = Image.new("RGB", (width, height), _natural(rng))
    pen = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(20, 220))):
        radius = 0.03 * height / rng.uniform(0.05, 1.0)
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        if rng.random() < 0.5:
            wide, tall = radius * rng.uniform(0.3, 1.0, 2)
            pen.ellipse((x - wide, y - tall, x + wide, y + tall), fill=_natural(rng))
        else:
            angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 7))))
            pen.polygon([(x + radius * np.cos(a), y + radius * np.sin(a)) for a in angles], fill=_natural(rng))
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 2.5))) if rng.random() < 0.6 else picture


def _cloud(rng: np.random.Generator, width: int, height: int, power: float = 0.0) -> np.ndarray:
    """Noise whose amplitude falls with frequency, 0 to 1, float (height, width)."""
    power = power or rng.uniform(0.8, 2.2)
    y, x = np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None] * width
    amplitude = 1 / np.maximum(1, np.hypot(x, y)) ** power
    phases = np.exp(2j * np.pi * rng.random(amplitude.shape))
    values = np.fft.irfft2(amplitude * phases, (height, width))
    return (values - values.min()) / (np.ptp(values) + 1e-9)


def _texture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Coloured clouds: smoke, water, foliage out of focus."""
    colours = np.array([_natural(rng) for _ in range(3)], float)
    one, two = _cloud(rng, width, height)[..., None], _cloud(rng, width, height)[..., None]
    mixed = colours[0] * one + colours[1] * (1 - one)
    return Image.fromarray(np.clip(mixed * two + colours[2] * (1 - two), 0, 255).astype(np.uint8))


def _landscape(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A sky or wall, a rough ground, and upright things on it: trees, houses, furniture, people."""
    horizon = rng.uniform(0.2, 0.8) * height
    up, down, soil = (np.array(_natural(rng), float) for _ in range(3))
    rows = np.arange(height)[:, None, None] / height
    picture = np.broadcast_to(up + (down - up) * rows, (height, width, 3)).copy()
    ridge = horizon + (_cloud(rng, width, 4, 1.5)[0] - 0.5) * height * rng.uniform(0, 0.4)
    ground = np.arange(height)[:, None] > ridge[None]
    rough = 0.6 + 0.8 * _cloud(rng, width, height)[..., None]
    picture = np.where(ground[..., None], soil * rough, picture * (0.9 + 0.2 * rough))
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 14))):
        x, wide, tall = rng.uniform(0, width), rng.uniform(2, width / 5), rng.uniform(0.1, 0.8) * height
        foot = horizon + rng.uniform(0, 0.5) * (height - horizon)
        fill = _natural(rng)
        pen.rectangle((x - wide / 2, foot - tall, x + wide / 2, foot), fill=fill)
        if rng.random() < 0.5:
            pen.ellipse((x - wide, foot - tall - wide, x + wide, foot - tall + wide), fill=_natural(rng))
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5)))


def _pattern(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Test pictures: bars, boards, ramps, rings."""
    colours = np.array([rng.integers(0, 256, 3) if rng.random() < 0.7 else _natural(rng) for _ in range(8)])
    y, x = np.mgrid[0:height, 0:width]
    kind = int(rng.integers(5))
    if kind == 0:
        index = x * 8 // width
    elif kind == 1:
        index = (x // int(rng.integers(6, 60)) + y // int(rng.integers(6, 60))) % 8
    elif kind == 2:
        index = (np.hypot(x - width / 2, y - height / 2) // rng.integers(5, 40)).astype(int) % 8
    elif kind == 3:
        index = y * 8 // height
    else:
        ramp = colours[0] + (colours[1] - colours[0]) * (x / width)[..., None]
        return Image.fromarray(np.clip(ramp, 0, 255).astype(np.uint8))
    return Image.fromarray(colours[index % int(rng.integers(2, 9))].astype(np.uint8))


def _writing(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Lines of letters on a page, a slide, a title."""
    picture = Image.new("RGB", (width, height), _natural(rng))
    pen = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(1, 10))):
        text = "".join(chr(int(c)) for c in rng.choice([*range(97, 123), *range(48, 58), 32, 32, 32], 20))
        place = rng.uniform(-0.1, 0.9, 2) * (width, height)
        pen.text(tuple(place), text[: int(rng.integers(3, 20))], fill=_natural(rng), font_size=int(rng.integers(8, 60)))
    return picture


def _empty(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """One colour: black, white, any."""
    level = int(rng.choice([0, 0, 16, 128, 235, 255]))
    colour = (level,) * 3 if rng.random() < 0.7 else tuple(int(v) for v in rng.integers(0, 256, 3))
    return Image.new("RGB", (width, height), colour)


def _snow(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Noise without any structure, fine or coarse."""
    step = int(rng.integers(1, 24))
    shape = (height // step + 2, width // step + 2, 3 if rng.random() < 0.5 else 1)
    small = np.broadcast_to(rng.integers(0, 256, shape), (*shape[:2], 3)).astype(np.uint8)
    way = Image.Resampling.NEAREST if rng.random() < 0.5 else Image.Resampling.BICUBIC
    return Image.fromarray(small).resize((width, height), way)


_PICTURES: tuple[Callable[[np.random.Generator, int, int], Image.Image], ...] = (
    _leaves,
    _texture,
    _landscape,
    _pattern,
    _writing,
    _empty,
    _snow,
)


def _developed(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light, contrast, colour and grain of some camera; black bars now and then."""
    values = frames.astype(np.float32)
    if rng.random() < 0.2:
        values = np.repeat(values.mean(-1, keepdims=True), 3, -1)
    values = (values - 128) * rng.uniform(0.4, 1.5) + 128
    values *= rng.uniform(0.25, 1.0) if rng.random() < 0.4 else rng.uniform(0.8, 1.3)
    if rng.random() < 0.5:
        values += rng.normal(0, rng.uniform(1, 15), values.shape).astype(np.float32)
    if rng.random() < 0.12:
        bar = int(rng.uniform(0.05, 0.25) * values.shape[1])
        values[:, :bar] = values[:, -bar:] = 0
    return np.clip(values, 0, 255).astype(np.uint8)
