"""TGIF-QA: the zero-shot layout, and the four tables of the data set.

    test_q.json, test_a.json                    as in `zero_shot_qa`
    Test_frameqa_question.csv (tabs)            gif_name question answer type vid_id key description
    Test_count_question.csv (tabs)              gif_name question answer vid_id key
    Test_action_… and Test_transition_…         gif_name question a1 … a5 answer vid_id key, answer from 0 to 4

The id is `vid_id`: `key` stands for the GIF, so several questions have the same one.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from videopanda.evaluation.benchmarks import zero_shot_qa
from videopanda.evaluation.benchmarks.errata import COMMON, Erratum
from videopanda.evaluation.benchmarks.files import AnnotationRow, Rejected, find, rows
from videopanda.evaluation.benchmarks.item import Item, items

TYPES = ("object", "number", "colour", "location")
_TASKS = {"FRAMEQA": "frameqa", "COUNT": "count", "ACTION": "action", "TRANS": "transition"}
_OPTIONS = ("a1", "a2", "a3", "a4", "a5")


def _mend(text: str) -> str:
    return text.replace("FRAMEQA", "rep")


ERRATA = (
    *COMMON,
    Erratum(
        "rep-overwritten",
        'the letters "rep" inside words were overwritten with "FRAMEQA" ("fiFRAMEQAlace"); they are restored',
        lambda item: "FRAMEQA" in item.question or any("FRAMEQA" in answer for answer in item.answers),
        lambda item: replace(item, question=_mend(item.question), answers=tuple(map(_mend, item.answers))),
        documented="seen in Test_frameqa_question.csv as published",
    ),
)


def read(path: Path) -> Iterator[Item | Rejected]:
    """Read either layout; of the tables only those of the test split."""
    files = find(path, "test_q.*", "Test_*_question.csv", "*question*.csv", "*.tsv", "*.json*", "*.parquet", "*.csv")
    if files[0].suffix.lower() in (".csv", ".tsv"):
        for file in files:
            yield from items(rows(file), _item)
    else:
        yield from zero_shot_qa.read(path, "tgif", TYPES)


def _item(row: AnnotationRow) -> Item:
    id_ = row.id("vid_id")
    task = _TASKS.get(id_.rstrip("0123456789"))
    video, question = row.text("gif_name"), row.text("question")
    if row.get("a1") is not None:
        options = tuple(row.text(key) for key in _OPTIONS)
        index = row.index("answer", below=len(options))
        types = (task or "choice",)
        return Item(id_, video, question, "choice", types, options, (index,), (options[index],))
    types = (TYPES[row.index("type", below=len(TYPES))],) if row.get("type") is not None else (task or "open",)
    return Item(id_, video, question, "short_answer", types, answers=(row.text("answer"),))
