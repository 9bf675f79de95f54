"""Plots of a report: accuracy against the size of the vision part (the paper's Fig. 1), and bars per type."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from videopanda.evaluation.scoring.score import OUT_OF_FIVE


def _scale(metric: str) -> float:
    return 1.0 if metric in OUT_OF_FIVE else 100.0


def _label(metric: str) -> str:
    return f"{metric} (0 to 5)" if metric in OUT_OF_FIVE else f"{metric} (%)"


def _errors(measured: dict[str, Any], scale: float) -> tuple[float, float]:
    low, high = measured["ci95"] or (measured["value"], measured["value"])
    return scale * (measured["value"] - low), scale * (high - measured["value"])


def plot_vision_size(table: dict[str, Any], metric: str, path: Path) -> None:
    """Every model by the parameters of its vision part; published numbers are hollow, for their protocols differ."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for entry in table["published"]:
        if entry["vision_parameters"] and metric in entry["metrics"]:
            point = entry["vision_parameters"] / 1e6, entry["metrics"][metric]
            axes.plot(*point, "o", color="grey", fillstyle="none")
            axes.annotate(f"{entry['model']} (paper)", point, (5, 3), textcoords="offset points", color="grey")
    for model in table["models"]:
        part = next(iter(model["conditions"].values()))
        if model["vision_parameters"] and metric in part["metrics"]:
            measured = part["metrics"][metric]
            point = model["vision_parameters"] / 1e6, _scale(metric) * measured["value"]
            low, high = _errors(measured, _scale(metric))
            axes.errorbar(*point, yerr=[[low], [high]], fmt="o", capsize=3)
            axes.annotate(model["model"], point, (5, 3), textcoords="offset points")
    axes.set_xscale("log")
    axes.set_xlabel("vision parameters (millions)")
    axes.set_ylabel(_label(metric))
    axes.set_title(table["title"])
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def plot_types(table: dict[str, Any], metric: str, path: Path) -> None:
    """Bars per type, one per model and condition, with 95 % intervals."""
    series = [
        (f"{model['model']}, {condition}", part["types"])
        for model in table["models"]
        for condition, part in model["conditions"].items()
    ]
    names = [
        name
        for name in dict.fromkeys(name for _, types in series for name in types)
        if any(metric in types[name]["metrics"] for _, types in series if name in types)
    ]
    height = 0.8 / len(series)
    size = (7, 1.2 + 0.16 * len(names) * (1 + len(series)))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    for k, (label, types) in enumerate(series):
        measured = [types[name]["metrics"].get(metric) if name in types else None for name in names]
        places = [i + (k - (len(series) - 1) / 2) * height for i, m in enumerate(measured) if m]
        present = [m for m in measured if m]
        errors = list(zip(*(_errors(m, _scale(metric)) for m in present)))
        values = [_scale(metric) * m["value"] for m in present]
        axes.barh(places, values, height, xerr=errors, label=label, error_kw={"elinewidth": 0.8})
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(_label(metric))
    axes.set_title(table["title"])
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)
