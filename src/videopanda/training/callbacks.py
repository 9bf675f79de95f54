"""Callbacks that detect stalled ranks and stop on a signal after a checkpoint."""

import logging
import math
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import TrainerCallback

logger = logging.getLogger(__name__)


class StallWatchdog(TrainerCallback):
    """Warns, once per stall, that this rank makes no progress, and whether it is waiting for data or inside a step.

    Args:
        seconds: without a step before it warns.
        rank: of this process.
        reading: folder where workers note the files they are reading (`BatchStream`).
    """

    def __init__(self, seconds: float, rank: int, reading: Path):
        self.seconds, self.rank, self.reading = seconds, rank, reading
        self.since, self.in_step, self.said = time.monotonic(), False, False
        self.over = threading.Event()

    def on_train_begin(self, args, state, control, **kwargs):
        """Start watching."""
        self._moved(in_step=False)
        threading.Thread(target=self._watch, daemon=True, name="stall watchdog").start()

    def on_step_begin(self, args, state, control, **kwargs):
        """A batch has arrived."""
        self._moved(in_step=True)

    def on_prediction_step(self, args, state, control, **kwargs):
        """A batch of validation is done."""
        self._moved(in_step=True)

    def on_step_end(self, args, state, control, **kwargs):
        """The step is done; waiting for the next batch."""
        self._moved(in_step=False)

    def on_train_end(self, args, state, control, **kwargs):
        """Stop watching."""
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
        """What this rank is doing."""
        if self.in_step:
            return (
                f"rank {self.rank} has been in the same step for {waited:.0f} s: it is computing or waiting for "
                "another rank"
            )
        notes = sorted(self.reading.glob(f"rank{self.rank}-worker*"))
        reading = [
            f"worker {note.name.rpartition('worker')[2]} is reading {text}" for note in notes if (text := _text(note))
        ]
        return f"rank {self.rank} has waited {waited:.0f} s for data: {'; '.join(reading) or 'no worker is reading'}"


def _text(path: Path) -> str:
    return ", ".join(path.read_text(encoding="utf-8", errors="replace").split("\n"))


class EarlyStop(TrainerCallback):
    """Ends training after `patience` validations without a better loss, and keeps the best weights: in memory, and in
    `file` for a run that is resumed.
    """

    def __init__(self, model: torch.nn.Module, patience: int, file: Path):
        self.file = file
        self.trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.statistics = dict(model.named_buffers())
        self.patience, self.waited, self.best = patience, 0, math.inf
        self.kept: dict[str, torch.Tensor] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        """Continue where a run was interrupted: its losses are in its record, the weights of the best one in the file.

        A file of a later step than the checkpoint is written again when that step is repeated.
        """
        found = [(row["step"], row["validation_loss"]) for row in state.log_history if "validation_loss" in row]
        if not found or not self.file.exists():
            return
        best = min(range(len(found)), key=lambda i: found[i][1])
        with safe_open(self.file, "pt") as file:
            if file.metadata()["step"] != str(found[best][0]):
                return
            self.kept = {name: file.get_tensor(name) for name in (*self.trained, *self.statistics)}
        self.best, self.waited = found[best][1], len(found) - 1 - best

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Keep the weights, or count another validation without a better loss."""
        if metrics["validation_loss"] < self.best:
            self.best, self.waited = metrics["validation_loss"], 0
            kept = {**self.trained, **self.statistics}
            self.kept = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in kept.items()}
            if state.is_world_process_zero:
                part = self.file.with_name(f"{self.file.name}.part")
                save_file(self.kept, part, {"step": str(state.global_step)})
                os.replace(part, self.file)
            return
        self.waited += 1
        if self.waited >= self.patience:
            logger.info("the loss on held-out clips has not improved in %d evaluations: stopping early", self.waited)
            control.should_training_stop = True

    @torch.no_grad()
    def restore(self) -> None:
        """Put the best weights back."""
        for name, tensor in self.kept.items():
            (self.trained.get(name, self.statistics.get(name))).copy_(tensor)  # type: ignore[union-attr]  # one of both has it


class StopOnSignal(TrainerCallback):
    """Ctrl-C (SIGINT), SIGTERM and SIGUSR1, which clusters send before the time limit: stop after a checkpoint.

    All ranks stop after the same step, whichever of them got the signal. A second Ctrl-C stops at once.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._asked = False
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        """Install the handlers, which Python allows in the main thread only."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                self._before[number] = signal.signal(number, self._ask)

    def on_step_end(self, args, state, control, **kwargs):
        """Save and stop if any rank got a signal."""
        asked = self._asked
        if dist.is_initialized():
            flag = torch.tensor([float(asked)], device=args.device)
            dist.all_reduce(flag, dist.ReduceOp.MAX)
            asked = bool(flag.item())
        if asked and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        """Restore the previous signal handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and self._asked:
            raise KeyboardInterrupt
        self._asked = True
        logger.warning("%s: saving a checkpoint after this step, then stopping", signal.Signals(number).name)


class RunStoppedError(Exception):
    """A signal stopped the run after a checkpoint; it can be resumed."""
