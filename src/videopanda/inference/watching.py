"""Questions that are asked repeatedly while a video comes in.

    for event in watch(session, stream, every=5.0, question="What happens?", conditions=["Is there a red circle?"]):
        print(event.time, event.kind, event.text)

A condition becomes true after two consecutive "yes" answers and false after two "no" answers, so that a single wrong
answer raises no alarm. The event has the time of the first of the two.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

IN_A_ROW = 2
_YES = re.compile(r"\W*(yes|true)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Event:
    """time: second of the stream. seen: when it was noticed. frames, visual_tokens: what the answer is based on."""

    time: float
    kind: Literal["answer", "began", "ended", "note"]
    question: str
    text: str
    seen: float
    frames: int
    visual_tokens: int


@dataclass
class Condition:
    """A yes-or-no question with hysteresis."""

    question: str
    is_true: bool = False
    _since: float | None = field(default=None, repr=False)  # first second at which the answer differed
    _count: int = field(default=0, repr=False)

    def update(self, seconds: float, answer: str) -> float | None:
        """Add an answer; returns the second at which the condition changed, once that is certain."""
        if bool(_YES.match(answer)) == self.is_true:
            self._since, self._count = None, 0
            return None
        self._since = seconds if self._since is None else self._since
        self._count += 1
        if self._count < IN_A_ROW:
            return None
        self.is_true = not self.is_true
        changed, self._since, self._count = self._since, None, 0
        return changed


def watch(
    session: Any,
    frames: Iterable[Any],
    *,
    every: float | None = None,
    question: str = "",
    conditions: Sequence[str] = (),
    check_every: float = 1.0,
    until: float | None = None,
) -> Iterator[Event]:
    """Push frames into a session, and ask.

    Args:
        frames: with `image` and `time`, as of `stream_video`.
        every, question: seconds between answers to this question; asked at the first frame after each multiple of them.
        conditions: yes-or-no questions, asked every `check_every` seconds.
        until: second at which to stop.

    Raises:
        ValueError: an interval that is not positive.
    """
    if (every is not None and every <= 0) or check_every <= 0:
        raise ValueError("the time between two questions must be positive")
    watched = [Condition(text) for text in conditions]
    due, check_due = every, check_every
    for frame in frames:
        if until is not None and frame.time > until:
            break
        session.push(frame.image, frame.time)
        now = frame.time
        if due is not None and now >= due:
            answer = session.ask(question)
            due = _next(now, every or 0.0)
            yield Event(now, "answer", question, answer.answer, now, session.num_frames, answer.visual_tokens)
        if watched and now >= check_due:
            check_due = _next(now, check_every)
            for condition in watched:
                answer = session.ask(condition.question)
                changed = condition.update(now, answer.answer)
                if changed is not None:
                    kind: Literal["began", "ended"] = "began" if condition.is_true else "ended"
                    yield Event(
                        changed, kind, condition.question, answer.answer, now, session.num_frames, answer.visual_tokens
                    )


def _next(now: float, between: float) -> float:
    """The first multiple of `between` after `now`: a question asked late does not delay the later ones."""
    return (math.floor(now / between + 1e-6) + 1) * between
