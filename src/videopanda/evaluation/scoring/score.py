"""Scores stored predictions; every question stays in the denominator.

    summary = score_file("mvbench", "MVBench/json", "predictions.jsonl", "scores.jsonl")

Every question with a public answer counts. A question whose video is missing, that has no prediction, whose prediction
cannot be understood, or whose id has several predictions, is wrong and is listed. Scores go to their own file, one row
per question in the order of the benchmark, next to a summary; equal predictions give equal bytes.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Group
from rich.table import Table

from videopanda.evaluation.benchmarks.files import Rejected
from videopanda.evaluation.benchmarks.inspect import chance
from videopanda.evaluation.benchmarks.item import Item, Task
from videopanda.evaluation.benchmarks.options import LETTERS
from videopanda.evaluation.benchmarks.table import Loaded, benchmark, load
from videopanda.evaluation.outputs import check_replaceable, lines_with, object_with, replace_file
from videopanda.evaluation.predictions import Failure, Prediction, read_predictions
from videopanda.evaluation.scoring.scorers import DEFAULTS, Scorer, scorer
from videopanda.evaluation.scoring.wordnet import WordNet

Status = (
    Literal["scored", "unparsable", "missing_prediction", "duplicate_id", "unparsable_verdict", "not_judged"] | Failure
)
WRONG: tuple[Status, ...] = (
    "missing_video",
    "unreadable_video",
    "error",
    "missing_prediction",
    "duplicate_id",
    "unparsable",
    "unparsable_verdict",
    "not_judged",
)
ASPECTS = frozenset({"correctness", "detail", "context", "temporal", "consistency"})  # of Video-ChatGPT
OUT_OF_FIVE = ASPECTS | {"score", "average"}  # metrics of judges
_DIGITS = 6
_LISTED = 5  # malformed rows in a table


@dataclass(frozen=True)
class Score:
    """What one question contributes."""

    id: str
    video: str
    status: Status
    scorer: str
    metrics: dict[str, float]
    types: tuple[str, ...]
    groups: tuple[str, ...] = ()
    parsed: str | None = None  # what the reply was understood to say
    prediction: str | None = None

    def as_json(self) -> str:
        """One line without its end."""
        return json.dumps(asdict(self), allow_nan=False)


def choose_scorers(name: str | None = None, words: WordNet | None = None) -> dict[Task, Scorer]:
    """The scorer of each task: the defaults, or the named one for the tasks that it accepts.

    Raises:
        ValueError: there is no such scorer, or it needs a WordNet.
    """
    if name is None:
        return {task: scorer(default) for task, default in DEFAULTS.items()}
    chosen = scorer(name, words)
    return dict.fromkeys(chosen.tasks, chosen)


def score(items: Iterable[Item], predictions: Sequence[Prediction], scorers: Mapping[Task, Scorer]) -> list[Score]:
    """Score every item that has an answer and a scorer, in the order of the items."""
    found: defaultdict[str, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        found[prediction.id].append(prediction)
    return [
        _score(item, found.get(item.id, []), scorers[item.task])
        for item in items
        if item.has_answer and item.task in scorers
    ]


def _score(item: Item, predictions: Sequence[Prediction], scorer: Scorer) -> Score:
    def wrong(status: Status, text: str | None = None) -> Score:
        return Score(
            id=item.id,
            video=item.video,
            status=status,
            scorer=scorer.name,
            metrics=dict.fromkeys(scorer.metrics, 0.0),
            types=item.types,
            groups=item.groups,
            prediction=text,
        )

    if not predictions:
        return wrong("missing_prediction")
    if len(predictions) > 1:
        return wrong("duplicate_id")
    (prediction,) = predictions
    if prediction.prediction is None:
        assert prediction.failure is not None
        return wrong(prediction.failure)
    judge = (prediction.is_cut and scorer.judge_cut) or scorer.judge
    verdict = judge(item, prediction.prediction)
    if verdict is None:
        return wrong("unparsable", prediction.prediction)
    metrics = {name: round(value, _DIGITS) for name, value in verdict.metrics.items()}
    return replace(wrong("scored", prediction.prediction), metrics=metrics, parsed=verdict.parsed)


def _with_group_scores(loaded: Loaded, scores: list[Score]) -> list[Score]:
    """Where a benchmark scores the questions about a video together, every question with that score.

    So means and intervals over questions are those over groups. A question of an incomplete group has no such score.
    """
    group_score = benchmark(loaded.name).group_score
    if group_score is None:
        return scores
    items = {item.id: item for item in loaded.items}
    videos: defaultdict[str, list[Score]] = defaultdict(list)
    for row in scores:
        videos[row.video].append(row)
    values = {
        video: group_score([items[row.id] for row in rows], [row.metrics["accuracy"] == 1.0 for row in rows])
        for video, rows in videos.items()
    }
    return [
        row if (value := values[row.video]) is None else replace(row, metrics={**row.metrics, "group_score": value})
        for row in scores
    ]


def summarize(
    loaded: Loaded,
    scores: Sequence[Score],
    predictions: Sequence[Prediction],
    malformed: Sequence[Rejected],
    judged: Set[str],
    scorers: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The results, how they were obtained, and lists of everything that counted as wrong without being scored.

    Args:
        judged: ids of the items that the scores are about.
        scorers: what the scores were made with: task, name, version, sha256, ...

    Raises:
        ValueError: no question can be scored, or the predictions are of another benchmark or of several conditions.
    """
    entry = benchmark(loaded.name)
    items = loaded.items
    left = [item for item in items if item.has_answer and item.id not in judged]
    if not scores:
        kinds = ", ".join(sorted({item.task for item in left})) or "questions without public answers"
        raise ValueError(f"the scorer does not apply to {entry.title}; available question kinds: {kinds}")
    protocols = Counter(json.dumps(asdict(p.protocol)) if p.protocol else "null" for p in predictions)
    known = {item.id for item in items} | {row.id for row in loaded.rejected if row.id}
    unknown = sorted({p.id for p in predictions} - known)
    if predictions and not known & {p.id for p in predictions}:
        raise ValueError(f"no prediction matches a question of {entry.title}; the first id is {unknown[0]!r}")
    foreign = {p.protocol.benchmark for p in predictions if p.protocol} - {loaded.name}
    if foreign:
        raise ValueError(f"the predictions are for {', '.join(sorted(foreign))}, not for {loaded.name}")
    conditions = sorted({p.protocol.condition for p in predictions if p.protocol})
    if len(conditions) > 1:
        raise ValueError(f"the predictions mix conditions ({', '.join(conditions)}): use one file per condition")
    types = {name: _means(rows) for name, rows in sorted(by_names(scores, "types").items())}
    groups = by_names(scores, "groups")
    return {
        "benchmark": loaded.name,
        "errata_mode": loaded.mode,
        "items_sha256": loaded.sha256,
        "predictions_sha256": _digest(predictions),
        "decoders": sorted({prediction.decoder for prediction in predictions if prediction.decoder}),
        "scorers": list(scorers),
        **_means(scores),
        **({"mean_over_types": _mean_over_types(types)} if entry.mean_over_types else {}),
        "chance": chance([item for item in items if item.id in judged]),
        "most_frequent_answer": None,
        "types": types,
        "groups": {name: _means(groups[name]) for name in entry.groups if name in groups},
        "cut_short": sum(prediction.is_cut for prediction in predictions),
        "statuses": dict(sorted(Counter(score.status for score in scores).items())),
        "wrong_without_being_read": {
            status: ids for status in WRONG if (ids := [score.id for score in scores if score.status == status])
        },
        "not_scored": {
            "without_public_answer": sum(not item.has_answer for item in items),
            "no_scorer_for_the_task": dict(sorted(Counter(item.task for item in left).items())),
            "rejected_rows_of_the_benchmark": len(loaded.rejected),
            "beyond_limit": loaded.beyond_limit,
        },
        "predictions_for_unknown_ids": unknown,
        "malformed_predictions": [asdict(row) for row in malformed],
        "protocols": [{"rows": n, "protocol": json.loads(text)} for text, n in sorted(protocols.items())],
    }


def by_names(scores: Iterable[Any], division: str) -> dict[str, list[Any]]:
    """Scores by the names of their types or groups; a score may have several, or none."""
    found: defaultdict[str, list[Any]] = defaultdict(list)
    for row in scores:
        for name in row.get(division, ()) if isinstance(row, dict) else getattr(row, division):
            found[name].append(row)
    return found


def most_frequent_answer(items: Iterable[Item], scorers: Mapping[Task, Scorer]) -> dict[str, Any] | None:
    """The score of always giving the most frequent answer for the type of each question. None if there is no such
    answer, as for intervals.
    """
    groups: defaultdict[tuple[Task, tuple[str, ...]], list[Item]] = defaultdict(list)
    for item in items:
        groups[item.task, item.types].append(item)
    scores = []
    for group in groups.values():
        replies = Counter(reply for item in group if (reply := _right_reply(item)))
        if not replies:
            return None
        reply = max(replies, key=lambda reply: (replies[reply], reply))
        scores += [_score(item, [Prediction(item.id, reply)], scorers[item.task]) for item in group]
    return _means(scores)


def _right_reply(item: Item) -> str | None:
    if item.task == "choice":
        return LETTERS[item.right[0]] if item.right else None
    return item.answers[0] if item.answers else None


def _means(scores: Sequence[Score]) -> dict[str, Any]:
    """Mean of each metric over the questions whose scorer has it, and the number of questions."""
    metrics = dict.fromkeys(name for score in scores for name in score.metrics)
    values = {name: [score.metrics[name] for score in scores if name in score.metrics] for name in metrics}
    means = {name: sum(all_) / len(all_) for name, all_ in values.items()}
    if means.keys() >= ASPECTS:
        means = {"average": sum(means[name] for name in ASPECTS) / len(ASPECTS), **means}
    return {"questions": len(scores), "metrics": {name: round(mean, _DIGITS) for name, mean in means.items()}}


def _mean_over_types(types: Mapping[str, Any]) -> dict[str, float]:
    metrics = dict.fromkeys(name for entry in types.values() for name in entry["metrics"])
    values = {name: [e["metrics"][name] for e in types.values() if name in e["metrics"]] for name in metrics}
    return {name: round(sum(all_) / len(all_), _DIGITS) for name, all_ in values.items()}


def _digest(predictions: Iterable[Prediction]) -> str:
    return hashlib.sha256("\n".join(sorted(p.as_json() for p in predictions)).encode()).hexdigest()


def score_file(
    name: str,
    path: str | Path,
    predictions: str | Path,
    out: str | Path,
    scorer_name: str | None = None,
    mode: str = "as-published",
    wordnet: str | Path | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Score a file of predictions; write `out` and `<out without suffix>.summary.json`, and return the summary.

    Raises:
        AnnotationError: annotations or predictions are missing.
        ValueError: unknown benchmark, scorer or mode; nothing can be scored; `out` is a file of another kind.
    """
    out = Path(out)
    check_output(out, Path(predictions))
    scorers = choose_scorers(scorer_name, WordNet(wordnet) if wordnet else None)
    loaded = load(name, path, mode, limit)
    read, malformed = read_all(Path(predictions))
    scores = _with_group_scores(loaded, score(loaded.items, read, scorers))
    items = [item for item in loaded.items if item.has_answer and item.task in scorers]
    used = [(task, scorers[task]) for task in dict.fromkeys(item.task for item in items)]
    entries = [{"task": task, "name": s.name, "version": s.version, "sha256": s.sha256} for task, s in used]
    summary = summarize(loaded, scores, read, malformed, {item.id for item in items}, entries)
    summary["most_frequent_answer"] = most_frequent_answer(items, scorers)
    write_scores(out, scores, summary)
    return summary


def read_all(path: Path) -> tuple[list[Prediction], list[Rejected]]:
    """The predictions of a file, and the rows that are not predictions.

    Raises:
        ValueError: no row is a prediction.
    """
    rows = list(read_predictions(path))
    rejected = [row for row in rows if isinstance(row, Rejected)]
    if len(rejected) == len(rows):
        first = f"; {rejected[0].place}: {rejected[0].reason}" if rejected else ""
        raise ValueError(f"{path} contains no predictions ({len(rows)} rows{first})")
    return [row for row in rows if isinstance(row, Prediction)], rejected


SCORES = lines_with("id", "status", "scorer", "metrics")
SUMMARY = object_with("benchmark", "items_sha256", "scorers")


def summary_of(out: Path) -> Path:
    """The file of the summary of a file of scores."""
    return out.with_suffix(".summary.json")


def check_output(out: Path, predictions: Path) -> None:
    """Check that scores overwrite neither the predictions nor any file that is not a score file.

    Raises:
        ValueError: they would.
    """
    if out.exists() and out.samefile(predictions):
        raise ValueError(f"{out} is the predictions file: write the scores to another --output")
    check_replaceable(out, SCORES)
    check_replaceable(summary_of(out), SUMMARY)


def write_scores(out: Path, scores: Iterable[Score], summary: Mapping[str, Any]) -> None:
    """Write `out` and its summary."""
    replace_file(out, "".join(row.as_json() + "\n" for row in scores), SCORES)
    replace_file(summary_of(out), json.dumps(summary, indent=2, allow_nan=False) + "\n", SUMMARY)


def _percent(metric: str, value: float) -> str:
    return f"{value:.2f}" if metric in OUT_OF_FIVE else f"{100 * value:.2f}"


def table(summary: Mapping[str, Any]) -> Group:
    """The summary as a table, in percent; points of judges from 0 to 5."""
    title = (
        f"{benchmark(summary['benchmark']).title}: {summary['questions']:,} questions, errata {summary['errata_mode']}"
    )
    metrics = list(summary["metrics"])
    grid = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    grid.add_column("type", overflow="fold")
    for header in ("n", *metrics):
        grid.add_column(header, justify="right")

    def add(name: str, n: str, values: Mapping[str, float], last: bool = False) -> None:
        shown = (_percent(metric, values[metric]) if metric in values else "–" for metric in metrics)
        grid.add_row(name, n, *shown, end_section=last)

    for parts in (summary["types"], summary["groups"]):
        for name, part in parts.items():
            add(name, f"{part['questions']:,}", part["metrics"], last=name == list(parts)[-1])
    add("all", f"{summary['questions']:,}", summary["metrics"])
    if "mean_over_types" in summary:
        add("mean over types", "", summary["mean_over_types"])
    if summary["chance"] is not None:
        add("chance", "", {"accuracy": summary["chance"]})
    lost = ", ".join(
        f"{status.replace('_', ' ')} {len(ids):,}" for status, ids in summary["wrong_without_being_read"].items()
    )
    notes = [f"counted as wrong: {lost}"] if lost else []
    if n := summary["cut_short"]:
        notes.append(f"replies cut short by the limit of tokens: {n:,} (raise --max-new-tokens)")
    unscored = summary["not_scored"]
    if unscored["without_public_answer"]:
        notes.append(f"without public answer, not counted: {unscored['without_public_answer']:,}")
    for task, n in unscored["no_scorer_for_the_task"].items():
        notes.append(f"not counted, no scorer for this kind: {task} {n:,}")
    if n := unscored["rejected_rows_of_the_benchmark"]:
        notes.append(f"rows of the annotations that cannot be read, not counted: {n:,} (see `evaluate inspect`)")
    if n := unscored["beyond_limit"]:
        notes.append(f"only a selection was asked, the same every time; left out: {n:,}")
    malformed = summary["malformed_predictions"]
    notes += [f"not a prediction: {row['place']}: {row['reason']}" for row in malformed[:_LISTED]]
    if len(malformed) > _LISTED:
        notes.append(f"and {len(malformed) - _LISTED:,} more rows that are not predictions (see the summary)")
    notes += [
        f"{entry['task']}: {entry['name']} {entry['version']} {entry['sha256'][:12]}" for entry in summary["scorers"]
    ]
    return Group(grid, *notes)
