"""LVBench: questions about videos of an hour and more.

    video_info.meta.jsonl   one video per line: {"key", "type", "qa": [{"uid", "question" with its options in lines
                            "(A) …", "answer" (letter), "question_type" (list), "time_reference"}, …]}
    lvbench_clean.json      [{"video", "type", "question", "candidates", "answer" (the option), "question_type", …}, …]

The re-hosted table has `video_path` and the options in the question or in a column. Rows without `uid` are numbered
per video: `00000000/0`. A question may be of several types and counts in each.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from videopanda.evaluation.benchmarks.errata import COMMON, Erratum, without
from videopanda.evaluation.benchmarks.files import AnnotationRow, Rejected, find, rows, unnested
from videopanda.evaluation.benchmarks.item import Item, RunningNumber, items, stem
from videopanda.evaluation.benchmarks.options import letter_index, published, same_text, split_question, unmark_all
from videopanda.video.times import seconds

_SPAN = re.compile(r"(\d+(?::[0-5]?\d){1,2})\s*-\s*(\d+(?::[0-5]?\d){1,2})")  # minutes may have three digits
ERRATA = (
    *COMMON,
    Erratum(
        "no-time-reference",
        'the time reference is not a time range ("None"); it is dropped',
        lambda item: "time_reference" in item.extra and "evidence" not in item.extra,
        without("time_reference"),
        documented="2 in lvbench_clean.json",
    ),
)


def read(path: Path) -> Iterator[Item | Rejected]:
    """Read either layout."""
    for file in find(path, "video_info.meta.jsonl", "lvbench*.json", "*.jsonl", "*.parquet", "*.json"):
        yield from items(unnested(rows(file), "qa"), partial(_item, number=RunningNumber()))


def _item(row: AnnotationRow, number: RunningNumber) -> Item:
    video = row.text("key", "video", "video_path")
    name = number(stem(video))
    question = row.text("question")
    if row.get("candidates", "options"):
        given = row.texts("candidates", "options")
        options = unmark_all(given)
    else:
        question, options = split_question(question)
        given = options
    # The answer is a letter, or the option with its letter.
    found = same_text(given, row.text("answer")) or same_text(options, row.text("answer"))
    right = found or (letter_index(row, "answer", options=options),)
    types = row.get("question_type")
    return Item(
        id=row.id("uid") if row.get("uid") is not None else name,
        video=video,
        question=question,
        task="choice",
        types=() if types is None else (types,) if isinstance(types, str) else row.texts("question_type"),
        options=options,
        right=right,
        extra={**row.extra("time_reference", "type"), **_evidence(row), **published(given, options)},
    )


def _evidence(row: AnnotationRow) -> dict[str, list[float]]:
    """The moment that answers the question, in seconds, from "101:10-101:25" (minutes) or "1:41:10-1:41:25"."""
    match = _SPAN.fullmatch(str(row.get("time_reference")).strip())
    if match is None:
        return {}
    times = [seconds(time) for time in match.groups()]
    return {"evidence": times}
