"""Accuracy on long scenes by the length of the clip and by where in it the answer is: the needle heat map.

report = needle_report("scores.jsonl", "data/long")
write_needle(report, Path("out"))                 # needle.json and needle.png
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videopanda.evaluation.benchmarks.files import objects
from videopanda.evaluation.outputs import object_with, png, replace_file
from videopanda.evaluation.scenes_report import wilson

DEPTHS = 5  # parts of the clip, from its beginning to its end


def needle_report(scores: str | Path, data: str | Path) -> dict[str, Any]:
    """Accuracy per length and depth, per length, and per length and family; with 95 % intervals (Wilson).

    Args:
        scores: what `evaluate score scenes DATA PREDICTIONS` wrote; every question of the data is in it.
        data: the folder that `scenes make --long` wrote.

    Raises:
        ValueError: the data is not of that kind, or the scores are of other questions, of one twice, or no accuracy.
    """
    known: dict[str, tuple[float, str, float | None]] = {}
    file = Path(data) / "annotations.json"
    for row in objects(file):
        if "minutes" not in row or "depths" not in row:
            raise ValueError(f"{file} was not written by `videopanda scenes make --long`: rows lack minutes and depths")
        for number, (family, depth) in enumerate(zip(row["families"], row["depths"])):
            known[f"{row['id']}/{number}"] = row["minutes"], family, depth
    cells: dict[tuple[float, int], list[float]] = defaultdict(list)
    lengths: dict[float, list[float]] = defaultdict(list)
    families: dict[tuple[float, str], list[float]] = defaultdict(list)
    seen: set[str] = set()
    for score in objects(Path(scores)):
        if "id" not in score or "metrics" not in score:
            raise ValueError(f"{scores} is not a score file of `videopanda evaluate score`: rows lack id and metrics")
        if score["id"] not in known:
            raise ValueError(f"{scores}: {score['id']!r} is not a question of {file}")
        if score["id"] in seen:
            raise ValueError(f"{scores}: {score['id']!r} is scored twice")
        if "accuracy" not in score["metrics"]:
            raise ValueError(f"{scores}: {score['id']!r} has no accuracy: score with a scorer that gives one")
        seen.add(score["id"])
        minutes, family, depth = known[score["id"]]
        right = float(score["metrics"]["accuracy"])
        lengths[minutes].append(right)
        families[minutes, family].append(right)
        if depth is not None:
            cells[minutes, min(DEPTHS - 1, int(DEPTHS * depth))].append(right)
    if not lengths:
        raise ValueError(f"{scores} has no scores")
    return {
        "scores": str(scores),
        "questions": sum(map(len, lengths.values())),
        "lengths": [{"minutes": minutes, **_part(values)} for minutes, values in sorted(lengths.items())],
        "cells": [
            {"minutes": minutes, "depth": [part / DEPTHS, (part + 1) / DEPTHS], **_part(values)}
            for (minutes, part), values in sorted(cells.items())
        ],
        "families": [
            {"minutes": minutes, "family": family, **_part(values)}
            for (minutes, family), values in sorted(families.items())
        ],
    }


def _part(values: Sequence[float]) -> dict[str, Any]:
    interval = wilson(int(sum(values)), len(values))
    return {"accuracy": sum(values) / len(values), "n": len(values), "ci95": list(interval)}


def write_needle(report: dict[str, Any], folder: Path) -> list[Path]:
    """Write `needle.json` and the heat map `needle.png`; returns their paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lengths = [part["minutes"] for part in report["lengths"]]
    grid = [[float("nan")] * len(lengths) for _ in range(DEPTHS)]
    for cell in report["cells"]:
        grid[round(cell["depth"][0] * DEPTHS)][lengths.index(cell["minutes"])] = 100 * cell["accuracy"]
    figure, axes = plt.subplots(figsize=(1.6 + 0.9 * len(lengths), 3.4), layout="constrained")
    shown = axes.imshow(grid, vmin=0, vmax=100, cmap="RdYlGn", aspect="auto")
    for cell in report["cells"]:
        place = lengths.index(cell["minutes"]), round(cell["depth"][0] * DEPTHS)
        axes.text(*place, f"{100 * cell['accuracy']:.0f}\nn={cell['n']}", ha="center", va="center", fontsize=7)
    axes.set_xticks(range(len(lengths)), [f"{minutes:g}" for minutes in lengths])
    axes.set_yticks(range(DEPTHS), [f"{100 * (part + 0.5) / DEPTHS:.0f} %" for part in range(DEPTHS)])
    axes.set(xlabel="length of the clip (minutes)", ylabel="depth of the needle")
    figure.colorbar(shown, label="accuracy (%)")
    files = [folder / "needle.json", folder / "needle.png"]
    replace_file(files[0], json.dumps(report, indent=2) + "\n", object_with("scores", "lengths", "cells"))
    replace_file(files[1], png(figure, "videopanda evaluate needle"), lambda old: b"videopanda evaluate needle" in old)
    return files
