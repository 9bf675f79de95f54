"""Resolves what a user names to sources of records.

    for source in open_sources("DATA_ROOT/train/train_json/valley_.json"):
        for row, record in source.records(): ...

Accepted: a JSON or JSONL file; a .yaml mixture (`mixture.py`); `dataset_info.json` of LLaMA-Factory, with
`#name` if it describes several data sets; the folder DATA_ROOT of the official README.
"""

import json
from pathlib import Path

from videopanda.data.formats.messages import Names
from videopanda.data.formats.mixture import read_mixture
from videopanda.data.formats.sources import FORMATS, Source, detect


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
        raise ValueError(f"no annotations at {file}: choose the data (in training, --set data=FILE)")
    if file.suffix in (".yaml", ".yml"):
        return read_mixture(file, format, root)
    if file.name == "dataset_info.json":
        return [_described(file, part, root)]
    return [_plain(file, format, root)]


def _plain(file: Path, format: str, root: Path | None) -> Source:
    # DATA_ROOT/train of the official README has the media next to the folder of annotations.
    media = file.parent.parent if file.parent.name == "train_json" else file.parent
    return Source(file, detect(file) if format == "auto" else format, root or media)


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
