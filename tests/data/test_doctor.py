"""Protects the doctor: every kind of bad data ends in an entry that names, counts and explains it."""

import json
import os
from pathlib import Path

import pytest

from media import write_video
from videopanda.cli.app import app
from videopanda.data.doctor import check, clip_names, tables
from videopanda.data.manifest import BadRow, CheckedClip, append, read_manifest
from videopanda.data.probe import ProbeJob, probe, probe_all


def row(name: str, clip: str = "good.mp4", question: str = "<video>\nWhat?", **more) -> dict:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "A cat."}]
    return {"id": name, "video": clip, "conversations": turns, **more}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A good clip, a copy of it, a truncated one and one that is no video."""
    write_video(tmp_path / "good.mp4", range(40), fps=10)
    (tmp_path / "copy.mp4").write_bytes((tmp_path / "good.mp4").read_bytes())
    whole = write_video(tmp_path / "whole.mp4", range(200), fps=10, container_options={"movflags": "faststart"})
    data = whole.read_bytes()
    whole.unlink()
    (tmp_path / "truncated.mp4").write_bytes(data[: len(data) // 2])
    (tmp_path / "no_video.mp4").write_bytes(b"hello")
    return tmp_path


def written(folder: Path, *lines: dict | bytes) -> Path:
    path = folder / "rows.jsonl"
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))
    return path


BAD = [
    ("missing_file", "gone.mp4 does not exist", row("missing", "gone.mp4")),
    ("unreadable", "truncated.mp4", row("truncated", "truncated.mp4")),
    ("unreadable", "no_video.mp4", row("no video", "no_video.mp4")),
    ("empty", "no conversation", {**row("silent"), "conversations": []}),
    ("extra_marker", "2 visual placeholders for 1", row("twice", question="<video>\n<video>\nWhat?")),
    ("missing_marker", "0 visual placeholders for 1", row("unmarked", question="What?")),
    ("json", "not valid JSON", b'{"id": "broken", '),
    ("json", "the key 'id' appears twice", b'{"id": "a", "id": "b"}'),
    ("encoding", "not UTF-8: byte 0xff", b'{"id": "latin \xff"}'),
    ("roles", "alternate", {**row("mute"), "conversations": row("x")["conversations"][:1]}),
    ("schema", "both 'video' and 'image'", {**row("both"), "image": "a.jpg"}),
    ("range", "start is 9.0 s", row("late", start=9, end=12)),
]


def test_every_kind_of_bad_data_is_named_counted_and_explained(folder):
    path = written(folder, row("fine"), *(line for _, _, line in BAD))
    report = check([path], folder / "manifest.jsonl")
    entries = [entry for entry in read_manifest(folder / "manifest.jsonl") if isinstance(entry, BadRow)]
    assert [(entry.row, entry.kind) for entry in entries] == [(i + 1, kind) for i, (kind, _, _) in enumerate(BAD)]
    for entry, (_, reason, line) in zip(entries, BAD):
        assert reason in entry.reason
        assert entry.source == str(path)
        assert isinstance(line, bytes) or entry.id == line["id"]
    kinds = [kind for kind, _, _ in BAD]
    assert report.problems == {kind: kinds.count(kind) for kind in sorted(kinds)}
    assert (report.rows, report.bad_rows, report.passed) == (13, 12, False)
    assert (report.clips, report.bad_clips) == (4, 3)


def test_a_good_clip_is_described(folder):
    check([written(folder, row("fine"))], folder / "manifest.jsonl")
    (clip,) = (entry for entry in read_manifest(folder / "manifest.jsonl") if isinstance(entry, CheckedClip))
    status = (folder / "good.mp4").stat()
    assert (clip.kind, clip.width, clip.height, clip.fps) == ("", 64, 48, 10.0)
    assert clip.duration == pytest.approx(4.0)
    assert (clip.size, clip.modified, len(clip.sha256)) == (status.st_size, status.st_mtime_ns, 64)


def test_equal_clips_are_grouped(folder):
    report = check([written(folder, row("a"), row("b", "copy.mp4"))], folder / "manifest.jsonl")
    assert report.duplicates == [[str(folder / "copy.mp4"), str(folder / "good.mp4")]]
    assert report.passed


# -- test sets ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("test_row", "found"),
    [
        ({"video_name": "good", "question": "?"}, True),  # zero-shot QA
        ({"video": "elsewhere/good.webm"}, True),  # MVBench
        ({"videoID": "good"}, True),  # Video-MME
        ({"q_uid": "good"}, True),  # EgoSchema
        ({"video": ["x.mp4", "v_good.mp4"]}, True),
        ({"video_name": "goo"}, False),
        ({"video_name": "good.idea"}, False),
    ],
)
def test_clips_of_the_test_set_are_found_by_name(folder, test_row, found):
    (folder / "test.json").write_text(json.dumps([test_row]))
    report = check([written(folder, row("a"))], folder / "manifest.jsonl", against=folder / "test.json")
    assert report.contaminated == ([str(folder / "good.mp4")] if found else [])
    assert report.passed is not found


def test_a_test_set_that_names_no_clips_is_refused(tmp_path):
    (tmp_path / "test.json").write_text('[{"question": "What?"}]')
    with pytest.raises(ValueError, match="row 0 names no clip: none of the keys video, videos"):
        clip_names(tmp_path / "test.json")


# -- going on ----------------------------------------------------------------------------------------------------------
def test_a_clip_is_probed_once_until_it_changes(folder):
    path, out = written(folder, row("a"), row("b", "copy.mp4"), row("c", "gone.mp4")), folder / "manifest.jsonl"
    assert check([path], out).probed == 3
    first = out.read_bytes()
    assert check([path], out).probed == 1  # the missing one may have come
    assert out.read_bytes() == first
    os.utime(folder / "copy.mp4", ns=(1, 1))
    write_video(folder / "gone.mp4", range(4))
    report = check([path], out)
    assert (report.probed, report.bad_rows) == (2, 0)


def test_a_check_that_was_killed_goes_on(folder):
    path, out = written(folder, row("a"), row("b", "copy.mp4")), folder / "manifest.jsonl"
    append(out, [probe(ProbeJob(str(folder / "copy.mp4")))])
    out.write_bytes(out.read_bytes() + b'{"type": "clip", "pa')  # cut off in the middle of a line
    assert check([path], out).probed == 1
    whole = folder / "whole.jsonl"
    check([path], whole)
    assert out.read_bytes() == whole.read_bytes()


def test_what_is_no_manifest_is_refused(folder):
    path = written(folder, row("a"))
    with pytest.raises(ValueError, match=r"rows\.jsonl is not a manifest of videopanda data check: line 1"):
        check([path], path)


def crash(job: ProbeJob) -> CheckedClip:
    """A decoder that takes its process with it."""
    if job.path == "bad":
        os._exit(11)
    return CheckedClip(job.path, duration=1.0)


@pytest.mark.slow
def test_a_decoder_that_crashes_is_a_bad_clip():
    jobs = [ProbeJob("a"), ProbeJob("bad"), ProbeJob("b")]
    clips = {clip.path: clip for clip in probe_all(jobs, 2, crash)}
    assert {path: clip.kind for path, clip in clips.items()} == {"a": "", "bad": "unreadable", "b": ""}
    assert "the decoder crashed" in clips["bad"].reason


# -- the command -------------------------------------------------------------------------------------------------------
def test_the_command_prints_a_report_and_exits_1(folder, capsys):
    path = written(folder, row("fine"), *(line for _, _, line in BAD))
    arguments = ["data", "check", str(path), "--manifest", str(folder / "m.jsonl"), "--workers", "1"]
    with pytest.raises(SystemExit) as caught:
        app([*arguments, "--json"])
    assert caught.value.code == 1
    report = json.loads(capsys.readouterr().out)
    assert report["bad_rows"] == 12
    assert report["problems"]["unreadable"] == 2
    with pytest.raises(SystemExit):
        app(arguments)
    shown = capsys.readouterr().out
    assert "13 (12 bad)" in shown
    assert "missing_marker" in shown


def test_the_command_exits_0_where_nothing_is_wrong(folder, capsys):
    with pytest.raises(SystemExit) as caught:
        app(["data", "check", str(written(folder, row("a"))), "--manifest", str(folder / "m.jsonl"), "--workers", "1"])
    assert caught.value.code == 0
    assert "to skip bad rows" in capsys.readouterr().out


def test_long_lists_are_cut(folder):
    clips = [f"copy{i}.mp4" for i in range(5)]
    for name in clips:
        (folder / name).write_bytes((folder / "good.mp4").read_bytes())
    (folder / "test.json").write_text(json.dumps([{"video": name} for name in clips]))
    path = written(folder, *(row(name, name) for name in clips))
    report = check([path], folder / "m.jsonl", against=folder / "test.json")
    assert len(report.contaminated or []) == 5
    assert [table.row_count for table in tables(report)] == [4, 1, 4, 1]  # the last one counts words
