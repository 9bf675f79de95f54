"""Protects `evaluate run`: several benchmarks with baselines by one command, which resumes and may ask a selection."""

import json

import pytest
from benchmark_files import WRITERS
from test_chain import write_videos

from command import run
from videopanda.evaluation.benchmarks.table import load

NAMES = ("msvd-qa", "mvbench", "video-chatgpt")


@pytest.fixture
def named(tmp_path):
    """Arguments that name three benchmarks and their videos."""
    words = []
    for name in NAMES:
        annotations = WRITERS[name](tmp_path / name)
        videos = write_videos(name, annotations, tmp_path / f"{name}-videos")
        words += [f"{name}={annotations}", "--media-root", f"{name}={videos}"]
    return words


def test_one_command_asks_scores_reports_and_resumes(named, model, tmp_path, monkeypatch):
    out = tmp_path / "out"
    words = ("evaluate", "run", *named, "--model", model, "--num-frames", 2, "--max-new-tokens", 2, "--output", out)
    code, printed, err = run(*words)
    assert code == 0, err
    assert max(map(len, printed.splitlines())) <= max(80, len(str(out)) * 2 + 60)
    assert "video-chatgpt: its answers need a judge" in printed
    for name in NAMES:
        for condition in ("full", "no_video", "one_frame", "shuffled"):
            rows = (out / name / f"{condition}.jsonl").read_text().splitlines()
            assert len(rows) == len(load(name, tmp_path / name).items)
    report = json.loads((out / "report" / "report.json").read_text())
    assert [table["benchmark"] for table in report["benchmarks"]] == list(NAMES[:2])
    kept = (out / "mvbench" / "full.jsonl").read_text()
    (out / "mvbench" / "full.jsonl").write_text(kept[: len(kept) // 2])  # as after a kill
    from videopanda.evaluation.predict import Predictor

    asked = []
    answer = Predictor._answer
    monkeypatch.setattr(
        Predictor, "_answer", lambda self, batch, videos: asked.append(1) or answer(self, batch, videos)
    )
    again, printed_again, _ = run(*words)
    assert (again, printed_again) == (0, printed)
    assert (out / "mvbench" / "full.jsonl").read_text() == kept
    assert len(asked) == 1


def test_a_limit_asks_the_same_selection_and_says_so(named, model, tmp_path):
    out = tmp_path / "out"
    words = (
        "evaluate",
        "run",
        *named[:3],
        "--model",
        model,
        "--condition",
        "full",
        "--num-frames",
        2,
        "--max-new-tokens",
        2,
    )
    _, printed, _ = run(*words, "--limit", 1, "--output", out, "--json")
    (table,) = json.loads(printed)["benchmarks"]
    (measured,) = table["models"][0]["conditions"].values()
    whole = load("msvd-qa", tmp_path / "msvd-qa").items
    assert measured["questions"] == 1 < len(whole)
    assert measured["not_scored"]["beyond_limit"] == len(whole) - 1
    asked = [json.loads(line)["id"] for line in (out / "msvd-qa" / "full.jsonl").read_text().splitlines()]
    assert asked == [item.id for item in load("msvd-qa", tmp_path / "msvd-qa", limit=1).items]
    assert set(asked) < {item.id for item in load("msvd-qa", tmp_path / "msvd-qa", limit=2).items}


def test_mistakes_end_before_the_model_is_loaded(named, tmp_path):
    out = ("--output", tmp_path / "out", "--model", "nosuchdir")
    assert "unknown benchmark" in run("evaluate", "run", "msvdqa=x", *out)[2]
    assert "write msvd-qa=PATH" in run("evaluate", "run", "msvd-qa", *out)[2]
    assert "no model folder" in run("evaluate", "run", named[0], *out)[2]
    code, _, err = run("evaluate", "run", named[0], "--output", tmp_path / "out")
    assert code == 2
    assert "pass --media-root NAME=DIR" in err
