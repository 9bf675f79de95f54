"""Video-MME-v2: eight-way choice about 800 videos, one group of four connected questions each.

    test.parquet      video_id ("001"), question_id ("001-1" … "001-4"), question, options ("A. …" to "H. …", a line
                      each), answer (letter), group_type, group_structure, level, second_head, third_head
    videos: <video_id>.mp4

The last three columns stand at the last question of a group only, and count for all four. The benchmark's own number is
`group_score`: the mean over groups of a score that grows faster than the number of right answers (`group_score` below).
Only the protocol without subtitles is read. Columns and scoring are those of the task `videomme_v2` of lmms-eval
(lmms_eval/tasks/videomme_v2/utils.py), which follows https://github.com/MME-Benchmarks/Video-MME-v2.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from videopanda.evaluation.benchmarks.files import AnnotationRow, AnnotationRowError, Rejected, find, rows
from videopanda.evaluation.benchmarks.item import Item, items
from videopanda.evaluation.benchmarks.options import letter_index, published, split_question, unmark_all

_HEADS = ("level", "second_head", "third_head")
# Per structure of a chain of reasoning: the first of two questions that stand side by side (from 0, None without), and
# the points for a chain of 0 to 4 questions.
_CHAINS: dict[str, tuple[int | None, tuple[int, ...]]] = {
    "[1,2,3,4]": (None, (0, 1, 4, 9, 16)),
    "[1,[2,3],4]": (1, (0, 1, 4, 7, 12)),
    "[[1,2],3,4]": (0, (0, 1, 2, 5, 10)),
}
GROUPS = ("level 1", "level 2", "level 3", "relevance", "logic")


def read(path: Path) -> Iterator[Item | Rejected]:
    """Read the questions, to be asked without subtitles."""
    for file in find(path, "test.parquet", "test*.parquet", "*.parquet", "*.jsonl", "*.json"):
        yield from items(_with_heads(rows(file)), _item)


def _with_heads(found: Iterable[AnnotationRow | Rejected]) -> Iterator[AnnotationRow | Rejected]:
    """The rows, each with what stands at the last question of its group."""
    all_rows = list(found)
    heads: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for row in all_rows:
        if isinstance(row, AnnotationRow):
            heads[str(row.get("video_id"))] |= row.extra(*_HEADS)
    for row in all_rows:
        if isinstance(row, AnnotationRow):
            row = replace(row, data={**row.data, **heads[str(row.get("video_id"))]})
        yield row


def _item(row: AnnotationRow) -> Item:
    if isinstance(row.get("options"), str):
        _, given = split_question(row.text("options"))
    else:
        given = row.texts("options")
    options = unmark_all(given)
    name, kind = row.id("question_id"), row.text("group_type")
    if not name.rpartition("-")[2].isdecimal():
        raise AnnotationRowError(f"'question_id' is {name!r:.40}, which does not end in '-' and a number")
    structure = "".join(row.text("group_structure").split()) if kind == "logic" else ""
    if kind not in ("relevance", "logic") or (kind == "logic" and structure not in _CHAINS):
        raise AnnotationRowError(f"the group is of an unknown kind: {kind!r:.40} {structure!r:.40}")
    level = f"level {str(row.get('level')).removesuffix('.0')}"
    return Item(
        id=name,
        video=row.id("video_id"),
        question=row.text("question"),
        task="choice",
        types=(head,) if isinstance(head := row.get("second_head"), str) else (),
        groups=(*((level,) if level in GROUPS else ()), kind),
        options=options,
        right=(letter_index(row, "answer", options=options),),
        extra={
            **row.extra("url", *_HEADS),
            **published(given, options),
            "group_type": kind,
            "group_structure": structure,
        },
    )


def group_score(questions: Sequence[Item], right: Sequence[bool]) -> float | None:
    """The score of the group of a video, from 0 to 1; None where it is not four questions.

    "relevance": the square of the share of right answers. "logic": points for the chain of right answers from the first
    question on; of two questions side by side, the second one continues the chain where the first one is wrong.
    """
    if len(questions) != 4:
        return None
    numbered = sorted((int(question.id.rpartition("-")[2]), answer) for question, answer in zip(questions, right))
    answers = [answer for _, answer in numbered]
    if questions[0].extra["group_type"] == "relevance":
        return (sum(answers) / 4) ** 2
    pair, points = _CHAINS[questions[0].extra["group_structure"]]
    chain = next((i for i, answer in enumerate(answers) if not answer), 4)
    if pair is not None and chain == pair and answers[pair + 1]:
        chain += 1
    return points[chain] / points[-1]
