"""Protects `runs/slurm.sh`: three chained jobs, one process per task that finds the others, and queued again on 75.

SLURM's commands are stood in for by scripts that note how they are called; `videopanda` notes what it would run.
"""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "runs" / "slurm.sh"
STAND_INS = {
    "sbatch": 'echo "$STAGE from $START after $*" >> "$NOTES"; wc -l < "$NOTES"',
    "scontrol": 'echo "scontrol $*" >> "$NOTES"; [ "$1" != show ] || printf "node-a\\nnode-b\\n"',
    "srun": 'for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" || code=$?; done; exit "${code:-0}"',
    "videopanda": 'echo "$RANK $LOCAL_RANK of $WORLD_SIZE at $MASTER_ADDR: $*" >> "$NOTES"; exit "$CODE"',
}


@pytest.fixture
def notes(tmp_path, monkeypatch) -> Path:
    for name, lines in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for name in ("MODEL", "DATA_ROOT", "TEACHER"):
        monkeypatch.setenv(name, name.lower())
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return tmp_path / "notes"


def test_three_jobs_are_chained(notes):
    done = subprocess.run(["bash", SCRIPT], capture_output=True, text=True)
    out = notes.parent / "out"
    assert done.stdout.splitlines() == ["prealign: job 1", "pretrain: job 2", "finetune: job 3"], done.stderr
    starts = ["prealign from model after", f"pretrain from {out}/prealign after", f"finetune from {out}/pretrain after"]
    lines = notes.read_text().splitlines()
    assert [line.partition(" --")[0] for line in lines] == starts
    assert ["afterok:1" in line for line in lines] == [False, True, False]
    assert "--dependency=afterok:2 " in lines[2]


@pytest.mark.parametrize("code", [0, 75, 1])
def test_a_job_starts_a_process_per_task_and_is_queued_again_on_75(notes, monkeypatch, code):
    for name, value in {"SLURM_JOB_ID": 7, "SLURM_NTASKS": 2, "SLURM_JOB_NODELIST": "node-[a-b]", "CODE": code}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("STAGE", "finetune")
    monkeypatch.setenv("START", "start")
    assert subprocess.run(["bash", SCRIPT]).returncode == code
    first, *ranks = notes.read_text().splitlines()
    assert first == "scontrol show hostnames node-[a-b]"
    assert [line.partition(": ")[0] for line in ranks[:2]] == ["0 0 of 2 at node-a", "1 1 of 2 at node-a"]
    command = ranks[0].partition(": ")[2].split()
    assert command[:7] == ["train", "finetune", "--config", "paper", "--model", "start", "--output"]
    assert {"data=data_root/train/train_json/videochatgpt_tune_.json", "strategy=zero2"} <= set(command)
    assert ranks[2:] == (["scontrol requeue 7"] if code == 75 else [])
