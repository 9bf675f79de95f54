"""TimeLens-Bench: Charades-STA, ActivityNet Captions and QVHighlights with corrected queries and times.

    activitynet-timelens.json, charades-timelens.json, qvhighlights-timelens.json
                                     {video: {"duration", "queries": [sentence, …], "spans": [[start, end], …]}, …}
    videos/<activitynet, charades, qvhighlights>/<video>.mp4

Rows have no id; they are numbered per video: `charades/ABCDE/0`. The published numbers are those of each of the three
parts. Files as read by https://github.com/TencentARC/TimeLens (timelens/dataset/timelens_data.py); mIoU and R1 at 0.3,
0.5 and 0.7 as in the task `timelens` of lmms-eval.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from videopanda.evaluation.benchmarks.files import AnnotationRow, AnnotationRowError, Rejected, find, read_object
from videopanda.evaluation.benchmarks.item import Item, RunningNumber, items, length_group

_LENGTHS = (("up to 1 min", 60.0), ("1 to 3 min", 180.0), ("over 3 min", float("inf")))
GROUPS = tuple(name for name, _ in _LENGTHS)


def read(path: Path) -> Iterator[Item | Rejected]:
    """Read the three files of a folder, or the file named."""
    for file in find(path, "*-timelens.json", "*.json"):
        part = file.stem.removesuffix("-timelens")
        yield from items(_queries(file), partial(_item, part=part, number=RunningNumber()))


def _queries(file: Path) -> Iterator[AnnotationRow | Rejected]:
    for video, content in read_object(file).items():
        place = f"{file.name} {video}"
        queries, spans = (content.get(key) if isinstance(content, dict) else None for key in ("queries", "spans"))
        if not isinstance(queries, list) or not isinstance(spans, list) or len(queries) != len(spans):
            yield Rejected(place, "no lists 'queries' and 'spans' of the same length")
            continue
        for number, (query, span) in enumerate(zip(queries, spans), 1):
            row = {"video": video, "duration": content.get("duration"), "query": query, "span": span}
            yield AnnotationRow(f"{place} query {number}", row)


def _item(row: AnnotationRow, part: str, number: RunningNumber) -> Item:
    video = row.id("video")
    name = number(f"{part}/{video}")
    times = row.texts("span")
    if len(times) != 2:
        raise AnnotationRowError(f"'span' has {len(times)} values instead of two")
    start, end = (AnnotationRow(row.place, {"span": time}).time("span") for time in times)
    return Item(
        id=name,
        video=f"{part}/{video}.mp4",
        question=" ".join(row.text("query").split()).strip(" ."),
        task="grounding",
        types=(part,),
        groups=length_group(row, _LENGTHS),
        interval=(start, end),
        extra=row.extra("duration"),
    )
