"""What watches over a run: a rank that stalls is named, and a signal stops it behind a checkpoint."""

import logging
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

logger = logging.getLogger(__name__)


class StallWatch(TrainerCallback):
    """Says, once per stall, that this rank makes no step, and whether it waits for data or is inside of a step.

    Args:
        seconds: without a step, after which it speaks.
        rank: of this process.
        reading: folder in which the workers note what they read (`BatchStream`).
    """

    def __init__(self, seconds: float, rank: int, reading: Path):
        self.seconds, self.rank, self.reading = seconds, rank, reading
        self.since, self.in_step, self.said = time.monotonic(), False, False
        self.over = threading.Event()

    def on_train_begin(self, args, state, control, **kwargs):
        """Begin to watch."""
        self._moved(in_step=False)
        threading.Thread(target=self._watch, daemon=True, name="stall watch").start()

    def on_step_begin(self, args, state, control, **kwargs):
        """The batch is there."""
        self._moved(in_step=True)

    def on_prediction_step(self, args, state, control, **kwargs):
        """A batch of validation is done."""
        self._moved(in_step=True)

    def on_step_end(self, args, state, control, **kwargs):
        """The step is made; now the next batch is waited for."""
        self._moved(in_step=False)

    def on_train_end(self, args, state, control, **kwargs):
        """Nothing more to watch."""
        self.over.set()

    def _moved(self, in_step: bool) -> None:
        self.since, self.in_step, self.said = time.monotonic(), in_step, False

    def _watch(self) -> None:
        while not self.over.wait(min(1.0, self.seconds / 4)):
            waited = time.monotonic() - self.since
            if waited > self.seconds and not self.said:
                self.said = True
                logger.warning("%s", self.message(waited))

    def message(self, waited: float) -> str:
        """What this rank does instead of a step."""
        if self.in_step:
            return (
                f"rank {self.rank} has been inside of a step for {waited:.0f} s: it computes, or waits for another rank"
            )
        notes = sorted(self.reading.glob(f"rank{self.rank}-worker*"))
        reading = [
            f"worker {note.name.rpartition('worker')[2]} reads {text}" for note in notes if (text := _text(note))
        ]
        return f"rank {self.rank} has waited {waited:.0f} s for data: {'; '.join(reading) or 'no worker reads'}"


def _text(path: Path) -> str:
    return ", ".join(path.read_text(encoding="utf-8", errors="replace").split("\n"))


class StopOnSignal(TrainerCallback):
    """SIGTERM and SIGUSR1, which clusters send before the time is over, end the run behind a checkpoint.

    All ranks stop behind the same step, whichever of them got the signal.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._asked = False
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        """Begin to listen, where Python lets us."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                self._before[number] = signal.signal(number, self._ask)

    def on_step_end(self, args, state, control, **kwargs):
        """Save and stop if any rank was asked to."""
        asked = self._asked
        if dist.is_initialized():
            flag = torch.tensor([float(asked)], device=args.device)
            dist.all_reduce(flag, dist.ReduceOp.MAX)
            asked = bool(flag.item())
        if asked and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        self._asked = True


class RunStoppedError(Exception):
    """A signal has ended a run behind a checkpoint; it can be gone on with."""
