"""Protects the test on Scenes, its baselines, and the shape of its report (with a random model, end to end)."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest

from tiny import tiny_model, tiny_processor
from videopanda.data.worlds.scenes.dataset import Clip
from videopanda.data.worlds.scenes.make import MAX_PER_FAMILY, QUESTIONS_PER_CLIP, clip_questions
from videopanda.data.worlds.scenes.questions import FAMILIES
from videopanda.data.worlds.scenes.selection import quotas, select_questions
from videopanda.evaluation.conditions import rearrange
from videopanda.evaluation.predictions import CONDITIONS
from videopanda.evaluation.provenance import weights_sha256
from videopanda.evaluation.scenes_report import scenes_report, table, wilson
from videopanda.inference.answer import ask
from videopanda.inference.load import load
from videopanda.video.order import one_frame_order, shuffled_order


# -- intervals ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("correct", "total", "expected"),
    [
        (0, 10, (0.0, 0.2775)),
        (10, 10, (0.7225, 1.0)),
        (5, 10, (0.2366, 0.7634)),
        (81, 263, (0.2553, 0.3662)),  # Newcombe (1998), table I
        (0, 0, (0.0, 1.0)),
    ],
)
def test_wilson_intervals(correct, total, expected):
    assert wilson(correct, total) == pytest.approx(expected, abs=5e-5)


# -- what is asked -----------------------------------------------------------------------------------------------------
def test_quotas_are_even():
    assert set(quotas(2000)) == set(FAMILIES)
    assert sum(quotas(2000).values()) == 2000
    assert set(quotas(2000).values()) == {166, 167}
    assert set(quotas(12).values()) == {1}
    with pytest.raises(ValueError, match="at least 12"):
        quotas(11)


def test_the_selection_fills_the_quotas_from_real_questions():
    clips = select_questions(60, seed=0)
    asked = Counter(question.family for clip in clips for question in clip.questions)
    assert asked == Counter(quotas(60))
    assert [clip.index for clip in clips] == sorted({clip.index for clip in clips})
    for clip in clips:
        assert 1 <= len(clip.questions) <= QUESTIONS_PER_CLIP
        assert max(Counter(question.family for question in clip.questions).values()) <= MAX_PER_FAMILY
        known = clip_questions(0, "test", clip.index)
        assert all(question in known for question in clip.questions)
    assert select_questions(60, seed=0) == clips
    assert select_questions(60, seed=1) != clips


# -- what is shown -----------------------------------------------------------------------------------------------------
def test_one_frame_and_shuffled_keep_times_and_duration():
    frames = np.arange(8, dtype=np.uint8).reshape(8, 1, 1, 1) * np.ones((1, 4, 6, 3), np.uint8)
    video = Clip(frames, tuple(i / 2 for i in range(8)), 4.0)
    one = rearrange(video, one_frame_order(8))
    assert (one.frames == frames[4]).all()
    assert one.frames.shape == frames.shape
    mixed = rearrange(video, shuffled_order(8, np.random.default_rng(0)))
    assert sorted(mixed.frames[:, 0, 0, 0]) == list(range(8))
    assert (mixed.frames != frames).any()
    assert one.timestamps == mixed.timestamps == video.timestamps
    assert one.duration == mixed.duration == 4.0


def test_a_shuffle_is_repeatable_and_never_the_right_order():
    for seed in range(200):
        order = shuffled_order(2, np.random.default_rng(seed))
        assert order.tolist() == [1, 0]
    first, second = (shuffled_order(8, np.random.default_rng([0, 5, 3])) for _ in range(2))
    assert first.tolist() == second.tolist()
    with pytest.raises(ValueError, match="two frames"):
        shuffled_order(1, np.random.default_rng(0))


# -- end to end --------------------------------------------------------------------------------------------------------
REPORT_KEYS = {
    "accuracy",
    "ci95",
    "families",
    "baselines",
    "most_frequent_answer",
    "num_questions",
    "num_clips",
    "declined",
    "failures",
    "wordings",
    "seed",
    "model",
    "protocol",
    "versions",
    "seconds",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    tiny_processor(time_prompt=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(checkpoint, tmp_path_factory):
    """A report about 24 questions; one of the clips on disk is damaged."""
    loaded = load(checkpoint, device="cpu")
    out = tmp_path_factory.mktemp("report")
    damaged = select_questions(24, seed=0)[1]
    (out / "clips").mkdir()
    (out / "clips" / f"test-0-{damaged.index}.mp4").write_bytes(b"not a video")
    report = scenes_report(out, loaded, checkpoint, num=24, seed=0, workers=1, progress=False)
    rows = {name: read_rows(out / f"{name}.jsonl") for name in CONDITIONS}
    return loaded, out, report, rows, damaged


def read_rows(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["id"]: row for row in rows}


def test_the_report_has_exactly_these_keys(run, checkpoint):
    _, out, report, _, _ = run
    assert set(report) == REPORT_KEYS
    assert set(report["families"]) == set(FAMILIES)
    assert all(set(part) == {"accuracy", "n", "ci95"} and part["n"] == 2 for part in report["families"].values())
    assert set(report["baselines"]) == {*CONDITIONS} - {"full"}
    for part in report["baselines"].values():
        assert set(part) == {"accuracy", "families"}
        assert set(part["families"]) == set(FAMILIES)
    assert set(report["most_frequent_answer"]) == {"accuracy", "families"}
    assert report["num_questions"] == 24
    assert report["num_clips"] == len(select_questions(24, seed=0))
    digest = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    assert report["model"] == {"path": str(checkpoint), "sha256": digest, "settings": {}}
    assert set(report["protocol"]) == {"split", "frames", "sampling", "decoder", "generation", "scoring"}
    assert report["protocol"]["frames"] == 8
    assert json.loads((out / "report.json").read_text()) == report


def test_numbers_are_those_of_the_scores(run):
    _, out, report, rows, _ = run
    scores = read_rows(out / "full.scores.jsonl")
    right = [score["metrics"]["accuracy"] for score in scores.values()]
    assert report["accuracy"] == round(sum(right) / 24, 4)
    assert report["ci95"] == [round(value, 4) for value in wilson(int(sum(right)), 24)]
    answers = {
        f"test-0-{scene.index}/{number}": question
        for scene in select_questions(24, seed=0)
        for number, question in enumerate(scene.questions)
    }
    assert set(rows["full"]) == set(scores) == set(answers)
    best = 0
    for family, floor in report["most_frequent_answer"]["families"].items():
        (answer, count), *_ = Counter(q.answer for q in answers.values() if q.family == family).most_common(1)
        assert floor == {"answer": answer, "accuracy": count / 2}
        best += count
    assert report["most_frequent_answer"]["accuracy"] == round(best / 24, 4)


def test_every_question_has_a_row_per_condition(run):
    _, _, report, rows, damaged = run
    name = f"test-0-{damaged.index}"
    assert report["failures"] == [{"id": name, "reason": report["failures"][0]["reason"]}]
    for condition, found in rows.items():
        assert len(found) == 24
        for id_, row in found.items():
            unseen = id_.startswith(f"{name}/") and condition in ("full", "one_frame", "shuffled", "reversed")
            if condition != "wrong_video":  # where the next clip is the damaged one
                assert (row["prediction"] is None) == unseen
                assert len(row["frame_times"]) == (0 if unseen or condition == "no_video" else 8)


def test_a_batched_answer_is_the_answer_to_the_question_alone(run):
    (model, processor), out, _, rows, damaged = run
    shown = {id_: row for id_, row in rows["full"].items() if row["prediction"] is not None}
    assert len({row["prediction"] for row in shown.values()}) > 3  # the random model tells clips and questions apart
    asked = {
        f"test-0-{scene.index}/{number}": question.question
        for scene in select_questions(24, seed=0)
        for number, question in enumerate(scene.questions)
    }
    for id_, row in [*shown.items()][:8]:
        clip = id_.partition("/")[0]
        assert not clip.endswith(f"-{damaged.index}")
        (alone,) = ask(model, processor, out / "clips" / f"{clip}.mp4", [asked[id_]], max_new_tokens=16)
        assert alone.answer == row["prediction"]
        assert alone.frame_times == pytest.approx(row["frame_times"], abs=1e-3)


def test_conditions_show_what_they_say(run):
    _, _, _, rows, damaged = run
    seed = 0
    for id_, full in rows["full"].items():
        index = int(id_.partition("/")[0].rpartition("-")[2])
        if index == damaged.index:
            continue
        times = full["frame_times"]
        assert rows["one_frame"][id_]["frame_times"] == [times[4]] * 8
        assert rows["reversed"][id_]["frame_times"] == times[::-1]
        # The order of published reports: it must not change.
        order = shuffled_order(8, np.random.default_rng([seed, index, 3]))
        assert rows["shuffled"][id_]["frame_times"] == [times[i] for i in order]
        assert rows["wrong_video"][id_]["video"] != full["video"]


def test_processes_write_the_same_clips(run, checkpoint, tmp_path):
    loaded, *_ = run
    reports = [
        scenes_report(tmp_path / str(n), loaded, checkpoint, 12, baselines=False, workers=n, progress=False)
        for n in (1, 2)
    ]
    assert reports[0]["baselines"] == {}
    assert reports[0]["failures"] == []
    assert {**reports[0], "seconds": 0} == {**reports[1], "seconds": 0}


@pytest.mark.parametrize("name", ["report.json", "annotations.json"])
def test_files_of_something_else_stay(run, checkpoint, tmp_path, name):
    (tmp_path / name).write_text('[{"of": "somebody else"}]')
    with pytest.raises(ValueError, match=r"not written by this command|use a new folder"):
        scenes_report(tmp_path, run[0], checkpoint, 12, baselines=False, workers=1, progress=False)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [name]


def test_the_table_has_a_line_per_family(run):
    _, _, report, _, _ = run
    assert table(report).row_count == len(FAMILIES) + 1


def test_a_model_without_files_has_no_digest(tmp_path):
    assert weights_sha256(tmp_path) is None
