"""Resolves what a user names to records: file, format, rows, and location of the media.

    for source in open_sources("DATA_ROOT/train/train_json/valley_.json"):
        for row, record in source.records(): ...

Accepted: a JSON or JSONL file; a .yaml mixture (`mixture.py`); `dataset_info.json` of LLaMA-Factory, with
`#name` if it describes several data sets; the folder DATA_ROOT of the official README.
"""

import json
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
from videopanda.data.formats.rows import Row, iter_rows, read_row
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
_LOOKED_AT = 20  # rows that the format is told from


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

    def records(self) -> Iterator[tuple[Row, Record | RowError]]:
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


def open_sources(data: str | Path, format: str = "auto", media_root: str | Path | None = None) -> list[Source]:
    """The sources that a name refers to; `media_root` overrides the default location of the media.

    Raises:
        ValueError: no such file, an unknown format, or a format that cannot be detected; the message says what to do.
    """
    if format != "auto" and format not in FORMATS:
        raise ValueError(f"unknown format {format!r}: choose one of auto, {', '.join(FORMATS)}")
    path, _, part = str(data).partition("#") if "dataset_info.json" in str(data) else (str(data), "", "")
    file = Path(path)
    root = Path(media_root) if media_root else None
    if file.is_dir():
        return [_plain(found, format, root) for found in _official(file)]
    if not file.is_file():
        raise ValueError(f"{file} does not exist")
    if file.suffix in (".yaml", ".yml"):
        from videopanda.data.formats.mixture import read_mixture

        return read_mixture(file, format, root)
    if file.name == "dataset_info.json":
        return [_described(file, part, root)]
    return [_plain(file, format, root)]


def _plain(file: Path, format: str, root: Path | None) -> Source:
    # DATA_ROOT/train of the official README holds the media beside the folder of annotations.
    beside = file.parent.parent if file.parent.name == "train_json" else file.parent
    return Source(file, detect(file) if format == "auto" else format, root or beside)


def _official(folder: Path) -> list[Path]:
    """Annotations in DATA_ROOT, DATA_ROOT/train or DATA_ROOT/train/train_json."""
    for place in (folder / "train" / "train_json", folder / "train_json", folder):
        found = sorted(place.glob("*.json")) if place.name == "train_json" else []
        if found:
            return found
    raise ValueError(f"{folder} is a folder without train/train_json/*.json: name a file of annotations")


def _described(file: Path, part: str, root: Path | None) -> Source:
    """A data set of LLaMA-Factory's `dataset_info.json`."""
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if part not in table and len(table) != 1:
        raise ValueError(f"{file} describes {', '.join(table)}: name one, as in {file}#{next(iter(table))}")
    name = part or next(iter(table))
    entry = table[name]
    if entry.get("formatting") != "sharegpt" or "file_name" not in entry:
        raise ValueError(f"{file}#{name}: only local files (file_name) with formatting sharegpt are read")
    known = {**entry.get("columns", {}), **entry.get("tags", {})}
    try:
        names = Names(**{key: value for key, value in known.items() if key not in ("tools", "audios")})
    except TypeError as error:
        raise ValueError(f"{file}#{name}: a column or tag that is not supported: {error}") from error
    return Source(file.parent / entry["file_name"], "llama_factory", root or file.parent, names=names)


def detect(file: str | Path) -> str:
    """The format of a file, detected from its first rows.

    Raises:
        ValueError: no row can be read, rows disagree, or more than one format would fit.
    """
    rows = list(islice(iter_rows(file), _LOOKED_AT))
    values = [row.value for row in rows if row.error is None]
    if not values:
        reason = f": its first row is wrong ({rows[0].error})" if rows else ""
        raise ValueError(f"{file} has no readable row{reason}")
    found = {name for name in (_detect_row(value, str(file)) for value in values) if name}
    if len(found) > 1:
        raise ValueError(f"{file}: rows look like {' and '.join(sorted(found))}: choose one with --format")
    return found.pop() if found else "llava"


def _detect_row(row: Mapping[str, Any], file: str) -> str | None:
    """None for a conversation without media, which is the same in several formats."""
    keys = set(row)
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
        video = row.get("video")
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
