"""Your own questions: rows of the LLaVA form, such as `videopanda data label` writes.

    {"id": "x1", "video": "clips/x1.mp4", "kind": "unseen recording",
     "conversations": [{"from": "human", "value": "<video>\nWhich word is signed?"}, {"from": "gpt", "value": "happy"}]}

Each question of a conversation is a separate item, `x1/0`, asked without the others; its type is `kind`, if any. A
range, `start` and `end`, means what it means in training; what training refuses is rejected here, too.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from videopanda.data.formats.record import RANGE_NAMES, RowError, refuse_unused, seconds
from videopanda.evaluation.benchmarks.conversation import read_question, single_questions
from videopanda.evaluation.benchmarks.files import AnnotationRow, AnnotationRowError, Rejected, find, rows
from videopanda.evaluation.benchmarks.item import Item, items


def read(path: Path) -> Iterator[Item | Rejected]:
    """Read the questions of a file, or of the `test.jsonl` of a folder."""
    for file in find(path, "test.jsonl", "test.json"):
        yield from items(single_questions(rows(file), _facts), _item)


def _facts(row: AnnotationRow, turns: Any) -> list[dict[str, Any]]:
    if not isinstance(turns, list) or not turns or len(turns) % 2:
        raise AnnotationRowError("'conversations' must contain questions, each with its answer")
    try:
        start, end = seconds(row.data)
        refuse_unused(row.data, {"video", *RANGE_NAMES})
    except RowError as error:
        raise AnnotationRowError(error.reason) from error
    return [{**row.extra("kind", "fps"), "start": start, "end": end}] * (len(turns) // 2)


def _item(row: AnnotationRow) -> Item:
    id_, question, answer = read_question(row)
    if not question or not answer:
        raise AnnotationRowError("a question or an answer is empty")
    types = (row.text("kind"),) if row.get("kind") is not None else ()
    return Item(
        id_,
        row.text("video"),
        question,
        "short_answer",
        types,
        answers=(answer,),
        start=row.get("start"),
        end=row.get("end"),
        extra={"fps": row.number("fps")} if row.get("fps") is not None else {},  # of a folder of frames
    )
