"""The findings of `videopanda data check` as a file: JSON lines of three types.

    {"type": "clip", "path": "videos/a.mp4", "kind": "", "reason": "", "duration": 9.6, "size": 81234, "sha256": ...}
    {"type": "row", "source": "train.json", "row": 17, "id": "x17", "kind": "roles", "reason": "turns must ..."}
    {"type": "source", "source": "train.json", "sha256": ..., "rows": 500, "bad": 1}

While a check runs, clips are appended one by one, so an interrupted check can be resumed. At the end the file is
rewritten: clips in order of their paths, then every bad row and the counts of each annotation file.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from videopanda.data.formats.record import RowError
from videopanda.data.formats.sources import Source


@dataclass(frozen=True, slots=True)
class CheckedClip:
    """A video, folder of frames or image on disk. `kind` and `reason` say what is wrong; both are "" if nothing is.

    size in bytes, modified in nanoseconds, duration in seconds; sha256 of the content (of a folder: of names and
    contents of its files). Unknown values are 0 or "". `frames` says which frames were read ("8 uniform")
    and `ranges` of which parts: (start, end, what is wrong or ""), where None is the beginning or the end of the clip.
    """

    path: str
    kind: str = ""
    reason: str = ""
    duration: float = 0.0
    width: int = 0
    height: int = 0
    fps: float = 0.0
    size: int = 0
    modified: int = 0
    sha256: str = ""
    frames: str = ""
    ranges: tuple[tuple[float | None, float | None, str], ...] = ()

    @property
    def is_damaged(self) -> bool:
        """Whether the clip, or a part of it used by a row, cannot be read."""
        return bool(self.kind) or any(reason.startswith("unreadable") for _, _, reason in self.ranges)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row of a file of annotations that cannot be trained on. `row` counts from 0."""

    source: str
    row: int
    id: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class CheckedSource:
    """An annotation file: its content, its number of selected rows, and how many of them are bad."""

    source: str
    sha256: str
    rows: int
    bad: int


Entry = CheckedClip | BadRow | CheckedSource
_TYPES: dict[str, type[CheckedClip] | type[BadRow] | type[CheckedSource]] = {
    "clip": CheckedClip,
    "row": BadRow,
    "source": CheckedSource,
}


_LINE_START = '{"type": "'


def to_line(entry: Entry) -> str:
    """One line of a manifest, with its end."""
    name = next(name for name, kind in _TYPES.items() if isinstance(entry, kind))
    return json.dumps({"type": name, **asdict(entry)}, ensure_ascii=False) + "\n"


def read_manifest(path: str | Path, clips: bool = True) -> Iterator[Entry]:
    """The entries of a manifest, without clips where they are not wanted (there may be a million).

    Raises:
        ValueError: not a manifest. A last line cut off when a check was killed is ignored.
    """
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n") and line.startswith(_LINE_START[: len(line)]):
                return
            if not clips and line.startswith('{"type": "clip"'):
                continue
            try:
                values: dict[str, Any] = json.loads(line)
                if "ranges" in values:
                    values["ranges"] = tuple(map(tuple, values["ranges"]))
                yield _TYPES[values.pop("type")](**values)
            except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
                raise ValueError(f"{path} is not a manifest of videopanda data check: line {number}") from error


def append(path: Path, entries: Iterable[Entry]) -> None:
    """Append entries one by one, each with one write: a kill leaves at most one partial line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":  # a kill has cut off the last line
            os.ftruncate(descriptor, path.read_bytes().rfind(b"\n") + 1)
        for entry in entries:
            os.write(descriptor, to_line(entry).encode("utf-8", "surrogateescape"))
    finally:
        os.close(descriptor)


def rewrite(path: Path, entries: Iterable[Entry]) -> None:
    """Rewrite a manifest; the old one stays until the new one is complete."""
    part = path.with_name(f"{path.name}.part")
    with part.open("w", encoding="utf-8", errors="surrogateescape") as file:
        file.writelines(map(to_line, entries))
    os.replace(part, path)


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def bad_rows(manifest: str | Path, sources: Iterable[Source]) -> list[dict[int, RowError]]:
    """The bad rows of each source, as listed in the manifest. Files are recognized by their content.

    Raises:
        ValueError: the manifest does not cover a source, or the source has changed since.
    """
    checked: dict[str, set[str]] = {}
    found: dict[str, dict[int, RowError]] = {}
    for entry in read_manifest(manifest, clips=False):
        if isinstance(entry, CheckedSource):
            checked.setdefault(entry.sha256, set()).add(entry.source)
        elif isinstance(entry, BadRow):
            found.setdefault(entry.source, {})[entry.row] = RowError(entry.kind, entry.reason)  # type: ignore[arg-type]
    listed = []
    for source in sources:
        names = checked.get(file_sha256(source.path))
        if names is None:
            raise ValueError(
                f"{manifest} does not cover {source.path} as it is now: run `videopanda data check {source.path} "
                f"--manifest {manifest}` again; clips already in the manifest are not probed again"
            )
        listed.append({row: error for name in names for row, error in found.get(name, {}).items()})
    return listed
