"""Video-ChatGPT, five aspects: free answers that a judge rates.

    generic_qa.json, temporal_qa.json   [{"Q", "A", "video_name"}, …]
    consistency_qa.json                 [{"Q1", "Q2", "A", "video_name"}, …]

The generic questions serve three aspects: correctness, detail and context. A consistency row is two questions, which
are asked alone and judged as a pair (`extra["pair"]`). Rows have no id; as in the official scorer they are numbered per
video: `generic/v_abc/0`, `consistency/v_abc/0/Q2`. The re-hosted form with `question`, `answer`, and `question_1` and
`question_2` that may be the text "None", is read, too.
"""

from collections.abc import Iterator
from pathlib import Path

from videopanda.evaluation.benchmarks.files import AnnotationRow, Rejected, each, find, rows
from videopanda.evaluation.benchmarks.item import Item, RunningNumber, items

ASPECTS = {"generic": ("correctness", "detail", "context"), "temporal": ("temporal",), "consistency": ("consistency",)}


def read(path: Path) -> Iterator[Item | Rejected]:
    """Read all the files of a folder, or one."""
    for file in find(path, "*_qa.json*", "*.json*", "*.parquet"):
        part = next((part for part in ASPECTS if part in str(file.relative_to(path.parent)).lower()), "generic")
        yield from items(_questions(file, part), _item)


def _questions(file: Path, part: str) -> Iterator[AnnotationRow | Rejected]:
    number = RunningNumber()

    def questions(row: AnnotationRow) -> Iterator[AnnotationRow]:
        given = {key: value for key, value in row.data.items() if value != "None"}
        name = f"{part}/{number(str(given.get('video_name')))}"
        pair = [given.get("Q1", given.get("question_1")), given.get("Q2", given.get("question_2"))]
        if any(pair):
            for label, question in zip(("Q1", "Q2"), pair):
                data = {**given, "Q": question, "id": f"{name}/{label}", "part": "consistency", "pair": name}
                yield AnnotationRow(row.place, data, row.repeated_keys)
        else:
            yield AnnotationRow(row.place, {**given, "id": name, "part": part}, row.repeated_keys)

    return each(rows(file), questions)


def _item(row: AnnotationRow) -> Item:
    part = row.text("part")
    return Item(
        id=row.text("id"),
        video=row.id("video_name"),
        question=row.text("Q", "question"),
        task="description",
        types=(part,),
        answers=(row.text("A", "answer"),),
        extra={"aspects": list(ASPECTS[part]), **row.extra("pair")},
    )
