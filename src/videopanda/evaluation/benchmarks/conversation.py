"""Rows of the LLaVA form as benchmarks: each question of a conversation is a separate item, `x1/0`."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from videopanda.data.formats.llava import ROLES
from videopanda.evaluation.benchmarks.files import AnnotationRow, AnnotationRowError, Rejected, each
from videopanda.models.prompts import place_marker

_MARKER = re.compile("<(?:video|image)>")
_FIRST_MARKER = re.compile(rf"^{_MARKER.pattern}\s*")


def single_questions(
    conversations: Iterable[AnnotationRow | Rejected], facts: Callable[[AnnotationRow, Any], list[dict[str, Any]]]
) -> Iterator[AnnotationRow | Rejected]:
    """One row per question. `facts` takes a row and its turns, and returns the facts of each of its questions.

    A row for which `facts` raises a `AnnotationRowError` is listed.
    """

    def questions(row: AnnotationRow) -> Iterator[AnnotationRow]:
        turns = row.get("conversations")
        for k, own in enumerate(facts(row, turns)):
            data = {**row.extra("id", "video"), **own, "number": k, "turns": turns[2 * k : 2 * k + 2]}
            yield AnnotationRow(f"{row.place} question {k}", data, row.repeated_keys)

    return each(conversations, questions)


def read_question(row: AnnotationRow) -> tuple[str, str, str]:
    """Id, question and answer of a row of `single_questions`. Raises AnnotationRowError."""
    turns = row.data["turns"]
    if not all(isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in turns):
        raise AnnotationRowError("a turn has no text 'value'")
    if [ROLES.get(str(turn.get("from")).lower()) for turn in turns] != ["user", "assistant"]:
        raise AnnotationRowError("turns must alternate between 'human' and 'gpt'")
    question, answer = (turn["value"].strip() for turn in turns)
    question = _FIRST_MARKER.sub("", place_marker(question))
    if _MARKER.search(question + answer):
        raise AnnotationRowError("a visual placeholder inside a question or an answer, or a second one")
    return f"{row.id('id')}/{row.data['number']}", question, answer
