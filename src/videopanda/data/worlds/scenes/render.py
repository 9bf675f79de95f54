"""Draw a scene at any second, and write it as a real H.264 file.

    frame = Renderer(scene).frame(1.5)            # uint8 (height, width, 3), RGB
    write_clip(scene, "clip.mp4")

Training draws only the seconds that it looks at; evaluation and users read the written files through a decoder.
"""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from videopanda.data.worlds.scenes.world import COLOURS, Background, Scene, Thing

_NOISE_TILE = 256


class Renderer:
    """Draws one scene. What does not change over time is made once."""

    def __init__(self, scene: Scene):
        self.scene = scene
        self.side = min(scene.width, scene.height)
        self.margin = int(np.ceil(max(abs(v) for v in scene.background.pan) * scene.duration * self.side)) + 1
        self.backdrop = _draw_background(scene.background, scene.width, scene.height, self.margin, self.side)
        rng = np.random.default_rng(scene.background.seed)
        level = scene.background.noise
        self.noise = rng.integers(-level, level + 1, (_NOISE_TILE, _NOISE_TILE, 3), dtype=np.int16) if level else None
        self.tint = [np.clip(np.array(COLOURS[t.colour]) + rng.integers(-14, 15, 3), 0, 255) for t in scene.things]
        self.tint_after = [
            np.clip(np.array(COLOURS[t.turns[1]]) + rng.integers(-14, 15, 3), 0, 255) if t.turns else None
            for t in scene.things
        ]

    def frame(self, second: float) -> np.ndarray:
        """The picture at `second`: uint8 (height, width, 3), RGB."""
        scene, pan = self.scene, self.scene.background.pan
        # The pattern slides by whole pixels under the camera; things keep their place in the frame.
        dx, dy = (self.margin // 2 + round(v * (second - scene.duration / 2) * self.side) for v in pan)
        dx, dy = (int(np.clip(d, 0, self.margin)) for d in (dx, dy))
        canvas = self.backdrop[dy : dy + scene.height, dx : dx + scene.width].astype(np.float32)
        for i, thing in enumerate(scene.things):
            if thing.visible(second):
                after = self.tint_after[i]
                tint = after if after is not None and thing.turns and second >= thing.turns[0] else self.tint[i]
                self._draw(canvas, thing, tint, second)
        if self.noise is not None:
            # A fixed tile at a place that depends on the time only: cheap, and the same on every machine.
            rng = np.random.default_rng([scene.background.seed, round(second * 1000)])
            y, x = rng.integers(0, _NOISE_TILE, 2)
            rows = (np.arange(scene.height) + y) % _NOISE_TILE
            cols = (np.arange(scene.width) + x) % _NOISE_TILE
            canvas += self.noise[rows[:, None], cols[None, :]]
        return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)

    def frames(self, seconds) -> np.ndarray:
        """uint8 (len(seconds), height, width, 3)."""
        return np.stack([self.frame(float(s)) for s in seconds])

    def _draw(self, canvas: np.ndarray, thing: Thing, tint: np.ndarray, second: float) -> None:
        x, y = (v * self.side for v in thing.position(second))
        radius = thing.diameter * self.side / 2
        left, top = max(0, int(x - radius) - 2), max(0, int(y - radius) - 2)
        right, bottom = min(canvas.shape[1], int(x + radius) + 3), min(canvas.shape[0], int(y + radius) + 3)
        if left >= right or top >= bottom:
            return
        u = (np.arange(left, right, dtype=np.float32) + 0.5 - x)[None, :]
        v = (np.arange(top, bottom, dtype=np.float32) + 0.5 - y)[:, None]
        cover = np.clip(0.5 - signed_distance(thing.shape, u, v, radius), 0, 1)[..., None]
        patch = canvas[top:bottom, left:right]
        patch += cover * (tint - patch)


def coverage(scene: Scene, second: float, rows: int, columns: int) -> np.ndarray:
    """Which thing each cell of a grid shows: its number in `scene.things`, or -1; int (rows, columns).

    A cell belongs to the visible thing that covers most of it, if that is a fifth or more.
    """
    samples = 4  # per cell and direction
    width, height = scene.extent
    xs = (np.arange(columns * samples, dtype=np.float32) + 0.5) * (width / (columns * samples))
    ys = (np.arange(rows * samples, dtype=np.float32) + 0.5) * (height / (rows * samples))
    top = np.full((rows * samples, columns * samples), -1)
    for number, thing in enumerate(scene.things):
        if thing.visible(second):
            x, y = thing.position(second)
            top[signed_distance(thing.shape, (xs - x)[None, :], (ys - y)[:, None], thing.diameter / 2) < 0] = number
    cells = top.reshape(rows, samples, columns, samples).transpose(0, 2, 1, 3).reshape(rows, columns, -1)
    counts = np.stack([(cells == number).sum(-1) for number in range(len(scene.things))], axis=-1)
    return np.where(counts.max(-1) >= samples * samples / 5, counts.argmax(-1), -1)


def signed_distance(shape: str, u: np.ndarray, v: np.ndarray, r: float) -> np.ndarray:
    """Distance in pixels to the outline, negative inside. `u`, `v`: offsets from the center, `r`: half the size."""
    if shape == "circle":
        return np.hypot(u, v) - r
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.88 * r
    if shape == "triangle":
        # Point up: two slanted sides and a base.
        slant = (2 * np.abs(u) - v - r) / np.sqrt(5.0)
        return np.maximum(slant, v - r)
    if shape == "cross":
        arm = 0.34 * r
        a, b = np.abs(u), np.abs(v)
        return np.minimum(np.maximum(a - r, b - arm), np.maximum(b - r, a - arm))
    raise ValueError(f"unknown shape {shape!r}")


def _draw_background(background: Background, width: int, height: int, margin: int, side: int) -> np.ndarray:
    """uint8 (height + margin, width + margin, 3)."""
    w, h = width + margin, height + margin
    low, high = (np.array(c, dtype=np.float32) for c in background.colours)
    if background.kind == "plain":
        return np.broadcast_to(low.astype(np.uint8), (h, w, 3))
    rng = np.random.default_rng(background.seed)
    x = np.arange(w, dtype=np.float32)[None, :] / side
    y = np.arange(h, dtype=np.float32)[:, None] / side
    if background.kind == "blobs":
        cells = (max(2, int(h / side / background.scale) + 1), max(2, int(w / side / background.scale) + 1))
        coarse = Image.fromarray(rng.random(cells, dtype=np.float32))
        mix = np.clip(np.asarray(coarse.resize((w, h), Image.Resampling.BICUBIC)), 0, 1)
    else:
        angle = rng.uniform(0, np.pi)
        along = np.cos(angle) * x + np.sin(angle) * y
        if background.kind == "gradient":
            mix = (along - along.min()) / np.ptp(along)
        elif background.kind == "stripes":
            mix = 0.5 + 0.5 * np.sin(2 * np.pi * along / background.scale)
        else:  # checks
            across = np.cos(angle) * y - np.sin(angle) * x
            mix = ((np.floor(along / background.scale) + np.floor(across / background.scale)) % 2).astype(np.float32)
    return (low + mix[..., None] * (high - low)).astype(np.uint8)


def write_clip(scene: Scene, path: str | Path) -> None:
    """Write the scene as an H.264 mp4 (yuv420p) at its own frame rate."""
    renderer = Renderer(scene)
    frames = (renderer.frame(i / scene.fps) for i in range(round(scene.duration * scene.fps)))
    write_frames(frames, (scene.width, scene.height), Fraction(scene.fps).limit_denominator(1001), path)


def write_frames(frames: Iterable[np.ndarray], size: tuple[int, int], rate: Fraction, path: str | Path) -> None:
    """Write frames, uint8 (height, width, 3), as an H.264 mp4 (yuv420p). `size` is (width, height), both even."""
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "veryfast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
