"""The report of a table as Markdown, JSON and pictures: `NAME.md`, `NAME.json`, `NAME.png`, `NAME.costs.png`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from videopanda.evaluation.outputs import begins_with, check_replaceable, object_with, png, replace_file
from videopanda.evaluation.reporting.write import markdown_table

_PNG = begins_with(b"\x89PNG")
_COSTS = {
    "vision_parameters": ("vision parameters (millions)", 1e-6),
    "visual_tokens": ("visual tokens of a clip", 1.0),
    "vision_gflops": ("GFLOPs of the vision part for a clip", 1.0),
    "hours": ("hours of training and evaluation", 1.0),
}


def write(found: dict[str, Any], out: Path, pictures: Sequence[str] = ()) -> list[Path]:
    """Write all files of a report into a folder.

    Raises:
        ValueError: a file of another kind has the name of one of them.
    """
    name = found["table"]
    kinds = {f"{name}.md": begins_with(b"# "), f"{name}.json": object_with("table", "rows")}
    for file, kind in kinds.items():
        check_replaceable(out / file, kind)
    plots = {f"{name}.png": _differences(found), f"{name}.costs.png": _costs(found)}
    for file, content in plots.items():
        replace_file(out / file, content, _PNG)
    text = markdown(found, [*plots, *pictures])
    replace_file(out / f"{name}.md", text, kinds[f"{name}.md"])
    replace_file(out / f"{name}.json", json.dumps(found, indent=1, allow_nan=False) + "\n", kinds[f"{name}.json"])
    return [out / file for file in (*kinds, *plots)]


# -- Markdown ----------------------------------------------------------------------------------------------------------
def markdown(found: dict[str, Any], pictures: Sequence[str] = ()) -> str:
    """The whole page."""
    seeds = sorted({len(row["seeds"]) for row in found["rows"]})
    counted = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    source = f"{found['source']}. " if found["source"] else ""
    intro = (
        f"# {found['title']}\n\n{source}Budget {found['budget']}: "
        f"{counted} {'seed' if seeds == [1] else 'seeds'} per row, "
        f"{found['questions']:,} questions about {found['clips']:,} clips, {found['hours']:.1f} hours in all, "
        f"with stages that rows share counted in each. "
        f"Percent; in brackets 95 % intervals over clips and seeds."
    )
    if seeds[0] == 1:
        intro += " **Rows with one seed: the interval covers the clips only, not the randomness of training.**"
    if found["missing"]:
        intro += f" Not run yet: {', '.join(found['missing'])}."
    if found["removed"]:
        intro += f" Left out, because the table no longer has them: {', '.join(found['removed'])}."
    parts = [intro, *_outdated(found), _accuracies(found), f"## Differences\n\n{_against(found)}"]
    if found["columns"]:
        parts.append(f"## By family of questions\n\n{_families(found)}")
    parts += [f"## Does it look at the video?\n\n{_battery(found)}", f"## What it costs\n\n{_cost_table(found)}"]
    notes = [f"- {row['row']}: {row['note']}" for row in found["rows"] if row["note"]]
    parts += ["\n".join(notes)] if notes else []
    parts += [f"![{file}]({file})" for file in pictures]
    return "\n\n".join(parts) + "\n"


def _outdated(found: dict[str, Any]) -> list[str]:
    lines = [
        f"- {row['row']}, seed {seed}: {'; '.join(changes)}"
        for row in found["rows"]
        for seed, changes in row["outdated"].items()
    ]
    if not lines:
        return []
    told = (
        "**Rows marked with * were measured with other settings than the table has now.** Differences from them say "
        "nothing about this table: run it again, which replaces them."
    )
    return [told, "\n".join(lines)]


def _accuracies(found: dict[str, Any]) -> str:
    benchmarks = list(dict.fromkeys(name for row in found["rows"] for name in row["published"]))
    rows = [
        [
            row["row"],
            ", ".join(f"{seed}{'*' * (seed in row['outdated'])}" for seed in row["seeds"]),
            _value(row["accuracy"]),
            *(f"{row['published'][name]:g}" if name in row["published"] else "–" for name in benchmarks),
        ]
        for row in found["rows"]
    ]
    return markdown_table(["row", "seeds", "accuracy here", *(f"{name}, published" for name in benchmarks)], rows)


def _against(found: dict[str, Any]) -> str:
    rows = []
    for row in found["rows"]:
        if "difference" in row:
            there = ", ".join(f"{name} {value:+g}" for name, value in row["published_difference"].items())
            least = row["difference"]["detectable"]
            against = [row["row"], row["compare"], _value(row["difference"], "+"), _percent(least)]
            rows.append([*against, there or "–", row["direction"]])
    note = (
        "A difference is that of the same questions and seeds. *Detectable*: the smallest true difference that this "
        "many clips and seeds find four times out of five. *Undecided*: the interval contains 0."
    )
    header = ["row", "against", "difference here", "detectable", "published", "direction"]
    return f"{markdown_table(header, rows)}\n\n{note}"


def _families(found: dict[str, Any]) -> str:
    columns = found["columns"]
    rows = [
        [row["row"], *(_value(row["families"][name]) if name in row["families"] else "–" for name in columns)]
        for row in found["rows"]
    ]
    return markdown_table(["row", *(name.replace("_", " ") for name in columns)], rows)


def _battery(found: dict[str, Any]) -> str:
    names = list(found["rows"][0]["battery"])
    rows = [
        [row["row"], _percent(row["accuracy"]["mean"]), *(_percent(row["battery"][name]) for name in names)]
        for row in found["rows"]
    ]
    return markdown_table(["row", "full clip", *(name.replace("_", " ") for name in names)], rows)


def _cost_table(found: dict[str, Any]) -> str:
    names = list(found["rows"][0]["cost"])
    rows = [[row["row"], *(f"{row['cost'][name]:,.4g}" for name in names)] for row in found["rows"]]
    return markdown_table(["row", *(name.replace("_", " ") for name in names)], rows)


def _percent(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{100 * value:{sign}.1f}"


def _value(measured: dict[str, Any], sign: str = "") -> str:
    text = _percent(measured["mean"], sign)
    if measured["ci95"] is None:
        return text
    return f"{text} [{', '.join(_percent(end, sign) for end in measured['ci95'])}]"


# -- plots -------------------------------------------------------------------------------------------------------------
def _differences(found: dict[str, Any]) -> bytes:
    """Differences to the compared row with their intervals, one line per row; published ones as crosses."""
    rows = [row for row in found["rows"] if "difference" in row]
    figure, axes = plt.subplots(figsize=(8, 1.5 + 0.45 * max(1, len(rows))), layout="constrained")
    for place, row in enumerate(rows):
        center = 100 * row["difference"]["mean"]
        low, high = (100 * end for end in row["difference"]["ci95"] or [row["difference"]["mean"]] * 2)
        axes.errorbar(center, place, xerr=[[center - low], [high - center]], fmt="o", color="#222222", capsize=3)
        for value in row["published_difference"].values():
            axes.plot(value, place, "x", color="#e07b00")
    axes.axvline(0, color="0.7", linewidth=1)
    names = [row["row"] + (f'\n(against "{row["compare"]}")' * (row["compare"] != found["compare"])) for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    others = ", where no other row is named" if any(row["compare"] != found["compare"] for row in rows) else ""
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
    figure.supxlabel(
        f'points against "{found["compare"]}"{others}\ndots with 95 % intervals: here, crosses: published',
        fontsize="medium",
    )
    figure.suptitle(found["title"], fontsize="medium")
    return png(figure, "videopanda lab report")


def _costs(found: dict[str, Any]) -> bytes:
    """Accuracy against what it costs, in the manner of Figure 1 of the Video-Panda paper."""
    figure, grid = plt.subplots(2, 2, figsize=(10, 7), sharey=True, layout="constrained")
    colors = plt.get_cmap("tab20")
    for axes, (name, (label, unit)) in zip(grid.flat, _COSTS.items()):
        for number, row in enumerate(found["rows"]):
            if name in row["cost"]:
                value = 100 * row["accuracy"]["mean"]
                low, high = (100 * end for end in row["accuracy"]["ci95"] or [row["accuracy"]["mean"]] * 2)
                axes.errorbar(
                    unit * row["cost"][name], value, yerr=[[value - low], [high - value]], fmt="o", capsize=2,
                    color=colors(number % 20), label=row["row"],
                )  # fmt: skip
        axes.set_xlabel(label)
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy (%)")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small", frameon=False)
    figure.suptitle(found["title"], fontsize="medium")
    return png(figure, "videopanda lab report")
