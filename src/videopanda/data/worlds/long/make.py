"""Write long scenes as a data set: mp4 files and one conversation record per clip, as `scenes make` writes them.

    videopanda scenes make --long --minutes 1,10,60 --num 5 data/long
    make_long("data/long", num=5, seed=0, split="test", minutes=(1.0, 10.0, 60.0))

    data/long/clips/test-0-10m-3.mp4 …
    data/long/annotations.json        [{"id", "video", "conversations", "families", "minutes", "depths", …}, …]
    data/long/README.md               a data card
    data/long/long.json               seed, split, minutes, version, and the SHA-256 digest of annotations.json

Frames without a visit are drawn once and encoded as copies, so hours are written in seconds of computing per hour.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from videopanda.data.worlds.long.card import card
from videopanda.data.worlds.long.world import (
    FPS,
    HEIGHT,
    SIZES,
    VERSION,
    WIDTH,
    Story,
    Visit,
    make_questions,
    make_story,
)
from videopanda.data.worlds.scenes.render import signed_distance, write_frames
from videopanda.data.worlds.scenes.world import COLOURS

LENGTHS = (1.0, 3.0, 10.0, 30.0, 60.0, 120.0)  # minutes, of the frozen test split
FROZEN = {"seed": 0, "split": "test", "num": 20, "minutes": LENGTHS}
_BACKGROUND = np.array([34, 36, 40], np.float32)
_LAMP = slice(3, 13)  # pixels, in both directions


def frames(story: Story) -> Iterator[np.ndarray]:
    """All frames, uint8 (HEIGHT, WIDTH, 3), at FPS per second."""
    return pictures(story, (number / FPS for number in range(round(story.seconds * FPS))))


def pictures(story: Story, seconds: Iterable[float]) -> Iterator[np.ndarray]:
    """What is shown at some seconds, in order: uint8 (HEIGHT, WIDTH, 3)."""
    visits = iter(story.visits)
    visit, empty, lamp = next(visits, None), None, ""
    for second in seconds:
        if empty is None or story.lamp_at(second) != lamp:
            lamp = story.lamp_at(second)
            empty = np.broadcast_to(_BACKGROUND, (HEIGHT, WIDTH, 3)).copy()
            empty[_LAMP, _LAMP] = COLOURS[lamp]
        while visit is not None and second >= visit.end:
            visit = next(visits, None)
        shown = visit is not None and second >= visit.start
        picture = _with_visit(empty, visit, second) if shown and visit is not None else empty
        yield np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def _with_visit(empty: np.ndarray, visit: Visit, second: float) -> np.ndarray:
    canvas, kind = empty.copy(), visit.kind
    done = (second - visit.start) / (visit.end - visit.start)
    x = {"still": 0.5, "right": 0.25 + 0.5 * done, "left": 0.75 - 0.5 * done}[kind.motion] * WIDTH
    u = np.arange(WIDTH, dtype=np.float32)[None, :] + 0.5 - x
    v = np.arange(HEIGHT, dtype=np.float32)[:, None] + 0.5 - visit.height * HEIGHT
    cover = np.clip(0.5 - signed_distance(kind.shape, u, v, SIZES[kind.size] * HEIGHT / 2), 0, 1)[..., None]
    return canvas + cover * (np.array(COLOURS[kind.colour], np.float32) - canvas)


def make_long(
    out: str | Path,
    num: int,
    seed: int = 0,
    split: str = "train",
    minutes: Sequence[float] = LENGTHS,
    needle_seconds: float = 8.0,
) -> Path:
    """Write `num` clips of each length to the folder `out` and return it; finished clips are kept.

    Raises:
        ValueError: an argument out of range, or `out` holds something else.
    """
    if num < 1:
        raise ValueError(f"num must be at least 1, got {num}")
    out, clips = Path(out), Path(out, "clips")
    stories = [make_story(seed, split, index, length, needle_seconds) for length in minutes for index in range(num)]
    header = {"seed": seed, "split": split, "num": num, "minutes": list(minutes), "version": VERSION}
    header["needle_seconds"] = needle_seconds
    known = out / "long.json"
    if known.exists():
        found = json.loads(known.read_text(encoding="utf-8"))
        if {key: found.get(key) for key in header} != header:
            raise ValueError(f"{out} contains other long scenes: use a new folder")
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} contains other files: use a new folder")
    clips.mkdir(parents=True, exist_ok=True)
    records = [record(story) for story in stories]
    text = "[\n" + ",\n".join(json.dumps(entry) for entry in records) + "\n]\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    header["digest"] = digest
    known.write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")
    (out / "README.md").write_text(card(header), encoding="utf-8")
    for story in stories:
        path = clips / f"{name_of(story)}.mp4"
        if not path.exists():
            part = path.with_suffix(".part")
            write_frames(frames(story), (WIDTH, HEIGHT), Fraction(FPS).limit_denominator(1001), part)
            part.replace(path)
    (out / "annotations.json").write_text(text, encoding="utf-8")
    return out


def name_of(story: Story) -> str:
    """The name of a story in files and reports, "test-0-30m-4"."""
    return f"{story.split}-{story.seed}-{story.seconds / 60:g}m-{story.index}"


def record(story: Story) -> dict[str, Any]:
    """One conversation record; `families`, `depths` and `needle_seconds` are those of its questions, in order."""
    questions, turns = make_questions(story), []
    for number, question in enumerate(questions):
        turns.append({"from": "human", "value": ("" if number else "<video>\n") + question.question})
        turns.append({"from": "gpt", "value": question.answer})
    return {
        "id": name_of(story),
        "video": f"clips/{name_of(story)}.mp4",
        "conversations": turns,
        "families": [question.family for question in questions],
        "minutes": story.seconds / 60,
        "depths": [question.depth for question in questions],
        "needle_seconds": [question.needle_seconds for question in questions],
        "story": {"visits": [asdict(visit) for visit in story.visits], "lamp": story.lamp},
    }
