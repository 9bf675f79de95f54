"""Annotation files as rows: JSON arrays, JSON Lines, CSV, TSV and parquet, read piece by piece.

Only a missing file is fatal: rows that cannot be read are yielded as `Rejected`. Rows know their location.
"""

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from videopanda.data.formats.rows import refuse_other_files
from videopanda.video.times import TIME, seconds_of

_CHUNK = 1 << 20  # characters
_PARQUET_ROWS = 1024
_BETWEEN = (" ", "\t", "\r", "\n", ",")  # what stands between the rows of an array
# A comma in front of a closing bracket, which JSON forbids but common result files have; strings are skipped.
_TRAILING_COMMA = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[}\]])')
_SURROGATE = re.compile("[\udc80-\udcff]")  # a byte that is not UTF-8, as Python carries it
T = TypeVar("T")
SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")


class AnnotationError(ValueError):
    """The annotation files of a benchmark are not where they should be, or cannot be read at all."""


class AnnotationRowError(ValueError):
    """A row cannot become an item; says what is wrong with it."""


@dataclass(frozen=True)
class Rejected:
    """A row that did not become an item, and why."""

    place: str
    reason: str
    id: str | None = None


@dataclass(frozen=True)
class AnnotationRow:
    """A record of a file. Its methods take alternative keys, use the first that exists, and raise
    `AnnotationRowError`."""

    place: str  # "test_q.json row 3"
    data: Mapping[str, Any]
    repeated_keys: tuple[str, ...] = ()  # JSON keys that stood in the row more than once; the last one counts

    def get(self, *keys: str) -> Any:
        """The value of the first key that exists and is neither null nor NaN, as tables write it; else None."""
        return next((self.data[key] for key in keys if not _is_missing(self.data.get(key))), None)

    def text(self, *keys: str, empty: bool = False) -> str:
        """A string without white space around it; `empty` says whether it may be empty."""
        value = self.get(*keys)
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise AnnotationRowError(f"{_names(keys)} is {'missing' if value is None else 'not a string'}")
        if not (text := str(value).strip()) and not empty:
            raise AnnotationRowError(f"{_names(keys)} is empty")
        return text

    def id(self, *keys: str) -> str:
        """An identifier, string or whole number, as a string."""
        value = self.get(*keys)
        if isinstance(value, float) and value.is_integer():  # what spreadsheets make of whole numbers
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
            raise AnnotationRowError(f"{_names(keys)} is {'missing' if value is None else 'not an identifier'}")
        return str(value).strip()

    def number(self, *keys: str) -> float:
        """A finite number, or a string that is one."""
        value = self.get(*keys)
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise AnnotationRowError(
                f"{_names(keys)} is {'missing' if value is None else f'not a number: {value!r:.40}'}"
            )
        return number

    def time(self, *keys: str) -> float:
        """Seconds: a number, or a string such as 75.5, 1:15 or 1:02:03."""
        value = self.get(*keys)
        match = TIME.fullmatch(value.strip()) if isinstance(value, str) else None
        return self.number(*keys) if match is None else seconds_of(match)

    def index(self, *keys: str, below: int) -> int:
        """A whole number from 0 to `below` - 1."""
        number = self.number(*keys)
        if not number.is_integer() or not 0 <= number < below:
            raise AnnotationRowError(f"{_names(keys)} is {number:g}, not a whole number from 0 to {below - 1}")
        return int(number)

    def texts(self, *keys: str) -> tuple[str, ...]:
        """A list of strings (numbers become strings), each without white space around it; they may be empty."""
        value = self.get(*keys)
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise AnnotationRowError(f"{_names(keys)} is {'missing' if value is None else 'not a list'}")
        if any(isinstance(v, bool) or not isinstance(v, (str, int, float)) or _is_missing(v) for v in value):
            raise AnnotationRowError(f"{_names(keys)} contains something that is not a string")
        return tuple(str(v).strip() for v in value)

    def extra(self, *keys: str) -> dict[str, Any]:
        """The given keys that exist."""
        return {key: self.data[key] for key in keys if not _is_missing(self.data.get(key))}

    def refuse(self, reason: str) -> Rejected:
        """This row as a rejected one."""
        return Rejected(self.place, reason)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _names(keys: Sequence[str]) -> str:
    return " or ".join(map(repr, keys))


def each(
    rows: Iterable[AnnotationRow | Rejected], make: Callable[[AnnotationRow], Iterable[T]]
) -> Iterator[T | Rejected]:
    """The result of `make` for each row. Rows refused with an `AnnotationRowError` are listed like rejected ones."""
    for row in rows:
        if isinstance(row, Rejected):
            yield row
            continue
        try:
            made = list(make(row))
        except AnnotationRowError as error:
            yield row.refuse(str(error))
        else:
            yield from made


def question_rows(
    place: str, questions: Iterable[Any], shared: Mapping[str, Any], repeated_keys: tuple[str, ...] = ()
) -> Iterator[AnnotationRow | Rejected]:
    """A row for each question of a list, with the entries that all of them share."""
    for number, question in enumerate(questions, 1):
        where = f"{place} question {number}"
        if isinstance(question, dict):
            yield AnnotationRow(where, {**shared, **question}, repeated_keys)
        else:
            yield Rejected(where, "not an object")


def unnested(rows: Iterable[AnnotationRow | Rejected], key: str) -> Iterator[AnnotationRow | Rejected]:
    """The questions in the list `key` of each row, with the other entries of the row; rows without it as they are."""

    def questions(row: AnnotationRow) -> Iterator[AnnotationRow | Rejected]:
        if not isinstance(row.get(key), list):
            yield row
            return
        shared = {name: value for name, value in row.data.items() if name != key}
        yield from question_rows(row.place, row.data[key], shared, row.repeated_keys)

    return each(rows, questions)


# -- finding files -----------------------------------------------------------------------------------------------------
def find(path: Path, *patterns: str) -> list[Path]:
    """The file `path` itself, or the files below the folder `path` that the first successful pattern names, sorted.

    Raises:
        AnnotationError: there is no such file or folder, or nothing in it has one of the names.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise AnnotationError(f"{path}: no such file or folder")
    for pattern in patterns:
        # Hidden folders are caches of download tools, which keep old copies.
        found = (file for file in path.rglob(pattern) if file.is_file())
        files = sorted(f for f in found if not any(part.startswith(".") for part in f.relative_to(path).parts))
        if files:
            return files
    raise AnnotationError(f"{path} contains none of these files: {', '.join(patterns)}")


def beside(file: Path, name: str) -> Path | None:
    """A file of this name in the folder of `file`, if it exists."""
    other = file.parent / name
    return other if other.is_file() else None


# -- rows --------------------------------------------------------------------------------------------------------------
def rows(path: Path) -> Iterator[AnnotationRow | Rejected]:
    """The records of a file, in their order; small memory for files of any size.

    A `.csv` file may be separated by tabs or semicolons. A `.json` file may hold an array or one object per line.

    Raises:
        AnnotationError: the file is missing, of another kind or not UTF-8.
    """
    readers: dict[str, Callable[[Path], Iterator[AnnotationRow | Rejected]]] = {
        ".json": _json_rows,
        ".jsonl": _jsonl_rows,
        ".csv": _csv_rows,
        ".tsv": _csv_rows,
        ".parquet": _parquet_rows,
    }
    if not path.exists():
        raise AnnotationError(f"no such file: {path}")
    if path.suffix.lower() not in readers:
        raise AnnotationError(f"{path}: unsupported file type; supported are {', '.join(SUFFIXES)}")
    if path.suffix.lower() != ".parquet":
        try:
            refuse_other_files(path)
        except ValueError as error:
            raise AnnotationError(str(error)) from error
    try:
        yield from readers[path.suffix.lower()](path)
    except FileNotFoundError as error:
        raise AnnotationError(f"{path}: no such file") from error


def _open(path: Path, newline: str | None = None) -> IO[str]:
    """A text file. Bytes that are not UTF-8 become surrogates, so only their row is rejected, not the file."""
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def _undecoded(place: str, text: str) -> Rejected | None:
    """The row as rejected if it contains a byte that is not UTF-8."""
    found = _SURROGATE.search(text)
    return Rejected(place, f"not UTF-8: byte {ord(found[0]) - 0xDC00:#04x}") if found else None


def _json_rows(path: Path) -> Iterator[AnnotationRow | Rejected]:
    with _open(path) as file:
        while (first := file.read(1)).isspace():
            pass
    if first == "[":
        yield from _array_rows(path)
    else:
        yield from _jsonl_rows(path)


def _array_rows(path: Path) -> Iterator[AnnotationRow | Rejected]:
    number, position, chunk, ended = 0, 0, _CHUNK, False
    repeated: list[str] = []
    decoder = json.JSONDecoder(object_pairs_hook=_noting(repeated))
    with _open(path) as file:
        buffer = file.read(_CHUNK).lstrip()[1:]
        while True:
            while buffer.startswith(_BETWEEN, position):
                position += 1
            if buffer.startswith("]", position):
                return
            repeated.clear()
            start = position
            try:
                value, position = decoder.raw_decode(buffer, position)
            except (json.JSONDecodeError, RecursionError) as error:
                if ended:
                    rest = buffer[position:]
                    buffer, position = _TRAILING_COMMA.sub(lambda match: match[1] or "", rest), 0
                    if buffer != rest:
                        continue
                    yield Rejected(f"{path.name} row {number + 1}", f"the file is broken from here on: {error}")
                    return
                more = file.read(chunk)
                # Doubled, so that a row of many chunks is not parsed too often.
                buffer, position, ended, chunk = buffer[position:] + more, 0, not more, chunk * 2
                continue
            number, chunk = number + 1, _CHUNK
            place = f"{path.name} row {number}"
            yield _undecoded(place, buffer[start:position]) or _row(place, value, repeated)


def _jsonl_rows(path: Path) -> Iterator[AnnotationRow | Rejected]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place, repeated = f"{path.name} line {number}", list[str]()
            if rejected := _undecoded(place, line):
                yield rejected
                continue
            try:
                value = json.loads(line, object_pairs_hook=_noting(repeated))
            except (json.JSONDecodeError, RecursionError) as error:
                yield Rejected(place, f"not valid JSON: {error}")
                continue
            yield _row(place, value, repeated)


def _row(place: str, value: Any, repeated: list[str]) -> AnnotationRow | Rejected:
    if not isinstance(value, dict):
        return Rejected(place, "not an object")
    return AnnotationRow(place, value, tuple(repeated))


def _noting(repeated: list[str]) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        built = dict(pairs)
        if len(built) < len(pairs):
            keys = [key for key, _ in pairs]
            repeated.extend(key for key in built if keys.count(key) > 1)
        return built

    return build


def _csv_rows(path: Path) -> Iterator[AnnotationRow | Rejected]:
    with _open(path, newline="") as file:
        header = file.readline()
        file.seek(0)
        tabs = "\t" in header
        # Tab-separated files of the field hold bare quotation marks in their text.
        # Spreadsheets use semicolons where a comma is the decimal point.
        plain = csv.reader(file, delimiter=";" if header.count(";") > header.count(",") else ",")
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else plain
        names = [name.strip() for name in next(reader, [])]
        try:
            for values in reader:
                place = f"{path.name} line {reader.line_num}"
                if rejected := _undecoded(place, "".join(values)):
                    yield rejected
                elif len(values) == len(names):
                    yield AnnotationRow(place, {name: value for name, value in zip(names, values) if value != ""})
                elif values:
                    yield Rejected(place, f"{len(values)} columns instead of {len(names)}")
        except csv.Error as error:
            yield Rejected(f"{path.name} line {reader.line_num}", f"the file is broken from here on: {error}")


def _parquet_rows(path: Path) -> Iterator[AnnotationRow | Rejected]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise AnnotationError(f"{path}: reading parquet needs pyarrow: pip install 'videopanda[eval]'") from error
    place = f"{path.parent.name}/{path.name}"  # tables of several parts have one name, in a folder per part
    try:
        number = 0
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_PARQUET_ROWS):
                for value in batch.to_pylist():
                    number += 1
                    yield AnnotationRow(f"{place} row {number}", value)
    except (pyarrow.ArrowException, OSError) as error:
        yield Rejected(f"{place} row {number + 1}", f"the file is broken from here on: {error}")


def objects(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a file of our own. Raises ValueError for one that cannot be read."""
    for row in rows(path):
        if isinstance(row, Rejected):
            raise ValueError(f"{row.place}: {row.reason}")
        yield row.data


def read_object(path: Path) -> Mapping[str, Any]:
    """A JSON file with one object. Raises:
    AnnotationError: it contains something else, or is not JSON.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise AnnotationError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise AnnotationError(f"{path} must contain one JSON object")
    return value
