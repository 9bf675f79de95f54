"""Protects the row readers and the file of predictions: pieces, broken tails, torn lines, every kind of file."""

import json
import os
import tracemalloc

import pytest
from benchmark_files import write_json, write_lines, write_parquet
from hypothesis import given, settings
from hypothesis import strategies as st

from videopanda.data.growing_file import only_writer
from videopanda.evaluation.benchmarks import custom, files
from videopanda.evaluation.benchmarks.files import AnnotationError, AnnotationRow, AnnotationRowError, Rejected, rows
from videopanda.evaluation.predictions import Prediction, Protocol, append_predictions, read_predictions

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3), max_leaves=5
)


# -- rows --------------------------------------------------------------------------------------------------------------
@settings(max_examples=50)
@given(values=st.lists(st.dictionaries(st.text(), JSON, max_size=3), max_size=8), chunk=st.integers(2, 40))
def test_arrays_are_read_in_pieces(values, chunk, tmp_path_factory):
    path = write_json(tmp_path_factory.mktemp("json") / "a.json", values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_CHUNK", chunk)
        assert [row.data for row in rows(path) if isinstance(row, AnnotationRow)] == values


def test_a_large_array_takes_little_memory(tmp_path):
    path = write_json(tmp_path / "a.json", [{"text": "x" * 1000}] * 30_000)
    assert path.stat().st_size > 30_000_000
    tracemalloc.start()
    assert sum(1 for _ in rows(path)) == 30_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12_000_000  # measured: 5,300,000


TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"conversations": TURNS[::-1]}, "turns must alternate between 'human' and 'gpt'"),  # asked for the answer
        ({"conversations": [{"from": "system", "value": "S"}, TURNS[0]]}, "turns must alternate"),
        ({"start": 2, "end": 1}, "end (1.0 s) is not later than start (2.0 s)"),
        ({"start_ms": 1000}, "'start_ms' is not supported"),
        ({"system": "Be brief."}, "'system' is not supported"),
        ({"video2": "b.mp4"}, "'video2' is not supported"),
        ({"options": ["red", "blue"]}, "'options' is not supported"),
        ({"conversations": [{"from": "human", "value": "Is <video> red?"}, TURNS[1]]}, "a visual placeholder inside"),
        ({"conversations": [{"from": "human", "value": "<video>Q<video>"}, TURNS[1]]}, "or a second one"),
        ({"conversations": [TURNS[0], {"from": "gpt", "value": "<video>red"}]}, "a visual placeholder inside"),
    ],
)
def test_own_questions_mean_what_they_mean_in_training(tmp_path, changes, reason):
    row = {"id": "x", "video": "a.mp4", "start": 1, "end": 2.5, "conversations": TURNS, **changes}
    (tmp_path / "test.jsonl").write_text(json.dumps(row))
    (found,) = custom.read(tmp_path)
    if reason is None:
        assert (found.question, found.answers, found.start, found.end) == ("What?", ("red",), 1.0, 2.5)
    else:
        assert reason in found.reason


def test_the_rate_of_a_folder_of_frames_is_that_of_training(tmp_path):
    turns = [{"from": "human", "value": "What?\n<video>"}, TURNS[1]]
    row = {"id": "x", "video": "frames/x", "fps": 3, "conversations": turns}
    (tmp_path / "test.jsonl").write_text(json.dumps(row))
    (found,) = custom.read(tmp_path)
    assert (found.question, found.extra) == ("What?", {"fps": 3.0})


def test_tables_as_spreadsheets_and_data_frames_write_them(tmp_path):
    table, lines = tmp_path / "a.csv", tmp_path / "a.jsonl"
    table.write_text('x;y\n"a; b";1,5\n')
    assert [dict(row.data) for row in rows(table)] == [{"x": "a; b", "y": "1,5"}]
    lines.write_text('{"answer": NaN, "other": "b"}')
    (row,) = rows(lines)
    assert row.text("answer", "other") == "b"
    with pytest.raises(AnnotationRowError, match="'answer' is missing"):  # was the answer "nan"
        row.text("answer")
    lines.write_text('{"options": ["a", NaN]}')
    with pytest.raises(AnnotationRowError, match="'options' contains something that is not a string"):  # "nan"
        next(rows(lines)).texts("options")
    table.write_bytes("x,y\n1,2\n".encode("utf-16"))
    with pytest.raises(AnnotationError, match="is UTF-16, not UTF-8: convert it"):
        list(rows(table))


def test_what_cannot_be_read_is_listed(tmp_path):
    def read(name, text):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return [row if isinstance(row, Rejected) else dict(row.data) for row in rows(path)]

    assert read("a.json", '[{"a": 1}, 2, {"a"') == [
        {"a": 1},
        Rejected("a.json row 2", "not an object"),
        Rejected("a.json row 3", "the file is broken from here on: Expecting ':' delimiter: line 1 column 5 (char 4)"),
    ]
    good, bad, last = read("b.jsonl", '{"a": 1}\n\n{"a": \n{"b": 2}')
    assert (good, last, bad.place) == ({"a": 1}, {"b": 2}, "b.jsonl line 3")
    assert read("c.json", '{"a": 1}\n{"a": 2}') == [{"a": 1}, {"a": 2}]  # lines in a file called .json
    assert read("c2.json", '\ufeff [ {"a": 1}, ]') == [{"a": 1}]  # byte order mark, trailing comma
    assert read("c3.json", '[{"a": [1, 2,],\r\n}, {"b": ",}",},]') == [{"a": [1, 2]}, {"b": ",}"}]
    short, long = read("d.csv", 'x,y\n"a, b",\n1,2,3\n')
    assert (short, long.reason) == ({"x": "a, b"}, "3 columns instead of 2")
    assert read("e.csv", 'x\ty\nsays "hi"\t2\n') == [{"x": 'says "hi"', "y": "2"}]
    # A bad byte costs its row, not the file.
    assert read("f.jsonl", b'{"a": 1}\n{"a": "\xff"}\n{"a": 3}\n') == [
        {"a": 1},
        Rejected("f.jsonl line 2", "not UTF-8: byte 0xff"),
        {"a": 3},
    ]
    assert read("f2.json", b'[{"a": 1}, {"a": "\xe9"}, {"a": "\xc3\xa9"}]') == [
        {"a": 1},
        Rejected("f2.json row 2", "not UTF-8: byte 0xe9"),
        {"a": "é"},
    ]
    assert read("f3.csv", b"x,y\n1,\xe9\n3,4\n") == [
        Rejected("f3.csv line 2", "not UTF-8: byte 0xe9"),
        {"x": "3", "y": "4"},
    ]
    assert read("g.parquet", b"no parquet")[0].reason.startswith("the file is broken from here on")
    assert [row.data for row in rows(write_parquet(tmp_path / "h.parquet", [{"a": 1}, {"a": 2}]))] == [
        {"a": 1},
        {"a": 2},
    ]
    (tmp_path / "a.xml").touch()
    for name, message in [("none.json", "no such file"), ("a.xml", "unsupported file type")]:
        with pytest.raises(AnnotationError, match=message):
            list(rows(tmp_path / name))


def test_fields_are_checked():
    row = AnnotationRow(
        "here", {"i": "7", "f": 7.0, "x": 7.5, "t": " a ", "l": ["a", 2], "n": None, "b": True, "nan": "nan"}
    )
    assert (row.id("i"), row.id("f"), row.text("n", "t"), row.texts("l")) == ("7", "7", "a", ("a", "2"))
    assert (row.number("i"), row.index("f", below=8)) == (7.0, 7)
    for call, message in [
        (lambda: row.id("x"), "'x' is not an identifier"),
        (lambda: row.id("n"), "'n' is missing"),
        (lambda: row.text("b"), "'b' is not a string"),
        (lambda: row.number("nan"), "'nan' is not a number"),
        (lambda: row.index("f", below=7), "not a whole number from 0 to 6"),
        (lambda: row.texts("t"), "'t' is not a list"),
    ]:
        with pytest.raises(AnnotationRowError, match=message):
            call()


# -- predictions -------------------------------------------------------------------------------------------------------
PROTOCOL = Protocol("scenes", "as-published", num_frames=8, generation={"do_sample": False}, seed=0)


def prediction(id_: str, text: str | None = "yes", **fields) -> Prediction:
    failure = None if text is not None else "missing_video"
    return Prediction(id_, text, failure, protocol=PROTOCOL, **fields)


def test_a_prediction_survives_its_file(tmp_path):
    path = tmp_path / "p.jsonl"
    written = [prediction("ä/1", "one\ntwo", frame_indices=(0, 9), frame_times=(0.0, 0.3)), prediction("2", None)]
    append_predictions(path, written[:1])
    append_predictions(path, written[1:])
    assert list(read_predictions(path)) == written
    assert len(path.read_bytes().splitlines()) == 2


@settings(max_examples=25)
@given(cut=st.integers(0, 10_000))
def test_a_torn_line_is_removed_before_the_next(cut, tmp_path_factory):
    path = tmp_path_factory.mktemp("torn") / "p.jsonl"
    append_predictions(path, [prediction(str(i)) for i in range(6)])
    whole = path.read_bytes()
    path.write_bytes(whole[: cut % (len(whole) + 1)])
    left = path.read_bytes().count(b"\n")
    append_predictions(path, [prediction(str(i)) for i in range(left, 6)])
    assert path.read_bytes() == whole


def test_nothing_is_left_of_an_append_that_failed(tmp_path, monkeypatch):
    path = tmp_path / "p.jsonl"
    append_predictions(path, [prediction("1")])
    before = path.read_bytes()

    def no_space(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="no space"):
        append_predictions(path, [prediction("2")])
    assert path.read_bytes() == before


def claim(path):
    with only_writer(path):
        pass


def test_a_file_has_one_writer(tmp_path):
    path = tmp_path / "new" / "p.jsonl"
    with only_writer(path), pytest.raises(ValueError, match=r"another process is writing .*: wait for it, or choose"):
        claim(path)
    claim(path)


def test_predictions_of_others_are_read(tmp_path):
    path = write_lines(
        tmp_path / "merge.jsonl",
        {"id": 7, "question": "q", "answer": "a", "pred": "a dog"},
        {"question_id": "8", "prediction": 3},
        {"id": "9"},
        {"id": "10", "prediction": ["x"]},
        {"prediction": "x"},
        {"id": "11", "prediction": None, "failure": "bored"},
        {"id": "12", "prediction": "x", "protocol": {"speed": 9}},
        "{torn",
    )
    first, second, *others = read_predictions(path)
    assert (first.id, first.prediction, first.protocol) == ("7", "a dog", None)
    assert (second.id, second.prediction) == ("8", "3")
    assert [(row.place[-6:], row.reason[:36]) for row in others] == [
        ("line 3", "neither a prediction nor a failure"),
        ("line 4", "prediction is not a string: ['x']"),
        ("line 5", "'id' or 'question_id' or 'uid' is mi"),
        ("line 6", "unknown failure 'bored'; choose from"),
        ("line 7", "the protocol is from another version"),
        ("line 8", "not valid JSON: Expecting property n"),
    ]
    for content, expected in [
        ({"17": "B", "18": "(C)"}, [("17", "B"), ("18", "(C)")]),  # LVBench
        ({"u-1": 0, "u-2": 3}, [("u-1", "A"), ("u-2", "D")]),  # EgoSchema
        ({"q": 3, "r": "three"}, [("q", "3"), ("r", "three")]),
        ([{"question_id": "AR_0", "question_type": "x", "option": "F"}], [("AR_0", "F")]),  # MLVU
        ([{"video_id": "1", "questions": [{"question_id": "1-1", "answer": "A", "response": "C"}]}], [("1-1", "C")]),
        ({"id": 1, "pred": "x"}, [("1", "x")]),
    ]:
        found = read_predictions(write_json(tmp_path / "submission.json", content))
        assert [(row.id, row.prediction) for row in found] == expected
    array = tmp_path / "p.json"
    array.write_text(json.dumps([{"question_id": "8", "pred": "x"}]))
    assert next(iter(read_predictions(array))).prediction == "x"
    with pytest.raises(ValueError, match="either a text or a failure"):
        Prediction("1", None)
