"""Judging stored predictions: every question once, every reply kept, nothing asked twice.

    verdicts = ask_all(calls, RemoteJudge("judge-2026-01-01", "http://localhost:8000/v1"), Path("replies.jsonl"))

Raw replies are appended to a file as they arrive. It is also the cache: a verdict is found by the content of its call
(model, settings, messages), so an interrupted run resumes where it stopped, and equal calls are made once.
"""

import hashlib
import json
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from videopanda.data.growing_file import append_lines
from videopanda.evaluation.benchmarks.files import AnnotationRowError, Rejected, rows
from videopanda.evaluation.benchmarks.item import Item
from videopanda.evaluation.judging.clients import SETTINGS, Judge, JudgeError
from videopanda.evaluation.judging.protocols import JudgePrompt, metrics_of, parse
from videopanda.evaluation.predictions import Prediction, check_appendable, watched
from videopanda.evaluation.scoring.final_text import without_thoughts
from videopanda.evaluation.scoring.score import Score, Status

ATTEMPTS = 3  # unreadable replies to one call before giving up
_CHARACTERS_PER_TOKEN = 4  # of English, roughly
_TOKENS_PER_VERDICT = 24


@dataclass(frozen=True)
class JudgeUnit:
    """The unit of judging: an aspect of a question, or of a pair of questions."""

    id: str
    aspect: str
    items: tuple[Item, ...]  # one, or the two of a pair

    def fields(self, predictions: Sequence[str]) -> dict[str, str]:
        """The values of the slots of a prompt."""
        second = {"question_2": self.items[-1].question, "prediction_2": predictions[-1]}
        return {
            "question": self.items[0].question,
            "answer": self.items[0].answers[0],
            "prediction": predictions[0],
            **(second if len(self.items) == 2 else {}),
        }


def units(items: Iterable[Item]) -> list[JudgeUnit]:
    """The units to judge: open questions and descriptions with a public answer."""
    found: list[JudgeUnit] = []
    pairs: defaultdict[str, list[Item]] = defaultdict(list)
    for item in items:
        if item.task not in ("short_answer", "yes_no", "description") or not item.answers:
            continue
        if "pair" in item.extra:
            pairs[item.extra["pair"]].append(item)
        elif "aspects" in item.extra:
            found += [JudgeUnit(f"{item.id}#{aspect}", aspect, (item,)) for aspect in item.extra["aspects"]]
        else:
            found.append(JudgeUnit(item.id, "answer", (item,)))
    whole = {id_: tuple(pair) for id_, pair in pairs.items() if len(pair) == 2}  # the other half was rejected
    return found + [JudgeUnit(f"{id_}#consistency", "consistency", pair) for id_, pair in whole.items()]


@dataclass(frozen=True)
class Call:
    """A conversation with the judge; equal keys are equal calls."""

    key: str
    aspect: str
    messages: list[dict[str, str]]


def call(unit: JudgeUnit, predictions: Sequence[str], prompts: Mapping[str, JudgePrompt], judge: str) -> Call:
    """The call that judges a unit."""
    messages = prompts[unit.aspect].fill(unit.fields(predictions))
    content = json.dumps([judge, SETTINGS, messages], sort_keys=True)
    return Call(hashlib.sha256(content.encode()).hexdigest(), unit.aspect, messages)


def estimate(calls: Iterable[Call], price_in: float | None, price_out: float | None) -> dict[str, Any]:
    """Calls, tokens and, with prices per million tokens, costs; tokens are estimated from the length of the texts."""
    texts = [sum(len(message["content"]) for message in call.messages) for call in calls]
    tokens_in, tokens_out = sum(texts) // _CHARACTERS_PER_TOKEN, len(texts) * _TOKENS_PER_VERDICT
    cost = None
    if price_in is not None and price_out is not None:
        cost = round((tokens_in * price_in + tokens_out * price_out) / 1e6, 4)
    return {"calls": len(texts), "input_tokens": tokens_in, "output_tokens": tokens_out, "cost": cost}


# -- replies -----------------------------------------------------------------------------------------------------------
class Replies:
    """The file of raw replies: a line per reply, found by the key of its call."""

    def __init__(self, path: Path):
        self.path = path
        self._by_key: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self._lock = threading.Lock()
        check_appendable(path, b'{"key": ')
        for row in rows(path) if path.exists() else ():
            if isinstance(row, Rejected):
                if not is_last_line(path, row):  # which an interruption cut off, and the next reply replaces
                    raise ValueError(f"{path}: {row.place}: {row.reason}: remove this line")
                continue
            try:
                self._by_key[row.text("key")].append({**row.data, "text": row.text("text", empty=True)})
            except AnnotationRowError as error:
                raise ValueError(f"{path}: {row.place} is not a judge's reply: {error}") from error

    def add(self, key: str, reply: Mapping[str, Any]) -> None:
        """Keep a reply; it is on the disk when this returns."""
        row = {"key": key, **reply}
        with self._lock:
            append_lines(self.path, [json.dumps(row)])
            self._by_key[key].append(row)

    def of(self, key: str) -> list[dict[str, Any]]:
        """All replies to a call, the first one first."""
        return self._by_key.get(key, [])

    def verdict(self, call: Call) -> dict[str, float] | None:
        """The first reply that can be read."""
        return next((found for row in self.of(call.key) if (found := parse(call.aspect, row["text"]))), None)

    def is_open(self, call: Call) -> bool:
        """Whether the call should be made: there is no verdict, and not too many replies without one."""
        return self.verdict(call) is None and len(self.of(call.key)) < ATTEMPTS


def is_last_line(path: Path, row: Rejected) -> bool:
    """Whether a rejected row of a file is its last line, and has no end."""
    content = path.read_bytes()
    last = content.count(b"\n") + 1
    return not content.endswith(b"\n") and row.place == f"{path.name} line {last}"


def ask_all(calls: Iterable[Call], judge: Judge, replies: Replies, concurrency: int = 8) -> dict[str, str]:
    """Make every open call until it has a verdict or `ATTEMPTS` replies. Returns the reasons of those that failed.

    After an error that would affect every call, such as an unreachable server, no more calls are started.
    """
    failed: dict[str, str] = {}
    gone = threading.Event()

    def work(call: Call) -> None:
        while replies.is_open(call):
            if gone.is_set():
                failed[call.key] = "not asked: the judge does not answer"
                return
            try:
                replies.add(call.key, asdict(judge.ask(call.messages)))
            except JudgeError as error:
                failed[call.key] = str(error)
                if error.final:
                    gone.set()
                return

    open_calls = {call.key: call for call in calls if replies.is_open(call)}
    with ThreadPoolExecutor(concurrency) as pool:
        try:
            for done in watched([pool.submit(work, call) for call in open_calls.values()], "calls"):
                done.result()
        finally:  # after an interruption, pending replies are kept and no new calls are made
            gone.set()
    return failed


# -- scores ------------------------------------------------------------------------------------------------------------
def usable(unit: JudgeUnit, predictions: Mapping[str, list[Prediction]]) -> tuple[Status | None, list[str]]:
    """The texts to judge, or why there are none."""
    texts = []
    for item in unit.items:
        found = predictions.get(item.id, [])
        if len(found) != 1:
            return "duplicate_id" if found else "missing_prediction", []
        if found[0].prediction is None:
            return found[0].failure, []
        if not (said := without_thoughts(found[0].prediction)).strip():
            return "unparsable", []
        texts.append(said)
    return None, texts


def scores(
    units: Sequence[JudgeUnit],
    predictions: Mapping[str, list[Prediction]],
    verdicts: Mapping[str, dict[str, float]],
    unread: Mapping[str, Status],
) -> list[Score]:
    """One row per unit: its verdict, or 0 for what has no usable prediction or no verdict (`unread` says why)."""
    rows_ = []
    for unit in units:
        status, texts = usable(unit, predictions)
        found = verdicts.get(unit.id) if status is None else None
        if status is None and found is None:
            status = unread[unit.id]
        rows_.append(
            Score(
                id=unit.id,
                video=unit.items[0].video,
                status=status or "scored",
                scorer="judge",
                metrics=found or dict.fromkeys(metrics_of(unit.aspect), 0.0),
                types=unit.items[0].types if unit.aspect == "answer" else (unit.aspect,),
                groups=unit.items[0].groups,
                parsed=json.dumps(found) if found else None,
                prediction="\n".join(texts) if texts else None,
            )
        )
    return rows_
