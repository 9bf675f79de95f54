"""Plots of a report: accuracy against the size of the vision part (the paper's Fig. 1), and bars per type."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from videopanda.evaluation.predictions import CONDITIONS
from videopanda.evaluation.reporting.report import metric_of
from videopanda.evaluation.scoring.score import OUT_OF_FIVE

# How a condition looks, the same in every plot: the clip is a bar, the others are marks on it.
_MARKS = dict(zip(CONDITIONS, ("", "x", "o", "s", "^", "D")))
_COLOURS = dict(zip(CONDITIONS, ("#a9c6e3", "#222222", "#e07b00", "#2e8b57", "#8e44ad", "#c0392b")))


def _scale(metric: str) -> float:
    return 1.0 if metric in OUT_OF_FIVE else 100.0


def _label(metric: str) -> str:
    return f"{metric} (0 to 5)" if metric in OUT_OF_FIVE else f"{metric} (%)"


def _errors(measured: dict[str, Any], scale: float) -> tuple[float, float]:
    low, high = measured["ci95"] or (measured["value"], measured["value"])
    return scale * (measured["value"] - low), scale * (high - measured["value"])


def plot_vision_size(table: dict[str, Any], metric: str, path: Path) -> None:
    """Every model by the parameters of its vision part; published numbers are hollow, for their protocols differ."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    points: list[tuple[float, float, str, str]] = []  # millions of parameters, value, name, colour
    for entry in table["published"]:
        if entry["vision_parameters"] and metric in entry["metrics"]:
            size, value = entry["vision_parameters"] / 1e6, entry["metrics"][metric]
            axes.plot(size, value, "o", color="grey", fillstyle="none")
            points.append((size, value, f"{entry['model']} (paper)", "grey"))
    for model in table["models"]:
        part = next(iter(model["conditions"].values()))
        if model["vision_parameters"] and metric in part["metrics"]:
            size, measured = model["vision_parameters"] / 1e6, part["metrics"][metric]
            value, errors = _scale(metric) * measured["value"], _errors(measured, _scale(metric))
            (mark, *_) = axes.errorbar(size, value, yerr=[[error] for error in errors], fmt="o", capsize=3)
            points.append((size, value, model["model"], mark.get_color()))
    sizes = [size for size, *_ in points]
    axes.set_xscale("log")
    axes.set_xlim(min(sizes) / 2, max(sizes) * 2)
    middle = math.sqrt(min(sizes) * max(sizes))
    for size, value, name, colour in points:
        gap, side = (-7, "right") if size > middle else (7, "left")  # so that names stay inside
        look: dict[str, Any] = {"color": colour, "fontsize": "small", "ha": side}
        axes.annotate(name, (size, value), (gap, 4), textcoords="offset points", **look)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.12)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.set_xlabel("vision parameters (millions)")
    axes.set_ylabel(_label(metric))
    hollow = "; hollow: papers, under other protocols" if any(colour == "grey" for *_, colour in points) else ""
    axes.set_title(table["title"] + hollow, fontsize="medium")
    _save(figure, path)


def plot_types(table: dict[str, Any], metric: str, path: Path) -> None:
    """A panel per model with a bar and its 95 % interval per type, and on it marks for the baselines."""
    models = table["models"]
    parts = [part for model in models for part in model["conditions"].values()]
    names = list(dict.fromkeys(name for part in parts for name in part["types"]))
    shared = all(metric in there["metrics"] for part in parts for there in part["types"].values())
    size = (2.0 + 3.6 * len(models), 1.7 + 0.4 * len(names))
    figure, grid = plt.subplots(1, len(models), figsize=size, layout="constrained", sharey=True, squeeze=False)
    for axes, model in zip(grid[0], models):
        for condition, part in model["conditions"].items():
            rows = [row for row, name in enumerate(names) if name in part["types"]]
            found = [part["types"][names[row]] for row in rows]
            _draw(
                axes, condition, rows, [there["metrics"][metric_of(there, metric)] for there in found], _scale(metric)
            )
        axes.set_title(model["model"], fontsize="medium")
        axes.set_xlim(0, 5 if metric in OUT_OF_FIVE else 100)
        axes.set_xlabel(_label(metric if shared else "score"))
        axes.grid(axis="x", color="0.92")
        axes.set_axisbelow(True)
    grid[0][0].set_yticks(range(len(names)), names)
    grid[0][0].set_ylim(len(names) - 0.4, -0.6)
    figure.suptitle(table["title"])
    shown = [c for c in CONDITIONS if any(c in model["conditions"] for model in models)]
    names_of = {label: handle for axes in grid[0] for handle, label in zip(*axes.get_legend_handles_labels())}
    labels = [condition.replace("_", " ") for condition in shown]
    handles = [names_of[label] for label in labels]
    figure.legend(handles, labels, loc="outside lower center", ncols=3 * len(models), frameon=False, fontsize="small")
    _save(figure, path)


def _draw(axes: Any, condition: str, rows: Sequence[int], measured: Sequence[dict[str, Any]], scale: float) -> None:
    values, look = [scale * m["value"] for m in measured], {"label": condition.replace("_", " ")}
    look["color"] = _COLOURS[condition]
    if condition == CONDITIONS[0]:
        errors = list(zip(*(_errors(m, scale) for m in measured)))
        axes.barh(rows, values, 0.8, xerr=errors, error_kw={"elinewidth": 0.8}, **look)
    else:  # one below the other, so that equal values do not hide each other
        place = 0.14 * (CONDITIONS.index(condition) - len(CONDITIONS) / 2)
        heights = [row + place for row in rows]
        axes.plot(values, heights, _MARKS[condition], markersize=4, linestyle="", clip_on=False, **look)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)
