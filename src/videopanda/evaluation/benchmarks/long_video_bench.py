"""LongVideoBench: questions that refer to a moment of a long video with subtitles.

    lvb_val.json           [{"id", "video_path", "question", "candidates", "correct_choice", "subtitle_path", …}, …]
    lvb_test_wo_gt.json    the same without answers
    *.parquet              `option0` … `option4` instead of `candidates`, "N/A" where there are fewer
    videos/, subtitles/

Two questions may be asked: `question` says where to look, `extra["question_wo_referring_query"]` does not. With
`longvideobench-subtitles`, the subtitles at the times of the shown frames are in the prompt; `extra["subtitles"]` is
their file below PATH, `extra["subtitle_offset"]` the seconds to subtract from its times.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from videopanda.evaluation.benchmarks.files import AnnotationRow, AnnotationRowError, Rejected, find, rows
from videopanda.evaluation.benchmarks.item import Item, items
from videopanda.evaluation.benchmarks.options import FILLER

_OPTIONS = tuple(f"option{i}" for i in range(5))


GROUPS = ("8 to 15 s", "15 to 60 s", "3 to 10 min", "15 to 60 min")  # `duration_group` 15, 60, 600 and 3600
_GROUPS = dict(zip(("15", "60", "600", "3600"), GROUPS))


def read(path: Path) -> Iterator[Item | Rejected]:
    """Read the validation split of a folder, or the file named (the test split has no public answers)."""
    for file in find(path, "lvb_val.json", "validation*.parquet", "*val*.parquet", "*.parquet", "*.json*"):
        yield from items(rows(file), _item)


def read_with_subtitles(path: Path) -> Iterator[Item | Rejected]:
    """The same, with subtitles; a question whose subtitle file is missing has none."""
    root = path if path.is_dir() else path.parent
    for item in read(path):
        if isinstance(item, Item) and not (root / item.extra.get("subtitles", "-")).is_file():
            item = replace(item, extra={k: v for k, v in item.extra.items() if k != "subtitles"})
        yield item


def _item(row: AnnotationRow) -> Item:
    if row.get("candidates") is not None:
        options = row.texts("candidates")
    else:
        options = tuple(row.text(key) for key in _OPTIONS if row.get(key) not in (None, FILLER))
    if not options:
        raise AnnotationRowError("there are no options")
    answered = row.get("correct_choice") is not None and row.number("correct_choice") >= 0
    right = (row.index("correct_choice", below=len(options)),) if answered else ()
    return Item(
        id=row.id("id"),
        video=row.text("video_path", "video_id"),
        question=row.text("question"),
        task="choice",
        types=(row.text("question_category"),),
        groups=(_GROUPS[group],) if (group := str(row.get("duration_group")).removesuffix(".0")) in _GROUPS else (),
        options=options,
        right=right,
        extra={
            **row.extra("duration", "duration_group", "topic_category", "level", "question_wo_referring_query"),
            **({"subtitles": f"subtitles/{row.text('subtitle_path')}"} if row.get("subtitle_path") else {}),
            **({"subtitle_offset": row.number(_OFFSET)} if row.get(_OFFSET) is not None else {}),
        },
    )


_OFFSET = "starting_timestamp_for_subtitles"
