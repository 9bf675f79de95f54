"""What a reply says: which option, yes or no, which interval of time. An unclear reply is None, never a guess."""

import math
import re
from collections.abc import Sequence
from itertools import pairwise

from videopanda.evaluation.benchmarks.options import LETTERS
from videopanda.evaluation.scoring.normalize import normalize, tokens

# -- options -----------------------------------------------------------------------------------------------------------
_BARE = re.compile(r"[\s\"'(\[*]*([A-Za-z])[\s\"')\].:,*]*")  # "B", "(b)", "B.", "**B**"
# "B. two cups", "(b) two cups"
_LEADING = re.compile(r"[\s\"'*]*(?:[(\[]([A-Z])[)\]][\s:*]*|([A-Z])[.):][\s*]+)(.+)", re.DOTALL | re.IGNORECASE)
_AFTER = r"(?=\s*(?:$|[\n.,;:)\]*\"']|(?:because|since|as)\b))"
_ANSWER = re.compile(
    r"\b(?:answer|best option|correct option|correct choice)(?:\s+(?:is|would be))?(?:\s+(?:option|choice|letter))?"
    rf"[\s:*\"']*(?:[(\[]([A-Z])[)\]]?|([A-Z]){_AFTER})",
    re.IGNORECASE,
)
_OPTION = re.compile(r"\b(?:option|choice|caption|sentence)[\s:]*(?:[(\[]?([A-Z])\b|([1-9])\b)", re.IGNORECASE)
_BRACKETED = re.compile(r"[(\[]([A-Z])[)\]]", re.IGNORECASE)
# A reply that denies something names the options that it does not mean, too.
_DENIALS = frozenset({"not", "neither", "nor", "cannot", "isnt", "arent", "wasnt", "dont", "doesnt", "didnt"})


def choice(reply: str, options: Sequence[str]) -> tuple[int, ...] | None:
    """The option that a reply chooses: its index, or several where options are the same text.

    The first rule that applies decides: a letter alone; a letter with a mark in front of a text (unless the text is
    another option or holds another letter in brackets); "the answer is B"; the text of an option and nothing else;
    "option B" or "option 2"; one letter in brackets; the text of one option within a reply that denies nothing. A rule
    that finds two options decides for None.
    """
    reply = reply.strip()
    if match := _BARE.fullmatch(reply):
        index = _index(match[1], options)
        if index is not None:
            return (index,)
    if match := _LEADING.fullmatch(reply):
        index = _index(match[1] or match[2], options)
        if index is not None:
            named = _equal(match[3], options)
            others = {_found(other, options) for other in _BRACKETED.finditer(match[3])} - {None, index}
            return (index,) if not others and (not named or index in named) else None
    for pattern in (_ANSWER, None, _OPTION, _BRACKETED):
        if pattern is None:
            if equal := _equal(reply, options):
                return equal
            continue
        found = {index for match in pattern.finditer(reply) if (index := _found(match, options)) is not None}
        if found:
            return tuple(found) if len(found) == 1 else None
    return _within(reply, options)


def _found(match: re.Match[str], options: Sequence[str]) -> int | None:
    groups = [group for group in match.groups() if group]
    letter = groups[0] if groups else ""
    if letter.isdigit():
        return int(letter) - 1 if int(letter) <= len(options) else None
    # Small letters in running text may be words: "the choice a person makes".
    return _index(letter, options) if letter.isupper() or match.re is not _OPTION else None


def _index(letter: str, options: Sequence[str]) -> int | None:
    index = LETTERS.find(letter.upper())
    return index if 0 <= index < len(options) else None


def _equal(text: str, options: Sequence[str]) -> tuple[int, ...]:
    wanted = normalize(text)
    return tuple(i for i, option in enumerate(options) if wanted and normalize(option) == wanted)


def _within(reply: str, options: Sequence[str]) -> tuple[int, ...] | None:
    """The only option whose words stand in the reply; an option that is part of another found one does not count."""
    said = tokens(reply)
    if not _DENIALS.isdisjoint(said):
        return None
    text = f" {' '.join(said)} "
    words = [f" {normalize(option)} " for option in options]
    found = [i for i, option in enumerate(words) if option.strip() and option in text]
    longest = {words[i] for i in found if not any(words[i] != words[j] and words[i] in words[j] for j in found)}
    return tuple(i for i in found if words[i] in longest) if len(longest) == 1 else None


# -- yes or no ---------------------------------------------------------------------------------------------------------
_YES_NO_FIRST = re.compile(r"\W*(yes|no)\b(?!\s*(?:,|or|and|/)\s*(?:yes|no)\b)", re.IGNORECASE)
_YES_NO_ANSWER = re.compile(r"\banswer(?:\s+is)?[\s:*\"']*(yes|no)\b", re.IGNORECASE)
_YES_NO_ALONE = re.compile(r"(?:^|(?<=[.,;:!?\n\"'*]))\s*(yes|no)\s*(?=$|[.,;:!?\n\"'*])", re.IGNORECASE)


def yes_no(reply: str) -> str | None:
    """ "yes" or "no" as the first word, after "answer", or alone between punctuation; None where both or none do."""
    if match := _YES_NO_FIRST.match(reply):
        return match[1].lower()
    for pattern in (_YES_NO_ANSWER, _YES_NO_ALONE):
        found = {match.lower() for match in pattern.findall(reply)}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


# -- intervals ---------------------------------------------------------------------------------------------------------
_NUMBER = r"\d+(?:\.\d+)?"
_TIME = re.compile(
    rf"(?<![\w.:])(?:(?:(?P<h>\d+):)?(?P<m>\d+):(?P<s>{_NUMBER})"  # 1:02:03, 02:03.5
    rf"|(?P<minutes>{_NUMBER})\s*(?:m|mins?|minutes?)\b(?:\s*(?:and\s+)?(?P<rest>{_NUMBER})\s*(?:s|secs?|seconds?)\b)?"
    rf"|(?P<seconds>{_NUMBER})\s*(?:s|secs?|seconds?)?(?![\w:]))",
    re.IGNORECASE | re.ASCII,
)
_BETWEEN = re.compile(r"\s*(?:-|–|—|,|\bto\b|\band\b|\buntil\b|\btill\b)\s*", re.IGNORECASE)


def interval(reply: str) -> tuple[float, float] | None:
    """The seconds from and to which a reply points, "from 4.2 to 11 seconds", "0:04 - 0:11", "[4.2, 11]".

    Two times and no more are taken as they are; among more, the only pair that is joined by "to", "and", a dash or a
    comma. None if the second is not after the first.
    """
    times = [(match.start(), match.end(), _seconds(match)) for match in _TIME.finditer(reply)]
    pairs = list(pairwise(times))
    if len(times) > 2:
        pairs = [(a, b) for a, b in pairs if _BETWEEN.fullmatch(reply[a[1] : b[0]])]
    if len(pairs) != 1:
        return None
    start, end = pairs[0][0][2], pairs[0][1][2]
    return (start, end) if start < end < math.inf else None


def _seconds(match: re.Match[str]) -> float:
    if match["s"]:
        return 3600 * float(match["h"] or 0) + 60 * float(match["m"]) + float(match["s"])
    if match["minutes"]:
        return 60 * float(match["minutes"]) + float(match["rest"] or 0)
    return float(match["seconds"])
