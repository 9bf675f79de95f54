"""Verdicts of official scripts: folders with a file per question, or the file that combines them.

    results/<id>.json     [{"pred": "yes", "score": 4}, {"q": …, "a": …, "pred": …}]
    results.json          {id: the same, …}

For Video-ChatGPT's five aspects the folder holds one folder per aspect (`correctness/`, `detail/`, …); files are
`<video>_<number>.json`, where the number counts the questions about a video from 0.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from videopanda.evaluation.benchmarks.files import AnnotationError, AnnotationRow, Rejected, read_object, rows
from videopanda.evaluation.judging.judge import JudgeUnit
from videopanda.evaluation.judging.protocols import PROMPTS, parse, verdict


def read_verdicts(path: Path, units: Sequence[JudgeUnit]) -> tuple[dict[str, dict[str, float]], set[str]]:
    """Verdicts by the id of their unit, and the ids of those whose file cannot be read.

    Raises:
        AnnotationError: PATH holds no verdict for any of the units.
    """
    if not path.exists():
        raise AnnotationError(f"{path}: no such file or folder")
    by_name = {(unit.aspect, name): unit for unit in units for name in _names(unit)}
    found: dict[str, dict[str, float]] = {}
    unread: set[str] = set()
    for aspect, name, content in _contents(path):
        unit = by_name.get((aspect, name))
        if unit is None:
            continue
        said = content[0] if isinstance(content, list) and content else None
        metrics = parse(aspect, said) if isinstance(said, str) else verdict(aspect, said)
        if metrics is None:
            unread.add(unit.id)
        else:
            found[unit.id] = metrics
    if not found and not unread:
        raise AnnotationError(f"{path} contains no verdict on any of the {len(units):,} questions")
    return found, unread


def _names(unit: JudgeUnit) -> tuple[str, ...]:
    """Names of a unit's file: its id, and for an aspect the video with its number."""
    id_ = unit.id.partition("#")[0]
    if unit.aspect == "answer":
        return (id_,)
    *_, video, number = id_.split("/")
    return (f"{video}_{number}",)


def _contents(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Aspect, name and content of every verdict."""
    if path.is_file():
        for name, content in read_object(path).items():
            yield "answer", name, content
        return
    for file in sorted(path.rglob("*.json")):
        aspect = file.parent.name if file.parent.name in PROMPTS else "answer"
        # A file is an array of a reply and the question that it is about; the reply of broken ones is text.
        values = [row.data if isinstance(row, AnnotationRow) else row for row in rows(file)]
        first = values[0] if values else None
        yield aspect, file.stem, [None if isinstance(first, Rejected) else first]
