"""Protects a run that is killed: at any moment, also inside of a checkpoint, it goes on as if nothing had been."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import Clips, Disturbed, held_out, metrics, run_clips
from safetensors.torch import load_file

from videopanda.training.callbacks import RunStoppedError, StallWatchdog
from videopanda.training.run_folder import MetricsFile, complete_checkpoints

STEPS = 12


def run(folder: Path, workers: int = 2, **fields) -> Path:
    return run_clips(folder, batch_size=2, max_steps=STEPS, save_steps=1, num_workers=workers, **fields)


def trace(folder: Path) -> list[tuple]:
    return [(row["step"], row["loss"], row["grad_norm"], row["learning_rate"]) for row in metrics(folder)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return run(tmp_path_factory.mktemp("whole"), workers=0)


def test_the_number_of_workers_changes_nothing(whole, tmp_path):
    run(tmp_path, workers=3)
    assert trace(tmp_path) == trace(whole)


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 7])
def test_a_killed_run_goes_on_bit_identically(whole, tmp_path, step):
    folders = [str(Path(__file__).parents[1]), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    paths = os.pathsep.join(folders)
    process = subprocess.Popen([sys.executable, __file__, str(tmp_path)], env={**os.environ, "PYTHONPATH": paths})
    try:
        while process.poll() is None and not (tmp_path / f"checkpoint-{step}").exists():
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)  # at once: the checkpoint is being written
        process.wait()
    assert not (tmp_path / "config.json").exists()
    assert complete_checkpoints(tmp_path)
    run(tmp_path, resume=True)
    assert trace(tmp_path) == trace(whole)
    one, other = load_file(tmp_path / "model.safetensors"), load_file(whole / "model.safetensors")
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


class Mixed(Clips):
    """Clips that are known to be longer than text."""

    def lengths(self) -> np.ndarray:
        return np.array([30 if i % 6 == 5 else 380 for i in range(len(self))])


def test_a_run_with_several_clips_in_a_row_goes_on_bit_identically(tmp_path, caplog):
    """Two rows of three clips and some text each, four steps; the second run is stopped inside the first epoch."""
    fields = {"batch_size": 2, "max_steps": 4, "max_length": 1200, "pack_rows": True, "gradient_checkpointing": True}
    with caplog.at_level("INFO"):
        run_clips(tmp_path / "whole", dataset=Mixed(), **fields)
    assert "several clips share a row of at most 1,200 tokens, each with attention to itself" in caplog.text
    assert len(trace(tmp_path / "whole")) == 4
    stopping = Disturbed(43, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    stopping.lengths = Mixed().lengths
    with pytest.raises(RunStoppedError):
        run_clips(tmp_path / "stopped", dataset=stopping, **fields)
    assert 0 < len(trace(tmp_path / "stopped")) < 4
    run_clips(tmp_path / "stopped", dataset=Mixed(), resume=True, **fields)
    assert trace(tmp_path / "stopped") == trace(tmp_path / "whole")


@pytest.mark.parametrize("killed", [13, None], ids=["killed after the best", "finished"])
def test_a_run_that_ends_with_its_best_weights_goes_on_with_them(tmp_path, killed):
    def run(folder: Path, **fields) -> Path:
        rates = {"vision_lr": 0.3, "language_model_lr": 0.3, "max_grad_norm": 0.0, "batch_size": 2}
        return run_clips(folder, held_out=held_out(), max_steps=16, save_steps=3, early_stop=9, **rates, **fields)

    def kill() -> None:
        raise KeyboardInterrupt

    whole = run(tmp_path / "whole")
    entries = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["validation_loss"] for row in entries if "validation_loss" in row}
    assert 0 < min(losses, key=losses.__getitem__) < 12  # before the checkpoint from which it goes on
    if killed is None:
        shutil.copytree(whole, tmp_path / "again")
    else:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "again", dataset=Disturbed(2 * killed, kill))
    run(tmp_path / "again", resume=True)
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, tmp_path / "again"))
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_a_checkpoint_that_is_not_complete_does_not_count(whole, tmp_path):
    for step in (1, 2, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}" / "complete").touch()
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-10"]
    kept = [f"checkpoint-{STEPS - 1}", f"checkpoint-{STEPS}"]  # keep_checkpoints = 2
    assert [path.name for path in complete_checkpoints(whole)] == kept


def test_the_record_is_wound_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    MetricsFile(path).rewind(2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    path.write_text('{"step": 0}\n{"step": 1}\n')
    MetricsFile(path).rewind(0)  # a run without checkpoints starts anew, also with its first measurement
    assert path.read_text() == ""


# -- signals and stalls ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_a_signal_stops_after_a_checkpoint(whole, tmp_path, number):
    dataset = Disturbed(7, lambda: os.kill(os.getpid(), number))
    with pytest.raises(RunStoppedError, match="stopped after step 4"):
        run(tmp_path, workers=0, dataset=dataset)
    assert not (tmp_path / "config.json").exists()
    run(tmp_path, workers=0, resume=True)
    assert trace(tmp_path) == trace(whole)


def test_a_rank_that_stalls_is_named_with_its_file(tmp_path, caplog):
    """The worker is up and stuck at a clip until it is named, however slowly this machine works."""
    named = tmp_path / "named"

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "worker 0 is reading clip 7" in record.getMessage():
                named.touch()

    def stuck() -> None:
        given_up = time.monotonic() + 120
        while not named.exists() and time.monotonic() < given_up:
            time.sleep(0.05)

    listener, logger = Listener(), logging.getLogger("videopanda.training.callbacks")
    logger.addHandler(listener)
    try:
        run(tmp_path / "run", workers=1, stall_seconds=1.0, dataset=Disturbed(7, stuck))
    finally:
        logger.removeHandler(listener)
    assert named.exists()
    assert "rank 0 has waited" in caplog.text
    assert "s for data: worker 0 is reading clip 7" in caplog.text
    assert not (tmp_path / "run" / "reading").exists()


def test_a_rank_inside_of_a_step_says_so(tmp_path):
    watch = StallWatchdog(1.0, 3, tmp_path)
    watch.on_step_begin(None, None, None)
    assert watch.message(7.4) == "rank 3 has been in the same step for 7 s: it is computing or waiting for another rank"


if __name__ == "__main__":
    run(Path(sys.argv[1]))
