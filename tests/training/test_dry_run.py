"""Protects the dry run: its plan adds up, and its trial makes two real steps on several processes."""

from pathlib import Path

import pytest

import videopanda
from videopanda.training.dry_run import plan, try_steps

NANO = Path(videopanda.__file__).parent / "assets" / "nano"
SETTINGS = ["max_steps=10", "batch_size=2"]


def test_the_plan_counts_rows_steps_and_parameters():
    lines = plan("prealign", "nano", SETTINGS, NANO, 2)
    text = "\n".join(lines)
    assert '"max_steps": 10' in lines[0]
    assert "4 rows per step on 2 processes; 10 steps" in text
    assert [line.split()[0] for line in lines if "FROZEN" in line] == ["language_model"]


@pytest.mark.slow
def test_the_trial_makes_two_steps_on_two_processes():
    assert try_steps("pretrain", "nano", SETTINGS, NANO, 2).startswith(
        "trial            2 steps on 2 processes (ddp): losses "
    )


def test_a_plan_without_a_model_is_refused():
    with pytest.raises(ValueError, match="pass --model DIR"):
        plan("pretrain", "nano", SETTINGS, None, 2)
