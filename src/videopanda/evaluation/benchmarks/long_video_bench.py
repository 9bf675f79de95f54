"""LongVideoBench: questions that refer to a moment of a long video with subtitles (facts 14).

    lvb_val.json           [{"id", "video_path", "question", "candidates", "correct_choice", "subtitle_path", …}, …]
    lvb_test_wo_gt.json    the same without answers
    *.parquet              `option0` … `option4` instead of `candidates`, "N/A" where there are fewer
    videos/, subtitles/

Two questions may be asked: `question` says where to look, `extra["question_wo_referring_query"]` does not. Subtitles
are read with `subtitles.read(path, offset=extra["subtitle_offset"])`.
"""

from collections.abc import Iterator
from pathlib import Path

from videopanda.evaluation.benchmarks.files import AnnotationRow, AnnotationRowError, Rejected, find, rows
from videopanda.evaluation.benchmarks.item import Item, items
from videopanda.evaluation.benchmarks.options import FILLER

_OPTIONS = tuple(f"option{i}" for i in range(5))


def read(path: Path) -> Iterator[Item | Rejected]:
    """Read the validation split of a folder, or the file named (the test split has no public answers)."""
    for file in find(path, "lvb_val.json", "validation*.parquet", "*val*.parquet", "*.parquet", "*.json*"):
        yield from items(rows(file), _item)


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
        options=options,
        right=right,
        answers=tuple(options[i] for i in right),
        extra={
            **row.extra("duration", "duration_group", "topic_category", "level", "question_wo_referring_query"),
            **({"subtitles": f"subtitles/{row.text('subtitle_path')}"} if row.get("subtitle_path") else {}),
            **({"subtitle_offset": row.number(_OFFSET)} if row.get(_OFFSET) is not None else {}),
        },
    )


_OFFSET = "starting_timestamp_for_subtitles"
