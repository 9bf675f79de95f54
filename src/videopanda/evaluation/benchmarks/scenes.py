"""Scenes, the generated world of this package: a folder that `videopanda scenes make` wrote.

    annotations.json   [{"id", "video", "conversations", "families", …}, …]
    clips/

Each question of a conversation is an item of its own, `test-0-17/3`; its type is its family.
"""

from collections.abc import Iterator
from pathlib import Path

from videopanda.evaluation.benchmarks.files import Rejected, Row, RowError, find, rows
from videopanda.evaluation.benchmarks.item import Item, Task, items


def read(path: Path) -> Iterator[Item | Rejected]:
    """Read the questions of a folder, or of its `annotations.json`."""
    for file in find(path, "annotations.json"):
        yield from items(_questions(file), _item)


def _questions(file: Path) -> Iterator[Row | Rejected]:
    for row in rows(file):
        if isinstance(row, Rejected):
            yield row
            continue
        turns, families = row.get("conversations"), row.get("families")
        if not isinstance(turns, list) or not isinstance(families, list) or len(turns) != 2 * len(families):
            yield row.refuse("'conversations' must hold a question and an answer for each entry of 'families'")
            continue
        for k, family in enumerate(families):
            data = {**row.extra("id", "video"), "number": k, "family": family, "turns": turns[2 * k : 2 * k + 2]}
            yield Row(f"{row.place} question {k}", data, row.repeated_keys)


def _item(row: Row) -> Item:
    turns = row.data["turns"]
    if not all(isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in turns):
        raise RowError("a turn has no text 'value'")
    question, answer = (turn["value"].removeprefix("<video>\n").strip() for turn in turns)
    task: Task = "yes_no" if answer in ("yes", "no") else "short_answer"
    id_ = f"{row.id('id')}/{row.data['number']}"
    return Item(id_, row.text("video"), question, task, (row.text("family"),), answers=(answer,))
