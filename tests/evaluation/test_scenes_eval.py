"""Protects the scoring of Scenes, its baselines, and the shape of its report (with a random model, end to end)."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest

from tiny import tiny_model, tiny_processor
from videopanda.data.worlds.scenes.dataset import Clip
from videopanda.data.worlds.scenes.make import MAX_PER_FAMILY, QUESTIONS_PER_CLIP, clip_questions
from videopanda.data.worlds.scenes.questions import FAMILIES
from videopanda.evaluation.scenes import (
    BASELINES,
    evaluate,
    most_frequent_answers,
    normalize,
    one_frame_order,
    plan,
    quotas,
    rearrange,
    score,
    shuffled_order,
    table,
    weights_sha256,
    wilson,
    with_next,
)
from videopanda.inference.answer import ask
from videopanda.inference.load import load


# -- scoring -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Red. ", "red"),
        ("The red circle", "red circle"),
        ("A circle.", "circle"),
        ("an object", "object"),
        ("3 seconds .", "3 seconds"),
        ("above", "above"),
        ("theatre", "theatre"),
        ("the", "the"),
        ("", ""),
        ("yes..", "yes."),
        ("the the cat", "the cat"),
    ],
)
def test_normalise(text, expected):
    assert normalize(text) == expected


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


def _rows():
    rows = []
    for i, family in enumerate(FAMILIES):
        answers = ["yes", "yes", "no"] if i == 0 else ["left", "right"]
        rows += [{"family": family, "answer": a, "correct": a in ("yes", "left")} for a in answers]
    return rows


def test_score_counts_every_row():
    result = score(_rows())
    assert result["n"] == 25
    assert result["accuracy"] == round(13 / 25, 4)
    assert result["families"][FAMILIES[0]]["accuracy"] == round(2 / 3, 4)
    assert result["families"][FAMILIES[0]]["n"] == 3


def test_the_floor_is_the_best_constant_answer():
    floor = most_frequent_answers(_rows())
    assert floor["families"][FAMILIES[0]] == {"answer": "yes", "accuracy": round(2 / 3, 4)}
    assert floor["families"][FAMILIES[1]]["accuracy"] == 0.5
    assert floor["accuracy"] == round((2 + 11) / 25, 4)


# -- what is asked -----------------------------------------------------------------------------------------------------
def test_quotas_are_even():
    assert set(quotas(2000)) == set(FAMILIES)
    assert sum(quotas(2000).values()) == 2000
    assert set(quotas(2000).values()) == {166, 167}
    assert set(quotas(12).values()) == {1}
    with pytest.raises(ValueError, match="at least 12"):
        quotas(11)


def test_the_plan_fills_the_quotas_from_real_questions():
    clips = plan(60, seed=0)
    asked = Counter(question.family for clip in clips for question in clip.questions)
    assert asked == Counter(quotas(60))
    assert [clip.index for clip in clips] == sorted({clip.index for clip in clips})
    for clip in clips:
        assert 1 <= len(clip.questions) <= QUESTIONS_PER_CLIP
        assert max(Counter(question.family for question in clip.questions).values()) <= MAX_PER_FAMILY
        known = clip_questions(0, "test", clip.index)
        assert all(question in known for question in clip.questions)
    assert plan(60, seed=0) == clips
    assert plan(60, seed=1) != clips


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


def test_the_wrong_video_is_the_next_readable_one():
    items = [("a", "A"), ("b", None), ("c", "C"), ("d", "D"), ("e", None)]
    assert list(with_next(items)) == [
        ("a", "A", "C"),
        ("b", None, "C"),
        ("c", "C", "D"),
        ("d", "D", "A"),
        ("e", None, "A"),
    ]
    assert list(with_next([("a", "A"), ("b", None)])) == [("a", "A", None), ("b", None, "A")]
    assert list(with_next([("a", None)])) == [("a", None, None)]


# -- end to end --------------------------------------------------------------------------------------------------------
REPORT_KEYS = {
    "accuracy",
    "ci95",
    "families",
    "baselines",
    "most_frequent_answer",
    "num_questions",
    "num_clips",
    "failures",
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
    model, processor = load(checkpoint, device="cpu")
    out = tmp_path_factory.mktemp("report")
    damaged = plan(24, seed=0)[1]
    (out / "clips").mkdir()
    (out / "clips" / f"test-0-{damaged.index}.mp4").write_bytes(b"not a video")
    report = evaluate(model, processor, num=24, seed=0, batch_size=5, out=out, workers=0, progress=False)
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    return model, processor, out, report, rows, damaged


def test_the_report_has_exactly_these_keys(run, checkpoint):
    _, _, out, report, _, _ = run
    assert set(report) == REPORT_KEYS
    assert set(report["families"]) == set(FAMILIES)
    assert all(set(part) == {"accuracy", "n", "ci95"} and part["n"] == 2 for part in report["families"].values())
    assert set(report["baselines"]) == set(BASELINES)
    for part in report["baselines"].values():
        assert set(part) == {"accuracy", "families"}
        assert set(part["families"]) == set(FAMILIES)
    assert set(report["most_frequent_answer"]) == {"accuracy", "families"}
    assert report["num_questions"] == 24
    assert report["num_clips"] == len(plan(24, seed=0))
    digest = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    assert report["model"] == {"path": str(checkpoint), "sha256": digest}
    assert set(report["protocol"]) == {"split", "frames", "sampling", "decoder", "generation", "scoring"}
    assert report["protocol"]["frames"] == 8
    assert json.loads((out / "report.json").read_text()) == report


def test_every_question_has_a_row_per_condition(run):
    _, _, _, report, rows, damaged = run
    assert Counter(row["condition"] for row in rows) == dict.fromkeys(("full", *BASELINES), 24)
    assert len({(row["id"], row["condition"]) for row in rows}) == len(rows)
    assert report["failures"] == [{"id": f"test-0-{damaged.index}", "reason": report["failures"][0]["reason"]}]
    for row in rows:
        lost = row["id"].startswith(f"test-0-{damaged.index}/")
        unseen = lost and row["condition"] in ("full", "one_frame", "shuffled")
        assert (row["prediction"] is None) == unseen
        assert len(row["frame_times"]) == (0 if unseen or row["condition"] == "blind" else 8)
        assert row["correct"] == (not unseen and normalize(row["prediction"]) == normalize(row["answer"]))


def test_a_batched_answer_is_the_answer_to_the_question_alone(run):
    model, processor, out, _, rows, damaged = run
    shown = [row for row in rows if row["condition"] == "full" and row["prediction"] is not None]
    assert len({row["prediction"] for row in shown}) > 3  # the random model does tell clips and questions apart
    for row in shown[:8]:
        clip = row["id"].partition("/")[0]
        assert not clip.endswith(f"-{damaged.index}")
        (alone,) = ask(model, processor, out / "clips" / f"{clip}.mp4", [row["question"]], max_new_tokens=16)
        assert alone.answer == row["prediction"]
        assert alone.frame_times == pytest.approx(row["frame_times"], abs=1e-3)


def test_conditions_show_what_they_say(run):
    _, _, _, _, rows, damaged = run
    times: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        times.setdefault(row["id"].partition("/")[0], {})[row["condition"]] = row["frame_times"]
    names = [name for name in times if name != f"test-0-{damaged.index}"]
    for name, following in zip(names, [*names[1:], names[0]]):
        seen = times[name]
        assert seen["one_frame"] == [seen["full"][4]] * 8
        assert seen["shuffled"] != seen["full"]
        assert sorted(seen["shuffled"]) == seen["full"]
        assert seen["wrong_video"] == times[following]["full"]


def test_processes_read_the_same_clips(run):
    model, processor, _, _, _, _ = run
    fast = evaluate(model, processor, num=12, seed=0, baselines=False, workers=2, progress=False)
    slow = evaluate(model, processor, num=12, seed=0, baselines=False, workers=0, progress=False)
    assert fast["baselines"] == {}
    assert fast["failures"] == []
    assert {**fast, "seconds": 0} == {**slow, "seconds": 0}


def test_the_table_has_a_line_per_family(run):
    _, _, _, report, _, _ = run
    assert table(report).row_count == len(FAMILIES) + 1


def test_a_model_without_files_has_no_digest(tmp_path):
    assert weights_sha256(tmp_path) is None
