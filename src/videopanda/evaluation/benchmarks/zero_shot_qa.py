"""MSVD-QA, MSRVTT-QA and ActivityNet-QA: open questions with short answers, in the layout of the zero-shot protocol.

    test_q.json   [{"video_name", "question", "question_id"}, …]
    test_a.json   [{"answer", "question_id", "type"?}, …]          joined by id, never by position

Other splits (`val_q.json`, `val_a.json`) are read when named. A file that holds question and answer in the same row is
read, too, in every row format. Media are named without a suffix.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from videopanda.evaluation.benchmarks.files import (
    AnnotationError,
    AnnotationRow,
    AnnotationRowError,
    Rejected,
    beside,
    find,
    rows,
)
from videopanda.evaluation.benchmarks.item import Item, RunningNumber, items

ACTIVITYNET_TYPES = ("motion", "spatial", "temporal", "yes/no", "colour", "object", "location", "number", "other")


def read_msvd(path: Path) -> Iterator[Item | Rejected]:
    """MSVD-QA; files are `<video_name>.avi` or `.mp4`."""
    return read(path, "msvd")


def read_msrvtt(path: Path) -> Iterator[Item | Rejected]:
    """MSRVTT-QA. Its own files number the videos: 7010 is `video7010`."""
    return read(path, "msrvtt", prefix="video")


def read_activitynet(path: Path) -> Iterator[Item | Rejected]:
    """ActivityNet-QA; annotations leave out the "v_" with which every file starts."""
    return read(path, "activitynet", ACTIVITYNET_TYPES, prefix="v_")


def read(path: Path, name: str, types: tuple[str, ...] = (), prefix: str = "") -> Iterator[Item | Rejected]:
    """Read a set whose type codes mean `types`; other types are taken as they stand.

    Raises:
        AnnotationError: PATH holds no questions, or those of several sets.
    """
    questions = _one_of(find(path, "test_q.*", "*test*.json*", "*.json*", "*.parquet", "*.csv"), path, name)
    stem = questions.stem
    answers = beside(questions, f"{stem[:-2]}_a{questions.suffix}") if stem.endswith("_q") else None
    merged = _joined(questions, answers) if answers else rows(questions)
    return items(merged, partial(_item, number=RunningNumber(), types=types, prefix=prefix))


def _one_of(files: list[Path], path: Path, name: str) -> Path:
    own = [file for file in files if name in str(file.relative_to(path.parent)).lower()]
    for candidates in (files, own):
        if len(candidates) == 1:
            return candidates[0]
    raise AnnotationError(f"{path} contains several question files; pass one of them: {', '.join(map(str, files[:4]))}")


def _identified(path: Path) -> Iterator[tuple[str, AnnotationRow | Rejected]]:
    """Rows with the id of their question, and what was rejected (with "")."""
    for row in rows(path):
        if isinstance(row, Rejected):
            yield "", row
            continue
        try:
            yield row.id("question_id"), row
        except AnnotationRowError as error:
            yield "", row.refuse(str(error))


def _joined(questions: Path, answers: Path) -> Iterator[AnnotationRow | Rejected]:
    """Question rows with the answer and the type of the row that has the same id."""
    found: dict[str, AnnotationRow] = {}
    for key, row in _identified(answers):
        if isinstance(row, Rejected):
            yield row
            continue
        if key in found:
            yield Rejected(row.place, f"a second answer for this question; the first is {found[key].place}", key)
        else:
            found[key] = row
    used = set()
    for key, row in _identified(questions):
        if isinstance(row, Rejected):
            yield row
            continue
        answer = found.get(key)
        if answer is None:
            yield Rejected(row.place, f"{answers.name} has no answer for this question", key)
            continue
        used.add(key)
        repeated = row.repeated_keys + answer.repeated_keys
        yield AnnotationRow(row.place, {**row.data, **answer.extra("answer", "type")}, repeated)
    for key, row in found.items():
        if key not in used:
            yield Rejected(row.place, f"{questions.name} has no question for this answer", key)


def _item(row: AnnotationRow, number: RunningNumber, types: tuple[str, ...], prefix: str) -> Item:
    video = row.id("video_name", "video", "video_id", "gif_name")
    name = prefix + video.removeprefix(prefix)
    return Item(
        id=row.id("question_id", "id") if row.get("question_id", "id") is not None else number(name),
        video=name,
        question=row.text("question"),
        answers=(answer := row.text("answer"),),
        task="yes_no" if answer.lower() in ("yes", "no") else "short_answer",
        types=_types(row, types),
    )


def _types(row: AnnotationRow, names: tuple[str, ...]) -> tuple[str, ...]:
    if row.get("type") is None:
        return ()
    code = row.id("type")
    return (names[int(code)] if code.isdecimal() and int(code) < len(names) else code,)
