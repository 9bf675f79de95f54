"""Protects the whole chain by command, offline: inspect, predict, score or judge, report, on every benchmark."""

import json
from pathlib import Path

import pytest
from benchmark_files import WRITERS
from judge_server import StandIn

from command import run
from media import write_video
from videopanda.data.worlds.scenes.make import make
from videopanda.evaluation.benchmarks.table import load

JUDGED = {"video-chatgpt", "videoeval-pro"}  # open answers only: nothing to score without a judge


def write_videos(name: str, annotations: Path, folder: Path) -> Path:
    """A clip for every item, where its benchmark keeps it."""
    folder.mkdir(parents=True)
    clip = write_video(folder / "clip.mp4", range(20), fps=1)
    for item in load(name, annotations).items:
        path = folder / item.video
        if not path.suffix:
            path = path.with_name(f"{path.name}.mp4")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(clip.read_bytes())
    return folder


def ask(name: str, annotations: Path, videos: Path, model: Path, out: Path, condition: str = "full") -> dict:
    options = ("--media-root", videos, "--model", model, "--output", out, "--num-frames", 4, "--max-new-tokens", 3)
    code, printed, _ = run("evaluate", "predict", name, annotations, *options, "--condition", condition, "--json")
    assert code == 0
    return json.loads(printed)


@pytest.mark.parametrize("name", WRITERS)
def test_every_benchmark_runs_through(name, model, tmp_path):
    annotations = WRITERS[name](tmp_path / "annotations")
    videos = write_videos(name, annotations, tmp_path / "videos")
    code, printed, _ = run("evaluate", "inspect", name, annotations, "--media-root", videos, "--json")
    inspected = json.loads(printed)
    assert (code, inspected["missing_videos"]) == (0, [])
    asked = ask(name, annotations, videos, model, tmp_path / "p.jsonl")
    assert (asked["questions"], asked["answered"]) == (inspected["questions"],) * 2
    out = tmp_path / "s.jsonl"
    if name in JUDGED:
        with StandIn(lambda text, nth: '{"pred": "yes", "score": 2} A') as server:  # an answer, points, a grade
            options = ("--name", "x", "--base-url", server.url)
            code, printed, _ = run(
                "evaluate", "judge", name, annotations, tmp_path / "p.jsonl", "--output", out, *options, "--json"
            )
    else:
        code, printed, _ = run("evaluate", "score", name, annotations, tmp_path / "p.jsonl", "--output", out, "--json")
    summary = json.loads(printed)
    assert code == 0
    assert not {"missing_prediction", "missing_video", "error"} & set(summary["statuses"])
    code, printed, _ = run("evaluate", "report", out, "--output", tmp_path / "report")
    assert code == 0
    assert f"## {inspected['title']}" in (tmp_path / "report" / "report.md").read_text()
    assert f"{tmp_path / 'report' / 'report.md'}" in printed
    measured = json.loads((tmp_path / "report" / "report.json").read_text())["benchmarks"][0]
    assert measured["models"][0]["conditions"]["full"]["questions"] == summary["questions"]


def test_scenes_with_the_whole_battery(model, tmp_path):
    scenes = make(tmp_path / "scenes", 4, 0, "test", workers=1, progress=False)
    files = []
    for condition in ("full", "no_video", "one_frame", "shuffled", "reversed", "wrong_video"):
        predictions = tmp_path / f"{condition}.jsonl"
        asked = ask("scenes", scenes, scenes, model, predictions, condition)
        assert asked["answered"] == asked["questions"] > 10
        files.append(tmp_path / f"{condition}.scores.jsonl")
        code, _, _ = run("evaluate", "score", "scenes", scenes, predictions, "--output", files[-1])
        assert code == 0
    code, printed, _ = run("evaluate", "report", *files, "--output", tmp_path / "report")
    assert code == 0
    header = (
        "| model | full | no video | one frame | shuffled | reversed | wrong video | most frequent answer | chance |"
    )
    assert header in (tmp_path / "report" / "report.md").read_text()
    assert "wrong" in printed
    assert (tmp_path / "report" / "scenes.vision_size.png").stat().st_size > 5000
