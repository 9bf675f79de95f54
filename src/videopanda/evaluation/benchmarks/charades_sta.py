"""Charades-STA: when does a sentence hold?

    charades_sta_test.txt   one line per sentence: "ABCDE 24.3 30.4##person turns a light on."
    *.json                  [{"video": "ABCDE.mp4", "caption", "timestamp": [start, end]}, …]

Rows have no id; they are numbered per video: `ABCDE/0`.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from videopanda.evaluation.benchmarks.errata import COMMON, Erratum
from videopanda.evaluation.benchmarks.files import AnnotationRow, AnnotationRowError, Rejected, find, rows
from videopanda.evaluation.benchmarks.item import Item, RunningNumber, items, stem

_LINE = re.compile(r"(\S+)\s+(\S+)\s+(\S+?)\s*##(.+)")
ERRATA = (
    *COMMON,
    Erratum(
        "empty-interval",
        "the range ends at or before its start, so no answer can be right",
        lambda item: item.interval is not None and item.interval[1] <= item.interval[0],
        lambda item: None,
    ),
)


def read(path: Path) -> Iterator[Item | Rejected]:
    """Read the test split of a folder, or the file named."""
    for file in find(path, "charades_sta_test.txt", "*charades*.json*", "*.json*", "*.parquet", "*.txt"):
        read_rows = _lines if file.suffix == ".txt" else rows
        yield from items(read_rows(file), partial(_item, number=RunningNumber()))


def _lines(file: Path) -> Iterator[AnnotationRow | Rejected]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            place = f"{file.name} line {number}"
            if match := _LINE.fullmatch(line.strip()):
                yield AnnotationRow(place, {"video": match[1], "timestamp": [match[2], match[3]], "caption": match[4]})
            elif line.strip():
                yield Rejected(place, "not of the form 'VIDEO START END##SENTENCE'")


def _item(row: AnnotationRow, number: RunningNumber) -> Item:
    video = row.text("video")
    name = number(stem(video))
    times = row.texts("timestamp")
    if len(times) != 2:
        raise AnnotationRowError(f"'timestamp' has {len(times)} values instead of two")
    start, end = (AnnotationRow(row.place, {"timestamp": time}).time("timestamp") for time in times)
    return Item(name, video, row.text("caption"), "grounding", interval=(start, end))
