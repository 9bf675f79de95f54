"""Which option a reply chooses. An unclear reply is None, never a guess: a wrong letter is worse than none.

The reply is cut into clauses. A letter in a clause is stated ("the answer is B", "B is correct", a letter alone),
merely mentioned ("option B"), or denied ("not B", "B is wrong", "A rather than B"). The last statement decides, unless
its letter is denied later. Questions and conditions ("B?", "if …, the answer is B") state nothing.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

from videopanda.evaluation.benchmarks.options import LETTERS
from videopanda.evaluation.scoring.choice_patterns import (
    BOX,
    CLAUSE_END,
    CONDITION,
    CYRILLIC,
    DANGLING,
    DECORATION,
    DENIAL,
    EXCEPTING,
    FILLER,
    GROUP,
    HEDGE,
    HTML,
    IDIOMS,
    INITIAL,
    LABELLED,
    LEAD,
    LISTED,
    MARK,
    MARKS,
    NUMBERED,
    ONE,
    PREFERRED,
    REFUSAL,
    SENTENCE_END,
    SHOWS,
    STATED_AFTER,
    STATED_BEFORE,
    TAG,
    TEX,
    UNREAL,
    VERB,
    WORD,
)
from videopanda.evaluation.scoring.final_text import final_text
from videopanda.evaluation.scoring.normalize import normalize, tokens

_NEAR = 120  # characters before and after a letter that say how it is meant
_LONGEST = 8000  # characters of a reply; of a longer one its end decides


class _How(IntEnum):
    """How a clause speaks of a letter; the larger one outweighs the smaller."""

    DENIED = 0
    MENTIONED = 1
    ALONE = 2
    STATED = 3


@dataclass(frozen=True)
class _Place:
    """Where letters stand in a clause."""

    before: str
    mention: str
    after: str
    is_first: bool  # in the first clause
    has_others: bool  # letters in the same clause


@dataclass(frozen=True)
class _Mention:
    """Letters in a clause; several where they are joined, "A or B"."""

    how: _How
    indices: frozenset[int]
    is_final: bool = False  # a sentence of its own, the last one


def choice(reply: str, options: Sequence[str]) -> tuple[int, ...] | None:
    """The option that a reply chooses: its index, or several where options are the same text.

    A reply that is the text of an option chooses it. Else letters decide as the module says: the last one that is
    stated; else the only one that stands alone; else the only one that is mentioned, where none is denied. A letter
    beside the text of another option chooses nothing. Without letters, the text of one option within a reply that
    denies nothing.
    """
    said = final_text(reply)[-_LONGEST:]
    asks = "?" in said and not any("?" in option for option in options)
    if not asks and not MARK.match(said) and (equal := _equal(said, options)):
        return equal
    text = _without_list(unwrapped(said))
    mentions = list(_mentions(text, options))
    if not mentions:
        number = {int(match[1]) - 1 for match in NUMBERED.finditer(text)}
        if number and not _denied_or_open(text):
            index = min(number)
            same = _equal(str(index + 1), options)
            return (index,) if len(number) == 1 and index < len(options) and same in ((), (index,)) else None
        return _within(text, options)
    return _decide(mentions, text, options)


def _decide(mentions: list[_Mention], text: str, options: Sequence[str]) -> tuple[int, ...] | None:
    alone = {mention.indices for mention in mentions if mention.how == _How.ALONE}
    last = mentions[-1]
    best = last.how if last.how == _How.ALONE and last.is_final else max(mention.how for mention in mentions)
    found = [i for i, mention in enumerate(mentions) if mention.how == best]
    chosen = mentions[found[-1]].indices
    if best == _How.DENIED or (best == _How.ALONE and len(alone) > 1) or len(chosen) != 1:
        return None
    after = [m.indices for m in mentions[found[-1] :] if m.how == _How.ALONE]
    if best == _How.STATED and any(indices != chosen for indices in after):
        return None  # "the answer is A, wait, B"
    if best == _How.MENTIONED:
        within = _within(text, options)
        others = any(mention.indices != chosen for mention in mentions)
        if others or _denied_or_open(text) or (within and chosen.isdisjoint(within)):
            return None
    if any(not m.indices.isdisjoint(chosen) for m in mentions[found[-1] :] if m.how == _How.DENIED):
        return None
    return tuple(chosen)


def _without_list(text: str) -> str:
    """The text without lines that repeat the options, "A. red", and without the marks of a list in a line, "A: red"."""
    for pattern, rest in ((LISTED, ""), (MARKS, " ")):
        letters = [match[1] or match[2] for match in pattern.finditer(text)]
        if len(letters) > 1 and letters == sorted(set(letters)):
            text = pattern.sub(rest, text)
    return text


def unwrapped(text: str) -> str:
    """A reply without the markup around answers: a boxed text and one in tags become "answer: …"."""

    def box(match: re.Match[str]) -> str:
        content = TEX.sub("", match[1]).strip().strip("()")
        return f"[[{content}]]" if len(content) == 1 else f" answer: {content}. "

    text = TAG.sub(lambda match: f"\nanswer: {match[1].strip()}\n", BOX.sub(box, text))
    text = HTML.sub(r" \2 ", text)
    text = CYRILLIC.sub(lambda match: {"А": "A", "С": "C"}[match[0]], text)
    return DECORATION.sub(lambda match: "" if match[0] in "*`$__" else " ", text.replace("[[", "⟦").replace("]]", "⟧"))


# -- reading clauses ---------------------------------------------------------------------------------------------------
def _mentions(text: str, options: Sequence[str]) -> Iterator[_Mention]:
    """What the clauses say of letters, in their order; texts of options that hold letters are passed over."""
    text = PREFERRED.sub(r"\1rather than", EXCEPTING.sub("not", IDIOMS.sub(" ", text)))
    text = GROUP.sub(lambda match: re.sub("[,、]", "/", match[0]), text)  # a list is one thing
    whole, text = text, _masked(text, options)
    named, indices, longest = 0, frozenset[int](), max(map(len, options), default=0)
    for number, (start, end, kind) in enumerate(clauses(text)):
        clause = text[start:end]
        if kind or UNREAL.search(clause):
            continue
        if indices and REFUSAL.fullmatch(clause):  # "C - wrong", "the answer is A. No, …"
            yield _Mention(_How.DENIED, indices)
        found = list(_letters(clause))
        for first, last in found:
            if start + first < named:
                continue  # a letter in the text of the option that the letter before it has named
            before, after = clause[max(0, first - _NEAR) : first], clause[last : last + _NEAR]
            place = _Place(before, clause[first:last], after, number == 0, len(found) > 1)
            beside, length = _beside(whole[start + last :][: longest + _NEAR], options)
            earlier, later = text[max(0, start - _NEAR) : start], text[end : end + _NEAR]
            how = _how(place, bool(beside))
            if how is None or (how == _How.ALONE and INITIAL.search(f"{earlier}▢{later}")):
                continue
            indices = frozenset(LETTERS.find(letter.upper()) for letter in _named(place.mention))
            if how == _How.MENTIONED and max(indices) >= len(options):
                continue
            if len(indices) == 1 and not indices.isdisjoint(beside):
                named = start + last + length
            elif how != _How.DENIED and _is_unclear(place, how, indices, beside, options):
                indices = frozenset()
            opens = not earlier.strip() or earlier.rstrip(" \"'(*")[-1:] in ".!?;:\n。"
            yield _Mention(how, indices, opens and not later.strip(" \n.!\"')"))


def _is_unclear(
    place: _Place, how: _How, indices: frozenset[int], beside: tuple[int, ...], options: Sequence[str]
) -> bool:
    """Whether what seems to name an option need not name one."""
    if max(indices) >= len(options) or DANGLING.fullmatch(place.after):  # "E" of four; "B or, more precisely, C"
        return True
    if len(indices) > 1:
        return False
    if beside or (how == _How.ALONE and place.has_others):  # the text of another option; "A: B"
        return True
    if LABELLED.search(place.before):
        return False
    (index,) = indices
    twins = {i for i, option in enumerate(options) if option.strip().upper() == LETTERS[index]}
    is_subject = how == _How.MENTIONED and len(place.mention) == 1 and VERB.match(place.after)  # "C is a vitamin"
    return bool(twins - {index} or is_subject)


def clauses(text: str) -> Iterator[tuple[int, int, str]]:
    """Start and end of every clause, and whether its sentence is a "question" or a "condition", else ""."""
    start = 0
    for match in [*SENTENCE_END.finditer(text), None]:
        end = match.start() if match else len(text)
        sentence = text[start:end]
        kind = "question" if match and "?" in match[0] else "condition" if CONDITION.search(sentence) else ""
        begin = 0
        for inner in [*CLAUSE_END.finditer(sentence), None]:
            stop = inner.start() if inner else len(sentence)
            if sentence[begin:stop].strip():
                yield start + begin, start + stop, kind
            begin = inner.end() if inner else stop
        start = match.end() if match else end


def _letters(clause: str) -> Iterator[tuple[int, int]]:
    """Where letters stand; joined ones are one."""
    end = 0
    found = [match for match in GROUP.finditer(clause) if len(_named(match[0])) > 1]
    for match in sorted([*found, *ONE.finditer(clause)], key=lambda match: (match.start(), -match.end())):
        if match.start() >= end:
            end = match.end()
            yield match.start(), end


def _named(mention: str) -> list[str]:
    """The letters of a mention. A small one among others without brackets is a word, Spanish "A o B"."""
    found = [match[0].strip("([<⟦⟧>]). :") for match in ONE.finditer(mention)]
    return found if len(found) == 1 or mention[0] in "([<⟦" else [letter for letter in found if letter.isupper()]


@lru_cache(maxsize=256)  # models that loop say the same thing again and again
def _how(place: _Place, has_text: bool) -> _How | None:
    """How a clause speaks of its letters; None if they may be words. `has_text`: the text of an option follows."""
    before, mention, after = place.before, place.mention, place.after
    bracketed, joined = mention[0] in "([<⟦", len(_named(mention)) > 1
    ends = not re.search(r"[\w▢]", after)
    marked = ends or after.lstrip().startswith((":", ")"))
    labelled = bool(LABELLED.search(before)) and not before.rstrip(" :\"'").lower().endswith("letter")
    lead = LEAD.sub("", FILLER.sub("", before))
    alone = not lead.strip() and (marked or (has_text and place.is_first))
    stated = bool(STATED_BEFORE.search(before) or STATED_BEFORE.search(FILLER.sub("", before)))
    stated_after, acts = bool(STATED_AFTER.match(after)), bool(VERB.match(after))
    if mention.islower():  # perhaps a word, or a plural in brackets
        told = stated or labelled
        if not (told or alone or ends if bracketed else marked if alone and place.is_first else ends and told):
            return None
    if mention in "AI" and WORD.match(after) and not (stated_after or acts):
        return None
    # What follows "the answer is C" or "(C)" is a text, which may deny anything, unless the letter is its subject.
    subject = acts or not (bracketed or marked or stated or has_text) or not after.lstrip()[:1].isascii()
    if DENIAL.search(before) or ((subject or DENIAL.match(after.lstrip(" ,:)"))) and DENIAL.search(after)):
        return _How.DENIED
    boxed = mention[0] == "⟦"
    if boxed or stated or stated_after or DANGLING.fullmatch(after):
        return _How.MENTIONED if HEDGE.search(before + after) and not boxed else _How.STATED
    if alone:
        return _How.MENTIONED if HEDGE.search(before) else _How.ALONE
    if bracketed or labelled or joined or (SHOWS.search(before) if ends else acts):
        return _How.MENTIONED
    return None


# -- texts -------------------------------------------------------------------------------------------------------------
def _masked(text: str, options: Sequence[str]) -> str:
    """The text with blanks for options in which a letter stands by itself, "Team B wins"."""
    for option in sorted(options, key=len, reverse=True):
        if len(option.strip()) > 1 and re.search(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])", option):
            words = r"\s+".join(map(re.escape, option.split()))
            text = re.sub(rf"(?<!\w){words}(?!\w)", lambda match: "▢" * len(match[0]), text, flags=re.IGNORECASE)
    return text


def _equal(text: str, options: Sequence[str]) -> tuple[int, ...]:
    wanted, bare = normalize(text), text.strip(" .\"'").casefold()
    return tuple(
        i
        for i, option in enumerate(options)
        if (wanted and normalize(option) == wanted) or (bare and option.strip().casefold() == bare)
    )


def _beside(rest: str, options: Sequence[str]) -> tuple[tuple[int, ...], int]:
    """The option whose text follows a letter, up to a line end or a mark, and where it ends; () if none does."""
    length = len(rest)
    rest = rest.lstrip(" \n.:,;)]>⟧}\"'*-–—")
    longest = 2 * max(map(len, options), default=0) + 20
    for end in (r"\n", r"[\n.;!?]", r"[\n.;!?,(—–]|\s-\s"):
        part = re.split(end, rest, maxsplit=1)[0]
        if len(part) <= longest and (equal := _equal(part, options)):
            return equal, length - len(rest) + len(part)
    return (), 0


def _denied_or_open(text: str) -> bool:
    return bool(DENIAL.search(IDIOMS.sub(" ", text)) or CONDITION.search(text) or "?" in text)


def _within(reply: str, options: Sequence[str]) -> tuple[int, ...] | None:
    """The only option whose words stand in the reply; an option that is part of another found one does not count."""
    text = f" {' '.join(tokens(reply))} "
    text += re.sub(r"[^\u3040-\ud7a3]+", " ", reply)  # scripts without spaces between words
    words = [f" {normalize(option)} " if not ONE.fullmatch(option.strip()) else "" for option in options]
    words = [option if re.fullmatch(r"[\u3040-\ud7a3]{2,}", option) else word for option, word in zip(options, words)]
    found = [i for i, option in enumerate(words) if option.strip() and option in text]
    longest = {words[i] for i in found if not any(words[i] != words[j] and words[i] in words[j] for j in found)}
    for word in longest:  # the text of an option and something more
        if re.search(rf"\b(?:and|or|but)\s+{re.escape(word.strip())}(?!\w)|{re.escape(word)}(?:and|or|then)\b", text):
            return None
    if len(longest) != 1 or _denied_or_open(text.replace(min(longest), " ") + ("?" if "?" in reply else "")):
        return None
    return tuple(i for i in found if words[i] in longest)
