"""A test on unseen scenes: clips and questions, spread evenly over the families.

make_test_set("out/scenes", num=2000, seed=0)          # clips/ and annotations.json, as `make` writes them
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from videopanda.data.worlds.scenes.make import (
    QUESTIONS_PER_CLIP,
    clip_questions,
    write_annotations,
    write_clips,
)
from videopanda.data.worlds.scenes.questions import FAMILIES, Question
from videopanda.data.worlds.scenes.wordings import in_wordings, read_wordings, reworded

TEST = "test"
AS_WRITTEN, HELD_OUT = "written", "held-out"


@dataclass(frozen=True)
class AskedScene:
    """The questions that are asked about one scene."""

    index: int
    questions: tuple[Question, ...]


def quotas(num: int) -> dict[str, int]:
    """Questions per family: as even as `num` allows, the first families take the rest."""
    if num < len(FAMILIES):
        raise ValueError(f"num must be at least {len(FAMILIES)}, one question per family, got {num}")
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


def in_other_words(scenes: list[AskedScene], wordings: str, seed: int) -> list[AskedScene]:
    """The same questions as written, in held-out wordings of the package, or in those of a file (`read_wordings`).

    Raises:
        ValueError: neither a name of wordings nor a file of them.
    """
    if wordings == AS_WRITTEN:
        return scenes
    if wordings != HELD_OUT and not Path(wordings).is_file():
        raise ValueError(f"wordings must be {AS_WRITTEN}, {HELD_OUT} or a file, got {wordings!r}")
    templates = {} if wordings == HELD_OUT else read_wordings(Path(wordings))
    told = []
    for scene in scenes:
        rng = np.random.default_rng([seed, scene.index, 6])
        say = [in_wordings(q, templates, rng) if templates else reworded(q, "held_out", rng) for q in scene.questions]
        told.append(replace(scene, questions=tuple(say)))
    return told


def make_test_set(
    folder: Path,
    num: int,
    seed: int,
    workers: int | None = None,
    progress: bool = True,
    wordings: str = AS_WRITTEN,
) -> None:
    """Write `num` questions about test scenes, and their clips; clips that are there already are kept.

    Args:
        wordings: of the questions, see `in_other_words`.
        workers: processes that draw clips; default one per CPU. With more than one, a script must call this under
            `if __name__ == "__main__":`.
        progress: show a bar on stderr.

    Raises:
        ValueError: fewer questions than families, the folder has other annotations, or no such wordings.
    """
    if (folder / "scenes.json").exists():
        raise ValueError(f"{folder} was written by `videopanda scenes make`: use a new folder")
    scenes = in_other_words(select_questions(num, seed), wordings, seed)
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    write_annotations(folder, seed, TEST, [(scene.index, scene.questions) for scene in scenes])
    write_clips(folder / "clips", [scene.index for scene in scenes], seed, TEST, workers, progress)
