"""The one shape in which every data source hands its samples to the collator.

A sample is one or more videos and one or more *conversations* about them. Conversations of one sample are independent:
none sees another. That is what makes many questions per clip cheap: the clip is encoded once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Turn(NamedTuple):
    """A question and its answer; `is_trained` is false for an answer that is read but is not a target."""

    question: str
    answer: str
    is_trained: bool = True


@dataclass(frozen=True)
class Sample:
    """One training example.

    `videos` holds paths, or objects with `.frames` (uint8 (T, H, W, 3)), `.timestamps` and `.duration` (seconds).
    `system` is the sample's own system prompt, "" for what the chat template says by itself.
    """

    id: str
    videos: tuple[Any, ...]
    conversations: tuple[tuple[Turn, ...], ...]
    system: str = ""

    def __post_init__(self) -> None:
        if not self.conversations or not all(self.conversations):
            raise ValueError(f"sample {self.id!r} has an empty conversation")


def to_messages(turns: Sequence[Turn], num_videos: int, system_prompt: str = "") -> list[dict[str, Any]]:
    """Chat-template messages; the videos stand at the start of the first question, or where `<video>` says so."""
    messages: list[dict[str, Any]] = []
    if system_prompt:
        messages.append({"role": "system", "content": system_prompt})
    is_placed = any("<video>" in turn[0] for turn in turns)
    for i, (question, answer, *_) in enumerate(turns):
        content: list[dict[str, str]] = [{"type": "video"}] * num_videos if i == 0 and not is_placed else []
        messages.append({"role": "user", "content": [*content, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages
