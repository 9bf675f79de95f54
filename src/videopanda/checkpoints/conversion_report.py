"""A readable report of a conversion."""

import math
import re
from collections import Counter, defaultdict

from rich.table import Table

from videopanda.checkpoints.tensor_plan import Entry, Plan

_LAYER = re.compile(r"\b(layers|norm_layer)\.\d+")


def entries_of(plan: Plan) -> list[Entry]:
    """A line for every tensor of the official checkpoint, and for every weight that EVE does not have."""
    return [
        *plan.entries,
        *(Entry(name, "", "", plan.shapes[name], "fresh", why="not in EVE: initial value") for name in plan.fresh),
    ]


def lines(plan: Plan) -> list[str]:
    """What happened to every tensor, and why; tensors that differ only in their layer number share a line."""
    counts: Counter[tuple[str, ...]] = Counter()
    for entry in entries_of(plan):
        counts[tuple(_LAYER.sub(r"\1.*", text) for text in (entry.fate, entry.key, entry.to, entry.why))] += 1
    return [
        f"{fate:<8}{'' if number == 1 else f'{number} ×':>6}  {key}"
        + (f" → {to}" if to not in ("", key) else "")
        + (f" ({why})" if why else "")
        for (fate, key, to, why), number in sorted(counts.items())
    ]


def table(plan: Plan) -> Table:
    """Number of tensors and values by what happened to them."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for entry in entries_of(plan):
        counts[entry.fate][0] += 1
        counts[entry.fate][1] += math.prod(entry.shape)
    grid = Table(title=f"Tensors of {plan.source.name} ({plan.layout})", title_justify="left")
    for column in ("fate", "tensors", "numbers"):
        grid.add_column(column, justify="left" if column == "fate" else "right")
    for fate, (tensors, numbers) in sorted(counts.items()):
        grid.add_row(fate, f"{tensors:,}", f"{numbers:,}")
    return grid
