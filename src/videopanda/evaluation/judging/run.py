"""From predictions to judged scores: `videopanda evaluate judge`."""

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videopanda.data.growing_file import only_writer
from videopanda.evaluation.benchmarks.table import Loaded, load
from videopanda.evaluation.judging.clients import Judge
from videopanda.evaluation.judging.judge import Call, JudgeUnit, Replies, ask_all, call, estimate, scores, units, usable
from videopanda.evaluation.judging.official import read_verdicts
from videopanda.evaluation.judging.protocols import JudgePrompt, sha256
from videopanda.evaluation.predictions import Prediction
from videopanda.evaluation.scoring.score import Status, check_output, read_all, summarize, write_scores

VERSION = "1"


@dataclass(frozen=True)
class Work:
    """Predictions and the units to judge."""

    loaded: Loaded
    predictions: list[Prediction]
    malformed: list[Any]
    units: list[JudgeUnit]
    by_id: dict[str, list[Prediction]]


def prepare(bench: str, path: Path, predictions: Path, out: Path, errata: str = "as-published") -> Work:
    """Read annotations and predictions.

    Raises:
        ValueError: they cannot be read, there is nothing for a judge to rate, or `out` is a file of another kind.
    """
    check_output(out, predictions)
    loaded = load(bench, path, errata)
    read, malformed = read_all(predictions)
    found = units(loaded.items)
    if not found:
        raise ValueError(f"{bench} has no open questions with public answers: use `videopanda evaluate score`")
    by_id: defaultdict[str, list[Prediction]] = defaultdict(list)
    for prediction in read:
        by_id[prediction.id].append(prediction)
    return Work(loaded, read, malformed, found, dict(by_id))


def calls(work: Work, prompts: dict[str, JudgePrompt], judge: str) -> dict[str, Call]:
    """The call of every unit that has something to judge, by the id of the unit."""
    texts = {unit.id: usable(unit, work.by_id) for unit in work.units}
    return {unit.id: call(unit, texts[unit.id][1], prompts, judge) for unit in work.units if texts[unit.id][0] is None}


def judge_file(
    work: Work, out: Path, judge: Judge, prompts: dict[str, JudgePrompt], concurrency: int = 8
) -> dict[str, Any]:
    """Ask the judge about open units and write scores, summary and `<out without suffix>.replies.jsonl`.

    Returns:
        The summary; `summary["failed_calls"]` has the reasons of calls that got no reply.

    Raises:
        ValueError: another process is judging into the same file.
    """
    asked = calls(work, prompts, judge.name)
    with only_writer(replies_file(out)):
        replies = Replies(replies_file(out))
        failed = ask_all(asked.values(), judge, replies, concurrency)
    found = {id_: metrics for id_, call in asked.items() if (metrics := replies.verdict(call)) is not None}
    unread: dict[str, Status] = {
        id_: "not_judged" if call.key in failed else "unparsable_verdict"
        for id_, call in asked.items()
        if id_ not in found
    }
    answered_by = sorted({row["model"] for call in asked.values() for row in replies.of(call.key)})
    aspects = {unit.aspect for unit in work.units}
    info = {
        "model": judge.name,
        "answered_by": answered_by,
        "prompt_sha256": sha256(prompts, aspects),
        **judge.settings,
    }
    reasons = {id_: failed[call.key] for id_, call in asked.items() if call.key in failed}
    return _finish(work, out, found, unread, info, {"failed_calls": reasons})


def open_calls(
    work: Work, out: Path, prompts: dict[str, JudgePrompt], judge: str, *prices: float | None
) -> dict[str, Any]:
    """What the run will cost: an estimate of the calls that are not answered yet."""
    replies = Replies(replies_file(out))
    distinct = {call.key: call for call in calls(work, prompts, judge).values()}
    return estimate([call for call in distinct.values() if replies.is_open(call)], *prices)


def import_file(work: Work, out: Path, verdicts: Path) -> dict[str, Any]:
    """Scores from the output of official scripts; what they omitted counts as wrong and is listed."""
    found, broken = read_verdicts(verdicts, work.units)
    unread: dict[str, Status] = {
        unit.id: "unparsable_verdict" if unit.id in broken else "not_judged" for unit in work.units
    }
    info = {"model": "unknown (imported)", "answered_by": [], "prompt_sha256": "unknown"}
    return _finish(work, out, found, unread, info, {"imported": verdicts.name})


def _finish(
    work: Work,
    out: Path,
    verdicts: dict[str, dict[str, float]],
    unread: dict[str, Status],
    info: dict[str, Any],
    more: dict[str, Any],
) -> dict[str, Any]:
    rows = scores(work.units, work.by_id, verdicts, unread)
    digest = hashlib.sha256(json.dumps([VERSION, info], sort_keys=True).encode()).hexdigest()
    tasks = ", ".join(sorted({unit.aspect for unit in work.units}))
    entry = {"task": tasks, "name": "judge", "version": VERSION, "sha256": digest, "judge": info}
    judged = {item.id for unit in work.units for item in unit.items}
    summary = {**summarize(work.loaded, rows, work.predictions, work.malformed, judged, [entry]), **more}
    write_scores(out, rows, summary)
    return summary


def replies_file(out: Path) -> Path:
    """Where the raw replies are kept."""
    return out.with_suffix(".replies.jsonl")
