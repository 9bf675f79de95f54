"""Protects long benchmarks: what their readers make of a row, and scores that were worked out by hand."""

from pathlib import Path

import pytest
from benchmark_files import WRITERS, video_mme_v2_rows, write_json, write_lines, write_parquet

from videopanda.evaluation.benchmarks.table import load
from videopanda.evaluation.benchmarks.video_mme_v2 import group_score
from videopanda.evaluation.judging.judge import units
from videopanda.evaluation.reporting.report import report
from videopanda.evaluation.reporting.write import markdown
from videopanda.evaluation.scoring.score import score_file


def score_replies(name: str, folder: Path, replies: dict[str, str], limit: int | None = None):
    rows = ({"id": id_, "prediction": reply} for id_, reply in replies.items())
    predictions = write_lines(folder / "replies.jsonl", *rows)
    return score_file(name, folder, predictions, folder / "replies.scores.jsonl", limit=limit)


# -- Video-MME-v2 ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "structure", "right", "points"),
    [
        ("relevance", None, "0000", 0),
        ("relevance", None, "0100", 1 / 16),
        ("relevance", None, "1010", 4 / 16),
        ("relevance", None, "0111", 9 / 16),
        ("relevance", None, "1111", 1),
        ("logic", "[1, 2, 3, 4]", "0111", 0),  # the chain ends before it begins
        ("logic", "[1, 2, 3, 4]", "1011", 1 / 16),
        ("logic", "[1, 2, 3, 4]", "1101", 4 / 16),
        ("logic", "[1, 2, 3, 4]", "1110", 9 / 16),
        ("logic", "[1, 2, 3, 4]", "1111", 1),
        ("logic", "[1, [2, 3], 4]", "1000", 1 / 12),
        ("logic", "[1, [2, 3], 4]", "1100", 4 / 12),
        ("logic", "[1, [2, 3], 4]", "1011", 4 / 12),  # 3 stands in for 2, and the chain ends there
        ("logic", "[1, [2, 3], 4]", "0011", 0),
        ("logic", "[1, [2, 3], 4]", "1110", 7 / 12),
        ("logic", "[[1, 2], 3, 4]", "0100", 1 / 10),
        ("logic", "[[1, 2], 3, 4]", "1000", 1 / 10),
        ("logic", "[[1, 2], 3, 4]", "1100", 2 / 10),
        ("logic", "[[1, 2], 3, 4]", "1110", 5 / 10),
        ("logic", "[[1, 2], 3, 4]", "1111", 1),
    ],
)
def test_scores_of_a_group(kind, structure, right, points, tmp_path):
    path = write_parquet(tmp_path / "test.parquet", video_mme_v2_rows("007", kind, structure))
    questions, answers = load("video-mme-v2", path).items, [digit == "1" for digit in right]
    assert group_score(questions, answers) == pytest.approx(points)
    assert group_score(questions[::-1], answers[::-1]) == pytest.approx(points)  # the order is that of the ids
    assert group_score(questions[:3], answers[:3]) is None


def test_video_mme_v2_has_the_accuracy_and_the_score_of_groups(tmp_path):
    folder = WRITERS["video-mme-v2"](tmp_path)
    first = load("video-mme-v2", folder).items[0]
    assert (first.video, first.options[:2], first.right, len(first.options)) == (
        "001",
        ("choice 0", "choice 1"),
        (0,),
        8,
    )
    assert (first.types, first.groups) == (("Order",), ("level 2", "relevance"))  # of the last question of the group
    # Right: three of the first group, and 1, 3 and 4 of the second, which is [1, [2, 3], 4].
    replies = dict(zip((f"{video}-{n}" for video in ("001", "002") for n in range(1, 5)), "ABCHAHCD"))
    summary = score_replies("video-mme-v2", folder, replies)
    whole = (9 / 16 + 4 / 12) / 2
    assert summary["metrics"] == {"accuracy": 0.75, "group_score": pytest.approx(whole, abs=1e-6)}
    assert summary["groups"]["relevance"]["metrics"]["group_score"] == 9 / 16
    assert summary["groups"]["logic"]["metrics"]["group_score"] == pytest.approx(4 / 12, abs=1e-6)
    assert summary["chance"] == 1 / 8
    (table,) = report([folder / "replies.scores.jsonl"])["benchmarks"]
    text = markdown(table)
    assert "by group (group_score)" in text
    assert "| relevance | 4 | 56.2 |" in text
    # Incomplete groups have no score.
    assert "group_score" not in score_replies("video-mme-v2", folder, replies, limit=3)["metrics"]


def test_unknown_groups_are_refused(tmp_path):
    rows = [*video_mme_v2_rows("1", "logic", "[4, 3, 2, 1]"), *video_mme_v2_rows("2", "other", None)]
    rows += video_mme_v2_rows("3", "relevance", None)
    rejected = load("video-mme-v2", write_parquet(tmp_path / "test.parquet", rows)).rejected
    assert [row.reason for row in rejected] == ["the group is of an unknown kind: 'logic' '[4,3,2,1]'"] * 4 + [
        "the group is of an unknown kind: 'other' ''"
    ] * 4


# -- the others --------------------------------------------------------------------------------------------------------
def test_ovo_bench_shows_what_came_before_and_averages_tasks(tmp_path):
    folder = WRITERS["ovo-bench"](tmp_path)
    where, count, step, later, ready, _ = load("ovo-bench", folder).items
    assert (where.video, where.start, where.end, where.right) == ("invented/0.mp4", 0.0, 31.0, (1,))
    assert (count.task, count.answers, count.end) == ("short_answer", ("2",), 1.0)  # at second 0
    assert "jump" in count.question
    assert (step.task, step.answers) == ("yes_no", ("no",))
    assert (step.end, later.end) == (10.0, 21.0)  # at 20.5 s
    assert "Fold the paper." in step.question
    assert "Who wins?" in ready.question
    assert (where.groups, ready.groups, ready.types) == (("backward",), ("forward",), ("CRR",))
    replies = {"0": "B", "1/0": "2", "2/0": "No", "2/1": "No.", "3/0": "Yes", "3/1": "No"}
    summary = score_replies("ovo-bench", folder, replies)
    assert {name: part["metrics"]["accuracy"] for name, part in summary["types"].items()} == {
        "CRR": 0.0,
        "EPM": 1.0,
        "REC": 1.0,
        "SSR": 0.5,
    }
    assert summary["mean_over_types"]["accuracy"] == 2.5 / 4
    assert summary["groups"]["forward"] == {"questions": 5, "metrics": {"accuracy": 0.4}}


def test_timelens_bench_is_scored_by_part_and_length(tmp_path):
    folder = WRITERS["timelens-bench"](tmp_path)
    barks, _, rings = load("timelens-bench", folder).items
    assert (barks.question, barks.interval, barks.video) == ("a dog barks", (1.0, 3.5), "charades/INV01.mp4")
    assert (barks.groups, rings.groups) == (("up to 1 min",), ("1 to 3 min",))
    replies = {barks.id: "from 1 to 3.5 seconds", rings.id: "The event happens in 105 - 115 seconds."}
    summary = score_replies("timelens-bench", folder, replies)  # and one without a reply
    assert summary["types"]["charades"]["metrics"] == {"miou": 0.5, "r1@0.3": 0.5, "r1@0.5": 0.5, "r1@0.7": 0.5}
    assert summary["groups"]["1 to 3 min"]["metrics"]["miou"] == pytest.approx(5 / 15, abs=1e-6)
    uneven = write_json(tmp_path / "charades-timelens.json", {"a": {"queries": ["b"], "spans": []}})
    (rejected,) = load("timelens-bench", folder).rejected
    assert (rejected.place, uneven.name) == ("charades-timelens.json a", "charades-timelens.json")


def test_videoeval_pro_in_words_and_with_options(tmp_path):
    folder = WRITERS["videoeval-pro"](tmp_path)
    open_, _ = load("videoeval-pro", folder).items
    assert (open_.task, open_.options, open_.answers) == ("description", (), ("Dark green",))
    assert [unit.aspect for unit in units([open_])] == ["grade"]
    with pytest.raises(ValueError, match="scorer"):
        score_replies("videoeval-pro", folder, {"inv_3/0": "Dark green"})
    summary = score_replies("videoeval-pro-choice", folder, {"inv_3/0": "B", "inv_3/1": "A"})
    assert {name: part["metrics"]["accuracy"] for name, part in summary["types"].items()} == {
        "Holistic Reasoning": 0.0,
        "Local Perception": 1.0,
    }


def test_hourvideo_has_a_table_by_length(tmp_path):
    summary = score_replies("hourvideo", WRITERS["hourvideo"](tmp_path), {"INV_1": "C", "INV_2": "A"})
    assert summary["groups"] == {"over 60 min": {"questions": 2, "metrics": {"accuracy": 0.5}}}
