"""NExT-QA, multiple choice and open-ended: why, how, before and after.

    val.csv, test.csv        video,frame_count,width,height,question,answer,qid,type,a0,…,a4     answer from 0 to 4
                             open-ended: the same without a0,…,a4, and the answer is a text; `additional_ref_answer`
                             may hold a second one
    map_vid_vidorID.json     {video: path below the folder of videos, without a suffix}

The id is `<video>_<qid>`, as in the official scorer. A table with the same columns is read from parquet, too.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from videopanda.evaluation.benchmarks.files import AnnotationRow, AnnotationRowError, Rejected, find, read_object, rows
from videopanda.evaluation.benchmarks.item import Item, items

_OPTIONS = tuple(f"a{i}" for i in range(5))
_TYPES = {  # codes of the annotations; the first letter is the group: causal, temporal, descriptive
    "CW": "causal why",
    "CH": "causal how",
    "TN": "temporal next",
    "TP": "temporal previous",
    "TC": "temporal current",
    "DC": "descriptive count",
    "DL": "descriptive location",
    "DO": "descriptive other",
}


def read(path: Path) -> Iterator[Item | Rejected]:
    """Read the test split of a folder (without one the validation split), or the file named."""
    for file in find(path, "test*.csv", "val*.csv", "*test*.parquet", "*.csv", "*.parquet"):
        yield from items(rows(file), partial(_item, paths=_paths(path, file)))


def read_open(path: Path) -> Iterator[Item | Rejected]:
    """Read the open-ended questions of a folder, or of the file named."""
    for file in find(path, "test*.csv", "val*.csv", "*test*.parquet", "*.csv", "*.parquet"):
        yield from items(rows(file), partial(_open_item, paths=_paths(path, file)))


def _paths(path: Path, file: Path) -> Mapping[str, Any]:
    folder = path if path.is_dir() else file.parent
    maps = sorted(folder.rglob("map_vid_vidorID.json"))
    return read_object(maps[0]) if maps else {}  # without a map, videos are found by their number


def _open_item(row: AnnotationRow, paths: Mapping[str, Any]) -> Item:
    if row.get(*_OPTIONS) is not None:
        raise AnnotationRowError("a question with options: use next-qa")
    video, code = row.id("video"), row.text("type")
    return Item(
        id=f"{video}_{row.id('qid')}",
        video=str(paths.get(video, video)),
        question=row.text("question"),
        task="short_answer",
        types=(_TYPES.get(code, code),),
        answers=tuple(row.text(key) for key in ("answer", "additional_ref_answer") if row.get(key) is not None),
    )


def _item(row: AnnotationRow, paths: Mapping[str, Any]) -> Item:
    video = row.id("video")
    options = tuple(row.text(key) for key in _OPTIONS)
    answered = row.get("answer") is not None
    right = (row.index("answer", below=len(options)),) if answered else ()
    code = row.text("type")
    return Item(
        id=f"{video}_{row.id('qid')}",
        video=str(paths.get(video, video)),
        question=row.text("question"),
        task="choice",
        types=(_TYPES.get(code, code),),
        options=options,
        right=right,
    )
