"""A readable report of a conversion."""

import math
import re
from collections import Counter, defaultdict

from rich.table import Table

from videopanda.models.videopanda.convert.plan import TensorEntry, TensorPlan

_LAYER = re.compile(r"\b(layers|norm_layer)\.\d+")


def entries_of(plan: TensorPlan) -> list[TensorEntry]:
    """A line for every tensor of the official checkpoint, and for every weight that EVE does not have."""
    return [
        *plan.entries,
        *(
            TensorEntry(name, "", "", plan.shapes[name], "reinitialized", why="not in EVE: initial value")
            for name in plan.reinitialized
        ),
    ]


def lines(plan: TensorPlan) -> list[str]:
    """What happened to every tensor, and why; tensors that differ only in their layer number share a line."""
    counts: Counter[tuple[str, ...]] = Counter()
    for entry in entries_of(plan):
        counts[tuple(_LAYER.sub(r"\1.*", text) for text in (entry.action, entry.key, entry.to, entry.why))] += 1
    return [
        f"{action:<13}{'' if number == 1 else f'{number} ×':>6}  {key}"
        + (f" → {to}" if to not in ("", key) else "")
        + (f" ({why})" if why else "")
        for (action, key, to, why), number in sorted(counts.items())
    ]


def table(plan: TensorPlan) -> Table:
    """Number of tensors and values by what happened to them."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for entry in entries_of(plan):
        counts[entry.action][0] += 1
        counts[entry.action][1] += math.prod(entry.shape)
    grid = Table(title=f"Tensors of {plan.source.name} ({plan.layout})", title_justify="left")
    for column in ("action", "tensors", "numbers"):
        grid.add_column(column, justify="left" if column == "action" else "right")
    for action, (tensors, numbers) in sorted(counts.items()):
        grid.add_row(action, f"{tensors:,}", f"{numbers:,}")
    return grid
