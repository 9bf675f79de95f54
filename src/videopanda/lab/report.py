"""The findings of a file of results: means, intervals, paired differences from the reference row, and directions.

    found = report(results, read("table4"), "full")
    found["rows"][1]["difference"]           # {"mean": -0.021, "ci95": [-0.05, 0.008], "detectable": 0.041}

An interval covers two sources of randomness: which clips were asked about, and which seed the training had. Answers
about one clip are correlated, so clips are counted, not questions. Both variances are added; the interaction of seed
and clip is in both, so the interval is too wide rather than too narrow. With one seed the second
part is unknown, and the report says so.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any, Literal

import numpy as np

from videopanda.lab.table import Table, TableRow

Z, POWER = 1.96, 0.84  # quantiles of the normal distribution: 95 % two-sided, and 80 % power
# Quantiles of Student's t distribution for 95 % two-sided, by degrees of freedom from 1.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)

Direction = Literal["agrees", "disagrees", "undecided", "mixed", "not published"]


def report(results: Mapping[str, Any], table: Table, budget: str) -> dict[str, Any]:
    """Measure all rows of a budget.

    Raises:
        ValueError: there is none, or rows were asked about different questions.
    """
    table.budget(budget)
    found: dict[str, dict[int, dict[str, Any]]] = {}
    names, removed = {row.name for row in table.rows}, list[str]()
    for line in (line for line in results["rows"] if line["budget"] == budget):
        if line["row"] in names:
            found.setdefault(line["row"], {})[line["seed"]] = line
        elif line["row"] not in removed:
            removed.append(line["row"])
    if not found:
        there = sorted({line["budget"] for line in results["rows"]})
        raise ValueError(
            f"no results for budget {budget}"
            + (f", only for {', '.join(there)}" if there and not removed else "")
            + (f", only of rows that the table does not have: {', '.join(removed)}" if removed else "")
            + f": run  videopanda lab run TABLE --budget {budget}"
        )
    lines = [line for seeds in found.values() for line in seeds.values()]
    tests = {line["test"] for line in lines}
    if len(tests) > 1:
        older = [line["row"] for line in lines if outdated(line, line, table, budget)]
        raise ValueError(
            f"the rows of budget {budget} were evaluated on {len(tests)} different sets of questions"
            + (f"; run these again, they are older than the table: {', '.join(dict.fromkeys(older))}" if older else "")
        )
    test = results["tests"][tests.pop()]
    rows = [
        _row(row, found[row.name], found.get(row.compare or table.compare, {}), test, table, budget)
        for row in table.rows
        if row.name in found
    ]
    return {
        "table": table.name,
        "title": table.title,
        "source": table.source,
        "budget": budget,
        "compare": table.compare,
        "columns": list(table.columns),
        "questions": len(test["clips"]),
        "clips": len(set(test["clips"])),
        "rows": rows,
        "missing": [row.name for row in table.rows if row.name not in found],
        "removed": removed,
        "hours": round(sum(line["cost"]["hours"] for line in lines), 3),
    }


def _row(
    row: TableRow,
    seeds: Mapping[int, dict[str, Any]],
    full: Mapping[int, dict[str, Any]],
    test: Mapping[str, list],
    table: Table,
    budget: str,
) -> dict[str, Any]:
    own, any_line = {seed: _right(line) for seed, line in seeds.items()}, next(iter(seeds.values()))
    shared, compare = sorted(seeds.keys() & full.keys()), row.compare or table.compare
    families, clips = np.array(test["families"]), np.array(test["clips"])
    measured: dict[str, Any] = {
        "row": row.name,
        "seeds": sorted(seeds),
        "accuracy": interval(list(own.values()), clips),
        "families": {},
        "battery": {
            name: round(mean(line["battery"][name] for line in seeds.values()), 4) for name in any_line["battery"]
        },
        "cost": {name: mean(line["cost"][name] for line in seeds.values()) for name in any_line["cost"]},
        "compare": compare,
        "published": dict(row.published),
        "note": row.note,
        "outdated": {
            seed: changes
            for seed in sorted(seeds)
            if (changes := outdated(seeds[seed], full.get(seed, seeds[seed]), table, budget))
        },
    }
    for family in dict.fromkeys(test["families"]):
        asked = families == family
        measured["families"][family] = interval([right[asked] for right in own.values()], clips[asked])
    if row.name != compare and shared:
        pairs = [own[seed] - _right(full[seed]) for seed in shared]
        measured["difference"] = interval(pairs, clips)
        measured["family_differences"] = {
            family: interval([pair[families == family] for pair in pairs], clips[families == family])
            for family in measured["families"]
        }
        measured["published_difference"] = published_difference(row, table.row(compare))
        measured["direction"] = direction(measured["difference"], measured["published_difference"])
    return measured


def outdated(line: Mapping[str, Any], full: Mapping[str, Any], table: Table, budget: str) -> list[str]:
    """What the table says now of a row in it that was measured with something else, and whether it and the row that it
    is compared with, `full`, start from different language models.

    Returns:
        Changes in words: "pretrain: max_steps was 900, is 1200".
    """
    if "experiment" not in line:
        return ["its settings were not recorded"]
    before = line["experiment"]
    now = table.experiment(line["row"], line["seed"], budget, before.get("start", {}).get("model", ""))
    changes = [f"{stage} is new" for stage in now if stage not in before]
    changes += [f"{stage} is gone" for stage in before if stage not in now]
    for stage in (stage for stage in before if stage in now):
        values, wanted = before[stage], now[stage]
        changes += [
            f"{stage}: {key} was {values.get(key, 'the default')}, is {wanted.get(key, 'the default')}"
            for key in {**values, **wanted}
            if values.get(key) != wanted.get(key)
        ]
    if before.get("start") != full.get("experiment", before).get("start"):
        changes.append(f"it starts from another language model than {full['row']}")
    return changes


def _right(line: Mapping[str, Any]) -> np.ndarray:
    return np.array([int(bit) for bit in line["right"]], float)


# -- numbers -----------------------------------------------------------------------------------------------------------
def interval(values: Sequence[np.ndarray], clips: np.ndarray) -> dict[str, Any]:
    """Mean over seeds and questions, its 95 % interval, and the smallest true value that would have been detected.

    Args:
        values: for every seed the values of all questions, (Q,) each.
        clips: the clip of each question, (Q,).

    Returns:
        "mean", "ci95" and "detectable": the true difference that a test at 5 % finds with a probability of 80 %. Both
        are None for a single clip, and where all clips and seeds have one value, which tells nothing of their spread.
    """
    center = float(np.mean(values))
    per_question = np.mean(values, axis=0)
    sums = np.bincount(np.unique(clips, return_inverse=True)[1], weights=per_question - center)
    count = len(sums)
    squares = Z**2 * count / (count - 1) * float((sums**2).sum()) / len(clips) ** 2 if count > 1 else math.inf
    if len(values) > 1:
        spread = stdev(float(seed.mean()) for seed in values) / math.sqrt(len(values))
        squares += (_t(len(values) - 1) * spread) ** 2
    half = math.sqrt(squares)
    low, high = center - half, center + half
    known = 0 < half < math.inf
    return {
        "mean": round(center, 4),
        "ci95": [round(low, 4), round(high, 4)] if known else None,
        "detectable": round(half * (Z + POWER) / Z, 4) if known else None,
    }


def _t(degrees: int) -> float:
    if degrees <= len(_T):
        return _T[degrees - 1]
    terms = (Z**3 + Z) / 4, (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96, (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384
    return Z + sum(term / degrees**power for power, term in enumerate(terms, 1))  # error below 0.001


def published_difference(row: TableRow, full: TableRow) -> dict[str, float]:
    """The paper's differences to its full model, by benchmark, in points."""
    shared = {name: value for name, value in row.published.items() if name in full.published}
    differences = {name: round(value - full.published[name], 2) for name, value in shared.items()}
    return {**differences, **row.published_differences}


def direction(difference: Mapping[str, Any], published: Mapping[str, float]) -> Direction:
    """Whether the sign of a measured difference is the published one; undecided where the interval contains 0."""
    signs = {value > 0 for value in published.values() if value}
    if not signs:
        return "not published"
    if len(signs) > 1:
        return "mixed"
    if difference["ci95"] is None or difference["ci95"][0] <= 0 <= difference["ci95"][1]:
        return "undecided"
    return "agrees" if (difference["mean"] > 0) in signs else "disagrees"
