"""The progress display of a training run: one live line on a terminal, one line per log entry elsewhere.

step 400/2000  loss 0.812 (text 0.701, align 1.110)  31.2 rows/s  4:10 left  held out: 71.9% right, 20.3% without video
"""

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column
from transformers import TrainerCallback

_KEPT = 0.9  # of the smoothed loss, at every log entry


class ProgressLine(TrainerCallback):
    """Shows step, smoothed loss and its parts, speed, time left and the last validation, on stderr."""

    def __init__(self) -> None:
        self.loss: float | None = None
        self.entries = 0
        self.parts: dict[str, float] = {}
        self.speed = 0.0
        self.validation = ""
        self.first_step, self.began = 0, 0.0
        self.bar: Progress | None = None
        self.handlers: list[tuple[logging.StreamHandler, Any]] = []

    def on_train_begin(self, args, state, control, **kwargs):
        """Start the line; log messages go above it."""
        self.first_step, self.began = state.global_step, time.monotonic()
        if self.first_step and state.is_world_process_zero:
            sys.stderr.write(f"resumed         at step {self.first_step} of {state.max_steps}\n")
        console = Console(stderr=True, highlight=False)
        if not state.is_world_process_zero or not console.is_terminal:
            return
        text = TextColumn("{task.description}", markup=False, table_column=Column())  # may wrap
        self.bar = Progress(BarColumn(12), text, console=console)
        self.bar.add_task(self.text(state), total=state.max_steps, completed=state.global_step)
        before = sys.stderr
        self.bar.start()  # puts a stream that prints above the line in the place of stderr
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is before:
                self.handlers.append((handler, handler.setStream(sys.stderr)))

    def on_step_end(self, args, state, control, **kwargs):
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=state.global_step, description=self.text(state))

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Update the numbers, and print them if there is no terminal."""
        logs = logs or {}
        if "validation_accuracy" in logs:
            self.validation = f"held out: {logs['validation_accuracy']:.1%} right"
            if "validation_accuracy_no_video" in logs:
                self.validation += f", {logs['validation_accuracy_no_video']:.1%} without video"
        if "loss" not in logs:
            return
        self.add(logs)
        if state.is_world_process_zero and self.bar is None:
            sys.stderr.write(f"{self.text(state)}\n")
            sys.stderr.flush()

    def on_train_end(self, args, state, control, **kwargs):
        """Leave the last line in place."""
        if self.bar is not None:
            self.bar.stop()
        for handler, stream in self.handlers:
            handler.setStream(stream)

    def add(self, logs: Mapping[str, float]) -> None:
        """Smooth the loss over log entries; the first ones count fully."""
        self.entries += 1
        kept = min(_KEPT, 1 - 1 / self.entries)
        self.loss = logs["loss"] if self.loss is None else kept * self.loss + (1 - kept) * logs["loss"]
        self.parts = {name.removesuffix("_loss"): value for name, value in logs.items() if name.endswith("_loss")}
        self.speed = logs.get("rows_per_second", 0.0)

    def text(self, state: Any) -> str:
        """The line."""
        fields = [f"step {state.global_step}/{state.max_steps}"]
        if self.loss is not None:
            parts = ", ".join(f"{name} {value:.3f}" for name, value in self.parts.items())
            fields.append(f"loss {self.loss:.3f}" + (f" ({parts})" if len(self.parts) > 1 else ""))
            fields.append(f"{self.speed:.1f} rows/s")
        if done := state.global_step - self.first_step:
            left = (time.monotonic() - self.began) / done * (state.max_steps - state.global_step)
            fields.append(f"{_clock(left)} left")
        return "  ".join([*fields, *([self.validation] if self.validation else [])])


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
