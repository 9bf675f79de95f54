"""Protects a run from what goes wrong around it: divergence, a second run, damaged files, a full disk."""

import json
import logging
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from clips import Clips, Disturbed, metrics, run_clips
from safetensors.torch import load_file, save_file

from tiny import tiny_model, tiny_processor
from videopanda.checkpoints.tensors import CheckpointError
from videopanda.models.load import load_checkpoint
from videopanda.training.run_folder import MetricsFile, complete_checkpoints, last_good_checkpoint, locked, seal
from videopanda.training.stages import PRESETS
from videopanda.training.trainer import DivergedError
from videopanda.video.read import VideoReadError

STEPS = 6


def run(folder: Path, **fields) -> Path:
    return run_clips(folder, **{"batch_size": 2, "max_steps": STEPS, "save_steps": 1, **fields})


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return run(tmp_path_factory.mktemp("whole"))


def equal(one: Path, other: Path) -> bool:
    a, b = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    same = [(row["step"], row["loss"]) for row in metrics(one)] == [
        (row["step"], row["loss"]) for row in metrics(other)
    ]
    return same and a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- divergence --------------------------------------------------------------------------------------------------------
def test_a_diverged_run_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    """Without the stop, transformers logs a loss of 0.0 and saves weights of NaN over everything good."""
    rates = dict.fromkeys(("vision_lr", "language_model_lr"), 1e18)
    with pytest.raises(DivergedError, match=r"diverged at step \d+: .* rank 0, rows \d+, \d+\. Lower the"):
        run(tmp_path, warmup_ratio=0.0, max_grad_norm=0.0, **rates)
    assert not (tmp_path / "model.safetensors").exists()
    for checkpoint in complete_checkpoints(tmp_path):
        assert all(tensor.isfinite().all() for tensor in load_file(checkpoint / "model.safetensors").values())
    assert all(math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]) for row in metrics(tmp_path))


def test_the_rows_of_a_bad_batch_are_named(tmp_path):
    model = tiny_model()

    def poison():
        with torch.no_grad():
            model.lm_head.weight[5] = math.nan

    with pytest.raises(DivergedError, match=r"step 3: loss nan on rank 0, rows 4, 5\. .*checkpoint is .*checkpoint-2$"):
        run(tmp_path, model=model, dataset=Disturbed(4, poison))
    assert [row["step"] for row in metrics(tmp_path)] == [1, 2]


@pytest.mark.parametrize("error", [ValueError("sample 5: too long"), VideoReadError("5.mp4", "empty")])
def test_an_error_of_a_worker_is_told_as_without_workers(tmp_path, error):
    def fail() -> None:
        raise error

    with pytest.raises(ValueError, match=f"^{error}$"):
        run_clips(tmp_path, dataset=Disturbed(5, fail), batch_size=2, max_steps=4, num_workers=1)


def test_an_infinite_gradient_stops_the_run(tmp_path):
    model = tiny_model()
    model.lm_head.weight.register_hook(lambda grad: grad / 0.0)
    with pytest.raises(DivergedError, match=r"step 1: gradient norm (inf|nan) on rank 0, rows 0, 1\."):
        run(tmp_path, model=model)
    assert complete_checkpoints(tmp_path) == []


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    """The last step's update is seen by no loss."""
    model = tiny_model()
    norm = next(module for module in model.modules() if hasattr(module, "running_mean"))
    norm.register_forward_hook(lambda module, *_: module.running_var.fill_(math.inf).isnan().any().item() or None)
    with pytest.raises(DivergedError, match="weights that are not finite on rank 0"):
        run(tmp_path, model=model, max_steps=1)
    assert list(tmp_path.glob("checkpoint-*")) == []


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = tiny_model()
    model.model.projector.up.weight.data[0, 0] = math.inf
    model.save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model\.projector\.up\.weight .*not finite"):
        load_checkpoint(tmp_path, torch.float32)


def test_gradients_are_clipped_unless_the_published_scripts_are_repeated():
    norms = {preset: {stage.max_grad_norm for stage in table.values()} for preset, table in PRESETS.items()}
    assert norms == {"paper": {1.0}, "scripts": {0.0}, "nano": {1.0}, "custom": {1.0}, "elva": {1.0}}


def test_the_log_is_strict_json(tmp_path):
    class State:
        is_world_process_zero, global_step = True, 3

    MetricsFile(tmp_path / "metrics.jsonl").on_log(None, State, None, {"loss": math.nan, "rate": math.inf, "lr": 0.5})

    def refuse(name):
        raise AssertionError(name)

    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert row == {"step": 3, "loss": None, "rate": None, "lr": 0.5}


# -- two runs in one folder --------------------------------------------------------------------------------------------
HOLD = "import sys; from pathlib import Path; from videopanda.training.run_folder import locked\n"
HOLD += "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"


def test_a_second_run_in_the_folder_is_refused(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"another run \(process {holder.pid} on .*\) is using {tmp_path}"):
            run(tmp_path)
        assert not (tmp_path / "run.json").exists()
        holder.kill()  # a lock ends with its process
        holder.wait()
        with locked(tmp_path):
            pass
    finally:
        holder.kill()
        holder.communicate()


# -- damaged checkpoints -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("damage", ["cut", "zeros", "missing", "list"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(whole, tmp_path, caplog, damage):
    """As after a power loss: names and sizes are on the disk, the content is not."""
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, dataset=Disturbed(8, lambda: (_ for _ in ()).throw(KeyboardInterrupt)))
    newest = complete_checkpoints(tmp_path)[-1]
    assert newest.name == "checkpoint-4"
    file = newest / {"list": "complete", "missing": "trainer_state.json"}.get(damage, "optimizer.pt")
    size = file.stat().st_size
    if damage == "missing":
        file.unlink()
    else:
        os.truncate(file, size // 2)
        os.truncate(file, size if damage == "zeros" else size // 2)
    with caplog.at_level(logging.WARNING):
        run(tmp_path, resume=True)
    assert "checkpoint-4 is damaged" in caplog.text
    assert "falling back to the previous one" in caplog.text
    assert equal(tmp_path, whole)


def test_a_run_with_damaged_checkpoints_only_does_not_start_again_unasked(tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "weights").write_text("good")
    seal(tmp_path / "checkpoint-3")
    assert last_good_checkpoint(tmp_path) == tmp_path / "checkpoint-3"
    (tmp_path / "checkpoint-3" / "weights").write_text("evil")
    with pytest.raises(CheckpointError, match=r"all checkpoints in .* are damaged: start again with another --output"):
        last_good_checkpoint(tmp_path)


# -- a full disk -------------------------------------------------------------------------------------------------------
def limited(size: int) -> None:
    """No file may grow beyond so many bytes from now on: writes fail as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.mark.parametrize("size", [20_000, 500_000])  # in the weights, in the state of the optimizer
def test_a_full_disk_leaves_no_half_checkpoint(whole, tmp_path, size):
    weights, state = (whole / f"checkpoint-{STEPS}" / name for name in ("model.safetensors", "optimizer.pt"))
    assert 20_000 < weights.stat().st_size < 500_000 < state.stat().st_size
    try:
        with pytest.raises(
            OSError, match=r"cannot write checkpoint-4 to .* GB free\): .* Free some disk space, then continue"
        ):
            run(tmp_path, dataset=Disturbed(7, lambda: limited(size)))
    finally:
        limited(resource.RLIM_INFINITY)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    run(tmp_path, resume=True)
    assert equal(tmp_path, whole)


def test_a_full_disk_leaves_no_half_model(whole, tmp_path, monkeypatch):
    """All steps are done, then the trained model does not fit."""
    real = Clips.content

    def content(self):
        limited(20_000)
        return real(self)

    run(tmp_path, max_steps=STEPS)
    for file in ("model.safetensors", "config.json"):
        (tmp_path / file).unlink()
    monkeypatch.setattr(Clips, "content", content)
    try:
        with pytest.raises(OSError, match="cannot write the trained model to"):
            run(tmp_path, resume=True)
    finally:
        limited(resource.RLIM_INFINITY)
    assert not (tmp_path / "config.json").exists()
    assert not (tmp_path / "model.safetensors").exists()
    monkeypatch.undo()
    run(tmp_path, resume=True)
    assert equal(tmp_path, whole)


def test_loading_a_checkpoint_checks_for_finite_weights(whole, tmp_path):
    weights = load_file(whole / "model.safetensors")
    name = next(iter(weights))
    weights[name].view(-1)[0] = math.nan
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for file in ("config.json", "generation_config.json"):
        (tmp_path / file).write_bytes((whole / file).read_bytes())
    tiny_processor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not finite"):
        load_checkpoint(tmp_path, torch.float32)
