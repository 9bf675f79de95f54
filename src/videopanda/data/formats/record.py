"""The one record that every training format is read into, and the error that says why a row cannot be.

A reader is a pure function (row, number, source) -> `Record`: the parsed JSON object, its number in the file from 0,
and the name of the file, which serves as `Record.source` where the row does not name its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from videopanda.data.sample import Turn
from videopanda.models.prompts import place_marker

# What can be wrong with a row; `videopanda data check` counts by these names.
Kind = Literal[
    "json",  # not JSON, or a key twice
    "encoding",  # not UTF-8
    "schema",  # a key is missing, of the wrong type, or not supported
    "empty",  # no conversation, or a question or an answer without text
    "roles",  # turns do not alternate between user and assistant
    "missing_marker",  # fewer <video> than clips
    "extra_marker",  # more <video> than clips
    "missing_file",
    "unreadable",  # a clip that cannot be decoded
    "range",  # start and end lie outside the clip
]


class RowError(ValueError):
    """A row that cannot be trained on: `kind` is its name in counts, `reason` the explanation."""

    def __init__(self, kind: Kind, reason: str):
        super().__init__(kind, reason)  # both, so that the error can be pickled
        self.kind, self.reason = kind, reason

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Medium:
    """A video (a file or a folder of frames) or an image.

    path: relative to the media root, or absolute. A path without a suffix may stand for a file with any usual one.
    start, end: the part of a video that is meant, in seconds; None = from its beginning, to its end.
    fps: rate of a folder of frames, 1 where nobody says.
    """

    kind: Literal["video", "image"]
    path: str
    start: float | None = None
    end: float | None = None
    fps: float = 1.0


@dataclass(frozen=True, slots=True)
class Record:
    """A row of any format.

    Questions hold as many `<video>` (`<image>`) as there are media, in their order, or none: then all media stand in
    front of the first question.
    """

    id: str
    source: str
    media: tuple[Medium, ...]
    turns: tuple[Turn, ...]  # one conversation: (question, answer) pairs
    system: str = ""  # system prompt of this row, "" = none of its own


Reader = Callable[[Mapping[str, Any], int, str], Record]

# Left behind in answers of Video-ChatGPT-100K; later users of that data remove it.
_NOISE = "QA_GT_caption_based_noisy"


def pair(said: Sequence[tuple[str, Any]]) -> tuple[Turn, ...]:
    """(question, answer) pairs of a list of ("user" or "assistant" or another role, text).

    Raises:
        RowError: no turns, other roles, turns that do not alternate, text that is missing or no text.
    """
    if not said:
        raise RowError("empty", "no conversation")
    roles = [role for role, _ in said]
    if roles != ["user", "assistant"] * (len(said) // 2):
        raise RowError("roles", f"turns must alternate user, assistant, but are {', '.join(map(str, roles))}")
    texts = []
    for role, text in said:
        if not isinstance(text, str):
            raise RowError("schema", f"a turn's text must be a string, not {type(text).__name__}")
        texts.append(text.replace(_NOISE, "").strip())
        if not texts[-1]:
            raise RowError("empty", f"a turn of the {role} has no text")
    return tuple(zip(texts[::2], texts[1::2]))


def mark(turns: Sequence[Turn], media: Sequence[Medium], missing: Literal["refuse", "front"]) -> tuple[Turn, ...]:
    """Check the visual markers in questions against the media, which are all of one kind.

    `<image>` for a video, which much of the field writes, becomes `<video>`. A marker at the end of a question moves to
    its front. `missing` says what becomes of media without a marker: they are refused, or stand in front.

    Raises:
        RowError: more or (if refused) fewer markers than media, a marker in an answer.
    """
    marker = f"<{media[0].kind}>" if media else "<video>"
    turns = [(q.replace("<image>", marker).replace("<video>", marker), a) for q, a in turns]
    if any(word in answer for _, answer in turns for word in ("<video>", "<image>")):
        raise RowError("extra_marker", "a visual marker in an answer")
    found = sum(question.count(marker) for question, _ in turns)
    if found > len(media):
        raise RowError("extra_marker", f"{found} visual markers for {len(media)} clips or images")
    if found < len(media) and missing == "refuse":
        raise RowError("missing_marker", f"{found} visual markers for {len(media)} clips or images")
    turns = [(place_marker(question), answer) for question, answer in turns]
    if 0 < found < len(media):
        turns[0] = (marker * (len(media) - found) + turns[0][0], turns[0][1])
    return tuple(turns)


def text(row: Mapping[str, Any], key: str) -> str:
    """A string of a row. Raises `RowError` where it is missing or no string."""
    value = row.get(key)
    if not isinstance(value, str):
        raise RowError("schema", f"{key!r} is missing" if value is None else f"{key!r} must be a string")
    return value


def items(row: Mapping[str, Any], key: str) -> list[Any]:
    """A list of a row, empty where it is missing or null. Raises `RowError` where it is no list."""
    value = row.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise RowError("schema", f"{key!r} must be a list, not {type(value).__name__}")
    return value


def paths(row: Mapping[str, Any], key: str) -> list[str]:
    """One path or a list of paths, empty where the key is missing or null. Raises `RowError` for anything else."""
    value = row.get(key)
    found = [value] if isinstance(value, str) else items(row, key)
    if not all(isinstance(path, str) and path for path in found):
        raise RowError("schema", f"{key!r} must be a path or a list of paths (frames go into a folder of their own)")
    return found


def name_of(row: Mapping[str, Any], number: int) -> str:
    """The id of a row as text; its number where it has none."""
    value = row.get("id")
    return str(number if value is None or value == "" else value)


def seconds(row: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """`start` and `end` of a row. Raises `RowError` where they are no times, or not in this order."""
    times = []
    for key in ("start", "end"):
        value = row.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0):
            raise RowError("schema", f"{key!r} must be a time in seconds, not {value!r}")
        times.append(None if value is None else float(value))
    start, end = times
    if end is not None and end <= (start or 0.0):
        raise RowError("range", f"end ({end} s) is not later than start ({start or 0.0} s)")
    return start, end
