"""The output of `videopanda bench`: tables, and a bubble chart of latency over parameters."""

from pathlib import Path
from typing import Any

from rich.table import Table


def table(report: dict[str, Any]) -> Table:
    """Each model with its measured figures, next to those of the paper's Table 3."""
    settings, machine = report["settings"], report["machine"]
    title = f"Vision parts, {settings['source']} pixels"
    timed = any("latency_ms" in row for row in report["models"].values())
    if timed:
        where = machine["gpu"] or f"{machine['processor']}, {machine['threads']} threads"
        title += f", {settings['dtype']}, {where}, {settings['rounds']} rounds"
    grid = Table(title=title, title_justify="left")
    for column in ("model", "frames", "params", "MACs", "latency", "× video-panda", "peak memory", "paper's Table 3"):
        grid.add_column(column, justify="left" if column == "model" else "right")
    for name, row in report["models"].items():
        latency, ratio, peak, paper = (
            row.get(key) for key in ("latency_ms", "times_video_panda", "peak_bytes", "paper")
        )
        grid.add_row(
            name,
            str(row["frames"]),
            f"{row['params'] / 1e6:.1f} M",
            f"{row['macs'] / 1e9:.1f} G",
            "–" if latency is None else f"{latency['median']:.0f} ms ({latency['low']:.0f}–{latency['high']:.0f})",
            "–" if ratio is None else f"{ratio['median']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})",
            "–" if peak is None else f"{peak / 2**20:.0f} MiB",
            "–" if paper is None else f"{paper['params']} M, {paper['macs']} G, {paper['latency_ms']} ms",
        )
    return grid


def rows_table(report: dict[str, Any], title: str) -> Table:
    """A report of rows: medians with their intervals, sizes in MiB."""
    machine = report["machine"]
    where = machine["gpu"] or f"{machine['processor']}, {machine['threads']} threads"
    grid = Table(title=f"{title}, {where}, {report['settings']['rounds']} rounds", title_justify="left")
    for number, key in enumerate(report["rows"][0]):
        grid.add_column(key.replace("_bytes", "").replace("_", " "), justify="right" if number else "left")
    for row in report["rows"]:
        grid.add_row(*(_cell(key, value) for key, value in row.items()))
    return grid


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, dict):
        return f"{value['median']:.3g} ({value['low']:.3g}–{value['high']:.3g})"
    return f"{value / 2**20:.1f} MiB" if key.endswith("_bytes") else str(value)


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
