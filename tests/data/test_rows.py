"""Protects the streaming of JSON: every row at its place, every break of the file told, memory that does not grow."""

import json
import subprocess
import sys

import pytest

from videopanda.data.formats import rows
from videopanda.data.formats.record import RowError
from videopanda.data.formats.rows import iter_rows, read_row

VALUES = [
    {"id": 1, "text": "plain"},
    {"id": "zwei", "text": "Füße, 猫, 🐼 and \u0085 next line", "nested": {"a": [1, {"b": "]}"}]}},
    {"id": 3, "text": 'quotes " and \\ and ],['},
    {},
]


@pytest.fixture(params=[1, 5, 1 << 20])
def chunk(request, monkeypatch):
    """Files are read in pieces of this many bytes: every row is cut somewhere."""
    monkeypatch.setattr(rows, "CHUNK_BYTES", request.param)


def listed(path) -> list:
    return [
        (row.number, row.value if row.error is None else (row.error.kind, row.error.reason)) for row in iter_rows(path)
    ]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\n  "])
def test_arrays_and_lines_give_their_rows(tmp_path, chunk, indent, ascii_only, start):
    array, lines = tmp_path / "rows.json", tmp_path / "rows.jsonl"
    array.write_bytes(start + json.dumps(VALUES, indent=indent, ensure_ascii=ascii_only).encode() + b"\n")
    lines.write_bytes(start + "\n\n".join(json.dumps(v, ensure_ascii=ascii_only) for v in VALUES).encode())
    for path in (array, lines):
        assert listed(path) == list(enumerate(VALUES))
        assert [read_row(path, row.start, row.stop) for row in iter_rows(path)] == VALUES


def test_the_content_decides_not_the_suffix(tmp_path):
    path = tmp_path / "lines.json"
    path.write_text('{"a": 1}\r\n{"a": 2}\r\n')
    assert listed(path) == [(0, {"a": 1}), (1, {"a": 2})]


@pytest.mark.parametrize(
    ("content", "number", "kind", "reason"),
    [
        (b'[{"a": 1}, {"a": }]', 1, "json", "at byte 11: Expecting value; this row and all after it"),
        (b'[{"a": 1} {"a": 2}]', 1, "json", "at byte 10: expected a comma"),
        (b'[{"a": 1},]', 1, "json", "at byte 10: Expecting value"),
        (b'[{"a": 1}, {"a": "cut', 1, "json", "the file ends inside the row"),
        (b'[{"a": 1}', 1, "json", "the file ends inside the array"),
        (b'[{"a": 1}] more', 1, "json", "text after the end of the array"),
        (b'{"a": 1}\n{"a" 2}\n{"a": 3}', 1, "json", "Expecting ':' delimiter at character 5 of the row"),
        (b'[{"a": 1}, {"a": "\xff"}, {"a": 3}]', 1, "encoding", "byte 0xff at position 7 of the row"),
        (b'{"a": 1}\n{"a": "\xe9t\xe9"}\n{"a": 3}', 1, "encoding", "byte 0xe9 at position 7 of the row"),
        (b'[{"a": 1}, {"b": 1, "b": 2}]', 1, "json", "the key 'b' appears twice"),
        (b'[{"a": 1}, ["a"]]', 1, "schema", "must be an object, got list"),
        (b'[7]', 0, "schema", "must be an object, got int"),
    ],
)  # fmt: skip
def test_what_is_broken_is_told(tmp_path, chunk, content, number, kind, reason):
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    found = dict(listed(path))
    assert found[number][0] == kind
    assert reason in found[number][1]
    assert all(found[n] == {"a": n + 1} for n in found if n != number)
    # Bytes that are not UTF-8 and broken lines cost their row; a broken array ends.
    assert len(found) == (3 if b'{"a": 3}' in content else number + 1)


@pytest.mark.parametrize("content", [b"", b"  \n", b"hello", b'"text"'])
def test_what_is_no_json_is_refused(tmp_path, content):
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"rows\.json (is empty|contains neither)"):
        list(iter_rows(path))


ROW = '{"id": "x", "video": "a.mp4", "conversations": []}'


@pytest.mark.parametrize("code", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("content", [f"[{ROW}]", ROW])
def test_another_encoding_is_named(tmp_path, code, content):
    path = tmp_path / "rows.json"
    path.write_bytes(content.encode(code))
    with pytest.raises(ValueError, match=rf"rows\.json is {code[:6].upper()}, not UTF-8: convert it with  iconv -f "):
        list(iter_rows(path))


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "content", [f'{{"0": {ROW}, "1": {ROW}}}', f'{{"data": [{ROW}]}}', f'{{"a": 1, "rows": [{ROW}]}}']
)
def test_rows_inside_of_one_object_are_told(tmp_path, content, indent):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(json.loads(content), indent=indent))
    with pytest.raises(
        ValueError,
        match=r"rows\.json is (one JSON object (whose values|over several)|a JSON object with its rows under)",
    ):
        list(iter_rows(path))


@pytest.mark.parametrize(
    ("value", "kind"),
    [('"\\ud800"', "encoding"), ("[" * 100_000 + "]" * 100_000, "json"), ("1" * 5000, "json")],
    ids=["half a character", "deep", "long number"],
)
@pytest.mark.parametrize("layout", ["%s\n", "[%s]"])
def test_what_python_cannot_read_is_a_bad_row(tmp_path, value, kind, layout):
    path = tmp_path / "rows.json"
    path.write_text(layout % f'{{"id": {value}}}')
    (row,) = iter_rows(path)
    assert row.error.kind == kind


@pytest.mark.parametrize("start", ["", "["])
def test_a_row_without_end_does_not_fill_the_memory(tmp_path, monkeypatch, start):
    monkeypatch.setattr(rows, "MAX_ROW_BYTES", 1000)
    monkeypatch.setattr(rows, "CHUNK_BYTES", 100)
    path = tmp_path / "rows.json"
    path.write_text(start + '{"a": 1}' + (",\n" if start else "\n") + '{"a": "' + "x" * 100_000)
    first, second = iter_rows(path)
    assert first.value == {"a": 1}
    assert isinstance(second.error, RowError)
    assert second.error.kind == "json"


def test_a_large_array_needs_little_memory(tmp_path):
    """40 MB of rows, read by a process of its own: what it needs beyond Python itself does not grow with the file."""
    path = tmp_path / "rows.json"
    row = json.dumps({"id": "x", "conversations": [{"from": "human", "value": "ü" * 500}] * 2}, ensure_ascii=False)
    with path.open("w", encoding="utf-8") as file:
        file.write("[" + row)
        for _ in range(20_000):
            file.write(",\n" + row)
        file.write("]")
    assert path.stat().st_size > 40_000_000
    code = f"""
import resource
from videopanda.data.formats.rows import iter_rows
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(sum(row.error is None for row in iter_rows({str(path)!r})))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, kilobytes = map(int, done.stdout.split())
    assert count == 20_001
    assert kilobytes <= 16_000  # measured: 5116
