"""Protects the long world: exact answers, distractors that share attributes and none that gives a needle away, disjoint
and frozen splits, files that show what is asked about, and the heat map of scores."""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from command import run
from videopanda.data.worlds.long.make import FROZEN, frames, make_long, record
from videopanda.data.worlds.long.world import (
    FAMILIES,
    FPS,
    PARTS,
    Kind,
    make_questions,
    make_story,
)
from videopanda.data.worlds.scenes.world import COLOURS
from videopanda.video.read import read_video

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
FIELDS = ("colour", "shape", "size", "motion")


def shared(a: Kind, b: Kind) -> int:
    return sum(getattr(a, name) == getattr(b, name) for name in FIELDS)


@settings(max_examples=60)
@given(st.integers(0, 999), st.sampled_from([1.0, 3.0, 10.0, 60.0]), st.sampled_from(["train", "test"]))
def test_answers_are_exact_and_no_attribute_gives_a_needle_away(index, minutes, split):
    story = make_story(0, split, index, minutes)
    main, other = story.needles
    shown = story.times(main)
    assert all(a.end <= b.start for a, b in zip(story.visits, story.visits[1:]))
    assert story.visits[0].start >= 3
    assert story.visits[-1].end <= story.seconds
    if minutes >= 3:
        shown_seconds = sum(visit.end - visit.start for visit in story.visits)
        assert shown_seconds < 0.5 * story.seconds  # nothing but the lamp in the rest
        assert {round(visit.end - visit.start, 1) for visit in shown} == {8.0}
    others = [visit.kind for visit in story.visits if visit.kind not in story.needles]
    assert others
    assert all(max(shared(kind, main), shared(kind, other)) >= 2 for kind in others)
    answers = {question.family: question for question in make_questions(story)}
    asked = [kind for kind in {visit.kind for visit in story.visits}
             if (kind.size, kind.shape, kind.motion) == (main.size, main.shape, main.motion)]  # fmt: skip
    assert [kind.colour for kind in asked] == [answers["which"].answer]
    assert answers["count"].answer == str(len(shown))
    assert answers["now"].answer == story.lamp_at(story.seconds)
    assert answers["before"].answer == story.lamp_at(story.lamp[-1][0] - 0.01)
    if "when" in answers:
        middle = (shown[0].start + shown[0].end) / 2
        assert PARTS.index(answers["when"].answer) == int(5 * middle / story.seconds)
    if "order" in answers:
        first = min((story.times(kind)[0].start, kind.colour) for kind in story.needles)[1]
        assert answers["order"].answer == first


@settings(max_examples=40)
@given(st.integers(0, 999), st.sampled_from([1.0, 3.0, 20.0]))
def test_practice_questions_are_answered_by_the_visits(index, minutes):
    from long_practice import practice_questions

    story = make_story(0, "train", index, minutes)
    asked = practice_questions(story, np.random.default_rng(index))
    assert {question.family for question in asked} >= {"which", "count", "now", "before"}
    assert len(asked) == len({question.question for question in asked}) <= 17
    kinds = {visit.kind.name: [other for other in story.visits if other.kind == visit.kind] for visit in story.visits}
    for question in asked:
        named = sorted((name for name in kinds if name in question.question), key=question.question.index)
        if question.family == "which":
            shown = {kind for kind in kinds if kind.split(" ", 2)[0] in question.question}
            fits = [kinds[name][0].kind for name in shown
                    if f"{kinds[name][0].kind.size} {name.split(' ', 2)[2]}" in question.question]  # fmt: skip
            assert [kind.colour for kind in fits] == [question.answer]
        elif question.family == "count":
            assert str(len(kinds[named[0]])) == question.answer
        elif question.family == "when":
            (visit,) = kinds[named[0]]
            assert PARTS.index(question.answer) == int(5 * (visit.start + visit.end) / 2 / story.seconds)
        elif question.family == "order":
            (a,), (b,) = (kinds[name] for name in named)
            assert question.answer == min(a, b, key=lambda visit: visit.start).kind.colour
        else:
            assert question in make_questions(story)


def test_distractors_share_every_attribute_somewhere():
    stories = [make_story(0, "test", index, 30.0) for index in range(20)]
    for name in FIELDS:
        assert all(
            any(
                getattr(visit.kind, name) == getattr(story.needles[0], name)
                for visit in story.visits
                if visit.kind not in story.needles
            )
            for story in stories
        )


def test_answers_are_balanced_and_splits_are_disjoint():
    stories = [make_story(0, "test", index, 10.0) for index in range(300)]
    by_family: dict[str, list[str]] = {}
    for story in stories:
        for question in make_questions(story):
            by_family.setdefault(question.family, []).append(question.answer)
    assert set(by_family) == set(FAMILIES)
    for family, most in (("which", 0.3), ("when", 0.35), ("order", 0.3), ("now", 0.25), ("before", 0.25)):
        answers = by_family[family]
        assert max(answers.count(answer) for answer in set(answers)) / len(answers) < most, family
    train = {replace(make_story(0, "train", index, 10.0), split="") for index in range(300)}
    assert not train & {replace(story, split="") for story in stories}


def test_the_test_split_is_frozen():
    """Its records must never change: raise `VERSION` in `world.py` and say so in docs/long_video.md."""
    stories = [
        make_story(FROZEN["seed"], FROZEN["split"], index, minutes)
        for minutes in FROZEN["minutes"]
        for index in range(FROZEN["num"])
    ]
    text = "[\n" + ",\n".join(json.dumps(record(story)) for story in stories) + "\n]\n"
    assert hashlib.sha256(text.encode()).hexdigest() == DIGEST


DIGEST = "d0de4730a0cf35068fc55846a537e0e7396b965735eeb87427d8b822cef3c08d"


def test_the_files_show_what_is_asked_about(tmp_path):
    folder = make_long(tmp_path / "long", 1, 0, "test", (1.0,))
    (row,) = json.loads((folder / "annotations.json").read_text())
    story = make_story(0, "test", 0, 1.0)
    clip = folder / row["video"]
    visit = story.visits[0]
    video = read_video(clip, timestamps=[1.0, (visit.start + visit.end) / 2, story.seconds - 0.5])
    assert video.duration == pytest.approx(60, abs=0.3)
    difference = np.abs(video.frames[1].astype(int) - video.frames[0]).max(2)[16:]
    assert (difference > 60).mean() > 0.01
    for moment, frame in zip(video.times, video.frames):
        lamp = np.array(COLOURS[story.lamp_at(moment)])
        assert np.abs(frame[6:10, 6:10].mean((0, 1)) - lamp).max() < 40
    assert sum(1 for _ in frames(story)) == round(60 * FPS)
    told = json.loads((folder / "long.json").read_text())
    text = (folder / "README.md").read_text()
    assert told["digest"] == hashlib.sha256((folder / "annotations.json").read_bytes()).hexdigest()
    assert told["digest"] in text
    assert "of 1 minutes, 1 of each length, split `test`, seed 0" in text
    before = clip.stat().st_mtime_ns
    make_long(tmp_path / "long", 1, 0, "test", (1.0,))
    assert clip.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="other long scenes"):
        make_long(tmp_path / "long", 2, 0, "test", (1.0,))
    for arguments, message in (((0, "test", 0, 999.0), "between"), ((0, "tset", 0, 1.0), "split must be")):
        with pytest.raises(ValueError, match=message):
            make_story(*arguments)


def test_scores_become_a_heat_map(tmp_path):
    folder = make_long(tmp_path / "long", 2, 0, "test", (0.5, 1.0))
    rows = json.loads((folder / "annotations.json").read_text())
    predictions = [
        {"id": f"{row['id']}/{k}", "prediction": row["conversations"][2 * k + 1]["value"] if k else "nothing"}
        for row in rows
        for k in range(len(row["families"]))
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in predictions))
    assert run("evaluate", "score", "scenes", folder, tmp_path / "p.jsonl", "--output", tmp_path / "s.jsonl")[0] == 0
    code, out, err = run("evaluate", "needle", tmp_path / "s.jsonl", "--data", folder, "--output", tmp_path, "--json")
    assert code == 0, err
    report = json.loads(out)
    total = sum(len(row["families"]) for row in rows)
    assert report["questions"] == total
    right = sum(part["accuracy"] * part["n"] for part in report["lengths"])
    assert right == pytest.approx(total - len(rows))  # the first question of each was answered wrongly
    assert {part["family"] for part in report["families"] if part["accuracy"] == 0} == {"which"}
    assert (tmp_path / "needle.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "annotations.json").write_text('[{"id": "a"}]')
    code, _, err = run("evaluate", "needle", tmp_path / "s.jsonl", "--data", tmp_path / "other", "--output", tmp_path)
    assert (code, "lack minutes and depths" in err) == (2, True)
    first = json.dumps({"id": f"{rows[0]['id']}/0", "metrics": {"accuracy": 1.0}}) + "\n"
    for text, told in (
        ("", "has no scores"),
        ("no", "s.jsonl line 1"),
        ('{"a": 1}\n', "is not a score file"),
        (first + first, "is scored twice"),
        (first.replace("accuracy", "wups@0.9"), "has no accuracy"),
    ):
        (tmp_path / "s.jsonl").write_text(text)
        code, _, err = run("evaluate", "needle", tmp_path / "s.jsonl", "--data", folder, "--output", tmp_path)
        assert (code, told in err, len(err.splitlines())) == (2, True, 1), err
