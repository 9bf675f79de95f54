"""Protects runs on several processes: over gloo, losses are those of one process at the same global batch.

The processes are real ones, started by torchrun; each runs this file as a program.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import Clips

from tiny import tiny_model, tiny_processor
from videopanda.training.run import part_processes, run_stage
from videopanda.training.stages import StageConfig

STEPS = 20


def run(folder: Path, strategy: str, accumulation: int) -> None:
    stage = StageConfig(
        "pretrain",
        data="clips",
        batch_size=1,
        accumulation=accumulation,
        max_steps=STEPS,
        dtype="float32",
        stab_lr=1e-3,
        projector_lr=1e-3,
        language_model_lr=1e-3,
        log_steps=1,
        save_steps=10,
        strategy=strategy,
    )
    torch.set_num_threads(1)
    run_stage(stage, tiny_model(), tiny_processor(), Clips(), folder)


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def launch(folder: Path, processes: int, strategy: str, accumulation: int = 1) -> Path:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"DS_ACCELERATOR": "cpu", "ACCELERATE_USE_CPU": "true"}
    job = [*command, __file__, str(folder), strategy, str(accumulation)]
    done = subprocess.run(job, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[int, list[float]]:
    """Losses of one process, by rows per step."""
    found = {}
    for rows in (2, 4):
        folder = tmp_path_factory.mktemp(f"alone{rows}")
        run(folder, "ddp", rows)
        found[rows] = losses(folder)
    assert len(found[4]) == STEPS
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "processes"), [("ddp", 2), ("ddp", 4), ("fsdp2", 2), ("zero2", 2), ("zero3", 2)])
def test_losses_are_those_of_one_process(alone, tmp_path, strategy, processes):
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed")
    found = losses(launch(tmp_path / "run", processes, strategy))
    difference = np.abs(np.array(found) - np.array(alone[processes])).max()
    assert difference <= 1e-5  # measured worst: 9.6e-7, with four processes; 0 with two


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    part_processes()
