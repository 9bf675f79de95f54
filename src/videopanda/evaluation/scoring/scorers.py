"""The scorers: what each accepts, and how a reply is measured.

A scorer is a pure function of an item and a reply. Its hash covers the code and the data that decide, so that two equal
hashes mean equal scores.
"""

import hashlib
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType

from videopanda.evaluation.benchmarks import options
from videopanda.evaluation.benchmarks.item import Item, Task
from videopanda.evaluation.scoring import (
    choice,
    choice_patterns,
    clauses,
    extract,
    final_text,
    normalize,
    option_texts,
    wordnet,
)
from videopanda.evaluation.scoring.wordnet import WordNet
from videopanda.video import times

TEXT: tuple[Task, ...] = ("short_answer", "yes_no", "description")


@dataclass(frozen=True)
class Verdict:
    """What a reply was understood to say, and its metrics, each from 0 to 1."""

    parsed: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class Scorer:
    """A named and versioned way to score."""

    name: str
    version: str  # changes whenever a score may change
    tasks: tuple[Task, ...]  # kinds of questions that it accepts
    metrics: tuple[str, ...]  # a reply that is not there or not understood has 0 in each
    judge: Callable[[Item, str], Verdict | None]  # None: the reply cannot be understood
    modules: tuple[ModuleType, ...]  # whose code decides
    data_sha256: str = ""  # of data files that decide
    judge_cut: Callable[[Item, str], Verdict | None] | None = None  # of a reply cut short, if that is read otherwise

    @property
    def sha256(self) -> str:
        """Digest of the name, the version, the code and the data."""
        source = [inspect.getsource(module) for module in (sys.modules[__name__], *self.modules)]
        parts = (self.name, self.version, self.data_sha256, *source)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _accuracy(parsed: str, is_right: bool) -> Verdict:
    return Verdict(parsed, {"accuracy": float(is_right)})


def _exact(item: Item, reply: str) -> Verdict:
    return _accuracy(reply.strip(), reply.strip() in {answer.strip() for answer in item.answers})


def _normalized(item: Item, reply: str) -> Verdict | None:
    said = normalize.normalize(final_text.short_answer(reply))
    return _accuracy(said, said in map(normalize.normalize, item.answers)) if said else None


def _contains(item: Item, reply: str) -> Verdict | None:
    text = final_text.short_answer(reply)
    said = normalize.normalize(text)
    parts = [text[start:end] for start, end, _ in clauses.clauses(text)]
    return _accuracy(said, any(_is_told(answer, said, parts) for answer in item.answers)) if said else None


def _is_told(answer: str, said: str, parts: Sequence[str]) -> bool:
    """Whether an answer stands in a text, and not only in clauses that deny it, "not a dog"."""
    words = f" {normalize.normalize(answer)} "
    within = [part for part in parts if words in f" {normalize.normalize(part)} "]
    denies = choice_patterns.DENIAL.search
    is_denied = within and not denies(answer) and all(map(denies, within))
    return bool(words.strip()) and words in f" {said} " and not is_denied


def _synonyms(item: Item, reply: str, words: WordNet) -> Verdict | None:
    said = normalize.tokens(final_text.short_answer(reply))
    return (
        _accuracy(" ".join(said), any(_same(said, normalize.tokens(a), words) for a in item.answers)) if said else None
    )


def _same(first: list[str], second: list[str], words: WordNet) -> bool:
    if first == second or words.synonyms(" ".join(first), " ".join(second)):
        return True
    return len(first) == len(second) and all(a == b or words.synonyms(a, b) for a, b in zip(first, second))


def _choice(item: Item, reply: str, is_cut: bool = False) -> Verdict | None:
    chosen = choice.choice(reply, item.options, is_cut=is_cut)
    if chosen is None:
        return None
    return _accuracy("".join(options.LETTERS[i] for i in chosen), not set(chosen).isdisjoint(item.right))


def _yes_no(item: Item, reply: str) -> Verdict | None:
    said = extract.yes_no(reply)
    return _accuracy(said, said in {answer.strip().lower() for answer in item.answers}) if said else None


def _wups(item: Item, reply: str, words: WordNet) -> Verdict | None:
    said = normalize.tokens(final_text.short_answer(reply))
    if not said:
        return None
    answers = [normalize.tokens(answer) for answer in item.answers]
    best = {f"wups@{t}": max((wups(said, answer, t, words) for answer in answers), default=0.0) for t in (0.0, 0.9)}
    return Verdict(" ".join(said), best)


def wups(first: list[str], second: list[str], threshold: float, words: WordNet) -> float:
    """Wu-Palmer similarity of two lists of words (Malinowski and Fritz, 2014).

    Each word meets its most similar word of the other list; the product over a list, and of the two products the
    smaller. Similarities below the threshold count a tenth.
    """

    def similarity(a: str, b: str) -> float:
        value = words.similarity(a, b)
        return value if value >= threshold else 0.1 * value

    def one_way(from_: list[str], to: list[str]) -> float:
        product = 1.0
        for a in from_:
            product *= max((similarity(a, b) for b in to), default=0.0)
        return product

    return min(one_way(first, second), one_way(second, first)) if first and second else 0.0


THRESHOLDS = (0.3, 0.5, 0.7)


def _iou(item: Item, reply: str) -> Verdict | None:
    said = extract.interval(reply)
    if said is None or item.interval is None:
        return None
    value = iou(said, item.interval)
    recalls = {f"r1@{threshold}": float(value >= threshold) for threshold in THRESHOLDS}
    return Verdict(f"{said[0]:g}-{said[1]:g}", {"miou": value, **recalls})


def iou(first: tuple[float, float], second: tuple[float, float]) -> float:
    """Shared time over covered time of two intervals in seconds; 0 where one is empty."""
    if first[1] <= first[0] or second[1] <= second[0]:
        return 0.0
    shared = max(0.0, min(first[1], second[1]) - max(first[0], second[0]))
    return shared / (first[1] - first[0] + second[1] - second[0] - shared)


_READING = (choice_patterns, clauses, final_text)
SCORERS = {
    scorer.name: scorer
    for scorer in (
        Scorer("exact", "1", TEXT, ("accuracy",), _exact, ()),
        Scorer("normalized", "3", TEXT, ("accuracy",), _normalized, (normalize, *_READING)),
        Scorer("contains", "3", TEXT, ("accuracy",), _contains, (normalize, *_READING)),
        Scorer(
            "choice",
            "4",
            ("choice",),
            ("accuracy",),
            _choice,
            (choice, option_texts, options, extract, *_READING, normalize),
            judge_cut=partial(_choice, is_cut=True),
        ),
        Scorer("yes-no", "4", ("yes_no",), ("accuracy",), _yes_no, (extract, *_READING)),
        Scorer(
            "iou", "5", ("grounding",), ("miou", *(f"r1@{t}" for t in THRESHOLDS)), _iou, (extract, times, *_READING)
        ),
    )
}
WORDNET_SCORERS = ("synonyms", "wups")
# What is used where the user names no scorer; a description needs a judge.
DEFAULTS: dict[Task, str] = {
    "short_answer": "normalized",
    "yes_no": "yes-no",
    "choice": "choice",
    "grounding": "iou",
}


def scorer(name: str, words: WordNet | None = None) -> Scorer:
    """A scorer by its name; `synonyms` and `wups` need a WordNet.

    Raises:
        ValueError: there is no such scorer, or it needs a WordNet.
    """
    if name in SCORERS:
        return SCORERS[name]
    if name not in WORDNET_SCORERS:
        raise ValueError(f"unknown scorer {name!r}; choose from {', '.join((*SCORERS, *WORDNET_SCORERS))}")
    if words is None:
        raise ValueError(f"the scorer {name!r} needs a WordNet database: --wordnet DIR")
    modules = (normalize, wordnet, *_READING)
    if name == "synonyms":
        judge = partial(_synonyms, words=words)
        return Scorer(name, "3", TEXT, ("accuracy",), judge, modules, words.sha256)
    judge = partial(_wups, words=words)
    return Scorer(name, "3", TEXT, ("wups@0.0", "wups@0.9"), judge, modules, words.sha256)
