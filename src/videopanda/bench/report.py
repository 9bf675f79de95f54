"""The output of `videopanda bench`: tables, and a bubble chart of latency over parameters."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table

_WIDEST_NAME = 20


def table(report: dict[str, Any]) -> Group:
    """Each model with its measured figures, and a line with those of the paper's Table 3."""
    settings = report["settings"]
    title = f"Vision parts, {settings['source']} pixels"
    if any("latency_ms" in row for row in report["models"].values()):
        title += f", {settings['dtype']}, {_where(report)}, {settings['rounds']} rounds"
    lines: list[tuple[str, ...]] = [
        ("model", "frames", "params,\nM", "MACs,\nG", "latency,\nms", "× video-panda", "peak,\nMiB")
    ]
    for name, row in report["models"].items():
        lines.append(
            (
                fill(name, _WIDEST_NAME),
                str(row["frames"]),
                f"{row['params'] / 1e6:.1f}",
                f"{row['macs'] / 1e9:.1f}",
                _median(row.get("latency_ms"), ".0f"),
                _median(row.get("times_video_panda"), ".3g"),
                _cell("peak_bytes", row.get("peak_bytes")),
            )
        )
        if paper := row.get("paper"):
            lines.append(
                ("  its Table 3", "", str(paper["params"]), str(paper["macs"]), str(paper["latency_ms"]), "", "")
            )
    return _grids(title, lines)


def rows_table(report: dict[str, Any], title: str) -> Group:
    """A report of rows: medians with their intervals."""
    header = [fill(key.replace("_bytes", ", MiB").replace("_", " "), 10) for key in report["rows"][0]]
    lines = [[_cell(key, value) for key, value in row.items()] for row in report["rows"]]
    return _grids(f"{title}, {_where(report)}, {report['settings']['rounds']} rounds", [header, *lines])


def _where(report: dict[str, Any]) -> str:
    machine = report["machine"]
    return machine["gpu"] or f"{machine['processor']}, {machine['threads']} threads"


def _grids(title: str, lines: Sequence[Sequence[str]]) -> Group:
    """Tables of at most 80 columns: what does not fit follows in another one, with the first column again.

    No cell is shortened: half of a name, or of a figure, is worse than none.
    """
    names, *columns = zip(*lines)
    blocks, room = [[names]], 0
    for column in columns:
        if room < _width(column):
            blocks.append([names])
            room = 80 - 2 - _width(names)
        blocks[-1].append(column)
        room -= _width(column)
    grids: list[Table] = []
    for block in blocks[1:]:
        grid = Table(title=None if grids else title, title_justify="left", box=box.SIMPLE, padding=0)
        for number, (header, *_) in enumerate(block):
            grid.add_column(header, justify="right" if number else "left", no_wrap=True)
        for cells in list(zip(*block))[1:]:
            grid.add_row(*cells)
        grids.append(grid)
    return Group(*grids)


def _width(column: Sequence[str]) -> int:
    """Of the widest line, with the space after it."""
    return 1 + max(len(line) for cell in column for line in cell.splitlines())


def _cell(key: str, value: Any) -> str:
    if value is None or isinstance(value, dict):
        return _median(value, ".3g")
    return f"{value / 2**20:.1f}" if key.endswith("_bytes") else fill(str(value), _WIDEST_NAME)


def _median(value: dict[str, float] | None, form: str) -> str:
    """A median, with its interval in the next line."""
    if value is None:
        return "–"
    median, low, high = (format(value[key], form) for key in ("median", "low", "high"))
    return f"{median}\n({low}–{high})"


def draw(report: dict[str, Any], file: Path) -> None:
    """Bubbles: latency (or, unmeasured, multiply-accumulates) over parameters; the area is multiply-accumulates."""
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    timed = all("latency_ms" in row for row in report["models"].values())
    for name, row in report["models"].items():
        x, y = row["params"] / 1e6, row["latency_ms"]["median"] if timed else row["macs"] / 1e9
        axes.scatter([x], [y], s=row["macs"] / 1e9, alpha=0.5, label=f"{name}: {row['macs'] / 1e9:.0f} G")
    axes.set(xlabel="parameters of the vision part (millions)", xlim=(-40, 520), yscale="log")
    axes.set_ylabel("latency (ms)" if timed else "multiply-accumulates (billions)")
    axes.margins(y=0.3)
    for handle in axes.legend(title="multiply-accumulates", fontsize=8).legend_handles:
        assert isinstance(handle, PathCollection)
        handle.set_sizes([60.0])
    figure.savefig(file, dpi=120)
