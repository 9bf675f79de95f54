"""EgoSchema: five-way choice about clips of three minutes.

    questions.json        [{"q_uid", "question", "option 0", …, "option 4"}, …]     all 5,031
    subset_answers.json   {q_uid: 0 … 4}                                            the 500 public answers
    uid_to_ego4d.json     {q_uid: {"video_uid", "starting_sec", "ending_sec"}}      where the clip was cut out

Questions without a public answer are items that cannot be scored here. The re-hosted form (`video_idx`, `question`,
`option`, `answer`) is also read; of its tables, the one in `Subset/`, which has the public answers.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from videopanda.evaluation.benchmarks.files import (
    AnnotationRow,
    AnnotationRowError,
    Rejected,
    beside,
    find,
    read_object,
    rows,
)
from videopanda.evaluation.benchmarks.item import Item, items
from videopanda.evaluation.benchmarks.options import published, unmark_all

_OPTIONS = tuple(f"option {i}" for i in range(5))


def read(path: Path) -> Iterator[Item | Rejected]:
    """Read questions, with the answers and origins in the files next to them."""
    for file in find(path, "questions.json", "Subset/*.parquet", "*.parquet", "*.jsonl", "*.json"):
        answers, origins = beside(file, "subset_answers.json"), beside(file, "uid_to_ego4d.json")
        known = read_object(answers) if answers else {}
        cut = read_object(origins) if origins else {}
        seen: set[str] = set()
        yield from items(rows(file), partial(_item, known=known, cut=cut, seen=seen))
        for uid in known:
            if uid not in seen:
                yield Rejected("subset_answers.json", f"{file.name} has no question for this answer", uid)


def _item(row: AnnotationRow, known: Mapping[str, Any], cut: Mapping[str, Any], seen: set[str]) -> Item:
    uid = row.id("q_uid", "video_idx")
    seen.add(uid)
    listed = row.get("option", "options")
    given = row.texts("option", "options") if listed else tuple(row.text(key) for key in _OPTIONS)
    options = unmark_all(given)
    right: tuple[int, ...] = ()
    answer = known.get(uid, row.get("answer"))
    if answer is not None:
        try:
            right = (AnnotationRow(row.place, {"answer": answer}).index("answer", below=len(options)),)
        except AnnotationRowError as error:
            raise AnnotationRowError(f"subset_answers.json: {error}" if uid in known else str(error)) from error
    return Item(
        id=uid,
        video=uid,
        question=row.text("question"),
        task="choice",
        options=options,
        right=right,
        extra={**published(given, options), **({"cut_from": cut[uid]} if uid in cut else {})},
    )
