"""Makes training and test rows from clips sorted by class: the quickest way to your own data.

write_labeled("clips", "out/my", "Which word is signed?")     # or: videopanda data label clips out/my --question …

clips/happy/a.mp4, clips/happy/b.mp4, clips/sad/c.mp4     a folder per class
clips/happy.mp4, clips/sad.mp4                            or one recording per class, named by it

out/my/train.jsonl, out/my/test.jsonl      rows of the LLaVA form; `kind` says what a test row can show
out/my/clips/, out/my/altered/             the recordings, and copies of them that look different
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from videopanda.data.formats.sources import VIDEO_SUFFIXES
from videopanda.data.shuffling import key_of
from videopanda.data.worlds.scenes.render import write_frames
from videopanda.video.read import read_video

SUFFIXES = (*VIDEO_SUFFIXES, ".gif")
UNSEEN, SEEN = "unseen recording", "altered copy of a training recording"
_RATE, _SIDE = 12, 240  # frames per second and longer side, in pixels, of altered copies


@dataclass(frozen=True)
class Split:
    """The recordings of a class."""

    label: str
    train: tuple[Path, ...]
    test: tuple[Path, ...]  # empty where the class has a single recording


def find_classes(folder: Path) -> dict[str, list[Path]]:
    """The recordings of each class, sorted by name. Underscores in names are spaces.

    Raises:
        ValueError: the folder is missing or has no clips, mixes clips with folders of clips, or has fewer than two
            classes.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    alone = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
    below = {
        part: [path for path in sorted(part.iterdir()) if path.suffix.lower() in SUFFIXES]
        for part in sorted(folder.iterdir())
        if part.is_dir()
    }
    below = {part: paths for part, paths in below.items() if paths}
    if alone and below:
        raise ValueError(
            f"{folder} contains clips ({alone[0].name}) next to folders of clips ({next(iter(below)).name}): use one "
            "folder per class, or one recording per class without folders"
        )
    found: dict[str, list[Path]] = {}
    for name, paths in [(path.stem, [path]) for path in alone] + [(part.name, paths) for part, paths in below.items()]:
        found.setdefault(name.replace("_", " ").strip(), []).extend(paths)
    if len(found) < 2:
        raise ValueError(
            f"{folder} contains {len(found)} classes of clips ({', '.join(SUFFIXES)}), and at least 2 are needed: "
            "put the clips of each class into its own subfolder"
        )
    return found


def split(label: str, paths: list[Path], test_share: float, seed: int) -> Split:
    """Choose whole recordings for the test by (seed, name): at least one, and at least one is left to train on."""
    chosen = sorted(paths, key=lambda path: key_of(str(seed), label, path.name))
    count = min(max(1, round(test_share * len(paths))), len(paths) - 1)
    return Split(label, tuple(sorted(chosen[count:])), tuple(sorted(chosen[:count])))


def write_labeled(
    folder: str | Path,
    out: str | Path,
    question: str,
    test_share: float = 0.2,
    copies: int = 0,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Write rows and clips to the folder `out`; returns the counts.

    Test rows of a class with several recordings show recordings that are in no training row. A class with one
    recording is tested on altered copies that are in no training row, which shows only that this recording is
    recognized.

    Args:
        question: asked about every clip; the class is the answer.
        test_share: of the recordings of a class, or of the copies of its only recording; at least one.
        copies: altered copies of every training recording, in addition to the recording itself.
        seed: chooses recordings, and how copies are altered.

    Raises:
        ValueError: what `find_classes` refuses, an argument out of range, a class with one recording and `copies=0`,
            or `out` holds rows.
        VideoReadError: a clip that is to be altered cannot be read.
    """
    from rich.console import Console
    from rich.progress import track

    if not question.strip():
        raise ValueError("the question is empty")
    if not 0 < test_share < 1 or copies < 0:
        raise ValueError(f"test_share must be between 0 and 1, and copies at least 0, got {test_share} and {copies}")
    out = Path(out)
    if (out / "train.jsonl").exists():
        raise ValueError(f"{out} already contains train.jsonl: choose another folder")
    splits = [split(label, paths, test_share, seed) for label, paths in find_classes(Path(folder)).items()]
    single = [part.label for part in splits if not part.test]
    if single and not copies:
        raise ValueError(
            f"{len(single)} classes have a single recording ({single[0]!r}): no recording is left to test them on. Add "
            "recordings, or write altered copies (--copies 8), which test only whether the same recording is recognized"
        )
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for part in track(splits, "classes", console=Console(stderr=True), disable=not progress):
        for where, row in _rows(part, out, question, test_share, copies, seed):
            rows[where].append(row)
    write_sides(out, rows)
    kinds = Counter(row["kind"] for row in rows["test"])
    return {
        "classes": len(splits),
        "train": len(rows["train"]),
        "test": len(rows["test"]),
        "test_unseen_recordings": kinds[UNSEEN],
        "test_altered_copies": kinds[SEEN],
    }


def _rows(
    part: Split, out: Path, question: str, test_share: float, copies: int, seed: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """("train" or "test", row) of a class; writes the clip of each."""

    def row(path: Path, kind: str, of: Path) -> dict[str, Any]:
        name = path.relative_to(out).as_posix()
        turns = [{"from": "human", "value": f"<video>\n{question}"}, {"from": "gpt", "value": part.label}]
        recording = f"{part.label}/{of.name}"
        return {
            "id": name.rpartition(".")[0], "video": name, "kind": kind, "recording": recording, "conversations": turns
        }  # fmt: skip

    for path in part.test:
        yield "test", row(_copy(path, out / "clips" / part.label), UNSEEN, path)
    held_back = 0 if part.test else max(1, round(test_share * copies))
    for path in part.train:
        yield "train", row(_copy(path, out / "clips" / part.label), "recording", path)
        if not copies:
            continue
        recording = read_video(path, fps=_RATE, max_side=_SIDE).frames
        for number in range(copies + held_back):
            rng = np.random.default_rng([seed, key_of(part.label, path.name), number])
            copy = out / "altered" / part.label / f"{path.stem}-{number}.mp4"
            copy.parent.mkdir(parents=True, exist_ok=True)
            frames, rate = alter(recording, rng)
            write_frames(frames, frames.shape[2:0:-1], rate, copy)
            yield ("train", row(copy, "altered copy", path)) if number < copies else ("test", row(copy, SEEN, path))


def write_sides(out: Path, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write `test.jsonl`, then `train.jsonl`, which says that both are there."""
    for side in ("test", "train"):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[side])
        (out / f"{side}.jsonl").write_text(lines, encoding="utf-8", newline="\n")


def _copy(path: Path, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(path, folder / path.name))


def alter(frames: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Fraction]:
    """The same recording, seen a little differently: frames (T', H', W', 3) and their rate.

    Up to a tenth is cut off at the beginning and at the end, the speed is 0.8 to 1.25 times the true one, the picture
    is turned by up to 5 degrees, 85 to 100 % of its sides fill the frame, brightness and contrast change by up to a
    quarter, and noise is added. Nothing is mirrored: left and right may matter.
    """
    t, h, w, _ = frames.shape
    frames = frames[int(rng.uniform(0, 0.1) * t) : t - int(rng.uniform(0, 0.1) * t)]
    angle, scale = rng.uniform(-5, 5), rng.uniform(0.85, 1.0)
    left, top = rng.uniform(0, 1 - scale) * w, rng.uniform(0, 1 - scale) * h
    box = (left, top, left + scale * w, top + scale * h)
    size, bilinear = (w // 2 * 2, h // 2 * 2), Image.Resampling.BILINEAR  # H.264 wants even sides
    pictures = (Image.fromarray(frame).rotate(angle, bilinear).resize(size, bilinear, box) for frame in frames)
    seen = np.stack([np.asarray(picture) for picture in pictures])
    contrast, brightness, noise = rng.uniform(0.75, 1.25), rng.uniform(0.75, 1.25), rng.uniform(0, 6)
    middle = seen.mean()  # of whole numbers, in float64: exact in any order of adding
    seen = (seen - middle) * contrast + middle * brightness + rng.normal(0, noise, seen.shape)
    return seen.clip(0, 255).astype(np.uint8), Fraction(_RATE * rng.uniform(0.8, 1.25)).limit_denominator(1001)
