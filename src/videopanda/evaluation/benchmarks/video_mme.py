"""Video-MME: four-way choice about 900 videos, three questions each.

    videomme/test-00000-of-00001.parquet   question_id, videoID, question, options ("A. One."), answer ("B"), …
    video/<videoID>.mp4, subtitle/<videoID>.srt

`video-mme-subtitles` is the protocol that shows subtitles; 744 of the videos have some, and an item without says so by
having none. Only lines at the times of the shown frames belong in the prompt (`subtitles.at_times`). The official
result files, which group questions by video, are read as annotations, too.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from videopanda.evaluation.benchmarks.files import AnnotationRow, Rejected, find, rows, unnested
from videopanda.evaluation.benchmarks.item import Item, items
from videopanda.evaluation.benchmarks.options import letter_index, published, unmark_all

GROUPS = ("short", "medium", "long")  # up to 2 minutes, 4 to 15 minutes, 30 to 60 minutes


def read(path: Path) -> Iterator[Item | Rejected]:
    """Read the questions, to be asked without subtitles."""
    for file in find(path, "test*.parquet", "*.parquet", "*.jsonl", "*.json"):
        yield from items(unnested(rows(file), "questions"), _item)


def read_with_subtitles(path: Path) -> Iterator[Item | Rejected]:
    """Read the questions; `extra["subtitles"]` is the file below PATH where a video has one."""
    root = path if path.is_dir() else path.parent
    known = {file.stem: file.relative_to(root).as_posix() for file in root.rglob("*.srt")}
    for file in find(path, "test*.parquet", "*.parquet", "*.jsonl", "*.json"):
        yield from items(unnested(rows(file), "questions"), partial(_item, subtitles=known))


def _item(row: AnnotationRow, subtitles: dict[str, str] | None = None) -> Item:
    given = row.texts("options")
    options = unmark_all(given)
    video = row.id("videoID", "video_id")
    return Item(
        id=row.id("question_id"),
        video=video,
        question=row.text("question"),
        task="choice",
        types=(row.text("task_type"),),
        groups=(str(length),) if (length := row.get("duration")) in GROUPS else (),
        options=options,
        right=(letter_index(row, "answer", options=options),),
        extra={
            **row.extra("duration", "domain", "sub_category", "url"),
            **published(given, options),
            **({"subtitles": subtitles[video]} if subtitles and video in subtitles else {}),
        },
    )
