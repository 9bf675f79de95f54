"""The folder of a run: one writer at a time, checkpoints that are complete or ignored, the record and the log."""

import fcntl
import hashlib
import json
import logging
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import TrainerCallback

from videopanda.checkpoints.tensors import CheckpointError, find_tensors
from videopanda.data.manifest import file_sha256
from videopanda.hub import name_of
from videopanda.training.stages import StageConfig

logger = logging.getLogger(__name__)

_COMPLETE = "complete"  # SHA-256 of every file of a checkpoint; written last
# Settings that may differ when a run is resumed: locations and logging.
WITHOUT_EFFECT = {
    *("frame_cache", "frame_cache_gb"),
    *("log_steps", "save_steps", "keep_checkpoints", "report_to", "stall_seconds"),
}
_MAY_CHANGE = {*WITHOUT_EFFECT, "data", "media_root", "manifest", "teacher", "teacher_features"}


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keep other runs out of a folder.

    Raises:
        ValueError: another run is using it.
    """
    output.mkdir(parents=True, exist_ok=True)
    # A record lock: unlike flock, it is not inherited by data workers, which may outlive a killed run for seconds.
    with (output / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            raise ValueError(
                f"another run ({file.read().strip()}) is using {output}: wait for it, or choose another --output"
            ) from error
        except OSError as error:
            logger.warning("%s: the file system has no locks (%s); do not start a second run here", output, error)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


def check_unused(output: Path, resume: bool) -> None:
    """Refuse a folder with an active run, one that is not being resumed, a model or a page, before any work is done.

    Raises:
        ValueError: see above.
    """
    if (output / "config.json").exists() and not (output / "run.json").exists():
        raise ValueError(f"{output} already contains a model, which would be overwritten: choose another --output")
    if (output / "index.html").exists() and not (output / "run.json").exists():
        raise ValueError(f"{output} contains an index.html, which would be overwritten: choose another --output")
    if (output / "run.json").exists():
        with locked(output):
            if not resume:
                raise ValueError(f"{output} already contains a run: choose another --output")


# -- checkpoints -------------------------------------------------------------------------------------------------------
def complete_checkpoints(output: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first. Partial ones left by a kill are excluded."""
    found = [path for path in output.glob("checkpoint-*") if (path / _COMPLETE).exists()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path | None) -> int:
    """The step of a checkpoint folder; 0 for none."""
    return int(checkpoint.name.partition("-")[2]) if checkpoint else 0


def last_good_checkpoint(output: Path) -> Path | None:
    """The newest checkpoint whose files are intact; None if there is none yet.

    A damaged one no longer counts as complete, and a warning says so.

    Raises:
        CheckpointError: all are damaged.
    """
    found = complete_checkpoints(output)
    for checkpoint in reversed(found):
        reason = _damage(checkpoint)
        if reason is None:
            return checkpoint
        logger.warning("%s is damaged (%s): falling back to the previous one", checkpoint, reason)
        (checkpoint / _COMPLETE).unlink()
    if found:
        raise CheckpointError(f"all checkpoints in {output} are damaged: start again with another --output")
    return None


def _damage(checkpoint: Path) -> str | None:
    try:
        listed = json.loads((checkpoint / _COMPLETE).read_text(encoding="utf-8"))
        for name, digest in listed.items():
            if file_sha256(checkpoint / name) != digest:
                return f"{name} differs from what was written"
    except (ValueError, AttributeError):
        return f"{_COMPLETE} is unreadable"
    except OSError as error:
        return f"{Path(str(error.filename)).name}: {error.strerror}"
    return None


def seal(checkpoint: Path) -> None:
    """Flush a checkpoint to disk, then mark it complete, with a digest of every file."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    digests = {str(path.relative_to(checkpoint)): file_sha256(path) for path in files}
    for path in (*files, *(path for path in checkpoint.rglob("*") if path.is_dir()), checkpoint, checkpoint.parent):
        _sync(path)
    write_text(checkpoint / _COMPLETE, json.dumps(digests, indent=1) + "\n")


@contextmanager
def no_half_files(output: Path, part: Path, what: str) -> Iterator[None]:
    """Remove `part`, a folder in `output`, if writing it fails.

    Raises:
        OSError: it failed; the message says what failed and why, and that the run can be resumed.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # the latter two for a full disk
        shutil.rmtree(part, ignore_errors=True)
        free = shutil.disk_usage(output).free / 1e9
        raise OSError(
            f"cannot write {what} to {output} ({free:.1f} GB free): {str(error).splitlines()[0]}. "
            "Free some disk space, then continue with the same command"
        ) from error


def publish(part: Path, output: Path) -> None:
    """Move the files of a finished folder into the output folder: one by one, each atomically, `config.json` last."""
    for path in part.rglob("*"):
        if path.is_file():
            _sync(path)
    for path in sorted(part.iterdir(), key=lambda path: path.name == "config.json"):
        target = output / path.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(path, target)
    part.rmdir()
    _sync(output)


def write_text(path: Path, text: str) -> None:
    """Replace a file by a new one; a crash or power loss leaves the old one or the new one."""
    part = path.with_name(f"{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- record and log ----------------------------------------------------------------------------------------------------
def check_settings(
    output: Path, stage: StageConfig, content: str | None, processes: int, start: Path | None = None
) -> None:
    """Compare settings, data and the model that the run started from with those in `run.json`, if it made a step.

    Args:
        content: of the data (`EpochDataset.content`); None: not known yet, not compared.

    Raises:
        ValueError: one differs that changes what the run computes; the message names it.
    """
    begun = complete_checkpoints(output) or (output / "config.json").exists() or _size(output / "metrics.jsonl")
    if not (output / "run.json").exists() or not begun:
        return
    record = json.loads((output / "run.json").read_text(encoding="utf-8"))
    before, now, changed = record["stage"], stage.as_dict(), []
    if processes * stage.accumulation > 1:
        before = {"loss_mean": "batch", **before}  # of runs that began before there was a choice
    always = {field.name for field in fields(StageConfig)}  # others, such as lr.NAME, are recorded only if they are set
    for name in (name for name in before | now if name not in _MAY_CHANGE):
        was, value = before.get(name, now.get(name) if name in always else "not set"), now.get(name, "not set")
        if was != value:
            changed.append(f"{name} was {was} and is {value}")
    if (count := record["machine"].get("processes", processes)) != processes:
        changed.append(f"the run used {count} processes, this one has {processes}")
    if start is not None and (model := record.get("start", name_of(start))) != name_of(start):
        changed.append(f"the run started from {model}, this one from {name_of(start)}")
    elif start is not None and record.get("start_sha256", found := _fingerprint(start)) != found:
        changed.append(f"the model in {start} changed since")
    teachers = [Path(values.get("teacher", "")).name for values in (before, now)]
    if all(teachers) and teachers[0] != teachers[1]:  # their folder may have moved
        changed.append(f"teacher was {teachers[0]} and is {teachers[1]}")
    if content is not None and record.get("data", {}).get("sha256", content) != content:
        changed.append("the training data changed")
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 4 else ""
        raise ValueError(
            f"{output} contains a run with different settings: {', '.join(changed[: 3 if more else None])}{more}. Use "
            "the original settings (in run.json), or start a new run from its checkpoint with --model and another "
            "--output"
        )


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def write_record(
    output: Path,
    stage: StageConfig,
    reports: list,
    data: dict[str, Any],
    processes: int = 1,
    start: Path | None = None,
) -> None:
    """Write `run.json`: everything needed to repeat the run, and the earlier stages of the model in `start`."""
    packages = ("videopanda", "torch", "transformers", "accelerate", "numpy", "av")
    record = {
        "stage": stage.as_dict(),
        "data": data,
        "parts": [vars(report) for report in reports],
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        "git_revision": _git_revision(),
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads(), "processes": processes},
        **(_history(start) if start else {}),
    }
    write_text(output / "run.json", json.dumps(record, indent=2) + "\n")


def _history(start: Path) -> dict[str, Any]:
    """The name of the model that a run starts from, and settings and data of its training, the oldest stage first."""
    file = (start.parent if start.name.startswith("checkpoint-") else start) / "run.json"
    earlier = []
    if file.is_file():
        record = json.loads(file.read_text(encoding="utf-8"))
        earlier = [*record.get("earlier", []), {"stage": record["stage"], "data": record["data"]}]
    return {"start": name_of(start), "start_sha256": _fingerprint(start), "earlier": earlier}


def _fingerprint(folder: Path) -> str | None:
    """A hash of a model's configuration, tokenizer and template, and of the first 4 KiB of each weight; None if its
    weights are in no form that we read.
    """
    digest = hashlib.sha256()
    for name in ("config.json", "processor_config.json", "tokenizer.json", "chat_template.jinja"):
        digest.update((folder / name).read_bytes() if (folder / name).is_file() else b"")
    try:
        places = sorted(find_tensors(folder).items())
    except CheckpointError:
        return None
    for name, place in places:
        with place.path.open("rb") as file:
            file.seek(place.offset or 0)
            digest.update(name.encode() + file.read(min(place.num_bytes, 4096)))
    return digest.hexdigest()


def add_to_record(output: Path, values: dict[str, Any]) -> None:
    """Add results to `run.json`."""
    record = json.loads((output / "run.json").read_text(encoding="utf-8"))
    write_text(output / "run.json", json.dumps({**record, **values}, indent=2) + "\n")


def _git_revision() -> str | None:
    """Commit of the source tree, or None outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


class MetricsFile(TrainerCallback):
    """Appends every log entry to `metrics.jsonl`."""

    def __init__(self, path: Path):
        self.path = path

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Write one line of strict JSON, which has no NaN or infinity: they become null."""
        if state.is_world_process_zero and logs:
            finite = {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in logs.items()}
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": state.global_step, **finite}, allow_nan=False) + "\n")
            except OSError as error:
                raise OSError(f"cannot write to {self.path}: {error.strerror}") from error

    def rewind(self, step: int) -> None:
        """Drop log lines after the resumed step, or all if the run starts over (step 0), and a partial last line."""
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if step and line.endswith("\n") and json.loads(line)["step"] <= step]
            write_text(self.path, "".join(kept))
