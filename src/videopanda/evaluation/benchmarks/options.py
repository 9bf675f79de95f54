"""Options with and without letters, and answers that name one of them."""

import re
from collections.abc import Sequence

from videopanda.evaluation.benchmarks.files import AnnotationRow, AnnotationRowError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# "(A) red", "A. red", "A) red", "A: red"
_MARKED = re.compile(r"\s*(?:\(([A-Z])\)|([A-Z])[.):])(?:\s+|$)(.*)", re.DOTALL)
# What stands before a list of options and is no part of the question.
_HEADING = re.compile(r"\s*\b(?:options|choices)\s*:\s*$", re.IGNORECASE)
FILLER = "N/A"  # what tables put where a question has fewer options than columns


def unmark(option: str, index: int) -> str:
    """An option without the letter of its place; other letters are part of the text."""
    match = _MARKED.fullmatch(option)
    return match[3].strip() if match and (match[1] or match[2]) == LETTERS[index] else option.strip()


def unmark_all(options: Sequence[str]) -> tuple[str, ...]:
    """Options without their letters, if every one carries the letter of its place; else as they are."""
    if len(options) > len(LETTERS):
        raise AnnotationRowError(f"{len(options)} options, more than there are letters")
    without = tuple(unmark(option, i) for i, option in enumerate(options))
    changed = [a != b.strip() for a, b in zip(without, options)]
    return without if all(changed) else tuple(option.strip() for option in options)


def published(options: Sequence[str], bare: Sequence[str]) -> dict[str, list[str]]:
    """The entry of `extra` that keeps options as they stood in the file, where reading changed them."""
    return {} if list(options) == list(bare) else {"options_as_published": list(options)}


def split_question(text: str) -> tuple[str, tuple[str, ...]]:
    """A question whose last lines are lettered options: the question, and the options without letters.

    Raises:
        AnnotationRowError: fewer than two options stand in the text.
    """
    lines = text.strip().splitlines()
    start = next((i for i, line in enumerate(lines) if _letter(line) == "A"), len(lines))
    found: list[str] = []
    for line in lines[start:]:
        if _letter(line) == LETTERS[min(len(found), 25)]:
            found.append(unmark(line, len(found)))
        elif found:
            found[-1] = f"{found[-1]}\n{line.strip()}".strip()
    if len(found) < 2:
        raise AnnotationRowError("the text has no lettered options")
    return _HEADING.sub("", "\n".join(lines[:start])).strip(), tuple(found)


def _letter(line: str) -> str | None:
    match = _MARKED.fullmatch(line)
    return (match[1] or match[2]) if match else None


def letter_index(row: AnnotationRow, *keys: str, options: Sequence[str]) -> int:
    """The index that a letter names, "B" or "(B)" or "B." or "B. red".

    Raises:
        AnnotationRowError: it names none of the options, or options carry the letters of other places.
    """
    letters = [_letter(option) or "" for option in options]
    if sorted(letters) == list(LETTERS[: len(options)]) != letters:
        raise AnnotationRowError(f"the options carry the letters {', '.join(letters)}: put them into order")
    text = row.text(*keys)
    letter = text if len(text) == 1 else _letter(text)
    index = LETTERS.find(letter.upper()) if letter else -1
    if not 0 <= index < len(options):
        raise AnnotationRowError(f"the answer {text!r:.60} is none of the {len(options)} options")
    return index


def same_text(options: Sequence[str], answer: str) -> tuple[int, ...]:
    """The first option that equals the answer, as the benchmarks that match by text do; () if none does."""
    return next(((i,) for i, option in enumerate(options) if option == answer.strip()), ())
