"""Every reference number holds, and the script that says so notices what is wrong, strange or missing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import golden_check
from golden_checks.findings import Findings

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.name for path in golden_check.sort_files(GOLDEN).cases)


def report(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    code = golden_check.main([str(folder)])
    return code, capsys.readouterr().out


@pytest.mark.parametrize("name", CASES)
def test_golden_file(name):
    folder = golden_check.sort_files(GOLDEN)
    findings = golden_check.check(folder, GOLDEN / name, folder.cases[GOLDEN / name])
    broken = {what: findings[what] for what in findings if not findings.holds(what)}
    assert findings
    assert broken == {}


def test_the_golden_folder_is_complete():
    folder = golden_check.sort_files(GOLDEN)
    assert folder.unknown == {}
    kinds = sorted(folder.cases.values())
    assert {kind: kinds.count(kind) for kind in kinds} == {
        **{"stab": 5, "real": 1, "distill": 2, "whole": 1},
        **{"preprocess": 3, "preprocess_table": 1, "sampling": 1, "prompts": 1},
    }


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder with one image case, its weights, a table and the documentation."""
    for name in ("stab_image_t1.safetensors", "stab_small_weights_a.safetensors", "frame_sampling.json"):
        shutil.copy(GOLDEN / name, tmp_path / name)
    (tmp_path / "README.md").write_text("# Golden data\n")
    return tmp_path


def test_a_good_folder_passes(small, capsys):
    code, out = report(small, capsys)
    assert code == 0
    lines = {line.split()[1].rstrip(":"): line for line in out.splitlines() if line.startswith("ok")}
    assert set(lines) == {"stab_image_t1.safetensors", "stab_small_weights_a.safetensors", "frame_sampling.json"}
    assert "tolerance 1e-04" in lines["stab_image_t1.safetensors"]
    assert "29 comparisons in 2 files, 0 files failed" in out


def test_files_are_known_by_their_contents(small, capsys):
    """Other names, other weights beside the right ones, a folder below: all the same."""
    (small / "more").mkdir()
    (small / "stab_image_t1.safetensors").rename(small / "more" / "an_image.safetensors")
    (small / "stab_small_weights_a.safetensors").rename(small / "z.safetensors")
    (small / "frame_sampling.json").rename(small / "frames.json")
    weights = load_file(small / "z.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, small / "a.safetensors")
    code, out = report(small, capsys)
    assert code == 0, out
    assert "ok      more/an_image.safetensors" in out


@pytest.mark.parametrize("amount", [1e-3, float("nan")])
def test_one_wrong_number_fails(small, capsys, amount):
    golden = load_file(small / "stab_image_t1.safetensors")
    golden["tokens.v0.f00"][3, 5] += amount
    save_file(golden, small / "stab_image_t1.safetensors")
    code, out = report(small, capsys)
    assert code == 1
    assert "FAILED  stab_image_t1.safetensors: largest error" in out
    assert "ok      frame_sampling.json" in out


def test_one_wrong_position_fails(small, capsys):
    table = json.loads((small / "frame_sampling.json").read_text())
    table[3]["positions"][2] += 1
    (small / "frame_sampling.json").write_text(json.dumps(table))
    code, out = report(small, capsys)
    assert code == 1
    assert "FAILED  frame_sampling.json" in out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("half.safetensors", (GOLDEN / "stab_image_t1.safetensors").read_bytes()[:2000], "cannot be read"),
        ("table.json", b'[{"num_frames": 8,', "cannot be read"),
        ("table.json", b'{"what": "else"}', "nothing of the golden layout"),
        ("notes.txt", b"hello", "nothing of the golden layout"),
    ],
)
def test_a_strange_file_fails(small, capsys, name, content, message):
    (small / name).write_bytes(content)
    code, out = report(small, capsys)
    assert code == 1
    assert f"FAILED  {name}: {message}" in out


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("tensor", "KeyError"),
        ("weights", "no weights of a tower"),
    ],
)
def test_a_missing_companion_fails(small, capsys, missing, message):
    if missing == "weights":
        (small / "stab_small_weights_a.safetensors").unlink()
    else:
        golden = load_file(small / "stab_image_t1.safetensors")
        del golden["patch_hw"]
        save_file(golden, small / "stab_image_t1.safetensors")
    code, out = report(small, capsys)
    assert code == 1
    assert "FAILED  stab_image_t1.safetensors" in out
    assert message in out


def test_weights_alone_are_nothing_that_was_checked(small, capsys):
    (small / "stab_image_t1.safetensors").unlink()
    (small / "frame_sampling.json").unlink()
    code, out = report(small, capsys)
    assert code == 1
    assert "nothing was checked" in out


def test_the_script_on_an_empty_folder(tmp_path):
    command = [sys.executable, str(Path(golden_check.__file__)), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nothing was checked" in done.stdout
    assert golden_check.main([str(tmp_path / "nowhere")]) == 1


def test_findings_notice_shapes_and_nothing():
    findings = Findings()
    assert not findings.hold
    with pytest.raises(ValueError, match="shape"):
        findings.compare("x", torch.zeros(2), torch.zeros(3), 1.0)
    findings.compare("x", [1.0, 2.0], [1.0, 2.5], 0.5)
    assert findings.hold
    findings.require("y", False)
    assert (findings.hold, findings.worst) == (False, "y")
