"""A plan and its times, as plain values and as text."""

from dataclasses import asdict
from typing import Any

from videopanda.plan.machine import Machine
from videopanda.plan.planner import Plan, in_gib

# Forward, backward (twice as much) and forward once more, as the stages of the paper save memory.
PASSES = 4
GPU_FLOPS, UTILIZATION = 312e12, 0.4  # A100 in bfloat16, and the share of it that training reaches


def training_hours(plan: Plan, samples: int, flops: float = GPU_FLOPS, utilization: float = UTILIZATION) -> float:
    """GPU-hours of training all parts on `samples` samples like this one."""
    return PASSES * samples * (plan.flops["vision"] + plan.flops["prefill"]) / (flops * utilization) / 3600


def as_dict(plan: Plan, machine: Machine, samples: int | None = None) -> dict[str, Any]:
    """Everything `videopanda plan --json` prints."""
    report = plan.as_dict() | {
        "dtype": str(plan.planner.dtype).removeprefix("torch."),
        "quantize": plan.planner.quantize,
        "first_token_seconds": machine.first_token_seconds(plan),
        "tokens_per_second": machine.tokens_per_second(plan),
        "machine": asdict(machine),
    }
    if samples is not None:
        report["training"] = {
            "samples": samples,
            "gpu_hours": training_hours(plan, samples),
            "gpu_flops": GPU_FLOPS,
            "utilization": UTILIZATION,
            "passes": PASSES,
        }
    return report


def lines(plan: Plan, machine: Machine, samples: int | None = None) -> list[str]:
    """One line per figure, name first."""
    seconds, memory = machine.first_token_seconds(plan), plan.phase_bytes
    per_frame = plan.visual_tokens / plan.frames
    dtype = str(plan.planner.dtype).removeprefix("torch.") + f" and {plan.planner.quantize}" * bool(
        plan.planner.quantize
    )
    rows = {
        "clip": f"{plan.frames} frames of {plan.width}x{plan.height}",
        "visual tokens": f"{plan.visual_tokens:,} ({per_frame:,.4g} per frame)"
        + f", and {plan.stamp_tokens:,} of time stamps" * bool(plan.stamp_tokens),
        "context": f"{plan.tokens:,} of {plan.context:,} tokens with {plan.text_tokens:,} of text and "
        f"{plan.new_tokens:,} of the reply",
        "compute": f"vision {_flops(plan.flops['vision'])}, prompt {_flops(plan.flops['prefill'])}, "
        f"each new token {_flops(plan.flops['per_token'])}",
        "memory": f"{in_gib(plan.peak_bytes)} at most, {in_gib(plan.weight_bytes)} of it weights in {dtype}",
        "without weights": ", ".join(
            f"{name} {in_gib(size)}" + " on the host" * (name == "prepare" and not plan.planner.on_host)
            for name, size in memory.items()
        ),
        "KV cache": in_gib(plan.kv_bytes),
        "first token": f"{_short(seconds['total'])} s after the frames are read ("
        + ", ".join(f"{part} {_short(seconds[part])} s" for part in ("prepare", "vision", "prefill"))
        + ")",
        "then": f"{_short(machine.tokens_per_second(plan))} tokens per second",
        "machine": _machine(machine),
    }
    if samples is not None:
        rows["training"] = (
            f"{training_hours(plan, samples):,.3g} GPU-hours for {samples:,} samples ({PASSES} times the forward "
            f"pass, {GPU_FLOPS / 1e12:.0f} TFLOP/s of an A100 at {UTILIZATION:.0%})"
        )
    return [f"{name:<17}{text}" for name, text in rows.items()]


def _machine(machine: Machine) -> str:
    rates = f"{_flops(machine.prefill_flops)}/s, {_short(machine.bytes / 1e9)} GB/s"
    if machine.measured is None:
        return f"NOT MEASURED: times assume {rates} (see --measure)"
    return f"{machine.name}, {machine.threads} threads, measured {machine.measured}: {rates}"


def _flops(number: float) -> str:
    for size, name in ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")):
        if number >= size:
            return f"{_short(number / size)} {name}"
    return f"{_short(number / 1e6)} MFLOP"


def _short(number: float) -> str:
    """Three digits."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
