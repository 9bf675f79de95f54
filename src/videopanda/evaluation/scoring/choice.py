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
    AFFIRMED,
    ASIDE,
    DANGLING,
    DENIAL,
    EXCEPTING,
    FILLER,
    GROUP,
    HEDGE,
    IDIOMS,
    INITIAL,
    JUDGED,
    LABELED,
    LEAD,
    LISTED,
    MARK,
    MARKS,
    NAME,
    NAMED,
    NUMBERED,
    NUMBERS,
    ONE,
    ONLY_RIGHT,
    OPTION,
    PREFERRED,
    REFUSAL,
    SEEN,
    SENTENCE_END,
    SHOWS,
    SPOKEN,
    STATED_AFTER,
    STATED_BEFORE,
    TABLE_HEAD,
    UNDECIDED,
    UNREAD,
    UNREAL,
    VERB,
    WORD,
)
from videopanda.evaluation.scoring.clauses import clauses
from videopanda.evaluation.scoring.extract import yes_no
from videopanda.evaluation.scoring.final_text import final_text, unwrapped
from videopanda.evaluation.scoring.normalize import tokens
from videopanda.evaluation.scoring.option_texts import asserted, denied_or_open, equal, masked, text_beside, written

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


def choice(reply: str, options: Sequence[str], *, is_cut: bool = False) -> tuple[int, ...] | None:
    """The option that a reply chooses: its index, or several where options are the same text.

    A reply that is the text of an option chooses it. Else letters decide as the module says: the last one that is
    stated; else the only one that stands alone; else the only one that is mentioned, where none is denied. A letter
    beside the text of another option chooses nothing. Without letters, the text of one option within a reply that
    denies nothing. Else the only option that is right where a reply judges each of them.

    Of options of which one begins with yes and one with no, a reply without letters chooses as `yes_no` reads it. Of a
    reply that `is_cut` short by a limit of tokens, what follows might change what was only mentioned: its letters count
    where they are stated, else its first sentence decides, or a letter that it begins with.
    """
    said = final_text(reply)[-_LONGEST:]
    found = _chosen(said, options, is_cut)
    if found is not None or is_cut:
        return found
    return _judged(unwrapped(said), options)


def _judged(text: str, options: Sequence[str]) -> tuple[int, ...] | None:
    """The only right option of a text that judges each of them, "A: wrong", "B: correct", …, and says no more."""
    for option in sorted(options, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(option.strip())}(?!\w)", "", text, flags=re.IGNORECASE)
    lines = [line for line in TABLE_HEAD.sub("", text).splitlines() if re.search(r"\w", line)]
    lines = [line for line in lines if not line.rstrip().endswith(":")]
    verdicts = [match for line in lines for match in JUDGED.finditer(line)]
    letters = [match[1].upper() for match in verdicts]
    right = [letter for letter, match in zip(letters, verdicts) if match[2]]
    if letters != list(LETTERS[: len(options)]) or len(right) != 1 or not all(map(JUDGED.search, lines)):
        return None
    return (LETTERS.index(right[0]),)


def _chosen(said: str, options: Sequence[str], is_cut: bool) -> tuple[int, ...] | None:
    asks = "?" in said and not any("?" in option for option in options)
    if (name := NAME.fullmatch(said.strip())) and name[1].lower() not in tokens(" ".join(options)):
        return None
    if not asks and not MARK.match(said) and (same := equal(said, options)):
        return same
    text = unwrapped(said)
    if _lists_letters(masked(text, options)) and not any(ONE.fullmatch(option.strip()) for option in options):
        return None
    listed, text = text, _without_list(text)
    mentions = list(_mentions(text, options))
    if is_cut:
        mentions = [mention for mention in mentions if mention.how in (_How.STATED, _How.DENIED)]
        if all(mention.how == _How.DENIED for mention in mentions):
            first = SENTENCE_END.search(text := text.lstrip())
            if text != listed.lstrip() or not (first or MARK.match(text)):
                return None
            return _chosen(text[: first.end()] if first else text, options, False)
    polar = _polar(options)
    said_polar = polar.get(yes_no(text) or "") if polar else None
    if mentions and said_polar is not None:
        chosen = _decide(mentions, text, options)
        return chosen if chosen == (said_polar,) else None  # "No, the answer is A", which is "Yes"
    if polar and not mentions:
        others = [option for i, option in enumerate(options) if i not in polar.values()]
        if said_polar is None:
            found = asserted(text, others)
            return (
                tuple(i for i, option in enumerate(options) if option in map(others.__getitem__, found or ())) or None
            )
        return None if written(text, others, asserts=False) else (said_polar,)
    if not mentions:
        number = {NUMBERS[match[match.lastindex or 0].lower()] for match in NUMBERED.finditer(text)}
        if number and not denied_or_open(text):
            index = min(number)
            same = equal(str(index + 1), options)
            return (index,) if len(number) == 1 and index < len(options) and same in ((), (index,)) else None
        found = asserted(text, options)
        unread = {LETTERS.find(match[0]) for match in UNREAD.finditer(masked(text, options))} & set(range(len(options)))
        return found if found and unread <= set(found) else None
    return _decide(mentions, text, options)


def _polar(options: Sequence[str]) -> dict[str, int]:
    """The index of the only option that begins with "yes" and of the only one that begins with "no"; {} if not both."""
    first = [(tokens(option) or [""])[0] for option in options]
    return {w: first.index(w) for w in ("yes", "no")} if first.count("yes") == first.count("no") == 1 else {}


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
        within = asserted(text, options)
        others = any(mention.indices != chosen for mention in mentions)
        if others or denied_or_open(text) or (within and chosen.isdisjoint(within)):
            return None
    if any(not m.indices.isdisjoint(chosen) for m in mentions[found[-1] :] if m.how == _How.DENIED):
        return None
    if UNDECIDED.search(text) and len({m.indices for m in mentions if m.how == best}) > 1:
        return None
    return tuple(chosen)


def _without_list(text: str) -> str:
    """The text without lines that repeat the options, "A. red", and without the marks of a list in a line, "A: red"."""
    for pattern, rest in ((LISTED, ""), (MARKS, " ")):
        letters = [match[1] or match[2] for match in pattern.finditer(text)]
        if len(letters) > 1 and letters == sorted(set(letters)):
            text = pattern.sub(rest, text)
    return text


def _lists_letters(text: str) -> bool:
    """Whether a text has no words but several letters, "A) B) C)", or an "answer" for each, "Answer: A Answer: B"."""
    words = re.findall(r"\w+", text)
    letters = [word for word in words if word.lower() != "answer"]
    words = letters if len(words) == 2 * len(letters) else words
    return len({word.upper() for word in words}) > 1 and all(re.fullmatch("[A-Za-z]", word) for word in words)


# -- reading clauses ---------------------------------------------------------------------------------------------------
def _mentions(text: str, options: Sequence[str]) -> Iterator[_Mention]:
    """What the clauses say of letters, in their order; texts of options that hold letters are passed over."""
    text = re.sub(
        r"\b([A-Z])['’]s\s+(?=the\b|my\b|right\b|correct\b)", r"\1 is ", ONLY_RIGHT.sub(r"the answer is \1", text)
    )
    text = PREFERRED.sub(
        r"\1rather than", EXCEPTING.sub("not", IDIOMS.sub(" ", AFFIRMED.sub("正确", ASIDE.sub(r"\1", text))))
    )
    text = GROUP.sub(lambda match: re.sub(r"[,、]|\bvs\b\.?", "/", match[0]), text)  # a list is one thing
    whole, text = text, masked(text, options)
    named, indices, longest = 0, frozenset[int](), max(map(len, options), default=0)
    told, told_end = tuple[int, ...](), 0  # the option that the clause before is, and where that ends
    for number, (start, end, kind) in enumerate(clauses(text)):
        clause = text[start:end]
        named_before = told if "\n" not in text[told_end:start] else ()
        told, told_end = equal(whole[start:end], options), end
        if kind or UNREAL.search(text[start : end + len(", but")]):
            continue
        if indices and start >= named and REFUSAL.fullmatch(clause):  # "C - wrong", "the answer is A. No, …"
            yield _Mention(_How.DENIED, indices)
        found = list(_letters(clause))
        for first, last in found:
            if start + first < named:
                continue  # a letter in the text of the option that the letter before it has named
            before, after = clause[max(0, first - _NEAR) : first], clause[last : last + _NEAR]
            place = _Place(before, clause[first:last], after, number == 0, len(found) > 1)
            beside, length = text_beside(whole[start + last :][: longest + _NEAR], options)
            earlier, later = text[max(0, start - _NEAR) : start], text[end : end + _NEAR]
            how = _how(place, bool(beside))
            if how is None or (how == _How.ALONE and INITIAL.search(f"{earlier}▢{later}")):
                continue
            indices = frozenset(LETTERS.find(letter.upper()) for letter in _named(place.mention))
            if how == _How.MENTIONED and max(indices) >= len(options):
                continue
            if len(indices) == 1 and not indices.isdisjoint(beside):
                named = start + last + length
            elif named_before and how != _How.DENIED and indices.isdisjoint(named_before):
                indices = frozenset()  # "he boils pasta, which is option C"
            elif (how != _How.DENIED and _is_unclear(place, how, indices, beside, options)) or (
                how == _How.ALONE and _tells_another(whole[start + last :][:_NEAR], indices, options)
            ):
                indices = frozenset()
            opens = not earlier.strip() or earlier.rstrip(" \"'(*")[-1:] in ".!?;:\n。"
            opens &= not re.search(r"[\w▢]", LEAD.sub("", FILLER.sub("", before)))
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
    (index,) = indices
    twins = {i for i, option in enumerate(options) if option.strip().upper() == LETTERS[index]}
    if twins - {index}:
        return not OPTION.search(place.before)
    is_subject = how == _How.MENTIONED and len(place.mention) == 1 and bool(VERB.match(place.after))  # "C is a vitamin"
    return is_subject and not LABELED.search(place.before) and not SEEN.match(place.after)


def _tells_another(rest: str, indices: frozenset[int], options: Sequence[str]) -> bool:
    """Whether the sentence of a letter goes on to tell what another option says, "B, the ball is green"."""
    sentence = SENTENCE_END.split(rest, maxsplit=1)[0]
    found = {i for same in written(sentence, options).values() for i in same}
    return (
        bool(found)
        and indices.isdisjoint(found)
        and not re.search(r"\b[A-Z]\b", sentence)
        and not DENIAL.search(sentence)
    )


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
    labeled = bool(LABELED.search(before)) and not before.rstrip(" :\"'").lower().endswith("letter")
    lead = LEAD.sub("", FILLER.sub("", before))
    alone = not lead.strip() and (marked or (has_text and place.is_first))
    stated = bool(STATED_BEFORE.search(before) or STATED_BEFORE.search(FILLER.sub("", before)))
    acts = bool(VERB.match(after))
    stated_after = bool(STATED_AFTER.match(after)) or (acts and bool(re.search(r"\bonly\s+$", before, re.IGNORECASE)))
    if mention.islower():  # perhaps a word, or a plural in brackets
        told = stated or labeled
        if not (
            told or alone or ends
            if bracketed
            else marked
            if alone and place.is_first
            else told and (ends or stated_after)
        ):
            return None
    if not bracketed and not joined and NAMED.search(before):
        return None
    if mention in "AI" and WORD.match(after) and not (stated_after or acts):
        return None
    if stated_after:
        after = re.split(r"(?<=\w):\s", after, maxsplit=1)[0]  # "C is right: nobody runs"
    # What follows "the answer is C" or "(C)" is a text, which may deny anything, unless the letter is its subject.
    subject = (
        acts or stated_after or not (bracketed or marked or stated or has_text) or not after.lstrip()[:1].isascii()
    )
    if DENIAL.search(before) or (
        (subject or (not has_text and DENIAL.match(after.lstrip(" ,:)")))) and DENIAL.search(after)
    ):
        return _How.DENIED
    boxed = mention[0] == "⟦"
    if boxed or stated or stated_after or DANGLING.fullmatch(after):
        return _How.MENTIONED if HEDGE.search(before + after) and not boxed else _How.STATED
    if alone or (ends and before.rstrip().endswith(":") and not mention.islower() and not SPOKEN.search(before)):
        return _How.MENTIONED if HEDGE.search(before) else _How.ALONE
    if bracketed or labeled or joined or (SHOWS.search(before) if ends else acts):
        return _How.MENTIONED
    return None
