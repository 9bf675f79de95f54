"""HourVideo: five-way choice about egocentric videos of 20 to 120 minutes.

    json/dev_v1.0_annotations.json   {video: {"video_metadata": {"duration_in_seconds", …},
                                              "benchmark_dataset": [{"qid"?, "task", "question", "mcq_test",
                                              "answer_1" … "answer_5", "correct_answer_label" (letter)}, …]}}

Limits. Questions whose options are pictures (two navigation tasks and the spatial layout) are rejected and listed: an
item holds text. The official protocol asks all questions of a task about a video in one prompt, with four tasks asked
one by one; items are single questions, so a number measured with them is not the official one. Only the development
file has answers. Flat tables with the same columns and `video_uid` are read, too.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from videopanda.evaluation.benchmarks.files import (
    AnnotationRow,
    AnnotationRowError,
    Rejected,
    find,
    question_rows,
    read_object,
    rows,
)
from videopanda.evaluation.benchmarks.item import Item, RunningNumber, items, length_group
from videopanda.evaluation.benchmarks.options import letter_index, published, split_question, unmark_all

PICTURE_TASKS = ("navigation/room_to_room_image", "navigation/object_retrieval_image", "reasoning/spatial/layout")
_OPTIONS = tuple(f"answer_{i}" for i in range(1, 6))
_LENGTHS = (("up to 30 min", 1800.0), ("30 to 60 min", 3600.0), ("over 60 min", float("inf")))
GROUPS = tuple(name for name, _ in _LENGTHS)
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def read(path: Path) -> Iterator[Item | Rejected]:
    """Read the development file of a folder, or the file named."""
    for file in find(path, "dev*annotations.json", "*.json", "*.parquet", "*.jsonl"):
        yield from items(_questions(file) if file.suffix == ".json" else rows(file), partial(_item, RunningNumber()))


def _questions(file: Path) -> Iterator[AnnotationRow | Rejected]:
    for video, content in read_object(file).items():
        if not isinstance(content, dict) or not isinstance(content.get("benchmark_dataset"), list):
            yield Rejected(f"{file.name} {video}", "no list 'benchmark_dataset'")
            continue
        metadata = content.get("video_metadata")
        duration = metadata.get("duration_in_seconds") if isinstance(metadata, dict) else None
        shared = {"video_uid": video, "duration": duration}
        yield from question_rows(f"{file.name} {video}", content["benchmark_dataset"], shared)


def _item(number: RunningNumber, row: AnnotationRow) -> Item:
    video, task = row.id("video_uid"), row.text("task")
    name = number(video)
    if row.get(_OPTIONS[0]) is not None:
        given = tuple(row.text(key) for key in _OPTIONS if row.get(key) is not None)
    else:
        _, given = split_question(row.text("mcq_test"))
    if task in PICTURE_TASKS or any(option.lower().endswith(_PICTURES) for option in given):
        raise AnnotationRowError(f"the options of task {task} are images, which is not supported")
    options = unmark_all(given)
    answered = row.get("correct_answer_label") is not None
    right = (letter_index(row, "correct_answer_label", options=options),) if answered else ()
    return Item(
        id=row.id("qid") if row.get("qid") is not None else name,
        video=video,
        question=row.text("question"),
        task="choice",
        types=(task,),
        groups=length_group(row, _LENGTHS),
        options=options,
        right=right,
        extra={**row.extra("duration", "relevant_timestamps"), **published(given, options)},
    )
