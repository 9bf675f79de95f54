"""Mixtures of VideoChat-Flash: a YAML list of annotation files, each with the part to use.

datasets:
  - json_path: annotations/clips_12k.jsonl      # relative to this file
    data_root: videos/clips                     # joined to every path of media
    sampling_strategy: "first:25%"              # all, first:N, first2:N, first3:N, first4:N, end:N; N or P%
    video_read_type: img                        # folders of frames; gif, lazy, fake
    format: llava                               # our extension, if the format cannot be detected
"""

import re
from itertools import islice
from pathlib import Path
from typing import Any

from videopanda.data.formats.record import Record
from videopanda.data.formats.sources import FORMATS, Selection, Source, detect

_KEYS = {"json_path", "data_root", "sampling_strategy", "video_read_type", "media_type", "format"}
_READ_TYPES = ("decord", "img", "gif", "lazy", "fake")
_LOOKED_AT = 3  # media of which one must exist


def read_mixture(file: Path, format: str = "auto", media_root: Path | None = None) -> list[Source]:
    """The sources of a mixture. `media_root` is what relative `data_root`s are relative to; default the file's folder.

    Raises:
        ValueError: not a mixture file, an unknown key, strategy or read type, a web address, or none of the first media
            of an entry exists.
    """
    import yaml

    try:
        table = yaml.load(file.read_text(encoding="utf-8"), Loader=_strict_loader())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: {' '.join(str(error).split())}") from error
    entries = table.get("datasets") if isinstance(table, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{file} must contain a list of entries under 'datasets'")
    return [_entry(file, entry, format, media_root or file.parent) for entry in entries]


def _entry(file: Path, entry: dict[str, Any], format: str, media_root: Path) -> Source:
    name = entry.get("json_path")
    if not name:
        raise ValueError(f"{file}: the entry {entry} has no json_path")
    if unknown := set(entry) - _KEYS:
        raise ValueError(f"{file}: {name}: unknown key {sorted(unknown)[0]!r}; known are {', '.join(sorted(_KEYS))}")
    data_root = entry.get("data_root") or ""
    for value in (name, data_root):
        if not isinstance(value, str) or "://" in value:
            raise ValueError(f"{file}: {value!r} is not a local path: download it and use the local path")
    path = file.parent / name
    if not path.is_file():
        raise ValueError(f"{file}: {path} does not exist")
    read_type = entry.get("video_read_type", "decord")
    if read_type not in _READ_TYPES:
        raise ValueError(f"{file}: {name}: video_read_type must be one of {', '.join(_READ_TYPES)}, got {read_type!r}")
    format = entry.get("format", format)
    if format not in ("auto", *FORMATS):
        raise ValueError(f"{file}: {name}: unknown format {format!r}: choose one of auto, {', '.join(FORMATS)}")
    source = Source(
        path,
        detect(path) if format == "auto" else format,
        media_root / data_root,
        parse_strategy(str(entry.get("sampling_strategy", "all")), name),
        # The frames of TVQA were taken at 3 per second; of others the rate is not known.
        fps=3.0 if read_type == "img" and "tvqa" in f"{name}{data_root}".lower() else 1.0,
    )
    if read_type != "fake":
        _check_media(file, source)
    return source


def parse_strategy(strategy: str, name: str) -> Selection | None:
    """The rows that a sampling strategy takes; None for all.

    Raises:
        ValueError: an unknown strategy; `random:N` appears in the original's comments, but is refused there too.
    """
    if strategy == "all":
        return None
    match = re.fullmatch(r"(?:first([234]?)|end):(\d+)(%?)", strategy)
    if match is None:
        raise ValueError(f"{name}: sampling_strategy {strategy!r} is not all, first:N, first2:N ... first4:N or end:N")
    part = int(match[1] or 1) - 1
    return Selection("end" if strategy.startswith("end") else part, int(match[2]), bool(match[3]))


def _check_media(file: Path, source: Source) -> None:
    """Check that one of the first media files exists; otherwise `data_root` is wrong."""
    records = (record for _, record in source.records() if isinstance(record, Record))
    media = list(islice((medium for record in records for medium in record.media), _LOOKED_AT))
    if media and not any(source.locate(medium).exists() for medium in media):
        raise ValueError(
            f"{file}: {source.locate(media[0])} does not exist, and neither do the next files: check data_root"
        )


def _strict_loader() -> Any:
    """A safe loader that refuses duplicate keys in an entry, one of which would silently win."""
    import yaml

    class UniqueKeyLoader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for (key, _), value in zip(node.value, keys):
                if keys.count(value) > 1:
                    raise yaml.MarkedYAMLError(problem=f"{value!r} appears twice", problem_mark=key.start_mark)
            return super().construct_mapping(node, deep)

    return UniqueKeyLoader
