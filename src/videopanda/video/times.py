"""Times as people and models write them: 75, 75.5, 1:15, 1:02:03.5, 01h02m03s, 2 min 5 s. One reader for all.

Two numbers with a colon are minutes and seconds, three are hours, minutes and seconds, of which there are at most 59;
a bare number is seconds.
"""

import math
import re

_NUMBER = r"\d+(?:\.\d+)?"
_HOURS = r"(?:(?:hours?|hrs?|h|stunden?|horas?|heures?)(?![^\W\d])|ч(?:ас[а-я]*|\.)?(?![а-я])|小时|時間|시간)"
_MINUTES = r"(?:(?:minut[eo]s?|minuten|mins?|m)(?![^\W\d])|мин(?:ут[а-я]*|\.)?(?![а-я])|分钟?|분)"
_SECONDS = r"(?:(?:seconds?|secs?|sekunden?|segundos?|secondes?|s)(?!\w)|с(?:ек(?:унд[а-я]*|\.)?)?(?![а-я])|秒|초)"
_AND = r"\s*(?:,\s*)?(?:(?:and|und|et|y|и)\s+)?"
# A time within a text. Every match gives `seconds_of`; `is_marked`, where a unit or a clock shows that it is a time.
TIME = re.compile(
    rf"(?<![\w.])(?<!\d:)(?:(?:(?P<h>\d+):)?(?P<m>\d+):(?P<s>[0-5]?\d(?:\.\d+|,\d{{3}}(?![:\d]))?)(?!\d|:\d)"
    rf"|(?P<hours>{_NUMBER})\s*{_HOURS}(?:{_AND}(?P<minutes>{_NUMBER})\s*{_MINUTES})?"
    rf"(?:{_AND}(?P<rest>{_NUMBER})\s*{_SECONDS})?"
    rf"|(?P<only_minutes>{_NUMBER})\s*{_MINUTES}(?:{_AND}(?P<more>{_NUMBER})\s*{_SECONDS})?"
    rf"|(?P<seconds>{_NUMBER})\s*(?:(?P<unit>{_SECONDS})|(?![\w:%])))",
    re.IGNORECASE | re.ASCII,
)


def seconds_of(match: re.Match[str]) -> float:
    """The seconds of a match of `TIME`."""
    hours, minutes, seconds = (
        next((float(match[name].replace(",", ".")) for name in names if match[name]), 0.0)
        for names in (("h", "hours"), ("m", "minutes", "only_minutes"), ("s", "rest", "more", "seconds"))
    )
    return 3600 * hours + 60 * minutes + seconds


def is_marked(match: re.Match[str]) -> bool:
    """Whether a match of `TIME` is more than a bare number."""
    return match["seconds"] is None or match["unit"] is not None


def seconds(text: str) -> float:
    """The seconds of a text that is one time and nothing else.

    Raises:
        ValueError: it is not one.
    """
    text = text.strip()
    match = TIME.fullmatch(f"0{text}" if text.startswith(".") else text)
    found = math.inf if match is None else seconds_of(match)
    if not math.isfinite(found):
        raise ValueError(f"expected a time in seconds, or one such as 1:30, got {text!r}")
    return found
