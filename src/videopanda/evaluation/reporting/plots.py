"""Plots of a report: accuracy against the size of the vision part (the paper's Fig. 1), and bars per type."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from videopanda.evaluation.outputs import png, replace_file
from videopanda.evaluation.predictions import CONDITIONS
from videopanda.evaluation.reporting.report import metric_of
from videopanda.evaluation.scoring.score import OUT_OF_FIVE

# How a condition looks, the same in every plot: the clip is a bar, the others are marks on it.
_MARKS = dict(zip(CONDITIONS, ("", "x", "o", "s", "^", "D")))
_COLORS = dict(zip(CONDITIONS, ("#a9c6e3", "#222222", "#e07b00", "#2e8b57", "#8e44ad", "#c0392b")))

_PUBLISHED = {False: "#4c78a8", True: "#e07b00"}  # by whether the model was trained on other data
_MEASURED = "#222222"
_SOFTWARE = "videopanda evaluate report"  # stands in our plots, so that no other picture is replaced


def _scale(metric: str) -> float:
    return 1.0 if metric in OUT_OF_FIVE else 100.0


def _label(metric: str) -> str:
    return f"{metric} (0 to 5)" if metric in OUT_OF_FIVE else f"{metric} (%)"


def _errors(measured: dict[str, Any], scale: float) -> tuple[float, float]:
    low, high = measured["ci95"] or (measured["value"], measured["value"])
    return scale * (measured["value"] - low), scale * (high - measured["value"])


@dataclass(frozen=True)
class _Mark:
    """A model in the plot."""

    name: str
    x: float  # millions of parameters
    value: float
    radius: float  # points
    color: str
    low: float
    high: float


def plot_vision_size(table: dict[str, Any], metric: str, path: Path) -> None:
    """Every model by the parameters of its vision part, as in the paper's Fig. 1.

    The area of a bubble is the number of fine-tuning samples. Published numbers follow other protocols; those of models
    that were trained on other data have their own color. Models measured here are diamonds with their interval.
    """
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    marks: list[_Mark] = []
    published = [e for e in table["published"] if e["vision_parameters"] and metric in e["metrics"] and not e["part"]]
    for entry in published:
        x, value, area = entry["vision_parameters"] / 1e6, entry["metrics"][metric], _area(entry["finetuning_samples"])
        color = _PUBLISHED[entry["other_data"]]
        axes.scatter(x, value, area, color, alpha=0.55, edgecolors="white")
        marks.append(_Mark(entry["model"], x, value, math.sqrt(area / math.pi), color, value, value))
    for model in table["models"]:
        part = next(iter(model["conditions"].values()))
        if model["vision_parameters"] and metric in part["metrics"]:
            x, measured = model["vision_parameters"] / 1e6, part["metrics"][metric]
            value, errors = _scale(metric) * measured["value"], _errors(measured, _scale(metric))
            axes.errorbar(x, value, yerr=[[error] for error in errors], fmt="D", color=_MEASURED, capsize=3)
            marks.append(_Mark(model["model"], x, value, 5.0, _MEASURED, value - errors[0], value + errors[1]))
    axes.set_xscale("log")
    sizes = [mark.x for mark in marks]
    axes.set_xlim(min(sizes) / 3, max(sizes) * 3)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.2)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.set_xlabel("vision parameters (millions)")
    axes.set_ylabel(_label(metric))
    axes.set_title(table["title"], fontsize="medium")
    _legend(figure, published)
    figure.canvas.draw()  # places the axes, in whose pixels names are placed
    figure.set_layout_engine("none")
    _place_names(axes, marks)
    replace_file(path, png(figure, _SOFTWARE), _is_ours)


def _area(samples: int | None) -> float:
    """Of a bubble, in square points."""
    return max(20.0, (samples or 0) / 1000)


def _legend(figure: Any, published: Sequence[dict[str, Any]]) -> None:
    names = {False: "published, same training data", True: "published, other training data"}
    handles = [Line2D([], [], marker="D", linestyle="", color=_MEASURED, label="measured here")]
    for other in dict.fromkeys(entry["other_data"] for entry in published):
        look: dict[str, Any] = {"marker": "o", "linestyle": "", "alpha": 0.55, "markersize": 8}
        handles.append(Line2D([], [], color=_PUBLISHED[other], label=names[other], **look))
    for samples in sorted({entry["finetuning_samples"] for entry in published if entry["finetuning_samples"]}):
        size = 2 * math.sqrt(_area(samples) / math.pi)
        look = {"marker": "o", "linestyle": "", "color": "0.6", "fillstyle": "none", "markersize": size}
        handles.append(Line2D([], [], label=f"{samples:,} fine-tuning samples", **look))
    look = {"fontsize": "small", "frameon": False, "labelspacing": 1.8, "handletextpad": 1.6}
    figure.legend(handles=handles, loc="outside right upper", **look)


def _place_names(axes: Any, marks: Sequence[_Mark]) -> None:
    """A name next to each mark, where it covers no mark, no interval, no other name and no edge."""
    renderer = axes.figure.canvas.get_renderer()
    pixels = axes.figure.dpi / 72
    taken: list[tuple[_Mark | None, Any]] = []
    for mark in marks:
        radius = mark.radius * pixels
        x, y = axes.transData.transform((mark.x, mark.value))
        taken.append((mark, Bbox.from_extents(x - radius, y - radius, x + radius, y + radius)))
        (_, low), (_, high) = axes.transData.transform([(mark.x, mark.low), (mark.x, mark.high)])
        taken.append((None, Bbox.from_extents(x - 2, low, x + 2, high)))
    sides = {-1: ("right", "top"), 0: ("center", "center"), 1: ("left", "bottom")}
    around = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
    for mark in sorted(marks, key=lambda mark: -mark.radius):
        places = []
        for distance in (3, 14, 28, 42):
            line = {"arrowstyle": "-", "color": mark.color, "lw": 0.6} if distance > 3 else None
            for dx, dy in around:
                gap = (mark.radius + distance) * (0.75 if dx and dy else 1.0)
                text = axes.annotate(
                    mark.name,
                    (mark.x, mark.value),
                    (gap * dx, gap * dy),
                    textcoords="offset points",
                    ha=sides[dx][0],
                    va=sides[dy][1],
                    fontsize="small",
                    color=mark.color,
                    arrowprops=line,
                )
                text.update_positions(renderer)
                box = Text.get_window_extent(text, renderer)  # without the line
                inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
                inside = inside and axes.bbox.y0 <= box.y0 and box.y1 <= axes.bbox.y1
                covered = sum(box.overlaps(other) for of, other in taken if of is not mark)
                places.append((covered + 10 * (not inside), text, box))
        _, best, box = min(places, key=lambda place: place[0])  # the first of the best ones: the nearest
        for _, text, _ in places:
            if text is not best:
                text.remove()
        taken.append((None, box))


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
    replace_file(path, png(figure, _SOFTWARE), _is_ours)


def _draw(axes: Any, condition: str, rows: Sequence[int], measured: Sequence[dict[str, Any]], scale: float) -> None:
    values, look = [scale * m["value"] for m in measured], {"label": condition.replace("_", " ")}
    look["color"] = _COLORS[condition]
    if condition == CONDITIONS[0]:
        errors = list(zip(*(_errors(m, scale) for m in measured)))
        axes.barh(rows, values, 0.8, xerr=errors, error_kw={"elinewidth": 0.8}, **look)
    else:  # one below the other, so that equal values do not hide each other
        place = 0.14 * (CONDITIONS.index(condition) - len(CONDITIONS) / 2)
        heights = [row + place for row in rows]
        axes.plot(values, heights, _MARKS[condition], markersize=4, linestyle="", clip_on=False, **look)


def _is_ours(content: bytes) -> bool:
    return _SOFTWARE.encode() in content[:2000]
