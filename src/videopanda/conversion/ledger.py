"""The ledger of a conversion for people."""

import math
from collections import defaultdict

from rich.table import Table

from videopanda.conversion.plan import Plan

_REASONS = {"alias": "second name of a tensor", "head": "kept for training in distillation_head.safetensors"}


def table(plan: Plan) -> Table:
    """How many tensors and numbers met which fate, and why."""
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    lines = [(entry.fate, _REASONS.get(entry.fate, entry.why), entry.shape) for entry in plan.entries]
    lines += [("fresh", "EVE does not have it: initial value", plan.shapes[name]) for name in plan.fresh]
    for fate, why, shape in lines:
        counts[fate, why][0] += 1
        counts[fate, why][1] += math.prod(shape)
    grid = Table(title=f"Tensors of {plan.source.name} ({plan.layout})", title_justify="left")
    for column in ("fate", "tensors", "numbers", "why"):
        grid.add_column(column, justify="right" if column in ("tensors", "numbers") else "left")
    for (fate, why), (tensors, numbers) in sorted(counts.items()):
        grid.add_row(fate, f"{tensors:,}", f"{numbers:,}", why)
    return grid
