"""Questions of your own: rows of the LLaVA form, such as `videopanda data label` writes.

    {"id": "x1", "video": "clips/x1.mp4", "kind": "unseen recording",
     "conversations": [{"from": "human", "value": "<video>\nWhich word is signed?"}, {"from": "gpt", "value": "happy"}]}

Each question of a conversation is an item of its own, `x1/0`, asked without the others; its type is `kind`, if any.
"""

from collections.abc import Iterator
from pathlib import Path

from videopanda.evaluation.benchmarks.files import Rejected, Row, RowError, find, rows
from videopanda.evaluation.benchmarks.item import Item, items


def read(path: Path) -> Iterator[Item | Rejected]:
    """Read the questions of a file, or of the `test.jsonl` of a folder."""
    for file in find(path, "test.jsonl", "test.json"):
        yield from items(_questions(file), _item)


def _questions(file: Path) -> Iterator[Row | Rejected]:
    for row in rows(file):
        if isinstance(row, Rejected):
            yield row
            continue
        turns = row.get("conversations")
        if not isinstance(turns, list) or not turns or len(turns) % 2:
            yield row.refuse("'conversations' must hold questions, each with its answer")
            continue
        for k in range(len(turns) // 2):
            data = {**row.extra("id", "video", "kind"), "number": k, "turns": turns[2 * k : 2 * k + 2]}
            yield Row(f"{row.place} question {k}", data, row.repeated_keys)


def _item(row: Row) -> Item:
    turns = row.data["turns"]
    if not all(isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in turns):
        raise RowError("a turn has no text 'value'")
    question, answer = (turn["value"].replace("<video>", "").strip() for turn in turns)
    if not question or not answer:
        raise RowError("a question or an answer is empty")
    types = (row.text("kind"),) if row.get("kind") is not None else ()
    id_ = f"{row.id('id')}/{row.data['number']}"
    return Item(id_, row.text("video"), question, "short_answer", types, answers=(answer,))
