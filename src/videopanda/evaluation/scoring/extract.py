"""What a reply says: yes or no, which interval of time. An unclear reply is None, never a guess."""

import math
import re
from itertools import pairwise

from videopanda.evaluation.scoring.choice_patterns import (
    DENIAL,
    FILLER,
    IDIOMS,
    SENTENCE_END,
    SPOKEN,
    STATED_BEFORE,
    UNDECIDED,
)
from videopanda.evaluation.scoring.clauses import clauses
from videopanda.evaluation.scoring.final_text import final_text, unwrapped
from videopanda.video.times import TIME, is_marked, seconds_of

# -- yes or no ---------------------------------------------------------------------------------------------------------
_YES = r"(?:yes|yeah|yep|ja|sí|si(?!\s+\w)|oui|да|sim|sì|نعم|是的?|对的?|對|はい|네|예)"
_NO = r"(?:no|nope|nein|non|لا|нет|n[ãa]o|不是?的?|不对|否|没有|いいえ|아니[요오])"
_WORD = re.compile(rf"(?<!\w)(?:(?P<yes>{_YES})|{_NO})(?!\w)", re.IGNORECASE)
_AND = r"(?:\s+(?:or|and|nor|und|oder|et|ou|y|o|e|и|или|أو|و)\s+|\s*[/或]\s*)"
_BOTH = re.compile(rf"\b{_YES}{_AND}{_NO}\b|\b{_NO}{_AND}{_YES}\b", re.IGNORECASE)
# "No, it is unclear": the sentence gives no answer.
_UNKNOWN = re.compile(
    r"[^.!?\n]*(?:\b(?:can(?:not|['’]t|\s+not)|(?:im|not\s+)possible\s+to|unable\s+to)\s+(?:\w+\s+)?(?:tell|say|know"
    r"|determine|answer|judge|be\s+(?:sure|certain|determined))\b|\b(?:unclear|uncertain|unknown|whether)\b)"
    r"|[.!]\s*I\s+(?:can(?:not|['’]t)\s+tell|do\s*n['’o]t\s+know)\b",
    re.IGNORECASE,
)
# "No it is not", but not "no idea", "no problem", "no one".
_SUBJECT = re.compile(r"\s+(?:it|he|she|they|there|the|this|that|you|we|his|her|their)\b", re.IGNORECASE)


def yes_no(reply: str) -> str | None:
    """ "yes" or "no": the last one that is called the answer; else the first word, or one that is a clause of its own.

    None where that gives both or none, and where it is denied or asked ("not yes", "yes?").
    """
    text = _BOTH.sub("▢", IDIOMS.sub(" ", unwrapped(final_text(reply))))
    stated: list[str | None] = []
    told: set[str] = set()
    told_end = 0
    for number, (start, end, kind) in enumerate(clauses(text)):
        clause = text[start:end]
        match = _WORD.search(clause)
        if match is None or kind == "question" or (kind and number):  # "if he stops, yes"
            continue
        said = "yes" if match["yes"] else "no"
        before, after = clause[: match.start()], clause[match.end() :]
        leads = not re.search(r"[\w▢]", FILLER.sub("", before))
        before = re.sub(r"\ba\s+$", "", before)  # "that is a yes"
        concludes = before.rstrip().endswith(":") and not re.search(r"\w", after) and not SPOKEN.search(before)
        if concludes or STATED_BEFORE.search(before) or STATED_BEFORE.search(FILLER.sub("", before)):
            if told - {said} and not SENTENCE_END.search(text[told_end:start]):
                return None  # "yes, the answer is no"
            stated.append(None if DENIAL.search(before) else said)
        elif leads and (
            not re.search(r"[\w▢]", after)
            or (number == 0 and (said == "yes" or _SUBJECT.match(after) or after[:1] == ":"))
        ):
            if _UNKNOWN.match(text, start + match.end()):
                return None
            told.add(said)
            told_end = end
    if stated:
        return None if UNDECIDED.search(text) and len(set(stated)) > 1 else stated[-1]
    return told.pop() if len(told) == 1 else None


# -- intervals ---------------------------------------------------------------------------------------------------------
# A minus in front of a number is a sign where no other number stands before it.
_NEGATIVE = re.compile(
    r"(?<![\w.:])(?<![\w.:]\s)[-−–](?=\d)|\b(?:from|between|to|and|at)\s+[-−–](?=\d)|\bminus\s+\d", re.IGNORECASE
)
_JOIN = re.compile(
    r"(?:\s|[-–—,;:→<>=|~〜\[\](){}\"'*到至第から부터]|\b(?:to|and|until|till|up|through|it|the|event|then|at|about|around|approximately"
    r"|seconds?|starts?|begins?|lasts?|ends?|end_(?:time|sec)|ending|stops?|finish(?:es)?|time|is|in|bis|a|à|hasta|по|до|إلى|t)\b)+",
    re.IGNORECASE,
)
# What numbers count that are no seconds, before and after them.
_COUNTED_BEFORE = re.compile(
    r"\b(?:\w*frames?|fps|rows?|pages?|chapters?|scores?(?:\s+\w+)?|steps?|lines?|rooms?|ages?|normali[sz]ed|relative)\W*$",
    re.IGNORECASE,
)
_COUNTED_AFTER = re.compile(
    r"\s*\(?frames?\b|\s*(?!(?:in|into|of|is|where|when|while|because|as|for|during|on|with)\b)[a-z]", re.IGNORECASE
)
_MOMENT, _ALSO = (
    re.compile(r"(?<!starts )(?<!begins )\bat\s*$"),
    re.compile(r"[\s,;]*(?:and\s*)?(?:again\s*)?(?:at\s*)?"),
)
_JUDGED = re.compile(r"\W*(?:is|was|are|there\s+(?:is|are))\s+")  # "5 to 10 is wrong"
_ANSWER = re.compile(r"\b(?:final\s+)?answer\b[^\d\n]{0,30}?(?:\bis\b|:)", re.IGNORECASE)


def interval(reply: str) -> tuple[float, float] | None:
    """The seconds from and to which a reply points, "from 4.2 to 11 seconds", "0:04 - 0:11", "[4.2, 11]".

    After "the answer is", if that is said; the only pair of times with nothing between but "to", "and ends at", a dash
    and the like. None without such a pair, for a negative time ("-4 to 11"), a pair that is denied or of two units
    ("4 to 11 minutes"), and if the second is not after the first.
    """
    text = unwrapped(final_text(reply))
    if cues := list(_ANSWER.finditer(text)):
        text = text[cues[-1].end() :]
    if _NEGATIVE.search(text):
        return None
    times = list(TIME.finditer(text))
    pairs = [(a, b) for a, b in pairwise(times) if _JOIN.fullmatch(text[a.end() : b.start()])]
    pairs = [(a, b) for a, b in pairs if not _COUNTED_BEFORE.search(text[: a.start()])]
    if len(pairs) != 1:
        return None
    first, second = pairs[0]
    before, between = text[: first.start()].rpartition(".")[2], text[first.end() : second.start()]
    if DENIAL.search(before) or (_MOMENT.search(before) and _ALSO.fullmatch(between)):
        return None
    bare = not is_marked(first)
    start, end, after = seconds_of(first), seconds_of(second), text[second.end() :]
    is_counted = bare and not is_marked(second) and _COUNTED_AFTER.match(after)
    is_part = bare and end <= 1 and re.match(r"\s*of\b", after)  # "0.1 to 0.4 of the video"
    if is_counted or is_part or re.match(r"[^.!;\n]{0,20}\?", after):
        return None
    if (judged := _JUDGED.match(after)) and DENIAL.match(after, judged.end()):
        return None
    if bare and (second["hours"] or second["only_minutes"]):
        return None
    return (start, end) if start < end < math.inf else None
