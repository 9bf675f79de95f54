"""What a reply says: yes or no, which interval of time. An unclear reply is None, never a guess."""

import math
import re
from itertools import pairwise

from videopanda.evaluation.scoring.choice_patterns import DENIAL, FILLER, IDIOMS, SPOKEN, STATED_BEFORE, UNDECIDED
from videopanda.evaluation.scoring.clauses import clauses
from videopanda.evaluation.scoring.final_text import final_text, unwrapped

# -- yes or no ---------------------------------------------------------------------------------------------------------
_YES = r"(?:yes|yeah|yep|ja|s[ií]|oui|да|sim|sì|是的?|对的?|對|はい|네|예)"
_NO = r"(?:no|nope|nein|non|нет|n[ãa]o|不是?的?|不对|否|没有|いいえ|아니[요오])"
_WORD = re.compile(rf"(?<!\w)(?:(?P<yes>{_YES})|{_NO})(?!\w)", re.IGNORECASE)
_BOTH = re.compile(rf"\b{_YES}\s*(?:or|and|nor|/)\s*{_NO}\b|\b{_NO}\s*(?:or|and|nor|/)\s*{_YES}\b", re.IGNORECASE)
# "No it is not", but not "no idea", "no problem", "no one".
_SUBJECT = re.compile(r"\s+(?:it|he|she|they|there|the|this|that|you|we|his|her|their)\b", re.IGNORECASE)


def yes_no(reply: str) -> str | None:
    """ "yes" or "no": the last one that is called the answer; else the first word, or one that is a clause of its own.

    None where that gives both or none, and where it is denied or asked ("not yes", "yes?").
    """
    text = _BOTH.sub("▢", IDIOMS.sub(" ", unwrapped(final_text(reply))))
    stated, told = [], set()
    for number, (start, end, kind) in enumerate(clauses(text)):
        clause = text[start:end]
        match = _WORD.search(clause)
        if match is None or kind == "question":
            continue
        said = "yes" if match["yes"] else "no"
        before, after = clause[: match.start()], clause[match.end() :]
        leads = not re.search(r"[\w▢]", before)
        concludes = before.rstrip().endswith(":") and not re.search(r"\w", after) and not SPOKEN.search(before)
        if concludes or STATED_BEFORE.search(before) or STATED_BEFORE.search(FILLER.sub("", before)):
            stated.append(None if DENIAL.search(before) else said)
        elif leads and (
            not re.search(r"[\w▢]", after)
            or (number == 0 and (said == "yes" or _SUBJECT.match(after) or after[:1] == ":"))
        ):
            told.add(said)
    if stated:
        return None if UNDECIDED.search(text) and len(set(stated)) > 1 else stated[-1]
    return told.pop() if len(told) == 1 else None


# -- intervals ---------------------------------------------------------------------------------------------------------
_NUMBER = r"\d+(?:\.\d+)?"
_HOURS = r"(?:(?:hours?|hrs?|h|stunden?|horas?|heures?|час\w*)(?!\w)|小时|時間|시간)"
_MINUTES = r"(?:(?:minut[eo]s?|minuten|mins?|минут\w*)(?!\w)|m(?![^\W\d])|分钟?|분)"
_SECONDS = r"(?:(?:seconds?|secs?|s|sekunden?|segundos?|secondes?|секунд\w*)(?!\w)|秒|초)"
_TIME = re.compile(
    rf"(?<![\w.:])(?:(?:(?P<h>\d+):)?(?P<m>\d+):(?P<s>{_NUMBER})"  # 1:02:03, 02:03.5
    rf"|(?:(?P<hours>{_NUMBER})\s*{_HOURS}\s*(?:and\s+)?)?(?P<minutes>{_NUMBER})\s*{_MINUTES}"
    rf"(?:\s*(?:and\s+)?(?P<rest>{_NUMBER})\s*{_SECONDS})?"
    rf"|(?P<only>{_NUMBER})\s*{_HOURS}"
    rf"|(?P<seconds>{_NUMBER})\s*(?:(?P<unit>{_SECONDS})|(?![\w:%])))",
    re.IGNORECASE | re.ASCII,
)
# A minus in front of a number is a sign where no other number stands before it.
_NEGATIVE = re.compile(r"(?<![\w.:])(?<![\w.:]\s)[-−–](?=\d)|\b(?:from|between|to|and|at)\s+[-−–](?=\d)", re.IGNORECASE)
_JOIN = re.compile(
    r"(?:\s|[-–—,;:→>~\[\](){}\"'*到至第から부터]|\b(?:to|and|until|till|up|through|it|the|event|then|at|about|around|approximately"
    r"|seconds?|starts?|begins?|lasts?|ends?|end_time|ending|stops?|finish(?:es)?|time|is|in|bis|a|à|hasta|по|до)\b)+",
    re.IGNORECASE,
)
# What numbers count that are no seconds, before and after them.
_COUNTED_BEFORE = re.compile(
    r"\b(?:frames?|pages?|chapters?|scores?(?:\s+\w+)?|steps?|lines?|rooms?|ages?)\W*$", re.IGNORECASE
)
_COUNTED_AFTER = re.compile(
    r"\s*(?!(?:in|into|of|is|where|when|while|because|as|for|during|on|with)\b)[a-z]", re.IGNORECASE
)
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
    times = list(_TIME.finditer(text))
    pairs = [(a, b) for a, b in pairwise(times) if _JOIN.fullmatch(text[a.end() : b.start()])]
    if len(pairs) != 1:
        return None
    first, second = pairs[0]
    before = text[: first.start()].rpartition(".")[2]
    if DENIAL.search(before) or _COUNTED_BEFORE.search(before):
        return None
    bare = first["seconds"] and not first["unit"]
    start, end, after = _seconds(first), _seconds(second), text[second.end() :]
    is_counted = bare and second["seconds"] and not second["unit"] and _COUNTED_AFTER.match(after)
    if is_counted or re.match(r"[^.!;\n]{0,20}\?", after):
        return None
    if bare and (second["minutes"] or second["only"]):
        return None
    return (start, end) if start < end < math.inf else None


def _seconds(match: re.Match[str]) -> float:
    if match["s"]:
        return 3600 * float(match["h"] or 0) + 60 * float(match["m"]) + float(match["s"])
    if match["minutes"]:
        return 3600 * float(match["hours"] or 0) + 60 * float(match["minutes"]) + float(match["rest"] or 0)
    return 3600 * float(match["only"]) if match["only"] else float(match["seconds"])
