"""The common format of benchmark questions."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, Literal

from videopanda.evaluation.benchmarks.files import AnnotationRow, AnnotationRowError, Rejected, each

Task = Literal["short_answer", "yes_no", "choice", "grounding", "description"]


@dataclass(frozen=True)
class Item:
    """One question about one video.

    Options have no letters: prompts add them, and readers strip those of the files (the original strings are then in
    `extra["options_as_published"]`). `description` is a text that only a judge can rate.
    """

    id: str
    video: str  # file below the benchmark's folder of videos; without a suffix where the annotations name none
    question: str  # for grounding the sentence to be found
    task: Task
    types: tuple[str, ...] = ()  # the benchmark's own categories, mostly one
    options: tuple[str, ...] = ()
    right: tuple[int, ...] = ()  # indices of the right options, from 0
    answers: tuple[str, ...] = ()  # accepted texts; for a choice the text that the annotations call right
    interval: tuple[float, float] | None = None  # right answer of grounding, seconds
    start: float | None = None  # the part of the video to be shown, seconds
    end: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)  # JSON values: subtitles, duration, domain, ...
    groups: tuple[str, ...] = ()  # other divisions than types, by the length of the video and the like
    place: str = field(default="", compare=False)  # where it stands, "test_q.json row 3"

    @property
    def has_answer(self) -> bool:
        """False if the answer is not public."""
        return bool(self.answers or self.right or self.interval)


def items(rows: Iterable[AnnotationRow | Rejected], make: Callable[[AnnotationRow], Item]) -> Iterator[Item | Rejected]:
    """One item per row; see `each`. A choice without other answers has the texts of its right options."""

    def item_of(row: AnnotationRow) -> list[Item]:
        item = make(row)
        if item.start is not None and item.end is not None and item.end <= item.start:
            raise AnnotationRowError(f"end ({item.end:g} s) is not later than start ({item.start:g} s)")
        extra = {**item.extra, "repeated_keys": list(row.repeated_keys)} if row.repeated_keys else item.extra
        answers = item.answers or tuple(item.options[i] for i in item.right)
        return [replace(item, place=row.place, extra=extra, answers=answers)]

    return each(rows, item_of)


class RunningNumber:
    """Ids for files that have none: the n-th question about a video in the order of the file, from 0."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def __call__(self, name: str) -> str:
        """`name` with the number of earlier calls for it, "v_abc/0"."""
        self._seen[name] += 1
        return f"{name}/{self._seen[name] - 1}"


def length_group(row: AnnotationRow, lengths: Sequence[tuple[str, float]]) -> tuple[str, ...]:
    """The group of a question by the `duration` of its video; () where the row states none.

    Args:
        lengths: names of groups and their longest duration in seconds, the shortest group first.
    """
    if row.get("duration") is None:
        return ()
    seconds = row.number("duration")
    return next(((name,) for name, longest in lengths if seconds <= longest), ())


def stem(video: str) -> str:
    """The name of a video file without folders and suffix; names in data sets may contain dots."""
    name = PurePosixPath(video).name
    return name.rpartition(".")[0] if name.lower().endswith(VIDEO_SUFFIXES) else name


VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")
