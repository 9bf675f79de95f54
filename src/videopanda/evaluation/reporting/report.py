"""Builds a report from score files: results, their uncertainty, and how much can be answered without the video.

    report([Path("full.scores.jsonl"), Path("no_video.scores.jsonl")])

One table has one benchmark, one way of scoring and one protocol. Files that differ in the judge, the scorer, the
questions or the protocol are refused together; models and conditions (the clip and its baselines) are what a table
compares.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from videopanda.evaluation.benchmarks.files import AnnotationError, objects, read_object
from videopanda.evaluation.benchmarks.table import benchmark
from videopanda.evaluation.predictions import CONDITIONS
from videopanda.evaluation.reporting.published import as_rows
from videopanda.evaluation.scoring.score import ASPECTS, by_names

RESAMPLES = 2000
_DRAWS = 1 << 20  # at a time: a few megabytes
_DIGITS = 6
# What may differ between the models and conditions of a table.
_FREE = frozenset({"model", "model_sha256", "vision_parameters", "condition", "versions", "settings"})


@dataclass(frozen=True)
class Run:
    """The scores of one model under one condition."""

    file: Path
    summary: dict[str, Any]
    scores: tuple[dict[str, Any], ...]
    protocol: dict[str, Any]  # empty where the predictions say nothing

    @property
    def model(self) -> str:
        """Name of the model with its changed settings, or of the file if the predictions do not name one."""
        changed = " ".join(f"{name}={json.dumps(value)}" for name, value in self.protocol.get("settings", {}).items())
        return (self.protocol.get("model") or self.file.name.partition(".")[0]) + f", {changed}" * bool(changed)

    @property
    def condition(self) -> str:
        """What the model was shown."""
        return self.protocol.get("condition", "full")

    @property
    def ruler(self) -> dict[str, Any]:
        """Everything that must be equal within a table, by name."""
        protocol = {name: value for name, value in self.protocol.items() if name not in _FREE}
        generation = {k: v for k, v in protocol.pop("generation", {}).items() if k != "batch_size"}
        return {
            "questions (items_sha256)": self.summary["items_sha256"],
            "errata mode": self.summary["errata_mode"],
            "scorer or judge": self.summary["scorers"],
            **{f"protocol: {name}": value for name, value in sorted({**protocol, **generation}.items())},
        }


def read_run(path: Path) -> Run:
    """A score file and its summary.

    Raises:
        ValueError: one of them is missing or damaged, or the predictions were of several protocols.
    """
    summary_file = path.with_suffix(".summary.json")
    if not summary_file.is_file():
        raise ValueError(f"{path}: its summary {summary_file.name} is missing; `videopanda evaluate score` writes both")
    summary = dict(read_object(summary_file))
    scores = [dict(score) for score in objects(path)]
    try:
        protocols = [entry["protocol"] or {} for entry in summary["protocols"]]
        if len(scores) != summary["questions"]:
            raise ValueError(f"{path} has {len(scores)} scores, but its summary has {summary['questions']}")
    except (KeyError, TypeError) as error:
        raise AnnotationError(f"{summary_file} is not a summary of scores") from error
    if len(protocols) > 1:
        raise ValueError(f"{path}: its predictions come from {len(protocols)} different protocols, not a single run")
    run = Run(path, summary, tuple(scores), protocols[0] if protocols else {})
    if run.condition not in CONDITIONS:
        raise ValueError(f"{path}: unknown condition {run.condition!r}; choose from {', '.join(CONDITIONS)}")
    return run


# -- numbers -----------------------------------------------------------------------------------------------------------
def bootstrap(metrics: Sequence[tuple[Sequence[str], Sequence[float]]], seed: int = 0) -> tuple[float, float] | None:
    """95 % interval (percentile bootstrap, Efron 1979) of the average of the means of metrics, of each of which the
    videos and values of its questions are given; None for fewer than two videos.

    Whole videos are drawn, not questions: questions about one video are right and wrong together.
    """
    names = {name: i for i, name in enumerate(dict.fromkeys(name for videos, _ in metrics for name in videos))}
    if len(names) < 2:
        return None
    places = [np.array([names[video] for video in videos]) for videos, _ in metrics]
    counts = [np.bincount(at, minlength=len(names)).astype(float) for at in places]  # each (V,)
    sums = [
        np.bincount(at, weights=np.asarray(values, float), minlength=len(names))
        for at, (_, values) in zip(places, metrics)
    ]  # each (V,)
    rng = np.random.default_rng(seed)
    means: list[float] = []
    while len(means) < RESAMPLES:
        count = min(RESAMPLES - len(means), max(1, _DRAWS // len(names)))
        drawn = rng.integers(0, len(names), (count, len(names)))  # (count, V)
        with np.errstate(invalid="ignore"):  # a draw without a question of a metric says nothing about it
            parts = [total[drawn].sum(1) / number[drawn].sum(1) for total, number in zip(sums, counts)]
        means += list(np.nanmean(parts, axis=0))
    low, high = np.percentile(means, [2.5, 97.5])
    return round(float(low), _DIGITS), round(float(high), _DIGITS)


def measure(scores: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Questions, and for every metric its mean and interval; with all five aspects first their average."""
    found = {}
    for name in dict.fromkeys(name for score in scores for name in score["metrics"]):
        have = [score for score in scores if name in score["metrics"]]
        found[name] = [score["video"] for score in have], [score["metrics"][name] for score in have]
    measured = {name: _measured([found[name]], len(found[name][0])) for name in found}
    if found.keys() >= ASPECTS:
        measured = {"average": _measured([found[name] for name in sorted(ASPECTS)], len(scores)), **measured}
    return {"questions": len(scores), "metrics": measured}


def _measured(metrics: Sequence[tuple[list[str], list[float]]], questions: int) -> dict[str, Any]:
    interval = bootstrap(metrics)
    mean = sum(sum(values) / len(values) for _, values in metrics) / len(metrics)
    return {"value": round(mean, _DIGITS), "ci95": list(interval) if interval else None, "questions": questions}


def metric_of(part: dict[str, Any], main: str) -> str:
    """The metric that stands for a type: the main one, or of types that have others (the five aspects) the first."""
    return main if main in part["metrics"] else next(iter(part["metrics"]))


def _measure_run(run: Run) -> dict[str, Any]:
    lost = run.summary["wrong_without_being_read"]
    groups = by_names(run.scores, "groups")
    order = benchmark(run.summary["benchmark"]).groups
    return {
        "file": run.file.name,
        **measure(run.scores),
        "mean_over_types": run.summary.get("mean_over_types"),
        "types": {name: measure(scores) for name, scores in sorted(by_names(run.scores, "types").items())},
        "groups": {name: measure(groups[name]) for name in order if name in groups},
        "coverage": round(run.summary["statuses"].get("scored", 0) / len(run.scores), _DIGITS),
        "wrong_without_being_read": lost,
        "not_scored": run.summary["not_scored"],
        "versions": run.protocol.get("versions", {}),
        "decoders": run.summary["decoders"],
    }


# -- the report --------------------------------------------------------------------------------------------------------
def report(files: Sequence[Path]) -> dict[str, Any]:
    """Measure files of scores, one table per benchmark.

    Raises:
        ValueError: files of one benchmark differ in judge, scorer, questions or protocol, or two files hold the same
            model under the same condition.
    """
    groups: defaultdict[str, list[Run]] = defaultdict(list)
    for run in map(read_run, files):
        groups[run.summary["benchmark"]].append(run)
    return {"benchmarks": [_table(name, runs) for name, runs in groups.items()]}


def _table(name: str, runs: list[Run]) -> dict[str, Any]:
    first = runs[0]
    for run in runs[1:]:
        one, other = first.ruler, run.ruler
        for key in dict.fromkeys((*one, *other)):
            if one.get(key) != other.get(key):
                raise ValueError(
                    f"{first.file.name} and {run.file.name} differ in {key} ({_short(one.get(key))}, "
                    f"{_short(other.get(key))}): they cannot share a table; report them separately"
                )
    models: dict[tuple[str, str | None], dict[str, Run]] = {}
    for run in sorted(runs, key=lambda run: CONDITIONS.index(run.condition)):
        conditions = models.setdefault((run.model, run.protocol.get("model_sha256")), {})
        if run.condition in conditions:
            raise ValueError(
                f"{conditions[run.condition].file.name} and {run.file.name} are both of model {run.model}, condition "
                f"{run.condition}"
            )
        conditions[run.condition] = run
    return {
        "benchmark": name,
        "title": benchmark(name).title,
        "ruler": first.ruler,
        "chance": first.summary["chance"],
        "most_frequent_answer": first.summary["most_frequent_answer"],
        "models": [
            {
                "model": model,
                "model_sha256": sha256,
                "vision_parameters": next(iter(conditions.values())).protocol.get("vision_parameters"),
                "conditions": {condition: _measure_run(run) for condition, run in conditions.items()},
            }
            for (model, sha256), conditions in models.items()
        ],
        "published": as_rows(name),
    }


def _short(value: Any) -> str:
    """A value for a message; for scorers and judges, what distinguishes them."""
    if isinstance(value, list):
        return ", ".join(f"{entry['name']} {entry['sha256'][:8]}" for entry in value)
    return json.dumps(value)[:60]
