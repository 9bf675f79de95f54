"""Draw a scene of the table at any second, with Panda3D's software renderer: no GPU, no display.

    frame = TabletopRenderer(scene).frame(1.5)            # uint8 (height, width, 3), RGB

Needs the extra `worlds`. Perspective, light by vertex, textures, soft shadows on the table. Panda3D draws in one thread
of a process; several processes draw independently.
"""

from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import panda3d
from panda3d import core

from videopanda.data.worlds.scenes.dataset import Clip
from videopanda.data.worlds.scenes.render import write_frames
from videopanda.data.worlds.scenes.world import COLOURS
from videopanda.data.worlds.tabletop.world import BOX, PEDESTAL, WALL, Solid, TabletopScene

_HOME, _LOOKS_AT = (0.0, -6.6, 4.4), (0.0, 0.15, 0.4)  # of the camera
_FIELD = 40.0  # degrees of the view, across
_TEXTURE = 64  # pixels per side of a texture
_AROUND = 20  # corners of round bodies
_FADES = 3.0  # height at which a shadow is gone

core.load_prc_file_data("", "load-display p3tinydisplay\nwindow-type offscreen\naudio-library-name null")
core.load_prc_file_data("", "notify-level error\nmodel-cache-dir\nsupport-threads false")


@cache
def _engine() -> tuple[Any, Any]:
    engine = core.GraphicsEngine.get_global_ptr()
    pipe = core.GraphicsPipeSelection.get_global_ptr().make_pipe("TinyOffscreenGraphicsPipe", "p3tinydisplay")
    if pipe is None:
        raise RuntimeError("Panda3D was built without its software renderer, p3tinydisplay")
    return engine, pipe


@cache
def _canvas(width: int, height: int) -> tuple[Any, Any, Any]:
    """A buffer of one size, the texture that it is copied to, and its camera."""
    engine, pipe = _engine()
    wanted = core.FrameBufferProperties()
    wanted.set_rgb_color(True)
    wanted.set_depth_bits(24)
    size = core.WindowProperties.size(width, height)
    buffer = engine.make_output(pipe, f"{width}x{height}", 0, wanted, size, core.GraphicsPipe.BF_refuse_window)
    texture = core.Texture()
    buffer.add_render_texture(texture, core.GraphicsOutput.RTM_copy_ram)
    buffer.set_clear_color((0.62, 0.66, 0.7, 1))
    lens = core.PerspectiveLens()
    lens.set_aspect_ratio(width / height)
    lens.set_fov(_FIELD)
    lens.set_near_far(0.5, 60.0)
    camera = core.NodePath(core.Camera("camera", lens))
    buffer.make_display_region().set_camera(camera)
    return buffer, texture, camera


class TabletopRenderer:
    """Draws one scene. What does not change over time is made once."""

    def __init__(self, scene: TabletopScene):
        self.scene = scene
        self.root = core.NodePath("scene")
        rng = np.random.default_rng(scene.draw_seed)
        self._lights()
        floor = _square(9.0)
        floor.set_texture(_texture(_floor(scene.floor, rng)))
        floor.set_color_scale(*_rgb(scene.floor_colour))
        floor.reparent_to(self.root)
        for thing in scene.things:
            if thing.pedestal:
                _, x, y, _ = thing.path[0]
                column = _lathe(((0.3, 0.0), (0.3, 1.0)))
                column.set_scale(1, 1, PEDESTAL - 0.02)
                column.set_pos(x, y, 0)
                column.set_color_scale(0.55, 0.55, 0.58, 1)
                column.reparent_to(self.root)
        if scene.box:
            self._box(*scene.box)
        self.bodies = [self._body(thing, rng) for thing in scene.things]
        self.shadows = [self._shadow() for _ in scene.things]

    def frame(self, second: float) -> np.ndarray:
        """The picture at `second`: uint8 (height, width, 3), RGB."""
        for thing, body, shadow in zip(self.scene.things, self.bodies, self.shadows):
            x, y, z = thing.position(second)
            body.set_pos(x, y, z)
            if thing.shape == "ball":
                body.set_r((x - thing.position(0.0)[0]) / thing.radius * 57.3)
                body.set_pos(x, y, z + thing.radius)
            strength = max(0.0, 1.0 - z / _FADES)
            shadow.set_pos(x, y, 0.012)
            shadow.set_scale(thing.radius * (1.25 + 0.3 * z))
            shadow.set_alpha_scale(0.55 * strength)
        width, height = self.scene.width, self.scene.height
        buffer, texture, camera = _canvas(width, height)
        right, away = self.scene.camera_shift(second)
        camera.reparent_to(self.root)
        camera.set_pos(_HOME[0] + right, _HOME[1] + away, _HOME[2])
        camera.look_at(core.Point3(_LOOKS_AT[0] + right, _LOOKS_AT[1] + away, _LOOKS_AT[2]))
        buffer.set_active(True)
        _engine()[0].render_frame()
        buffer.set_active(False)
        camera.detach_node()
        drawn = np.frombuffer(texture.get_ram_image_as("RGB"), np.uint8).reshape(height, width, 3)
        return drawn[::-1].copy()  # Panda3D's first row is the lowest

    def frames(self, seconds: Any) -> np.ndarray:
        """uint8 (len(seconds), height, width, 3)."""
        return np.stack([self.frame(float(second)) for second in seconds])

    def _lights(self) -> None:
        sun = core.DirectionalLight("sun")
        sun.set_color((0.58, 0.58, 0.56, 1))  # with the sky not above 1, where colors would wrap around
        node = self.root.attach_new_node(sun)
        around, above = self.scene.light
        node.set_hpr(around, -above, 0)
        sky = core.AmbientLight("sky")
        sky.set_color((0.42, 0.42, 0.42, 1))
        for light in (node, self.root.attach_new_node(sky)):
            self.root.set_light(light)

    def _body(self, thing: Solid, rng: np.random.Generator) -> Any:
        holder = self.root.attach_new_node("thing")
        body = _shape(thing.shape)
        body.reparent_to(holder)
        body.set_scale(body, thing.radius)
        if thing.shape == "ball":
            body.set_pos(0, 0, 0)
        if thing.material != "plain":
            body.set_texture(_texture(_pattern(thing.material)), 1)
        tint = np.clip(np.array(COLOURS[thing.colour]) + rng.integers(-14, 15, 3), 0, 255)
        body.set_color_scale(*_rgb(tint))
        holder.set_h(float(rng.uniform(-40, 40)))
        return holder

    def _shadow(self) -> Any:
        disc = _square(1.0)
        disc.set_texture(_texture(_soft_disc()))
        disc.set_transparency(core.TransparencyAttrib.M_alpha)
        disc.set_light_off()
        disc.set_depth_write(False)
        disc.set_bin("transparent", 0)
        disc.reparent_to(self.root)
        return disc

    def _box(self, x: float, y: float) -> None:
        for across, along in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            wall = _cube()
            thick = 0.05
            wall.set_scale(thick if across else BOX, thick if along else BOX, WALL / 2)
            wall.set_pos(x + across * BOX, y + along * BOX, 0)
            wall.set_color_scale(0.62, 0.5, 0.36, 1)
            wall.reparent_to(self.root)


def _rgb(colour: Any) -> tuple[float, float, float, float]:
    red, green, blue = (float(v) / 255 for v in colour)
    return red, green, blue, 1.0


def draw(scene: TabletopScene, num_frames: int) -> Clip:
    """The frames that a decoder would show at `num_frames` uniform times."""
    wanted = (np.arange(num_frames) + 0.5) * scene.duration / num_frames
    shown = np.floor(wanted * scene.fps + 1e-6) / scene.fps
    return Clip(TabletopRenderer(scene).frames(shown), tuple(float(t) for t in shown), scene.duration)


def write_clip(scene: TabletopScene, path: str | Path) -> None:
    """Write the scene as an H.264 mp4 (yuv420p) at its own frame rate."""
    renderer = TabletopRenderer(scene)
    frames = (renderer.frame(i / scene.fps) for i in range(round(scene.duration * scene.fps)))
    write_frames(frames, (scene.width, scene.height), Fraction(scene.fps).limit_denominator(1001), path)


# -- bodies: unit size, standing on z = 0 (the ball around 0) ----------------------------------------------------------
def _shape(name: str) -> Any:
    """A new node of a shape, two units wide."""
    if name == "cube":
        return _cube()
    if name == "ball":
        angles = np.linspace(-np.pi / 2, np.pi / 2, 13)
        return _lathe(tuple((float(np.cos(a)), float(np.sin(a))) for a in angles), smooth=True)
    if name == "cylinder":
        return _lathe(((0.0, 0.0), (0.95, 0.0), (0.95, 0.0), (0.95, 2.0), (0.95, 2.0), (0.0, 2.0)))
    if name == "cone":
        return _lathe(((0.0, 0.0), (1.05, 0.0), (1.05, 0.0), (0.0, 2.1)))
    return _model(name).copy_to(core.NodePath())


@cache
def _model(name: str) -> Any:
    """A model that comes with Panda3D, scaled to two units of width."""
    path = Path(panda3d.__file__).parent / "models" / f"{name}.egg.pz"
    model = core.NodePath(core.Loader.get_global_ptr().load_sync(core.Filename.from_os_specific(str(path))))
    low, high = model.get_tight_bounds()
    model.set_scale(1 / max((high[0] - low[0]) / 3.0, (high[2] - low[2]) / 2.4))
    low, high = model.get_tight_bounds()
    model.set_pos(-(low[0] + high[0]) / 2, -(low[1] + high[1]) / 2, -low[2])
    holder = core.NodePath(name)
    model.reparent_to(holder)
    model.flatten_light()
    return holder


def _lathe(profile: tuple[tuple[float, float], ...], smooth: bool = False) -> Any:
    """A body of revolution, textured around and along its profile of (radius, height) points from below upwards.

    If not `smooth`, each two points are an edge: where edges meet there are two points of one place.
    """
    points = np.array(profile)
    slopes = np.diff(points, axis=0)
    vertices = _Mesh("lathe")
    total = np.cumsum(np.r_[0, np.hypot(*slopes.T)])
    rings = []
    for i, (radius, height) in enumerate(profile):
        if smooth:
            out, up = radius, height
        else:  # every edge of a profile has both of its points for itself
            edge = slopes[i - i % 2]
            out, up = edge[1], -edge[0]
        size = float(np.hypot(out, up)) or 1.0
        ring = []
        for k in range(_AROUND + 1):
            angle = 2 * np.pi * k / _AROUND
            c, s = float(np.cos(angle)), float(np.sin(angle))
            normal = (out / size * c, out / size * s, up / size)
            ring.append(vertices.add((radius * c, radius * s, height), normal, (k / _AROUND, total[i] / total[-1])))
        rings.append(ring)
    for lower, upper in pairwise(rings) if smooth else zip(rings[::2], rings[1::2]):
        for k in range(_AROUND):
            vertices.quad(lower[k], lower[k + 1], upper[k + 1], upper[k])
    return vertices.node()


def _cube() -> Any:
    """A cube two units wide."""
    vertices = _Mesh("cube")
    for axis in range(3):
        for sign in (-1.0, 1.0):
            normal = np.zeros(3)
            normal[axis] = sign
            one, two = np.roll(np.eye(3)[0], axis + 1), np.roll(np.eye(3)[0], axis + 2)
            corners = []
            for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
                place = normal + a * one + b * two
                corners.append(vertices.add((place[0], place[1], place[2] + 1), tuple(normal), (0.25 * a, 0.375 * b)))
            vertices.quad(*(corners if sign > 0 else corners[::-1]))
    return vertices.node()


def _square(half: float) -> Any:
    """A square on the table."""
    vertices = _Mesh("square")
    corners = [
        vertices.add((a * half, b * half, 0), (0, 0, 1), ((a + 1) / 2 * max(1, half), (b + 1) / 2 * max(1, half)))
        for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))
    ]
    vertices.quad(*corners)
    return vertices.node()


class _Mesh:
    """Triangles with normals and texture coordinates."""

    def __init__(self, name: str):
        self.name = name
        self.data = core.GeomVertexData(name, core.GeomVertexFormat.get_v3n3t2(), core.Geom.UH_static)
        self.writers = [core.GeomVertexWriter(self.data, column) for column in ("vertex", "normal", "texcoord")]
        self.triangles = core.GeomTriangles(core.Geom.UH_static)
        self.count = 0

    def add(self, place: Any, normal: Any, texture: Any) -> int:
        """A vertex; returns its number."""
        self.writers[0].add_data3(*map(float, place))
        self.writers[1].add_data3(*map(float, normal))
        self.writers[2].add_data2(*map(float, texture))
        self.count += 1
        return self.count - 1

    def quad(self, a: int, b: int, c: int, d: int) -> None:
        """Four vertices, counter-clockwise as seen from outside."""
        self.triangles.add_vertices(a, b, c)
        self.triangles.add_vertices(a, c, d)

    def node(self) -> Any:
        """The mesh as a node."""
        geometry = core.Geom(self.data)
        geometry.add_primitive(self.triangles)
        node = core.GeomNode(self.name)
        node.add_geom(geometry)
        return core.NodePath(node)


# -- textures ----------------------------------------------------------------------------------------------------------
def _texture(pixels: np.ndarray) -> Any:
    """A texture of uint8 (S, S) or, with alpha, (S, S, 2) pixels."""
    texture = core.Texture()
    channels = core.Texture.F_luminance if pixels.ndim == 2 else core.Texture.F_luminance_alpha
    texture.setup_2d_texture(pixels.shape[1], pixels.shape[0], core.Texture.T_unsigned_byte, channels)
    texture.set_ram_image(np.ascontiguousarray(pixels).tobytes())
    texture.set_wrap_u(core.SamplerState.WM_repeat)
    texture.set_wrap_v(core.SamplerState.WM_repeat)
    return texture


@cache
def _pattern(material: str) -> np.ndarray:
    """Few large marks: a thing is some 20 pixels wide where a model sees it."""
    v, u = np.mgrid[0:_TEXTURE, 0:_TEXTURE] / _TEXTURE
    if material == "striped":
        dark = (v * 3) % 1 < 0.5
    elif material == "checkered":
        dark = (np.floor(u * 8) + np.floor(v * 4)) % 2 == 0
    else:  # dotted
        dark = np.hypot((u * 5) % 1 - 0.5, (v * 3) % 1 - 0.5) < 0.28
    return np.where(dark, 70, 255).astype(np.uint8)


def _floor(kind: str, rng: np.random.Generator) -> np.ndarray:
    v, u = np.mgrid[0:_TEXTURE, 0:_TEXTURE] / _TEXTURE
    grain = rng.normal(0, 6, (_TEXTURE, _TEXTURE))
    if kind == "wood":
        level = 215 + 18 * np.sin(2 * np.pi * (v * 4 + 0.2 * np.sin(2 * np.pi * u))) - 60 * ((v * 2) % 1 < 0.05)
    elif kind == "tiles":
        level = np.where(((u * 2) % 1 < 0.06) | ((v * 2) % 1 < 0.06), 150.0, 225.0)
    elif kind == "cloth":
        level = 205 + 22 * np.sin(8 * np.pi * u) * np.sin(8 * np.pi * v)
    else:
        level = np.full((_TEXTURE, _TEXTURE), 220.0)
    return np.clip(level + grain, 0, 255).astype(np.uint8)


@cache
def _soft_disc() -> np.ndarray:
    v, u = (np.mgrid[0:_TEXTURE, 0:_TEXTURE] + 0.5) / _TEXTURE * 2 - 1
    alpha = np.clip(1.3 * (1 - np.hypot(u, v)), 0, 1)
    return np.stack([np.zeros_like(alpha), 255 * alpha], axis=-1).astype(np.uint8)
