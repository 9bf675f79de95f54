"""Every reference number holds, and the script that says so notices what is wrong, strange or missing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

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
    assert "30 comparisons in 2 files, 0 files failed" in out


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


TENSORS = {"student.sample": torch.zeros(1)}
NESTED = b"[" * 100_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("half.safetensors", (GOLDEN / "stab_image_t1.safetensors").read_bytes()[:2000], "cannot be read"),
        ("table.json", b'[{"num_frames": 8,', "cannot be read"),
        ("table.json", b"\xff\xfe", "cannot be read"),
        ("table.json", NESTED, "cannot be read"),
        ("table.json", b'{"what": "else"}', "nothing of the golden layout"),
        ("empty.json", b"", "cannot be read"),
        ("notes.txt", b"hello", "nothing of the golden layout"),
        ("tokenizer.json", b"{}", "nothing of the golden layout"),
        ("case.json", b'{"question": "Why?"}', "texts of a whole model without its tensors"),
        ("some.safetensors", save(TENSORS), "ValueError: its name must tell the source size"),
        ("preprocess_0x0_1f.safetensors", save(TENSORS), "ValueError: A frame needs at least one pixel"),
        ("rows.json", b'[{"num_frames": 8, "avg_fps": 1, "positions": 7}]', "'max_frames' is missing"),
        ("rows.json", b'{"train": [["x"]], "infer": []}', "ValueError: there is no tokenizer beside it"),
    ],
    ids=lambda value: value if isinstance(value, str) else "content",
)
def test_a_strange_file_fails(small, capsys, name, content, message):
    (small / name).write_bytes(content)
    code, out = report(small, capsys)
    assert code == 1
    assert f"FAILED  {name}: {message}" in out
    assert "ok      stab_image_t1.safetensors" in out


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("tensor", "'patch_hw' is missing"),
        ("weights", "ValueError: there is no weights of a tower beside it"),
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
    assert f"FAILED  stab_image_t1.safetensors: {message}" in out


@pytest.mark.parametrize("damage", ["tokenizer", "fewer frames", "gradients"])
def test_a_damaged_whole_model_fails(tmp_path, capsys, damage):
    for file in (*GOLDEN.glob("full_small_*"), GOLDEN / "tiny_tokenizer"):
        (shutil.copytree if file.is_dir() else shutil.copy)(file, tmp_path / file.name)
    name = "full_small_train_and_generate"
    if damage == "tokenizer":
        (tmp_path / "tiny_tokenizer" / "tokenizer.model").write_bytes(b"no model")
    elif damage == "fewer frames":
        golden = load_file(tmp_path / f"{name}.safetensors")
        golden["feature_lens"] = golden["feature_lens"][:, :7].clone()
        save_file(golden, tmp_path / f"{name}.safetensors")
    else:
        (tmp_path / f"{name}.json").write_text('{"grad_l2": []}')
    code, out = report(tmp_path, capsys)
    assert code == 1
    assert f"FAILED  {name}.safetensors: " in out


# -- other cases of the same kind --------------------------------------------------------------------------------------
def frames_of(golden, frames):
    """The video of another file of one video: some of its frames, in whole segments of four."""
    taken = {"patch_hw": golden["patch_hw"][:, frames], "placement.v0": golden["placement.v0"].clone()}
    taken["placement.v0"][5] = len(frames)
    for name in ("frames_q.v0", "mask.v0"):
        taken[name] = golden[name][frames]
    return taken | {f"tokens.v0.f{t:02}": golden[f"tokens.v0.f{f:02}"] for t, f in enumerate(frames)}


def side_by_side(*videos):
    """One file of several videos of the same length."""
    joined = {"patch_hw": torch.cat([video["patch_hw"] for video in videos])}
    for v, video in enumerate(videos):
        joined |= {name.replace(".v0", f".v{v}"): tensor for name, tensor in video.items() if ".v0" in name}
    return joined


def as_valid_part(golden):
    """The same video, stored without what surrounds its picture."""
    top, left, height, width, _, real = golden["placement.v0"].tolist()
    other = {name: tensor for name, tensor in golden.items() if name != "frames_q.v0"}
    other["valid_q.v0"] = golden["frames_q.v0"][:real, :, top : top + height, left : left + width]
    other["pad_q"] = golden["frames_q.v0"][0, :, 0, 0]
    return other


def two_videos_swapped(golden):
    """A batch of two in the other order; what was generated for the first one is left out."""
    swapped = {name: tensor for name, tensor in golden.items() if not name.startswith("gen.")}
    for name, tensor in swapped.items():
        if name.endswith((".v0", ".v1")):
            swapped[name] = golden[name[:-1] + "10"[int(name[-1])]]
        elif tensor.ndim > 1 and len(tensor) == 2 and not name.startswith(("grad.", "compressor.")):
            swapped[name] = tensor.flip(0)
    return swapped


def test_other_cases_of_the_same_kind(tmp_path, capsys):
    """Other frame counts, several videos and images, another storage, another order in the batch."""
    wide = load_file(GOLDEN / "stab_wide_8f.safetensors")
    image = load_file(GOLDEN / "stab_image_t1.safetensors")
    whole = load_file(GOLDEN / "full_small_train_and_generate.safetensors")
    texts = json.loads((GOLDEN / "full_small_train_and_generate.json").read_text())
    first, second, both = range(4), range(4, 8), range(8)
    cases = {
        "stab_wide_4f": frames_of(wide, list(second)),
        "stab_wide_16f": frames_of(wide, [*both, *second, *first]),
        "stab_two_videos": side_by_side(frames_of(wide, list(first)), frames_of(wide, list(second))),
        "stab_two_images": side_by_side(image, image),
        "stab_image_valid": as_valid_part(image),
        "distill_swapped": two_videos_swapped(load_file(GOLDEN / "distill_wide_8f.safetensors")),
        "full_swapped": two_videos_swapped(whole),
    }
    for name, tensors in cases.items():
        save_file(
            {key: tensor.clone().contiguous() for key, tensor in tensors.items()}, tmp_path / f"{name}.safetensors"
        )
    (tmp_path / "full_swapped.json").write_text(json.dumps(texts | {"conversations": texts["conversations"][::-1]}))
    for file in ("stab_small_weights_a", "full_small_weights"):
        shutil.copy(GOLDEN / f"{file}.safetensors", tmp_path)
    shutil.copy(GOLDEN / "full_small_config.json", tmp_path)
    shutil.copytree(GOLDEN / "tiny_tokenizer", tmp_path / "toy_tokenizer")
    code, out = report(tmp_path, capsys)
    assert code == 0, out
    assert [name for name in cases if f"ok      {name}.safetensors" not in out] == []


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
