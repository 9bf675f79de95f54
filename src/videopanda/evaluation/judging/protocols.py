"""What a judge is asked and how its verdict is read: the three protocols of the field, in our own wording.

    answer                      right or wrong, and 0 to 5 points: open questions
    grade                       A: right, B: wrong, C: not attempted: VideoEval-Pro, after SimpleQA
    correctness, detail, context, temporal, consistency     0 to 5 points each: Video-ChatGPT's five aspects

A JSON file {"answer": {"system": …, "user": …}, …} puts official prompts in place of ours.
"""

import ast
import hashlib
import inspect
import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videopanda.evaluation.benchmarks.files import read_object
from videopanda.evaluation.scoring.final_text import final_text

SLOTS = ("question", "answer", "prediction", "question_2", "prediction_2")


@dataclass(frozen=True)
class JudgePrompt:
    """Templates of one aspect; slots are those of `SLOTS` in braces."""

    system: str
    user: str

    def fill(self, values: Mapping[str, str]) -> list[dict[str, str]]:
        """The conversation that asks for a verdict."""
        user = self.user
        for name, value in values.items():
            user = user.replace(f"{{{name}}}", value.replace("{", "\0"))
        return [{"role": "system", "content": self.system}, {"role": "user", "content": user.replace("\0", "{")}]


_TEXTS = "Question: {question}\nRight answer: {answer}\nReply to be judged: {prediction}\n\n"
_POINTS = (
    'Give a whole number of points from 0 (worst) to 5 (best). Write one JSON object and nothing else: {"score": 3}'
)


def _aspect(what: str) -> JudgePrompt:
    system = (
        "You rate replies of a system that was asked about a video you do not see. The right answer tells you what the "
        f"video shows. {what} Wording and length do not matter by themselves."
    )
    return JudgePrompt(system, _TEXTS + _POINTS)


PROMPTS = {
    "answer": JudgePrompt(
        "You mark replies of a system that was asked about a video you do not see. The right answer tells you what the "
        "video shows. A reply is right if it means the same; synonyms, paraphrases and additions that do not "
        "contradict it are right, too. A reply that is evasive, or that names something else, is wrong.",
        _TEXTS
        + "Say whether the reply is right, and how close its meaning is to the right answer, as a whole number from 0 "
        '(unrelated) to 5 (the same). Write one JSON object and nothing else: {"pred": "yes" or "no", "score": 3}',
    ),
    "grade": JudgePrompt(
        "You grade replies of a system that was asked about a video you do not see. The right answer tells you what "
        "the video shows. A reply is right if it contains what the right answer says and nothing that contradicts it, "
        "even if it hedges or guesses. It is wrong if it contradicts the right answer, even if it hedges. It is not "
        "attempted if it neither contradicts the right answer nor contains all of it.",
        _TEXTS + "Write one letter and nothing else: A (right), B (wrong) or C (not attempted).",
    ),
    "correctness": _aspect(
        "Rate how correct the facts of the reply are; what contradicts the right answer costs most."
    ),
    "detail": _aspect("Rate how complete and how specific the reply is, compared with the right answer."),
    "context": _aspect("Rate whether the reply understood the situation and the main theme of the video."),
    "temporal": _aspect("Rate whether the reply has the order and the timing of events right."),
    "consistency": JudgePrompt(
        "A system was asked the same thing about a video twice, in different words. You do not see the video; the "
        "right answer tells you what it shows. Rate whether both replies agree with each other and with it.",
        "First question: {question}\nSecond question: {question_2}\nRight answer: {answer}\n"
        "Reply to the first: {prediction}\nReply to the second: {prediction_2}\n\n" + _POINTS,
    ),
}


def read_prompts(path: Path | None) -> dict[str, JudgePrompt]:
    """The prompts, with those of a file in place of our own.

    Raises:
        ValueError: the file names another aspect, or a prompt lacks a slot for the reply.
    """
    prompts = dict(PROMPTS)
    for aspect, given in (read_object(path) if path else {}).items():
        if aspect not in PROMPTS:
            raise ValueError(f"{path}: unknown aspect {aspect!r}; choose from {', '.join(PROMPTS)}")
        if not isinstance(given, dict) or given.keys() != {"system", "user"}:
            raise ValueError(f"{path}: {aspect!r} must have the texts 'system' and 'user'")
        slots = ("prediction", "prediction_2") if aspect == "consistency" else ("prediction",)
        if any(f"{{{slot}}}" not in given["user"] for slot in slots):
            raise ValueError(f"{path}: 'user' of {aspect!r} must contain {{{'}, {'.join(slots)}}}")
        prompts[aspect] = JudgePrompt(**given)
    return prompts


def metrics_of(aspect: str) -> tuple[str, ...]:
    """What a verdict on this aspect measures."""
    return {"answer": ("accuracy", "score"), "grade": ("accuracy", "not_attempted")}.get(aspect, (aspect,))


def parse(aspect: str, reply: str) -> dict[str, float] | None:
    """The metrics of the verdict in a reply; None if there is none, or if several differ.

    An object, JSON or, for official prompts, a Python literal. It may stand in a sentence, a code block, or after
    thoughts (`<think>…</think>`); objects of other forms are passed over. A grade is a letter, or its name.
    """
    found = {}
    text = final_text(reply)
    if aspect == "grade":
        grades = {_GRADES[match[0]] for match in _GRADE.finditer(text)}
        return dict(zip(metrics_of(aspect), grades.pop())) if len(grades) == 1 else None
    for match in _OBJECT.finditer(text):
        for read in (json.loads, ast.literal_eval):
            try:
                metrics = verdict(aspect, read(match[0]))
            except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
                continue
            if metrics is not None:
                found[tuple(metrics.items())] = metrics
            break
    return found.popitem()[1] if len(found) == 1 else None


def verdict(aspect: str, given: Any) -> dict[str, float] | None:
    """The metrics of an object; points are from 0 to 5, a fraction is cut off as in the official scripts."""
    if not isinstance(given, dict):
        return None
    given = {str(key).strip().lower(): value for key, value in given.items()}
    points = given.get("score")
    if isinstance(points, str) and (number := _POINTS_TEXT.fullmatch(points)):
        points = float(number[1])
    if isinstance(points, bool) or not isinstance(points, (int, float)) or not 0 <= points <= 5:
        return None
    score = float(math.floor(points))
    if aspect != "answer":
        return {aspect: score}
    said = str(given.get("pred")).strip().lower()
    return {"accuracy": float(said == "yes"), "score": score} if said in ("yes", "no") else None


_RIGHT, _WRONG, _NOT_ATTEMPTED = (1.0, 0.0), (0.0, 0.0), (0.0, 1.0)
_GRADES = {
    "A": _RIGHT, "B": _WRONG, "C": _NOT_ATTEMPTED,
    "CORRECT": _RIGHT, "INCORRECT": _WRONG, "NOT_ATTEMPTED": _NOT_ATTEMPTED,
}  # fmt: skip
_GRADE = re.compile(rf"\b({'|'.join(_GRADES)})\b(?!')")
_OBJECT = re.compile(r"\{[^{}]*\}")
_POINTS_TEXT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:/\s*5(?:\.0)?)?\s*", re.ASCII)  # "4.5", "4/5"


def sha256(prompts: Mapping[str, JudgePrompt], aspects: set[str]) -> str:
    """Digest of the prompts of some aspects and of the code that reads verdicts."""
    used = {aspect: [prompts[aspect].system, prompts[aspect].user] for aspect in sorted(aspects)}
    source = inspect.getsource(sys.modules[__name__])
    return hashlib.sha256(f"{json.dumps(used)}\0{source}".encode()).hexdigest()
