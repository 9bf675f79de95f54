"""Scenes, the generated world of this package: a folder that `videopanda scenes make` wrote.

    annotations.json   [{"id", "video", "conversations", "families", …}, …]
    clips/

Each question of a conversation is a separate item, `test-0-17/3`; its type is its family.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from videopanda.evaluation.benchmarks.conversation import read_question, single_questions
from videopanda.evaluation.benchmarks.files import AnnotationRow, AnnotationRowError, Rejected, find, rows
from videopanda.evaluation.benchmarks.item import Item, Task, items


def read(path: Path) -> Iterator[Item | Rejected]:
    """Read the questions of a folder, or of its `annotations.json`."""
    for file in find(path, "annotations.json"):
        yield from items(single_questions(rows(file), _facts), _item)


def _facts(row: AnnotationRow, turns: Any) -> list[dict[str, Any]]:
    families = row.get("families")
    if not isinstance(turns, list) or not isinstance(families, list) or len(turns) != 2 * len(families):
        raise AnnotationRowError("'conversations' must contain a question and an answer for each entry of 'families'")
    # The order in which the condition `shuffled` shows a scene is drawn by its number.
    key = [int(number), 3] if (number := row.id("id").rpartition("-")[2]).isdecimal() else []
    return [{"family": family, "shuffle_key": key} for family in families]


def _item(row: AnnotationRow) -> Item:
    id_, question, answer = read_question(row)
    task: Task = "yes_no" if answer in ("yes", "no") else "short_answer"
    return Item(
        id_, row.text("video"), question, task, (row.text("family"),), answers=(answer,), extra=row.extra("shuffle_key")
    )
