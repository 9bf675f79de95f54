"""VideoEval-Pro: questions of four long benchmarks, asked without their options.

    data/test-*.parquet    video, question, options ("A. …"), answer (letter), answer_text, qa_type, qa_subtype, source
    videos/

`videoeval-pro` asks for a short answer, which only a judge can rate: right, wrong or not attempted (its authors:
gpt-4o-2024-08-06; their prompt is passed with `--prompts`). `videoeval-pro-choice` shows the options.
Rows have no id; they are numbered per video: `abc/0`. Columns as described by
https://github.com/TIGER-AI-Lab/VideoEval-Pro; types as in the task `videoevalpro` of lmms-eval.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from videopanda.evaluation.benchmarks.files import AnnotationRow, Rejected, find, rows
from videopanda.evaluation.benchmarks.item import Item, RunningNumber, items, stem
from videopanda.evaluation.benchmarks.options import letter_index, published, unmark_all


def read(path: Path) -> Iterator[Item | Rejected]:
    """Read the questions, to be answered in words."""
    yield from _read(path, with_options=False)


def read_choice(path: Path) -> Iterator[Item | Rejected]:
    """Read the questions with their options."""
    yield from _read(path, with_options=True)


def _read(path: Path, with_options: bool) -> Iterator[Item | Rejected]:
    number = RunningNumber()  # one for all parts of the table
    for file in find(path, "test*.parquet", "*.parquet", "*.jsonl", "*.json"):
        yield from items(rows(file), partial(_item, number=number, with_options=with_options))


def _item(row: AnnotationRow, number: RunningNumber, with_options: bool) -> Item:
    video = row.text("video")
    given = row.texts("options") if with_options else ()
    options = unmark_all(given)
    grade = {} if with_options else {"aspects": ["grade"]}
    return Item(
        id=number(stem(video)),
        video=video,
        question=row.text("question"),
        task="choice" if with_options else "description",
        types=(row.text("qa_type"),),
        options=options,
        right=(letter_index(row, "answer", options=options),) if with_options else (),
        answers=() if with_options else (row.text("answer_text"),),
        extra={**row.extra("source", "qa_subtype"), **published(given, options), **grade},
    )
