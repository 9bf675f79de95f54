"""Protects the curve of ELVA, on a tiny random model: all rows, each paired with its base, none measured twice."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from tiny_elva import elva

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "elva_curve.py"


@pytest.fixture(scope="module")
def curve():
    spec = importlib.util.spec_from_file_location("elva_curve", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_curve_is_measured_once_and_drawn(curve, tmp_path, monkeypatch):
    model, processor = elva(merge={"layers": []})
    processor.video_processor.num_frames = 4
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(curve, "KEEPS", (0.5,))
    given = ["--model", tmp_path / "model", "--output", tmp_path / "out", "--num", 12, "--long", 6, "--layers", 1, 2]
    given += ["--high", 2, "--speed-frames", 4, "--rounds", 2]
    monkeypatch.setattr(sys, "argv", ["elva_curve.py", *map(str, given)])
    record = curve.measured(curve.arguments())
    curve.draw(record, tmp_path / "curve.png")
    assert json.loads((tmp_path / "out" / "curve.json").read_text()) == record
    assert list(record["merging"]) == list(record["speed"]) == ["unmerged", "keep 0.5"]
    plain, merged = record["merging"].values()
    assert plain["difference"] == {"points": 0.0, "ci95": [0.0, 0.0]}
    assert merged["layer_tokens"][3] < merged["layer_tokens"][1] < merged["layer_tokens"][0] == plain["layer_tokens"][3]
    assert merged["prefill_gflops"] < plain["prefill_gflops"]
    assert (plain["n"], merged["n"]) == (12, 12)
    alone, with_low, all_high = record["hybrid"].values()
    assert alone["tokens"] < with_low["tokens"] < all_high["tokens"]
    assert record["speed"]["unmerged"]["speedup"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"

    for name in ("merging_row", "hybrid_row", "speeds"):
        monkeypatch.setattr(curve, name, lambda *_: pytest.fail("measured again"))
    assert curve.measured(curve.arguments()) == record
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--seed", "5"])
    with pytest.raises(SystemExit, match="other settings"):
        curve.measured(curve.arguments())


def test_the_high_frames_are_the_same_in_all_ways(curve):
    options = type("Options", (), {"high": 4, "every": 3})
    few, many = (curve.shown_times(options, name, 8.0) for name in (curve.HIGH, "all high"))
    assert (len(few), len(many)) == (4, 10)
    assert few == many[::3]


def test_differences_are_paired_by_question(curve):
    base = {"a/0": ("a", 1.0), "a/1": ("a", 0.0), "b/0": ("b", 0.0)}
    assert curve.difference({**base, "b/0": ("b", 1.0)}, base)["points"] == 33.33
