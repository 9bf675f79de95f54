"""A test on unseen scenes: clips and questions, spread evenly over the families.

make_test_set("out/scenes", num=2000, seed=0)          # clips/ and annotations.json, as `make` writes them
"""

from dataclasses import dataclass
from pathlib import Path

from videopanda.data.worlds.scenes.make import (
    QUESTIONS_PER_CLIP,
    clip_questions,
    write_annotations,
    write_clips,
)
from videopanda.data.worlds.scenes.questions import FAMILIES, Question

TEST = "test"


@dataclass(frozen=True)
class AskedScene:
    """The questions that are asked about one scene."""

    index: int
    questions: tuple[Question, ...]


def quotas(num: int) -> dict[str, int]:
    """Questions per family: as even as `num` allows, the first families take the rest."""
    if num < len(FAMILIES):
        raise ValueError(f"num must be at least {len(FAMILIES)}, one question per family, not {num}")
    return {family: num // len(FAMILIES) + (i < num % len(FAMILIES)) for i, family in enumerate(FAMILIES)}


def select_questions(num: int, seed: int) -> list[AskedScene]:
    """Walk over the test scenes until every family has its questions."""
    missing, clips, index = quotas(num), [], 0
    while any(missing.values()):
        taken: list[Question] = []
        for question in clip_questions(seed, TEST, index):
            if missing[question.family] and len(taken) < QUESTIONS_PER_CLIP:
                missing[question.family] -= 1
                taken.append(question)
        if taken:
            clips.append(AskedScene(index, tuple(taken)))
        index += 1
    return clips


def make_test_set(folder: Path, num: int, seed: int, workers: int | None = None, progress: bool = True) -> None:
    """Write `num` questions about test scenes, and their clips; clips that are there already are kept.

    Args:
        workers: processes that draw clips; default one per CPU. With more than one, a script must call this under
            `if __name__ == "__main__":`.
        progress: show a bar on stderr.

    Raises:
        ValueError: fewer questions than families, or the folder has other annotations.
    """
    if (folder / "scenes.json").exists():
        raise ValueError(f"{folder} was written by `videopanda scenes make`: use a new folder")
    scenes = select_questions(num, seed)
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    write_annotations(folder, seed, TEST, [(scene.index, scene.questions) for scene in scenes])
    write_clips(folder / "clips", [scene.index for scene in scenes], seed, TEST, workers, progress)
