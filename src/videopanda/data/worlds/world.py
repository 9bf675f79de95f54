"""The worlds by name: what `videopanda scenes make --world NAME` can write.

A world is a pure function from (seed, split, index) to a scene, with questions about it and a way to draw it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class World:
    """What the writer of a data set needs of a world.

    families: of its questions.
    make_scene: (seed, split, index) -> scene, a data class with theme, width, height, fps and duration.
    make_questions: (scene, random generator) -> questions.
    draw: (scene, number of frames) -> clip.
    write_clip: (scene, path) writes the video.
    """

    families: tuple[str, ...]
    make_scene: Callable[..., Any]
    make_questions: Callable[..., Any]
    draw: Callable[..., Any]
    write_clip: Callable[..., None]


def _scenes() -> World:
    from videopanda.data.worlds.scenes import dataset, questions, render, world

    return World(questions.FAMILIES, world.make_scene, questions.make_questions, dataset.draw, render.write_clip)


def _tabletop() -> World:
    from videopanda.data.worlds.tabletop import questions, render, world

    return World(questions.FAMILIES, world.make_scene, questions.make_questions, render.draw, render.write_clip)


WORLDS: dict[str, Callable[[], World]] = {"scenes": _scenes, "tabletop": _tabletop}


def open_world(name: str) -> World:
    """The world of this name. A renderer is imported only for its own world.

    Raises:
        ValueError: no such world.
        ImportError: its renderer is not installed.
    """
    if name not in WORLDS:
        raise ValueError(f"no world {name!r}: choose from {', '.join(WORLDS)}")
    return WORLDS[name]()
