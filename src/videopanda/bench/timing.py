"""Measurement for everything in `bench`: interleaved rounds, ratios within a round, intervals."""

import ctypes
import gc
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from videopanda.plan.machine import processor_name


def interval(values: Sequence[float], seed: int = 0) -> dict[str, float]:
    """Median and its 95 % bootstrap interval."""
    generator = random.Random(seed)
    medians = sorted(statistics.median(generator.choices(values, k=len(values))) for _ in range(1000))
    return {"median": statistics.median(values), "low": medians[25], "high": medians[974]}


def seconds(call: Callable[[], Any]) -> float:
    """Wall time of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def in_turns(calls: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """The results of each call, once per round, so other load on the machine affects all of them alike."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(call())
    return found


def ratios(values: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """Values relative to a reference, round by round."""
    return interval([value / of for value, of in zip(values, reference, strict=True)])


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int | None:
    """Peak memory of a call, beyond what was in use before it; None if the system does not report it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not (reset.exists() and status.exists()):
        return None
    with suppress(AttributeError):  # only glibc has it; freed memory that is still held would hide the peak
        ctypes.CDLL(None).malloc_trim(0)
    reset.write_text("5")  # resets the peak
    before = _status_bytes(status, "VmRSS")
    call()
    return _status_bytes(status, "VmHWM") - before


def _status_bytes(status: Path, field: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def machine(device: str = "cpu") -> dict[str, Any]:
    """The machine on which the figures were measured."""
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }
