"""Subtitles of Video-MME (SRT) and LongVideoBench (JSON), and those that belong to the frames shown."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videopanda.video.times import seconds

_CLOCK = r"(?:(\d+):)?(\d+):(\d+(?:[,.]\d+)?)"  # programs that round write 00:00:60,000 for a minute
_SPAN = re.compile(rf"{_CLOCK}\s*-->\s*{_CLOCK}")
_TAG = re.compile(r"<[^>]*>|\{\\[^}]*\}")


class SubtitleError(ValueError):
    """A file of subtitles cannot be read."""


@dataclass(frozen=True)
class Cue:
    """A text and the time at which it is shown, in seconds of the video."""

    start: float
    end: float  # infinite where the file leaves it open: until the video ends
    text: str


def read(path: Path, offset: float = 0.0) -> list[Cue]:
    """The cues of an `.srt` or a LongVideoBench `.json` file in their order; `offset` seconds are taken off all times.

    Raises:
        SubtitleError: it is no such file.
    """
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    try:
        found = _srt(text) if path.suffix.lower() == ".srt" else map(_json_cue, json.loads(text))
        return [Cue(cue.start - offset, cue.end - offset, cue.text) for cue in found if cue.text]
    except (ValueError, KeyError, TypeError) as error:
        raise SubtitleError(f"{path} contains no subtitles: {error}") from error


def _srt(text: str) -> Iterator[Cue]:
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        if "-->" not in block:
            continue
        match = _SPAN.search(block)
        parts = [float((part or "0").replace(",", ".")) for part in match.groups()] if match else [math.inf]
        if match is None or max(parts[1:3] + parts[4:]) > 60:
            raise ValueError(f"no time that can be read in {block.strip()[:80]!r}")
        lines = _TAG.sub("", block[match.end() :]).split("\n")[1:]
        start, end = (3600 * hours + 60 * minutes + rest for hours, minutes, rest in (parts[:3], parts[3:]))
        yield Cue(start, end, " ".join(lines).strip())


def _json_cue(cue: Any) -> Cue:
    if "timestamp" in cue:
        start, end = cue["timestamp"]
        start, end, text = float(start), float(end) if isinstance(end, (int, float)) else math.inf, cue["text"]
    else:
        start, end = (seconds(cue[key]) for key in ("start", "end"))
        text = cue["line"]
    middle = (start + end) / 2
    # Lines of less than a second last one, as in the code of LongVideoBench.
    return Cue(*((start, end) if end - start >= 1 else (middle - 0.5, middle + 0.5)), text.strip())


def at_times(cues: Iterable[Cue], times: Sequence[float]) -> list[Cue]:
    """The cues that are shown at one of the times: what a protocol with subtitles puts into the prompt."""
    return [cue for cue in cues if any(cue.start <= time <= cue.end for time in times)]
