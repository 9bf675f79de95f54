"""Protects the way from raw clips to a measured model, by the commands of docs/finetuning.md."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from command import run
from videopanda.data.class_folders import SEEN, UNSEEN
from videopanda.data.worlds.scenes.render import write_frames
from videopanda.inference.load import BUNDLED_MODEL

SIGNS = Path(__file__).parents[3] / "shared" / "media" / "labelled" / "isl_words"


def chain(clips: Path, out: Path, *settings: str, copies: int = 0) -> dict[str, dict]:
    """Every command once; summaries of the scores before and after."""

    def good(*arguments: str | Path) -> str:
        code, printed, err = run(*arguments)
        assert code == 0, err
        return printed

    data, model = out / "data", out / "model"
    good("data", "label", clips, data, "--question", "Which way?", "--test-share", "0.34", "--copies", copies)
    train, test, manifest = data / "train.jsonl", data / "test.jsonl", out / "manifest.jsonl"
    good("data", "check", train, test, "--manifest", manifest, "--workers", "1")
    sets = [word for item in (f"manifest={manifest}", "num_frames=4", *settings) for word in ("--set", item)]
    good("finetune", "--data", train, "--model", BUNDLED_MODEL, "--lora", "--output", model, *sets)
    summaries = {}
    for name, folder in (("before", BUNDLED_MODEL), ("after", model)):
        predictions, scores = out / f"{name}.jsonl", out / f"{name}.scores.jsonl"
        good(
            "evaluate",
            "predict",
            "custom",
            test,
            "--model",
            folder,
            "--output",
            predictions,
            "--max-new-tokens",
            "8",
            "--num-frames",
            "4",
        )
        good("evaluate", "score", "custom", test, predictions, "--scorer", "exact", "--output", scores)
        summaries[name] = json.loads(scores.with_suffix(".summary.json").read_text())
    good("evaluate", "report", out / "after.scores.jsonl", "--output", out / "report")
    assert "## Custom questions" in (out / "report" / "report.md").read_text()
    return summaries


@pytest.fixture
def coloured_clips(tmp_path) -> Path:
    """Six recordings of each of two classes that differ in colour. Adapters learn words sooner that the model knows."""
    rng = np.random.default_rng(0)
    for name, colour in (("left", (200, 40, 40)), ("right", (40, 40, 200))):
        (tmp_path / "clips" / name).mkdir(parents=True)
        for k in range(6):
            frames = np.clip(np.array(colour) + rng.normal(0, 20, (10, 48, 64, 3)), 0, 255).astype(np.uint8)
            write_frames(frames, (64, 48), Fraction(5), tmp_path / "clips" / name / f"{k}.mp4")
    return tmp_path / "clips"


def test_unseen_recordings_are_told_apart_after_finetuning(coloured_clips, tmp_path):
    settings = ("max_steps=8", "language_model_lr=2e-3", "vision_lr=1e-3")
    found = chain(coloured_clips, tmp_path / "out", *settings)
    assert list(found["after"]["types"]) == [UNSEEN]
    assert found["before"]["metrics"]["accuracy"] <= 0.5
    assert found["after"]["metrics"]["accuracy"] == 1.0
    assert found["after"]["questions"] == 4
    assert (tmp_path / "out" / "model" / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.skipif(not SIGNS.exists(), reason="needs the clips of signs beside the repository")
def test_real_recordings_run_through(tmp_path):
    (tmp_path / "clips").mkdir()
    for name in ("Happy", "Computer", "Do Not"):
        (tmp_path / "clips" / f"{name}.mp4").write_bytes((SIGNS / f"{name}.mp4").read_bytes())
    found = chain(tmp_path / "clips", tmp_path / "out", "max_steps=2", copies=3)
    assert list(found["after"]["types"]) == [SEEN]
    assert (found["after"]["questions"], found["after"]["statuses"]) == (3, {"scored": 3})
