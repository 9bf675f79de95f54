"""Rephrased questions about scenes, and the sentence that declines.

    reworded(Question("colour", "What colour is the circle?", "red"), "train", rng).question
    # "could you tell me which hue the disc has"

`wordings.json` holds, for every intent (what a question wants to know), its wording as written in `questions.py` and
other ones: direct questions, clauses ("which colour the circle has") and noun phrases ("the color of the circle") that
fit into common frames, and questions for yes or no. "(a|b|)" stands for one of its parts. Wordings are split like
scenes: those of "held_out" are never trained on. Truth is kept: an answer changes only where the question asks for yes
or no, or for a sentence.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from videopanda.data.worlds.scenes.questions import Question
from videopanda.data.worlds.scenes.world import COLOURS, DIRECTIONS, SHAPES, SIZES

PARTS = ("train", "held_out")
DECLINE = "I cannot tell from this video."

_CHOICES: dict[str, Sequence[str]] = {
    "colour": tuple(COLOURS),
    "new_colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": tuple(SIZES),
    "direction": tuple(DIRECTIONS),
    "count": ("1", "2", "3", "4"),
    "count_some": ("1", "2", "3", "4"),
    "left_right": ("left", "right"),
    "above_below": ("above", "below"),
}
# How often a question takes each form; training sees more of those that are learned most slowly.
_KINDS = {
    "train": {"ask": 0.4, "clause": 0.16, "noun": 0.1, "yes_no": 0.26, "options": 0.08},
    "held_out": {"ask": 0.5, "clause": 0.18, "noun": 0.1, "yes_no": 0.14, "options": 0.08},
}
_YES_NO_OF_TWO = 0.6  # instead, in training, where the answer is one of two objects
_SENTENCES = {"train": 0.18, "held_out": 0.07}  # how often the answer is to be a sentence
_AMERICAN = (("colour", "color"), ("travelling", "traveling"))


@dataclass(frozen=True)
class Intent:
    """What a question wants to know; its slots are the names, places and moments in it."""

    name: str
    sentence: str | Mapping[str, str]  # the answer as a sentence; by answer where it differs
    wordings: Mapping[str, Mapping[str, Sequence[str]]]  # by part, then by kind


@cache
def wording_data() -> dict[str, Any]:
    """The content of `wordings.json`."""
    return json.loads(Path(__file__).with_name("wordings.json").read_text(encoding="utf-8"))


@cache
def _written() -> list[tuple[re.Pattern[str], Intent]]:
    found = []
    for name, entry in wording_data()["intents"].items():
        intent = Intent(name, entry["sentence"], {part: entry[part] for part in PARTS})
        for text in entry["written"]:
            pattern = re.escape(text).replace(r"\{moment\}", "(?P<moment>at the (?:start|end))")
            pattern = re.sub(r"\\{(\w)\\}", r"(?P<\1>.+)", pattern)
            found.append((re.compile(pattern), intent))
    return sorted(found, key=lambda pair: pair[0].groups)  # "How many collisions …" before "How many {a} …"


def intent_of(question: str) -> tuple[Intent, dict[str, str]]:
    """The intent of a question as `questions.py` writes it, and its slots.

    Raises:
        ValueError: it is written otherwise.
    """
    for pattern, intent in _written():
        if found := pattern.fullmatch(question):
            return intent, found.groupdict()
    raise ValueError(f"not a question of Scenes as it is written there: {question!r}")


def reworded(question: Question, part: str, rng: np.random.Generator, plain: bool = False) -> Question:
    """The same question in other words of a part of the wordings; with `plain`, without frames, typos and the like.

    Raises:
        ValueError: the question is not written as in `questions.py`.
    """
    intent, slots = intent_of(question.question)
    wordings, answer = intent.wordings[part], question.answer
    often = _KINDS[part]
    if part == "train" and answer in (slots.get("a"), slots.get("b")):
        often = {**often, "yes_no": _YES_NO_OF_TWO}
    kinds = [kind for kind in often if wordings.get(kind) or (kind == "options" and intent.name in _CHOICES)]
    if answer == DECLINE:  # a guess or a choice needs a true answer
        kinds = [kind for kind in kinds if kind not in ("yes_no", "options")]
    weights = np.array([often[kind] for kind in kinds])
    kind = str(rng.choice(kinds, p=weights / weights.sum()))
    said = {name: _synonym(value, rng) for name, value in slots.items()}
    if kind == "yes_no":
        said, answer = _guess(intent, said, slots, answer, rng)
    frames = wording_data()["frames"][part]
    text = expand(_one(wordings["ask" if kind == "options" else kind], rng), rng)
    if kind == "options":
        text = expand(_one(frames["options"], rng), rng).replace("{q}", text)
        said["options"] = _options(_CHOICES[intent.name], answer, rng)
    elif kind in ("clause", "noun"):
        text = expand(_one(frames[kind], rng), rng).format(c=text, n=text, **{n: f"{{{n}}}" for n in said})
    else:
        if not plain and "video" not in text and "clip" not in text and rng.random() < 0.1:
            text += expand(_one(frames["inside"], rng), rng)
        text += "" if text.endswith(".") else "?"
    text = _capital(re.sub(r" +(?=[ ,?.])", "", text.format(**said)).strip())
    if plain:
        return Question(question.family, text, answer)
    if kind != "yes_no" and intent.sentence and rng.random() < _SENTENCES[part]:
        text += expand(_one(frames["sentence"], rng), rng)
        answer = _sentence(intent, slots, answer)
    elif rng.random() < 0.1:
        text += expand(_one(frames["after"], rng), rng)
    if rng.random() < 0.2:
        before = expand(_one(frames["before"], rng), rng)
        text = before + (text[0].lower() + text[1:] if before.endswith(", ") else text)
    return Question(question.family, in_style(text, rng), answer)


def read_wordings(path: Path) -> dict[str, list[str]]:
    """Wordings from a file: a JSON object {intent: [template, …]} with the slots of `wordings.json`.

    Raises:
        ValueError: not such an object, an intent that is unknown or missing, or a template with other slots.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as wordings: {error}") from error
    slots = {intent.name: set(pattern.groupindex) for pattern, intent in _written()}
    del slots["describe"]  # not scored
    if not isinstance(found, dict) or set(found) != set(slots):
        wrong = sorted(set(found) ^ set(slots)) if isinstance(found, dict) else ["one JSON object is expected"]
        raise ValueError(f"{path}: an intent is unknown or missing: {', '.join(wrong)}")
    for name, templates in found.items():
        if not templates or not isinstance(templates, list) or not all(isinstance(text, str) for text in templates):
            raise ValueError(f"{path}: {name} must be a list of templates")
        for text in templates:
            if (used := set(re.findall(r"{(\w*)}", text))) != slots[name]:
                raise ValueError(
                    f"{path}: {text!r} of {name} must have the slots {sorted(slots[name])}, got {sorted(used)}"
                )
    return found


def in_wordings(question: Question, templates: Mapping[str, Sequence[str]], rng: np.random.Generator) -> Question:
    """The same question in one of the templates of its intent; names stay as they are written."""
    intent, slots = intent_of(question.question)
    text = expand(_one(templates[intent.name], rng), rng).format(**slots)
    return Question(question.family, text, question.answer)


def follow_up(question: Question, part: str, rng: np.random.Generator, is_other: bool) -> Question:
    """A question about one object as it is asked after the same one about another: "And the blue square?".

    With `is_other` it may be called "the other one".
    """
    _, slots = intent_of(question.question)
    kind = "other" if is_other and rng.random() < 0.5 else "another"
    text = expand(_one(wording_data()["frames"][part][kind], rng), rng).format(a=_synonym(slots["a"], rng))
    return Question(question.family, in_style(text, rng), question.answer)


def outside_question(part: str, rng: np.random.Generator) -> Question:
    """A question that no scene answers: about people, sounds, reasons, the weather."""
    data = wording_data()["outside"]
    text = expand(_one(data[part], rng), rng)
    text = text.format(**{kind: _one(data[kind], rng) for kind in ("person", "people", "animal", "thing")})
    frames = wording_data()["frames"][part]
    text = _capital(f"{text}?" if rng.random() < 0.9 else f"{text} in the video?")
    if rng.random() < 0.2:
        before = expand(_one(frames["before"], rng), rng)
        text = before + (text[0].lower() + text[1:] if before.endswith(", ") else text)
    return Question("outside", in_style(text, rng), DECLINE)


def in_style(text: str, rng: np.random.Generator) -> str:
    """As people type: either spelling, perhaps no capitals, no question mark, a typing error."""
    if rng.random() < 0.5:
        for british, american in _AMERICAN:
            text = text.replace(british, american)
    if rng.random() < 0.06:
        text = _typing_error(text, rng)
    if rng.random() < 0.25:
        text = text.lower()
    if text.endswith("?") and rng.random() < 0.2:
        text = text[:-1]
    return text


def expand(text: str, rng: np.random.Generator) -> str:
    """Choose one of every "(a|b|)"."""
    while found := re.search(r"\(([^()]*\|[^()]*)\)", text):
        text = text[: found.start()] + _one(found[1].split("|"), rng) + text[found.end() :]
    return text


def _one(texts: Sequence[str], rng: np.random.Generator) -> str:
    return texts[int(rng.integers(len(texts)))]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _synonym(value: str, rng: np.random.Generator) -> str:
    """A name or moment, a third of the time with one of its words replaced."""
    known = wording_data()["synonyms"]
    if rng.random() >= 0.35:
        return value
    if value in known:
        return expand(_one(known[value], rng), rng)
    words = value.split(" ")
    places = [i for i, word in enumerate(words) if word in known]
    if places:
        i = int(rng.choice(places))
        words[i] = _one(known[words[i]], rng)
    return " ".join(words)


def _guess(
    intent: Intent, said: dict[str, str], slots: dict[str, str], answer: str, rng: np.random.Generator
) -> tuple[dict[str, str], str]:
    """Slots of a question for yes or no, right half of the time, and its answer."""
    is_right = bool(rng.random() < 0.5)
    if intent.name in _CHOICES:
        wrong = [value for value in _CHOICES[intent.name] if value != answer]
        guess = answer if is_right else _one(wrong, rng)
        return {**said, "guess": _synonym(guess, rng)}, "yes" if is_right else "no"
    first = answer == slots["a"]  # the answer is one of two things
    guess, other = ("a", "b") if first == is_right else ("b", "a")
    return {**said, "guess": said[guess], "other": said[other]}, "yes" if is_right else "no"


def _options(choices: Sequence[str], answer: str, rng: np.random.Generator) -> str:
    """Two to four answers to choose from, the right one among them: "red, blue or green"."""
    wrong = [value for value in choices if value != answer]
    count = int(rng.integers(1, min(3, len(wrong)) + 1))
    shown = [answer, *(wrong[i] for i in rng.permutation(len(wrong))[:count])]
    shown = [shown[i] for i in rng.permutation(len(shown))]
    return f"{', '.join(shown[:-1])} or {shown[-1]}"


def _sentence(intent: Intent, slots: Mapping[str, str], answer: str) -> str:
    if answer == DECLINE:
        return answer
    sentence = intent.sentence if isinstance(intent.sentence, str) else intent.sentence[answer]
    return sentence.format(answer=answer, **slots)


def _typing_error(text: str, rng: np.random.Generator) -> str:
    """Swap, drop or double a letter inside a word of at least five."""
    words = list(re.finditer(r"[A-Za-z]{5,}", text))
    if not words:
        return text
    word = words[int(rng.integers(len(words)))]
    at = int(rng.integers(word.start() + 1, word.end() - 2))
    kind = int(rng.integers(3))
    middle = (text[at + 1] + text[at], text[at + 1], text[at] * 2 + text[at + 1])[kind]
    return text[:at] + middle + text[at + 2 :]
