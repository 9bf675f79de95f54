"""A file of annotations as records: its format, its rows, and the location of its media."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from videopanda.data.formats.llava import llava, llava_video, valley, videochatgpt
from videopanda.data.formats.messages import Names, llama_factory, ms_swift
from videopanda.data.formats.record import Medium, Reader, Record, RowError
from videopanda.data.formats.rows import FileRow, iter_rows, read_row
from videopanda.data.formats.videochat2 import videochat2

FORMATS: dict[str, Reader] = {
    "llava": llava,
    "llava_video": llava_video,
    "valley": valley,
    "videochatgpt": videochatgpt,
    "videochat2": videochat2,
    "llama_factory": llama_factory,
    "ms_swift": ms_swift,
}
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm")
_LOOKED_AT = 20  # rows used to detect the format


@dataclass(frozen=True)
class Selection:
    """Part number `part`, counted from 0, of `size` rows (or of `size` % of all), or the last ones."""

    part: int | Literal["end"]
    size: int
    is_percent: bool = False

    def of(self, count: int) -> slice:
        """The selected rows out of `count`."""
        size = math.ceil(self.size * count / 100) if self.is_percent else self.size
        if self.part == "end":
            return slice(max(0, count - size), count)
        return slice(self.part * size, (self.part + 1) * size)


@dataclass(frozen=True)
class Source:
    """Rows of one file. `root` is the folder of its media, `fps` the rate of folders of frames if it has such."""

    path: Path
    format: str
    root: Path
    selection: Selection | None = None  # None = all rows
    fps: float = 1.0
    names: Names | None = None  # of LLaMA-Factory

    @property
    def name(self) -> str:
        """The name of this file in records, counts and manifests."""
        return self.path.name

    def read(self, value: Mapping[str, Any], number: int) -> Record:
        """The record of a row. Raises `RowError`."""
        reader = partial(llama_factory, names=self.names) if self.names else FORMATS[self.format]
        record = reader(value, number, self.path.stem)
        if self.fps != 1.0:
            record = replace(record, media=tuple(replace(medium, fps=self.fps) for medium in record.media))
        return record

    def records(self) -> Iterator[tuple[FileRow, Record | RowError]]:
        """Every selected row, with its record or its error.

        Raises:
            ValueError: the file is empty or not JSON.
        """
        rows = iter_rows(self.path)
        if self.selection is not None:
            chosen = self.selection.of(sum(1 for _ in rows))
            rows = islice(iter_rows(self.path), chosen.start, chosen.stop)
        for row in rows:
            if row.error is not None:
                yield row, row.error
                continue
            try:
                record: Record | RowError = self.read(row.value, row.number)
            except RowError as error:
                record = error
            yield row, record

    def record(self, number: int, start: int, stop: int) -> Record:
        """The record of one row, read again from its bytes [start, stop)."""
        return self.read(read_row(self.path, start, stop), number)

    def locate(self, medium: Medium) -> Path:
        """The file or folder of a medium. Without a suffix, any common one matches; if none exists, it stays as is."""
        path = self.root / medium.path
        if path.suffix.lower() in VIDEO_SUFFIXES or path.exists():
            return path
        others = (path.with_name(path.name + suffix) for suffix in VIDEO_SUFFIXES)
        return next((other for other in others if other.exists()), path)


def detect(file: str | Path) -> str:
    """The format of a file, detected from its first rows.

    Raises:
        ValueError: no row can be read, rows disagree, or more than one format would fit.
    """
    rows = list(islice(iter_rows(file), _LOOKED_AT))
    values = [row.value for row in rows if row.error is None]
    if not values:
        reason = f"; the first one: {rows[0].error}" if rows else ""
        raise ValueError(f"{file} has no readable rows{reason}")
    found = {name for name in (_detect_row(value, str(file)) for value in values) if name}
    if len(found) > 1:
        raise ValueError(f"{file}: rows look like {' and '.join(sorted(found))}: choose one with --format")
    return found.pop() if found else "llava"


def _detect_row(row: Mapping[str, Any], file: str) -> str | None:
    """None for a conversation without media, which is the same in several formats."""
    keys = {
        key for key, value in row.items() if value not in (None, "")
    }  # tables write null where a row has no such key
    if {"q", "a", "video_id"} <= keys:
        return "videochatgpt"
    if "QA" in keys:
        return "videochat2"
    if "messages" in keys:
        return "ms_swift" if keys & {"audios", "objects", "rejected_response"} else "llama_factory"
    if {"query", "response"} <= keys:
        return "ms_swift"
    if "conversations" in keys:
        if keys & {"videos", "images"}:
            return "llama_factory"
        if "data_source" in keys:
            return "llava_video"
        video = row.get("video") or None
        if not isinstance(video, str):
            return "llava" if keys & {"video", "image"} else None
        if video.endswith(".pkl"):
            return "videochatgpt"
        if "source" in keys or not Path(video).suffix:
            raise ValueError(
                f"{file}: {video!r} may be a file in a sub-folder (--format valley), a folder of frames or a name "
                "without its suffix (--format llava): choose one"
            )
        return "llava"
    raise ValueError(
        f"{file}: the format of a row with {', '.join(sorted(keys)) or 'no keys'} is not known: "
        f"pass --format {'|'.join(FORMATS)}"
    )
