"""The report as Markdown, JSON and plots: `report.md`, `report.json` and one or two PNG files per benchmark.

`overview` is what the commands print.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from rich import box
from rich.table import Table

from videopanda.evaluation.outputs import begins_with, check_replaceable, object_with, replace_file
from videopanda.evaluation.predictions import CONDITIONS
from videopanda.evaluation.reporting.plots import plot_types, plot_vision_size
from videopanda.evaluation.reporting.report import metric_of
from videopanda.evaluation.scoring.score import OUT_OF_FIVE

_WIDEST_NAME = 16  # longer names wrap
_LISTED = 20  # ids per kind of loss; report.json has all


def write(report: dict[str, Any], out: Path) -> list[Path]:
    """Write all files into a folder. Equal reports give equal text files.

    Raises:
        ValueError: a file of another kind has the name of a report file.
    """
    written: list[Path] = []
    kinds = {"report.md": begins_with(b"# Evaluation\n"), "report.json": object_with("benchmarks")}
    for name, kind in kinds.items():
        check_replaceable(out / name, kind)
    out.mkdir(parents=True, exist_ok=True)
    parts = ["# Evaluation"]
    for table in report["benchmarks"]:
        plots = [out / f"{table['benchmark']}.types.png"] if _has(table, "types") else []
        for path in plots:
            plot_types(table, headline(table), path)
        if any(model["vision_parameters"] for model in table["models"]):
            plots.append(out / f"{table['benchmark']}.vision_size.png")
            plot_vision_size(table, headline(table), plots[-1])
        parts.append(markdown(table, [path.name for path in plots]))
        written += plots
    for name, text in (
        ("report.md", "\n\n".join(parts) + "\n"),
        ("report.json", json.dumps(report, indent=2, allow_nan=False) + "\n"),
    ):
        replace_file(out / name, text, kinds[name])
        written.append(out / name)
    return written


def headline(table: dict[str, Any]) -> str:
    """The metric that stands for the others: the first one."""
    conditions = table["models"][0]["conditions"]
    return next(iter(next(iter(conditions.values()))["metrics"]))


def _has(table: dict[str, Any], division: str) -> bool:
    return any(part[division] for model in table["models"] for part in model["conditions"].values())


def overview(report: dict[str, Any]) -> Table:
    """The headline of every benchmark and model under every condition, at most 80 columns wide.

    Percent; points of judges from 0 to 5.
    """
    models = list(dict.fromkeys(model["model"] for part in report["benchmarks"] for model in part["models"]))
    conditions = [
        condition
        for condition in CONDITIONS
        if any(condition in model["conditions"] for part in report["benchmarks"] for model in part["models"])
    ]
    title = "Percent right" + (f": {models[0]}" if len(models) == 1 else "")
    grid = Table(title=title, title_justify="left", box=box.SIMPLE, padding=0)
    grid.add_column("benchmark", no_wrap=True)
    for name in ("n", "full", "95 %", *(name.replace("_", "\n") for name in conditions if name != "full"), "chance"):
        grid.add_column(name, justify="right", no_wrap=True)
    for part in report["benchmarks"]:
        if len(models) > 1:
            grid.add_row(fill(part["title"], _WIDEST_NAME))
        for model in part["models"]:
            name = model["model"] if len(models) > 1 else part["title"]
            grid.add_row(fill(name, _WIDEST_NAME), *_headlines(part, model, conditions))
    return grid


def _headlines(part: dict[str, Any], model: dict[str, Any], conditions: Sequence[str]) -> list[str]:
    main, chance = headline(part), part["chance"]
    scale, digits = (1, 2) if main in OUT_OF_FIVE else (100, 1)
    found = {name: _metric(model, name, main) for name in conditions}
    shown = {name: f"{scale * value['value']:.{digits}f}" if value else "–" for name, value in found.items()}
    whole = found.get("full")
    interval = "–".join(f"{scale * end:.{digits - 1}f}" for end in whole["ci95"]) if whole and whole["ci95"] else "–"
    asked = next(iter(model["conditions"].values()))["questions"]
    others = [value for name, value in shown.items() if name != "full"]
    return [f"{asked:,}", shown.get("full", "–"), interval, *others, "–" if chance is None else f"{100 * chance:.1f}"]


# -- Markdown ----------------------------------------------------------------------------------------------------------
def markdown(table: dict[str, Any], plots: Sequence[str] = ()) -> str:
    """One benchmark: how it was scored, the table of models, the baselines, types, what was lost, published numbers."""
    main = headline(table)
    parts = [f"## {table['title']}", _ruler(table), _models(table), _battery(table, main)]
    conditions = [part for model in table["models"] for part in model["conditions"].values()]
    divided = [main, *(["group_score"] if any("group_score" in part["metrics"] for part in conditions) else [])]
    for division in ("types", "groups"):
        models = [model for model in table["models"] if _has({"models": [model]}, division)]
        parts += [_divided(model, division, metric) for model in models for metric in divided]
    parts.append(_lost(table))
    parts += [f"![{name}]({name})" for name in plots]
    parts.append(_published(table))
    return "\n\n".join(part for part in parts if part)


def _ruler(table: dict[str, Any]) -> str:
    ruler = dict(table["ruler"])
    lines = [f"- scorer or judge: {'; '.join(map(_scorer, ruler.pop('scorer or judge')))}"]
    lines += [f"- {name}: {value if isinstance(value, str) else json.dumps(value)}" for name, value in ruler.items()]
    if not any(name.startswith("protocol") for name in ruler):
        lines.append("- protocol: unknown; the predictions do not say how they were made")
    return "\n".join(lines)


def _scorer(entry: dict[str, Any]) -> str:
    text = f"{entry['name']} {entry['version']} ({entry['task']}, {entry['sha256'][:12]})"
    if "judge" not in entry:
        return text
    judge, answered_by = entry["judge"], entry["judge"]["answered_by"]
    said = f" (its server says: {', '.join(answered_by)})" if {*answered_by} - {judge["model"]} else ""
    return f"{text}, judge {judge['model']}{said}, prompts {judge['prompt_sha256'][:12]}"


def _models(table: dict[str, Any]) -> str:
    parts = [(model, *next(iter(model["conditions"].items()))) for model in table["models"]]
    metrics = list(dict.fromkeys(name for _, _, part in parts for name in part["metrics"]))
    mean = any(part["mean_over_types"] for _, _, part in parts)
    header = ["model", "shown", "questions", "coverage", *metrics, *(["mean over types"] if mean else [])]
    rows = [
        [
            model["model"],
            condition,
            f"{part['questions']:,}",
            f"{100 * part['coverage']:.1f} %",
            *(_value(name, part["metrics"].get(name)) for name in metrics),
            *([_number(metrics[0], part["mean_over_types"][metrics[0]])] if mean else []),
        ]
        for model, condition, part in parts
    ]
    note = "Percent, scores of judges from 0 to 5; in brackets 95 % intervals (bootstrap over videos). "
    note += "Questions without a usable reply are counted as wrong and listed below."
    return f"{markdown_table(header, rows)}\n\n{note}"


def _battery(table: dict[str, Any], main: str) -> str:
    """The score next to the baselines that see no video, or not all of it."""
    shown = [c for c in CONDITIONS if any(c in model["conditions"] for model in table["models"])]
    frequent = table["most_frequent_answer"]
    floor = [
        _number(main, frequent["metrics"][main]) if frequent and main in frequent["metrics"] else "–",
        _number(main, table["chance"]) if table["chance"] is not None else "–",
    ]
    rows = [
        [model["model"], *(_value(main, _metric(model, condition, main)) for condition in shown), *floor]
        for model in table["models"]
    ]
    header = ["model", *(name.replace("_", " ") for name in shown), "most frequent answer", "chance"]
    return f"### Does it look at the video? ({main})\n\n{markdown_table(header, rows)}"


def _metric(model: dict[str, Any], condition: str, name: str) -> dict[str, Any] | None:
    part = model["conditions"].get(condition)
    return part["metrics"].get(name) if part else None


def _divided(model: dict[str, Any], division: str, main: str) -> str:
    """A line per type or group of questions."""
    conditions = model["conditions"]
    names = dict.fromkeys(name for part in conditions.values() for name in part[division])
    first = next(iter(conditions.values()))
    rows = [
        [
            name,
            f"{first[division][name]['questions']:,}",
            *(_of_type(part[division][name], main) for part in conditions.values()),
        ]
        for name in names
    ]
    header = [division.removesuffix("s"), "questions", *(condition.replace("_", " ") for condition in conditions)]
    shared = all(main in part["metrics"] for part in first[division].values())
    heading = f"### {model['model']} by {division.removesuffix('s')}{f' ({main})' if shared else ''}"
    return f"{heading}\n\n{markdown_table(header, rows)}"


def _of_type(part: dict[str, Any], main: str) -> str:
    name = metric_of(part, main)
    return _value(name, part["metrics"][name])


def _lost(table: dict[str, Any]) -> str:
    lines = []
    for model in table["models"]:
        for condition, part in model["conditions"].items():
            for status, ids in part["wrong_without_being_read"].items():
                more = f" and {len(ids) - _LISTED:,} more (report.json)" if len(ids) > _LISTED else ""
                lines.append(
                    f"- {model['model']}, {condition}: {status.replace('_', ' ')} {len(ids):,}: "
                    f"{', '.join(f'`{id_}`' for id_ in ids[:_LISTED])}{more}"
                )
    return "\n".join(["### Counted as wrong without being scored", "", *lines]) if lines else ""


def _published(table: dict[str, Any]) -> str:
    """Published numbers, next to those measured here on the same questions."""
    if not table["published"]:
        return ""
    metrics = list(dict.fromkeys(name for entry in table["published"] for name in entry["metrics"]))
    rows = [
        [
            entry["model"],
            entry["part"] or "all",
            *(f"{entry['metrics'][name]:g}" if name in entry["metrics"] else "–" for name in metrics),
            *(_same(model, entry, next(iter(entry["metrics"]))) for model in table["models"]),
            entry["protocol"],
        ]
        for entry in table["published"]
    ]
    ours = [f"{model['model']}, measured here" for model in table["models"]]
    note = "### Published numbers\n\nMeasured under other protocols, so compare them with care. Next to each is "
    note += "the first metric as it was measured here, on the same part of the questions."
    return f"{note}\n\n{markdown_table(['model', 'part', *metrics, *ours, 'protocol'], rows)}"


def _same(model: dict[str, Any], entry: dict[str, Any], metric: str) -> str:
    """Our result for a published metric, on the same part of the questions."""
    full = model["conditions"].get("full")
    if full is None:
        return "–"
    if entry["part"]:
        return _value(metric, full["groups"].get(entry["part"], {"metrics": {}})["metrics"].get(metric))
    if full["mean_over_types"] and metric in full["mean_over_types"]:
        return _number(metric, full["mean_over_types"][metric])
    return _value(metric, full["metrics"].get(metric))


def _value(name: str, measured: dict[str, Any] | None) -> str:
    if measured is None:
        return "–"
    interval = measured["ci95"]
    shown = f" [{_number(name, interval[0])}, {_number(name, interval[1])}]" if interval else ""
    return f"{_number(name, measured['value'])}{shown}"


def _number(name: str, value: float) -> str:
    return f"{value:.2f}" if name in OUT_OF_FIVE else f"{100 * value:.1f}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, with any | in a cell escaped."""
    lines = [list(header), ["---"] * len(header), *map(list, rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
