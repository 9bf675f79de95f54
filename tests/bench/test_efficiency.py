"""Counts are those of the published shapes, the baseline gives the golden numbers, measuring works on real models."""

import importlib
import io
import json
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from golden_checks.stab import read_pixels
from videopanda.bench.efficiency import CONTENDERS, PAPER, count, measure
from videopanda.bench.report import draw, table
from videopanda.bench.timing import interval
from videopanda.cli import app as cli

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.append(str(GOLDEN.parents[1] / "benchmarks"))


@pytest.fixture
def official(monkeypatch):
    """The script that measures the official arithmetic; it adds itself to the contenders."""
    monkeypatch.setattr("videopanda.bench.efficiency.CONTENDERS", dict(CONTENDERS))
    sys.modules.pop("official_arithmetic", None)
    return importlib.import_module("official_arithmetic")


@pytest.mark.parametrize("name", ["wide_8f", "square_8f", "short_clip_4f_1pad"])
def test_the_baseline_gives_the_golden_numbers(name, official):
    golden = load_file(GOLDEN / f"stab_{name}.safetensors")
    vision = official.OfficialVision(64, 96).eval()
    weights = load_file(GOLDEN / "stab_small_weights_a.safetensors")
    vision.load_state_dict({key: weights[key] for key in weights if "lmhra2" not in key})  # a branch that never runs
    frames = golden["patch_hw"].shape[1]
    for v in range(len(golden["patch_hw"])):
        pixels = read_pixels(golden, v, frames)
        top, left, height, width, _, real = golden[f"placement.v{v}"].tolist()
        mask = torch.zeros(frames, *pixels.shape[-2:])
        mask[:real, top : top + height, left : left + width] = 1
        with torch.no_grad():
            found = vision(pixels[None], mask[None])
        for t, tokens in enumerate(found):
            error = (tokens - golden[f"tokens.v{v}.f{t:02}"]).abs().max().item()
            assert error <= 1e-4  # measured worst: 5.3e-6


def test_counts(official):
    """Parameters and multiply-accumulates of the paper's Table 3, and what the lean path saves."""
    found = {name: count(name, 448, 448) for name in official.CONTENDERS}
    for name, paper in PAPER.items():
        assert found[name]["params"] == pytest.approx(1e6 * paper["params"], rel=5e-3)
        if name != "video-panda":
            assert found[name]["macs"] == pytest.approx(1e9 * paper["macs"], rel=2e-3)
    baseline = found[official.NAME]
    assert baseline["params"] == found["video-panda"]["params"] == 45_066_578
    assert baseline["macs"] == pytest.approx(105.43e9, rel=1e-3)
    assert found["video-panda"]["macs"] <= 72e9  # counted: 68.70e9
    assert found["eve-star"]["macs"] < found["video-panda"]["macs"]


def test_wide_pictures_cost_less():
    square, wide = (count("video-panda", height, 16)["macs"] for height in (16, 9))
    assert wide < 0.7 * square  # counted: 46.08e9 and 68.70e9


def test_measure(tmp_path):
    """The smallest real comparison: pictures of one row of cells."""
    report = measure(["video-panda", "eve-star"], 28, 448, rounds=2)
    assert json.loads(json.dumps(report)) == report
    for row in report["models"].values():
        assert 0 < row["latency_ms"]["low"] <= row["latency_ms"]["median"] <= row["latency_ms"]["high"]
        assert row["measured_frames"] == 8
        assert row["peak_bytes"] is None or row["peak_bytes"] > 2**20
    assert report["models"]["video-panda"]["times_video_panda"] == {"median": 1, "low": 1, "high": 1}
    assert report["models"]["eve-star"]["times_video_panda"]["median"] > 0
    assert "video-panda " in printed(table(report))
    report["models"] = {f"{name}-with-a-very-long-name-of-its-own": row for name, row in report["models"].items()}
    assert (
        "".join(line[:21].strip() for line in printed(table(report)).splitlines()).count("-long-name-of-its-own") == 2
    )
    draw(report, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def printed(grids):
    """As a terminal of 80 columns shows it, where nothing may be cut."""
    console = Console(width=80, file=io.StringIO())
    console.print(grids)
    text = console.file.getvalue()
    assert "…" not in text
    return text


def test_interval():
    found = interval([5.0, 1.0, 2.0, 3.0, 4.0])
    assert found["median"] == 3.0
    assert 1.0 <= found["low"] < 3.0 < found["high"] <= 5.0
    assert interval([2.0]) == {"median": 2.0, "low": 2.0, "high": 2.0}


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        (["clip"], {}, "no model 'clip'.*video-llava"),
        (["eve-star"], {"dtype": "int3"}, "no data type 'int3'.*bfloat16"),
        (["eve-star"], {"device": "tpu"}, "device 'tpu' is not available"),
    ],
)
def test_wrong_requests(names, settings, message):
    with pytest.raises(ValueError, match=message):
        measure(names, 448, 448, rounds=1, **settings)


def test_the_verb(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["videopanda", "bench", "efficiency", "--flops-only", "--json"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert not exit_.value.code
    report = json.loads(capsys.readouterr().out)
    assert set(report["models"]) == set(CONTENDERS)
    assert all(row["params"] > 0 and row["macs"] > 0 for row in report["models"].values())
    assert "latency_ms" not in report["models"]["video-panda"]
