"""MLVU: long videos, seven tasks with options and two with free answers.

    json/1_plotQA.json … 7_topic_reasoning.json   [{"video", "duration", "question", "candidates", "answer" (the text),
                                                    "question_type"}, …]
    json/8_sub_scene.json, 9_summary.json         the same without candidates; a judge rates the answers
    video/<name of the file>/<video>

The test split adds `question_id` ("AR_0") and has six options. The re-hosted table has `video_name`, `task_type`, the
options in the question and a letter as its answer. Rows of the development split have no id; they are numbered per
file and video: `1_plotQA/movie101_1/0`. M-Avg is the plain mean over the seven tasks.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from videopanda.evaluation.benchmarks.errata import (
    ANSWER_NOT_AN_OPTION,
    COMMON,
    DUPLICATE_OPTIONS,
    EMPTY_OPTION,
    Erratum,
    without,
)
from videopanda.evaluation.benchmarks.files import AnnotationRow, AnnotationRowError, Rejected, find, rows
from videopanda.evaluation.benchmarks.item import Item, RunningNumber, items, length_group, stem
from videopanda.evaluation.benchmarks.options import letter_index, published, same_text, split_question, unmark_all

# The groups of its paper, and lengths; sizes in seconds.
_KINDS = {
    "holistic": ("topic_reasoning", "anomaly_reco", "summary"),
    "single detail": ("findNeedle", "ego", "plotQA", "subPlot", "needleQA", "needle"),
    "multiple details": ("order", "count"),
}
_LONGEST = 6 * 3600  # seconds; the videos of the set run from three minutes to about two hours
_LENGTHS = (("up to 10 min", 600.0), ("10 to 30 min", 1800.0), ("over 30 min", float(_LONGEST)))
GROUPS = (*_KINDS, *(name for name, _ in _LENGTHS))
_DOCUMENTED = {
    DUPLICATE_OPTIONS.name: "development split, with the empty ones: 16 (1_plotQA 5, 6_anomaly_reco 9, "
    "7_topic_reasoning 2); the key itself is ambiguous in plotQA movie101_21, en_tv_10, movie101_60, in anomaly "
    "surveil_6, in topic ego_11 and movie101_89",
    EMPTY_OPTION.name: "1_plotQA movie101_5 (two), 7_topic_reasoning movie101_89 (all four, and the answer)",
    ANSWER_NOT_AN_OPTION.name: "2 in 2_needle: a longer wording of one option",
}
ERRATA = (
    *(replace(erratum, documented=_DOCUMENTED.get(erratum.name, "")) for erratum in COMMON),
    Erratum(
        "implausible-duration",
        "the duration is more than six hours; it is dropped in favor of the container's duration",
        lambda item: item.extra.get("duration", 0) > _LONGEST,
        without("duration"),
        documented="6_anomaly_reco surveil_176: 32,550 s",
    ),
)


def read(path: Path) -> Iterator[Item | Rejected]:
    """Read all files of the development split in a folder, or one file of any split."""
    for file in find(path, "[1-9]_*.json*", "*test*.json*", "*.parquet", "*.jsonl", "*.json"):
        yield from items(rows(file), partial(_item, part=file.stem, number=RunningNumber()))


def _item(row: AnnotationRow, part: str, number: RunningNumber) -> Item:
    video, question = row.text("video", "video_name"), row.text("question")
    name = number(f"{part}/{stem(video)}")
    answers = (row.text("answer", empty=True),) if row.get("answer") is not None else ()
    given = row.texts("candidates") if row.get("candidates") else ()
    if row.get("video_name") is not None:  # the table has the options in the question, or there, too
        question, found = _split(question)
        given = given or found
    options = unmark_all(given)
    right = same_text(options, answers[0]) or _named(row, options) if options and answers else ()
    return Item(
        id=row.id("question_id") if row.get("question_id") is not None else name,
        video=f"{part}/{video}" if part[0].isdigit() else video,
        question=question,
        task="choice" if options else "description",
        types=(row.text("question_type", "task_type"),),
        groups=_groups(row),
        options=options,
        right=right,
        answers=answers,
        extra={
            **({"duration": row.number("duration")} if row.get("duration") is not None else {}),
            **row.extra("scoring_points"),
            **published(given, options),
        },
    )


def _split(question: str) -> tuple[str, tuple[str, ...]]:
    try:
        return split_question(question)
    except AnnotationRowError:
        return question, ()


def _named(row: AnnotationRow, options: tuple[str, ...]) -> tuple[int, ...]:
    try:
        return (letter_index(row, "answer", options=options),)
    except AnnotationRowError:
        return ()  # a text that is none of the options: an erratum


def _groups(row: AnnotationRow) -> tuple[str, ...]:
    kind = row.text("question_type", "task_type").casefold()
    found = [name for name, tasks in _KINDS.items() if kind in map(str.casefold, tasks)]
    return (*found, *length_group(row, _LENGTHS))
