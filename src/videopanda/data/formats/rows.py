"""Rows of JSON and JSONL files, read as a stream: a file of any size takes a few megabytes of memory.

    for row in iter_rows("annotations.json"):
        row.number, row.value or row.error          # 17, {"id": ...} or RowError("json", ...)
        read_row("annotations.json", row.start, row.stop)    # the same value, without reading the rest

The content decides: an array of rows starts with "[", a file with one row per line with "{". JSON's own characters are
ASCII, and UTF-8 keeps them apart from all others: rows are cut out of bytes, each of which is treated as one character,
and only the text of a row is decoded. So positions are byte positions, and invalid UTF-8 makes one row bad, not the
whole file.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from videopanda.data.formats.record import RowError

CHUNK_BYTES = 1 << 20
MAX_ROW_BYTES = 1 << 24  # a longer "row" is not one: the file is damaged, or has another form
_BLANK = b" \t\r\n"
_ROW_KEYS = {"conversations", "messages", "QA", "query", "q", "question"}


@dataclass(frozen=True, slots=True)
class FileRow:
    """A row of a file: its number from 0, its bytes [start, stop), and its value or what is wrong with it."""

    number: int
    start: int
    stop: int
    value: Any
    error: RowError | None = None


_OTHER_FILES = {
    b"\x1f\x8b": "compressed by gzip",
    b"PK\x03\x04": "a zip archive",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"(\xb5/\xfd": "compressed by zstd",
    b"PAR1": "a Parquet file",
}


def refuse_other_files(path: str | Path) -> None:
    """Refuse what is no text in UTF-8. Raises ValueError, which says what it is."""
    with open(path, "rb") as file:
        head = file.read(64)
    for signature, kind in _OTHER_FILES.items():
        if head.startswith(signature):
            raise ValueError(f"{path} is {kind}, not JSON: unpack or convert it first")
    if head[4:8] == b"ftyp" or head.startswith(b"\x1a\x45\xdf\xa3"):
        raise ValueError(f"{path} is a video, not JSON: name the file of annotations")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head:
        code = "UTF-32" if b"\0\0" in head.strip(b"\0") else "UTF-16"
        raise ValueError(f"{path} is {code}, not UTF-8: convert it with  iconv -f {code} -t UTF-8 {path}")


def iter_rows(path: str | Path) -> Iterator[FileRow]:
    """All rows of a .json or .jsonl file in order. A broken line of JSONL is one bad row; an array ends with it.

    Raises:
        ValueError: the file is empty, or neither an array nor lines of objects.
    """
    refuse_other_files(path)
    with open(path, "rb") as file:
        head = file.read(64)
        skipped = 3 if head.startswith(b"\xef\xbb\xbf") else 0  # byte order mark
        head = head[skipped:].lstrip(_BLANK)
        if head[:1] == b"[":
            file.seek(skipped)
            yield from _array(file, skipped)
        elif head[:1] == b"{":
            _check_lines(path)
            file.seek(skipped)
            yield from _lines(file, skipped)
        elif not head:
            raise ValueError(f"{path} is empty")
        else:
            raise ValueError(f"{path} contains neither a JSON array of rows nor one JSON object per line")


def _check_lines(path: str | Path) -> None:
    """Refuse a file that is a single object containing the rows.

    Raises:
        ValueError: as said; the message says where the rows are.
    """
    with open(path, "rb") as file:
        first, second = file.readline(MAX_ROW_BYTES), file.readline(64).strip(_BLANK)
    try:
        value = json.loads(first.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        if second and not second.startswith(b"{"):
            reason = f"{path} is one JSON object over several lines: rows must be an array, or one object per line"
            raise ValueError(reason) from None
        return  # a bad row, which is reported as such
    if not isinstance(value, dict) or not value or value.keys() & {"QA", "conversations", "messages"}:
        return  # a row
    if all(isinstance(row, dict) for row in value.values()):
        raise ValueError(f"{path} is one JSON object whose values are the rows: write its values as an array")
    for key, rows in value.items():
        if isinstance(rows, list) and rows and isinstance(rows[0], dict) and rows[0].keys() & _ROW_KEYS:
            raise ValueError(f"{path} is a JSON object with its rows under {key!r}: write that array alone")


def read_row(path: str | Path, start: int, stop: int) -> Any:
    """The value of a row that `iter_rows` yielded without an error."""
    with open(path, "rb") as file:
        file.seek(start)
        return _parse(file.read(stop - start))


def _parse(data: bytes) -> Any:
    twice: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            twice.append(next(key for key in keys if keys.count(key) > 1))
        return found

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
        if b"\\ud" in data.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        byte = f"byte {data[error.start]:#x} at position {error.start} of the row"
        raise RowError("encoding", f"not UTF-8: {byte}") from error
    except UnicodeEncodeError as error:
        raise RowError("encoding", "an escape such as \\ud800 is only half of a surrogate pair") from error
    except json.JSONDecodeError as error:
        raise RowError("json", f"not valid JSON: {error.msg} at character {error.pos} of the row") from error
    except (ValueError, RecursionError) as error:
        raise RowError("json", f"JSON that cannot be read: {error}") from error
    if twice:
        raise RowError("json", f"the key {twice[0]!r} appears twice in one object")
    if not isinstance(value, dict):
        raise RowError("schema", f"a row must be an object, got {type(value).__name__}")
    return value


def _row(number: int, start: int, data: bytes) -> FileRow:
    try:
        return FileRow(number, start, start + len(data), _parse(data))
    except RowError as error:
        return FileRow(number, start, start + len(data), None, error)


def _lines(file: BinaryIO, start: int) -> Iterator[FileRow]:
    number = 0
    while line := file.readline(MAX_ROW_BYTES):
        if len(line) == MAX_ROW_BYTES and not line.endswith(b"\n"):
            error = RowError("json", f"longer than {MAX_ROW_BYTES >> 20} MB; the rest of the file is not read")
            yield FileRow(number, start, start + len(line), None, error)
            return
        if line.strip(_BLANK):
            yield _row(number, start, line)
            number += 1
        start += len(line)


def _array(file: BinaryIO, offset: int) -> Iterator[FileRow]:
    decode = json.JSONDecoder().raw_decode
    text, at = "", 0  # what is in memory, starting at byte `offset` of the file, and the position in it
    done = False

    def grow() -> None:
        nonlocal text, at, offset, done
        # As much again as is there: a long row is then parsed a few times only.
        data = file.read(max(CHUNK_BYTES, len(text) - at))
        done = not data
        text, offset, at = text[at:] + data.decode("latin-1"), offset + at, 0

    def following() -> str:
        nonlocal at
        while True:
            while at < len(text) and text[at] in " \t\r\n":
                at += 1
            if at < len(text) or done:
                return text[at : at + 1]
            grow()

    following()
    at += 1  # the bracket
    number = 0
    while (sign := following()) != "]" or number:
        if number:
            if sign == "]":
                at += 1
                if following():
                    yield _lost(number, offset + at, "text after the end of the array")
                return
            if sign != ",":
                yield _lost(number, offset + at, "expected a comma" if sign else "the file ends inside the array")
                return
            at += 1
            following()
        while True:
            try:
                _, stop = decode(text, at)
            except json.JSONDecodeError as error:
                if done or len(text) - at > MAX_ROW_BYTES:
                    is_cut = done and (error.pos == len(text) or error.msg.startswith("Unterminated"))
                    yield _lost(number, offset + at, "the file ends inside the row" if is_cut else error.msg)
                    return
            except (ValueError, RecursionError) as error:
                yield _lost(number, offset + at, str(error))
                return
            else:
                if stop < len(text) or done:
                    break
            grow()
        yield _row(number, offset + at, text[at:stop].encode("latin-1"))
        at = stop
        number += 1


def _lost(number: int, start: int, reason: str) -> FileRow:
    """The last row of an array that cannot be read further."""
    error = RowError("json", f"not valid JSON at byte {start}: {reason}; this row and all after it cannot be read")
    return FileRow(number, start, start, None, error)
