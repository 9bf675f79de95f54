"""The record that every training format is read into, and the error for a row that cannot be read.

A reader is a pure function (row, number, source) -> `Record`: the parsed JSON object, its number in the file from 0,
and the name of the file, which becomes `Record.source` unless the row names its own.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from videopanda.data.sample import Turn
from videopanda.models.prompts import place_marker
from videopanda.video.times import TIME, seconds_of

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
    start, end: the part of the video, in seconds; None = from its beginning, to its end.
    fps: frame rate of a folder of frames; 1 if unknown.
    """

    kind: Literal["video", "image"]
    path: str
    start: float | None = None
    end: float | None = None
    fps: float = 1.0


@dataclass(frozen=True, slots=True)
class Record:
    """A row of any format.

    Questions hold one `<video>` (`<image>`) per medium, in order, or none: then all media come before
    the first question.
    """

    id: str
    source: str
    media: tuple[Medium, ...]
    turns: tuple[Turn, ...]  # one conversation: (question, answer) pairs
    system: str = ""  # system prompt of this row, "" = none of its own
    recording: str = ""  # what its media are parts or copies of: held out together with others of the same


Reader = Callable[[Mapping[str, Any], int, str], Record]

# Whether an answer is a target: ms-swift, axolotl, OpenAI.
_FLAGS = ("loss", "train", "weight")
_HARMLESS = {"id", "uid", "index", "name", "lang", "language", "markdown", "timestamp", "time", "date", "created_at"}
_HARMLESS |= {"model", "source", "meta", "metadata", "token_count", "tokens", "length", "duration"}
RANGE_KEYS = (
    *(("start", "end"), ("start_time", "end_time"), ("video_start", "video_end"), ("clip_start", "clip_end")),
    *(("start_sec", "end_sec"), ("starting_sec", "ending_sec"), ("start_s", "end_s"), ("begin", "stop")),
)
RANGE_NAMES = frozenset(key for keys in RANGE_KEYS for key in keys)
# Words of names that may say which part a row is about: clip_range, temporalWindow, time_reference.
_PARTS = "clip|segment|span|range|window|interval|time(?:stamp|span)?|bound|ts|moment|trim"
_PART = re.compile(rf"(?:(?<![A-Za-z])(?i:{_PARTS})|(?:{_PARTS.title()}))s?(?![a-z])")
# A name that says where a part begins or ends in other units: start_ms, endFrame, frame_start.
_LIMIT = re.compile(
    "(?:^|_)(?i:start|begin|end|stop)(?:ing|ning)?(?:_|$|(?=[A-Z]))|(?<=[a-z])(?:Start|Begin|End|Stop)(?:$|_|(?=[A-Z]))"
    "|^(?:from|to|t0|t1|(?:time|video|clip)_?offset)$"
)
_CLOCKS = re.compile(r"\s*[\d.:]+\s*(?:-|–|,|~|to)\s*[\d.:]+\s*s?\s*")  # "1.0-2.0", "0:01 - 0:05"
# A name of a medium that no format reads; in a row without one it is a mistake.
_NAMES_MEDIUM = re.compile(
    r"(?:videos?|vid|images?|img|clips?|media|frames?)(?:_?(?:paths?|files?|names?|ids?|urls?|uri|dir|folder|list))?",
    re.IGNORECASE,
)
_MEANINGFUL = {
    *(*RANGE_NAMES, "mask", "history", "tools", "functions"),
    *("image", "images", "video", "videos", "audio", "audios", "objects"),
    *(
        "max_frames",
        "min_frames",
        "nframes",
        "sample_fps",
        "max_pixels",
        "min_pixels",
        "total_pixels",
        "resized_height",
        "resized_width",
    ),
}
# What a key that is not read may say, by its whole name.
_NAMED = {
    kind: re.compile(names, re.IGNORECASE)
    for kind, names in {
        "frames": r"(?:\w*_)?frames?(?:_(?:ids?|idxs?|index|indexes|indices|list|numbers?))?",
        # loss_scale, sample_weight, crop_box; systemMessage; repeat_time
        "weight": r"(?:\w*_)?(?:loss|weight|crop)s?(?:_\w*)?|sys(?:tem)?_?(?:prompt|message|msg)?|label"
        r"|train(?:_on\w*)?|repeat(?:s|_times?)?",
        "mask": r"(?:\w*_)?mask(?:s|ed)?(?:_\w*)?",
        # a further medium: video2, clip_b, reference_video
        "second": r"(?:second|other|ref(?:erence)?|target|left|right|next|negative)_?(?:video|image|clip)(?:_?path)?"
        r"|(?:video|image|clip)(?:_?path)?_?(?:\d+|[a-d])",
        # a clip that is changed before it is shown, a row that is left out; 0 and false say that it is not
        "not_zero": r"(?:is_)?(?:rotat(?:e|ed|ion)|[hv]?_?flip(?:ped)?|mirror(?:ed)?|reversed?|grayscale|skip(?:ped)?"
        r"|excluded?|ignored?|deleted?|discard(?:ed)?|invalid|corrupt(?:ed)?)",
        "not_one": r"(?:playback_?)?speed(?:_factor)?|playback_?rate|(?:is_)?(?:valid|keep|usable|enabled)",
        "asked": "instruction|context|hint|options|choices|candidates",  # parts of the question
    }.items()
}

# Left behind where a data set was written with the chat template of another model.
_END = re.compile(r"(?:<\|[^|<>\s]{1,40}\|>|</s>|<eos>|<end_of_turn>)$")
_SCHEME = re.compile("[A-Za-z][A-Za-z0-9+.-]+://")
_PLACEHOLDER = re.compile("<(?:image|video)>")
# Left behind in answers of Video-ChatGPT-100K; later users of that data remove it.
_NOISE = "QA_GT_caption_based_noisy"


class Said(NamedTuple):
    """One turn as written in the file: "user", "assistant", "system" or another role, and its text."""

    role: str
    text: Any
    is_trained: bool = True


def said(turn: Any, role_key: str, text_key: str, roles: Mapping[str, str]) -> Said:
    """Read a turn; `loss`, `train` and `weight` say whether an answer is a target.

    Raises:
        RowError: not an object, a flag that cannot be honored, or a key whose meaning is not known.
    """
    if not isinstance(turn, Mapping):
        raise RowError("schema", f"a turn must be an object with {role_key!r} and {text_key!r}")
    name = str(turn.get(role_key))
    role = roles.get(name) or roles.get(name.lower(), name)
    if len(turn) == 2 and role_key in turn and text_key in turn:  # as nearly all are, of millions
        return Said(role, turn[text_key])
    flags = {key: turn[key] for key in _FLAGS if turn.get(key) is not None}
    for key, value in flags.items():
        if value not in (0, 1):
            raise RowError("schema", f"{key!r} of a turn must be true or false (or 1 or 0), got {value!r}")
        if value and role != "assistant":
            raise RowError("schema", f"{key!r} of a turn of the {role}: only answers can be trained on")
    known = {role_key, text_key, *_FLAGS, *_HARMLESS}
    for key, value in turn.items():
        if key not in known and value not in (None, "", [], {}):
            raise RowError("schema", f"a turn has the key {key!r}, which is not supported: remove it, or the row")
    return Said(role, turn.get(text_key), all(flags.values()))


def conversation(
    row: Mapping[str, Any], turns: Sequence[Said], system_key: str = "system", drop_first_answer: bool = False
) -> tuple[str, tuple[Turn, ...]]:
    """The system prompt and the (question, answer) pairs of a row.

    The system prompt is the first turn, `system_key` or `system_prompt`. With `drop_first_answer` an answer before the
    first question is dropped, as in the LLaVA family.

    Raises:
        RowError: several system prompts; turns that do not alternate or have no text, or no turn to train on.
    """
    prompts = [row[key] for key in {system_key, "system_prompt"} if row.get(key) not in (None, "")]
    turns = list(turns)
    if turns and turns[0].role == "system":
        prompts.append(turns.pop(0).text)
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise RowError("schema", "the system prompt must be a string")
    if len(set(prompts)) > 1:
        raise RowError("schema", "more than one system prompt")
    if drop_first_answer and turns and turns[0].role == "assistant":
        del turns[0]
    return (prompts[0].strip() if prompts else ""), pair(turns)


def pair(turns: Sequence[Said]) -> tuple[Turn, ...]:
    """(question, answer) pairs of alternating turns.

    Raises:
        RowError: no turns, other roles, turns that do not alternate or have no text, or no answer that is a target.
    """
    if not turns:
        raise RowError("empty", "no conversation")
    roles = [turn.role for turn in turns]
    if roles != ["user", "assistant"] * (len(turns) // 2):
        raise RowError("roles", f"turns must alternate user, assistant, but are {', '.join(roles)}")
    texts = []
    for turn in turns:
        if not isinstance(turn.text, str):
            raise RowError("schema", f"a turn's text must be a string, got {type(turn.text).__name__}")
        texts.append(turn.text.replace(_NOISE, "").strip())
        if not texts[-1]:
            raise RowError("empty", f"a turn of the {turn.role} has no text")
        if texts[-1].endswith(">") and (end := _END.search(texts[-1])):
            raise RowError("schema", f"a turn ends with {end[0]}, which the chat template adds: remove it")
    if not any(turn.is_trained for turn in turns[1::2]):
        raise RowError("empty", "the row has no answer to train on")
    return tuple(Turn(q, a, turn.is_trained) for q, a, turn in zip(texts[::2], texts[1::2], turns[1::2]))


def refuse_unused(row: Mapping[str, Any], used: Iterable[str]) -> None:
    """Refuse a row with a key that changes its meaning but is not supported by its format.

    Raises:
        RowError: the key.
    """
    for key in sorted(set(row) - set(used)):
        value = row[key]
        if value in (None, "", [], {}) or not (kinds := _kinds(key)):
            continue
        is_range = ("part" in kinds and _is_part(value)) or ("limit" in kinds and _is_moment(value))
        is_asked = "asked" in kinds and not _is_told(value, {name: row[name] for name in row if name != key})
        if is_range or is_asked or _changes_row(key, kinds, value):
            advice = "give the range as 'start' and 'end' in seconds" if is_range else "remove it, or the row"
            raise RowError("schema", f"the key {key!r} is not supported in this format: {advice}")


@lru_cache(maxsize=1024)  # the same few keys in millions of rows
def _kinds(key: str) -> frozenset[str]:
    """What a key that is not read may say, by its name."""
    said = {
        "part": _PART.search(key),
        "limit": _LIMIT.search(key),
        **{kind: pattern.fullmatch(key) for kind, pattern in _NAMED.items()},
        "more": key in _MEANINGFUL,
    }
    return frozenset(kind for kind, found in said.items() if found)


def _changes_row(key: str, kinds: frozenset[str], value: Any) -> bool:
    """Whether a key that is not read changes what a row means: its loss, its system prompt, its media, its use."""
    is_number = isinstance(value, int | float)
    return (
        "more" in kinds
        or ("weight" in kinds and value != 1)
        or ("mask" in kinds and value != 0)
        or ("frames" in kinds and isinstance(value, list))
        or ("second" in kinds and isinstance(value, str | list))
        or ("not_zero" in kinds and is_number and value != 0)
        or ("not_one" in kinds and is_number and value != 1)
    )


def _is_told(value: Any, row: Mapping[str, Any]) -> bool:
    """Whether texts that belong to the question stand in the turns of the row."""
    parts = value if isinstance(value, list) else list(value.values()) if isinstance(value, Mapping) else [value]
    turns = repr([other for key, other in row.items() if key in ("query", "q") or isinstance(other, list)])
    return all(not isinstance(part, str) or repr(part.strip())[1:-1] in turns for part in parts)


def _is_part(value: Any) -> bool:
    """Whether a value is a range of time, "0:01 - 0:05" or two moments, or a list of such ranges."""
    if isinstance(value, str):
        return bool(_CLOCKS.fullmatch(value))
    members = list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, list) else []
    if len(members) == 2 and all(map(_is_moment, members)):
        return True
    return isinstance(value, list) and bool(members) and all(map(_is_part, members))


def _is_moment(value: Any) -> bool:
    if isinstance(value, str):
        return bool(re.fullmatch(r"[\d.:]+", value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def mark(turns: Sequence[Turn], media: Sequence[Medium], missing: Literal["refuse", "front"]) -> tuple[Turn, ...]:
    """Check the visual placeholders in questions against the media, which are all of one kind.

    `<image>` for a video, a common practice, becomes `<video>`. A placeholder at the end of a question moves to
    its front. `missing` decides about media without a placeholder: they are refused, or placed first.

    Raises:
        RowError: more or (if refused) fewer placeholders than media, or one in an answer.
    """
    marker = f"<{media[0].kind}>" if media else "<video>"
    turns = [
        turn._replace(question=_PLACEHOLDER.sub(marker, turn.question)) if "<" in turn.question else turn
        for turn in turns
    ]
    if any("<video>" in turn.answer or "<image>" in turn.answer for turn in turns):
        raise RowError("extra_marker", "a visual placeholder in an answer")
    found = sum(turn.question.count(marker) for turn in turns)
    if found > len(media):
        raise RowError("extra_marker", f"{found} visual placeholders for {len(media)} clips or images")
    if found < len(media) and missing == "refuse":
        raise RowError("missing_marker", f"{found} visual placeholders for {len(media)} clips or images")
    turns = [
        turn._replace(question=place_marker(turn.question)) if turn.question.endswith(">") else turn for turn in turns
    ]
    if 0 < found < len(media):
        turns[0] = turns[0]._replace(question=marker * (len(media) - found) + turns[0].question)
    return tuple(turns)


def text(row: Mapping[str, Any], key: str) -> str:
    """A string of a row. Raises `RowError` if it is missing or not a string."""
    value = row.get(key)
    if not isinstance(value, str):
        raise RowError("schema", f"{key!r} is missing" if value is None else f"{key!r} must be a string")
    return value


def items(row: Mapping[str, Any], key: str) -> list[Any]:
    """A list of a row, empty where it is missing or null. Raises `RowError` if it is not a list."""
    value = row.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise RowError("schema", f"{key!r} must be a list, got {type(value).__name__}")
    return value


def paths(row: Mapping[str, Any], key: str) -> list[str]:
    """One path or a list of paths, empty where the key is missing or null. Raises `RowError` for anything else."""
    value = row.get(key)
    found = [value] if isinstance(value, str) else list(items(row, key))
    if not all(isinstance(path, str) and path for path in found):
        raise RowError(
            "schema", f"{key!r} must be a path or a list of paths (put the frames of a clip into their own folder)"
        )
    for number, path in enumerate(found):
        if scheme := _SCHEME.match(path):
            address = urlsplit(path)
            if address.scheme != "file" or address.netloc not in ("", "localhost"):
                raise RowError("schema", f"{scheme[0]} addresses are not read: download the clip and give its path")
            found[number] = path = unquote(address.path)
        is_long = len(path) > 63 and any(len(part.encode()) > 255 for part in path.split("/"))  # 4 bytes a character
        if is_long or "\0" in path:
            raise RowError("schema", f"no file can have the name {path[:40]!r}")
    return found


def seconds(row: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """`start` and `end` of a row, by any of the names in use, in seconds.

    Raises:
        RowError: they are not finite times or not in this order, or a row has several such pairs.
    """
    if RANGE_NAMES.isdisjoint(row):
        return None, None
    pairs = [keys for keys in RANGE_KEYS if any(row.get(key) is not None for key in keys)]
    if len(pairs) > 1:
        raise RowError("schema", f"more than one range: {', '.join(key for keys in pairs for key in keys)}")
    times = [_time(row, key) for key in (pairs[0] if pairs else ("start", "end"))]
    start, end = times
    if end is not None and end <= (start or 0.0):
        raise RowError("range", f"end ({end} s) is not later than start ({start or 0.0} s)")
    return start, end


def media_of(
    row: Mapping[str, Any], video_key: str, image_key: str, system_key: str = "system", used: Iterable[str] = ()
) -> tuple[Medium, ...]:
    """The videos of a row, with its range and the rate of folders of frames, or its images.

    Args:
        used: further keys that the format reads, so that they are not refused.

    Raises:
        RowError: both kinds, a key that changes the row's meaning and is not supported, a wrong range or rate.
    """
    files, images = paths(row, video_key), paths(row, image_key)
    if files and images:
        raise RowError("schema", f"both {video_key!r} and {image_key!r}: their order is not known")
    for key in row if not files and not images else ():
        if (
            key not in (video_key, image_key)
            and _NAMES_MEDIUM.fullmatch(key)
            and isinstance(row[key], str)
            and row[key]
        ):
            raise RowError("schema", f"no {video_key!r} and no {image_key!r}, but {key!r}: rename it")
    refuse_unused(row, {video_key, image_key, system_key, "system_prompt", *used} | RANGE_NAMES)
    start, end = seconds(row)
    fps = _number(row, "fps", "a rate in frames per second")
    if fps == 0:
        raise RowError("schema", "'fps' must be positive")
    clips = [Medium("video", path, start, end, 1.0 if fps is None else fps) for path in files]
    return (*clips, *(Medium("image", path) for path in images))


def record_of(
    row: Mapping[str, Any],
    number: int,
    source: str,
    media: tuple[Medium, ...],
    turns: Sequence[Said],
    missing: Literal["refuse", "front"],
    system_key: str = "system",
    drop_first_answer: bool = False,
) -> Record:
    """The record of a row's turns; see `conversation` and `mark` for the rules and errors."""
    system, pairs = conversation(row, turns, system_key, drop_first_answer)
    value = row.get("id")
    name = str(number if value is None or value == "" else value)
    recording = row.get("recording")
    known = str(recording) if isinstance(recording, (str, int)) else ""
    return Record(name, source, media, mark(pairs, media, missing), system, known)


def _time(row: Mapping[str, Any], key: str) -> float | None:
    value = row.get(key)
    match = TIME.fullmatch(value.strip()) if isinstance(value, str) else None
    return _number(row, key, "a time such as 75.5 or 1:15") if match is None else seconds_of(match)


def _number(row: Mapping[str, Any], key: str, what: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not 0 <= number < math.inf:
        raise RowError("schema", f"{key!r} must be {what}, got {value!r:.40}")
    return number
