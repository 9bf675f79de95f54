"""Write scenes as a data set on disk: mp4 files and one conversation record per clip.

    make("scenes", num=1000, seed=0)                      # or: videopanda scenes make scenes --num 1000 --seed 0

    scenes/clips/train-0-0.mp4 …      real H.264 files
    scenes/annotations.json           [{"id", "video", "conversations", "families", "scene"}, …]
    scenes/scenes.json                seed, split, num, version
    scenes/contact_sheet.png          the first clips at a glance

An interrupted call resumes where it stopped: finished clips are kept.
"""

import json
import math
import multiprocessing
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from videopanda import __version__
from videopanda.data.worlds.scenes.questions import Question
from videopanda.data.worlds.world import open_world
from videopanda.video.contact_sheet import SheetRow, contact_sheet

QUESTIONS_PER_CLIP = 6
MAX_PER_FAMILY = 2  # questions of one family about one clip
_SHEET_ROWS = 12
_SHEET_FRAMES = 8


def make(
    out: str | Path,
    num: int,
    seed: int,
    split: str = "train",
    questions_per_clip: int = QUESTIONS_PER_CLIP,
    workers: int | None = None,
    progress: bool = True,
    world: str = "scenes",
) -> Path:
    """Write scenes 0 … `num` - 1 of (seed, split) to the folder `out` and return it.

    Equal arguments give equal bytes of `annotations.json`. `workers` processes draw clips (default: one per CPU); with
    more than one, a script must call this under `if __name__ == "__main__":`. `progress` shows a bar on stderr. `world`
    is one of `worlds.world.WORLDS`.

    Raises:
        ValueError: an argument out of range, no such world, or `out` holds another world, seed, split or version.
    """
    if num < 1 or questions_per_clip < 1:
        raise ValueError(f"num and questions_per_clip must be at least 1, got {num} and {questions_per_clip}")
    out = Path(out)
    header = {"world": world, "seed": seed, "split": split, "num": num, "version": __version__}
    drawn = open_world(world)
    drawn.make_scene(seed, split, 0)  # rejects a wrong split before anything is written
    _check_same_world(out / "scenes.json", header)
    if (out / "annotations.json").exists() and not (out / "scenes.json").exists():
        raise ValueError(f"{out / 'annotations.json'} was not written by this command: use a new folder")
    (out / "clips").mkdir(parents=True, exist_ok=True)
    _write_text(out / "scenes.json", json.dumps(header, indent=2) + "\n")
    write_clips(out / "clips", range(num), seed, split, workers, progress, world)
    questions = [(index, clip_questions(seed, split, index, world)[:questions_per_clip]) for index in range(num)]
    records = write_annotations(out, seed, split, questions, world)
    rows: list[SheetRow] = []
    for record in records[:_SHEET_ROWS]:
        clip = drawn.draw(drawn.make_scene(seed, split, len(rows)), _SHEET_FRAMES)
        question, answer = (turn["value"].removeprefix("<video>\n") for turn in record["conversations"][:2])
        rows.append(SheetRow(clip.frames, [f"{question}  {answer}"], clip.timestamps))
    contact_sheet(rows).save(out / "contact_sheet.png")
    return out


def clip_name(seed: int, split: str, index: int) -> str:
    """The name of a scene in files and reports, "test-0-17"."""
    return f"{split}-{seed}-{index}"


def clip_questions(seed: int, split: str, index: int, world: str = "scenes") -> list[Question]:
    """The questions that written data and evaluation ask about a scene: at most two of a family, in random order.

    Their random stream is not that of training (`ScenesDataset`), which draws its own questions about its own scenes.
    """
    rng = np.random.default_rng([seed, index, 2])
    seen: Counter[str] = Counter()
    kept = []
    drawn = open_world(world)
    for question in drawn.make_questions(drawn.make_scene(seed, split, index), rng):
        seen[question.family] += 1
        if seen[question.family] <= MAX_PER_FAMILY:
            kept.append(question)
    return kept


def ensure_clip(folder: Path, seed: int, split: str, index: int, world: str = "scenes") -> Path:
    """Write a scene's mp4 unless it is there. A file under its final name is always complete."""
    path = folder / f"{clip_name(seed, split, index)}.mp4"
    if not path.exists():
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            drawn = open_world(world)
            drawn.write_clip(drawn.make_scene(seed, split, index), part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return path


def write_annotations(
    folder: Path, seed: int, split: str, questions: Sequence[tuple[int, Sequence[Question]]], world: str = "scenes"
) -> list[dict[str, Any]]:
    """Write `annotations.json`: a record per scene, of its index and the questions asked about it. Returns them.

    Raises:
        ValueError: the folder has other annotations.
    """
    records = [_record(open_world(world).make_scene(seed, split, index), asked) for index, asked in questions]
    lines = ",\n".join(json.dumps(record, allow_nan=False) for record in records)
    path, text = folder / "annotations.json", f"[\n{lines}\n]\n"
    # A folder of `make` may grow; a different file of this name belongs to someone else.
    if path.exists() and not (folder / "scenes.json").exists() and path.read_bytes() != text.encode():
        raise ValueError(f"{path} exists and has other questions: use a new folder")
    _write_text(path, text)
    return records


def plain(value: Any) -> Any:
    """A value for JSON: numbers that are not finite become null, tuples lists."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _record(scene: Any, questions: Sequence[Question]) -> dict[str, Any]:
    """One conversation record; `families` names the family of each question, `scene` is everything that is shown."""
    name = clip_name(scene.seed, scene.split, scene.index)
    turns = []
    for i, question in enumerate(questions):
        turns.append({"from": "human", "value": ("" if i else "<video>\n") + question.question})
        turns.append({"from": "gpt", "value": question.answer})
    return {
        "id": name,
        "video": f"clips/{name}.mp4",
        "conversations": turns,
        "families": [question.family for question in questions],
        "scene": plain(asdict(scene)),
    }


def _check_same_world(path: Path, header: dict[str, Any]) -> None:
    if not path.exists():
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    for key in ("world", "seed", "split", "version"):
        if found.get(key, "scenes") != header[key]:
            raise ValueError(
                f"{path.parent} contains scenes of {key} {found.get(key)}, not {header[key]}: use a new folder"
            )


def write_clips(
    folder: Path,
    indices: Sequence[int],
    seed: int,
    split: str,
    workers: int | None,
    progress: bool,
    world: str = "scenes",
) -> None:
    """Write the clips of scenes that are not there yet, in `workers` processes."""
    from rich.console import Console
    from rich.progress import track

    workers = workers or os.cpu_count() or 1
    task = partial(ensure_clip, folder, seed, split, world=world)
    console = Console(stderr=True)
    if workers == 1:
        for index in track(indices, "clips", console=console, disable=not progress):
            task(index)
        return
    # Fresh processes: a forked copy of a program that runs threads can hang.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        done = pool.map(task, indices, chunksize=8)
        for _ in track(done, "clips", total=len(indices), console=console, disable=not progress):
            pass


def _write_text(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # two evaluations may write the same test at once
    part.write_text(text, encoding="utf-8", newline="\n")
    part.replace(path)
