"""Protects data of one's own from clips by class: whole recordings are held out, copies differ, rows are valid."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from command import run
from media import write_video
from videopanda.data.class_folders import SEEN, UNSEEN, alter, write_labeled
from videopanda.data.conversations import ConversationDataset
from videopanda.video.read import read_video


def sorted_clips(folder: Path, **classes: int) -> Path:
    """A folder per class with so many recordings, each of other numbers."""
    for c, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for k in range(count):
            write_video(folder / name / f"{k}.mp4", range(1000 * c + 100 * k, 1000 * c + 100 * k + 24), fps=12)
    return folder


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def label(row: dict) -> str:
    return row["conversations"][1]["value"]


def content(out: Path, row: dict) -> bytes:
    return (out / row["video"]).read_bytes()


def test_whole_recordings_are_held_out(tmp_path):
    clips = sorted_clips(tmp_path / "clips", thank_you=5, sad=2)
    counts = write_labeled(clips, tmp_path / "out", "Which word?", test_share=0.4, copies=1, progress=False)
    assert counts == {"classes": 2, "train": 8, "test": 3, "test_unseen_recordings": 3, "test_altered_copies": 0}
    train, test = rows(tmp_path / "out" / "train.jsonl"), rows(tmp_path / "out" / "test.jsonl")
    assert Counter(map(label, test)) == {"thank you": 2, "sad": 1}
    assert {row["kind"] for row in test} == {UNSEEN}
    held_out = {content(tmp_path / "out", row) for row in test}
    originals = {path.read_bytes() for path in clips.rglob("*.mp4")}
    trained = {content(tmp_path / "out", row) for row in train if row["kind"] == "recording"}
    assert held_out | trained == originals
    assert not held_out & trained
    # Copies are of recordings that are trained on, never of those held out.
    stems = {(label(row), Path(row["video"]).stem) for row in test}
    copied = {(label(row), Path(row["video"]).stem.partition("-")[0]) for row in train if row["kind"] != "recording"}
    assert len(copied) == 4
    assert not stems & copied


def test_a_single_recording_is_tested_on_copies_that_are_not_trained_on(tmp_path):
    for number, name in enumerate(("happy", "sad")):
        write_video(tmp_path / f"{name}.mp4", range(1000 * number, 1000 * number + 24), fps=12)
    counts = write_labeled(tmp_path, tmp_path / "out", "Which word?", copies=5, progress=False)
    assert (counts["train"], counts["test"], counts["test_altered_copies"]) == (12, 2, 2)
    train, test = rows(tmp_path / "out" / "train.jsonl"), rows(tmp_path / "out" / "test.jsonl")
    assert {row["kind"] for row in test} == {SEEN}
    every = [content(tmp_path / "out", row) for row in (*train, *test)]
    assert len(set(every)) == len(every) == 14


def test_equal_arguments_choose_the_same(tmp_path):
    clips = sorted_clips(tmp_path / "clips", a=6, b=7)
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        write_labeled(clips, tmp_path / name, "Which?", 0.3, seed=seed, progress=False)
    one, two, three = ((tmp_path / name / "test.jsonl").read_text() for name in ("one", "two", "three"))
    assert one == two
    assert one != three


def test_rows_can_be_trained_on(tmp_path):
    clips = sorted_clips(tmp_path / "clips", a=2, b=2)
    write_labeled(clips, tmp_path / "out", "Which?", copies=1, progress=False)
    code, printed, _ = run(
        "data", "check", tmp_path / "out" / "train.jsonl", "--manifest", tmp_path / "m.jsonl", "--workers", 1
    )
    assert code == 0, printed
    dataset = ConversationDataset(tmp_path / "out" / "train.jsonl", num_frames=4)
    assert len(dataset) == 4
    assert {sample.conversations[0][0][1] for sample in (dataset[i] for i in range(4))} == {"a", "b"}


def test_alterations_stay_within_what_is_said(tmp_path):
    frames = read_video(write_video(tmp_path / "x.mp4", range(40), fps=12, size=(98, 66)), fps=12).frames[:, :65, :97]
    seen = [alter(frames, np.random.default_rng(seed)) for seed in range(20)]
    for altered, rate in seen:
        assert 0.8 * 12 <= rate <= 1.25 * 12
        assert len(altered) >= 0.8 * len(frames)
        assert (altered.shape[1:], altered.dtype) == ((64, 96, 3), np.uint8)
    assert len({(len(altered), rate) for altered, rate in seen}) > 10
    again, rate = alter(frames, np.random.default_rng(3))
    assert rate == seen[3][1]
    assert np.array_equal(again, seen[3][0])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "none", "no such folder"),
        (lambda folder: folder.parent, "contains 0 classes"),
        (lambda folder: sorted_clips(folder, a=2), "contains 1 classes"),
        (lambda folder: sorted_clips(folder, a=2, b=1), r"1 classes have a single recording \('b'\)"),
        (
            lambda folder: write_video(sorted_clips(folder, a=2, b=2) / "c.mp4", range(3)).parent,
            r"contains clips \(c.mp4\) next to folders of clips \(a\)",
        ),
    ],
)
def test_folders_that_cannot_be_split_are_refused(make, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        write_labeled(make(tmp_path / "clips"), tmp_path / "out", "Which?", progress=False)


@pytest.mark.parametrize(("fields", "words"), [({"test_share": 1.0}, "between 0 and 1"), ({"question": " "}, "empty")])
def test_arguments_are_checked(fields, words, tmp_path):
    clips = sorted_clips(tmp_path / "clips", a=2, b=2)
    with pytest.raises(ValueError, match=words):
        write_labeled(clips, tmp_path / "out", **{"question": "Which?", **fields}, progress=False)


def test_the_command_says_what_the_test_rows_are(tmp_path):
    clips = sorted_clips(tmp_path / "clips", a=1, b=1)
    line = ("data", "label", clips, tmp_path / "out", "--question", "Which?")
    code, printed, err = run(*line)
    assert (code, printed) == (2, "")
    assert "a single recording" in err
    code, printed, _ = run(*line, "--copies", 1)
    assert code == 0
    assert "2 classes: 4 training rows, 2 test rows" in printed
    assert "whether a recording is recognized, not whether its class is" in printed
    code, _, err = run(*line, "--copies", 1)
    assert (code, "already contains train.jsonl" in err) == (2, True)
