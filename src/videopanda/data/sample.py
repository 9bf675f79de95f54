"""The common format in which every data source passes samples to the collator.

A sample is any number of videos and images and one or more *conversations* about them. Conversations of one sample are
independent: none sees another. This makes many questions per clip cheap: the clip is encoded once.
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

    `videos` holds paths, or objects with `.frames` (uint8 (T, H, W, 3)), `.timestamps` and `.duration` (seconds);
    `images` paths, PIL images, uint8 (H, W, 3), or objects with `.frames`, whose first frame is used.
    `system` is the sample's own system prompt, "" for the default of the chat template.
    """

    id: str
    videos: tuple[Any, ...]
    conversations: tuple[tuple[Turn, ...], ...]
    system: str = ""
    images: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if not self.conversations or not all(self.conversations):
            raise ValueError(f"sample {self.id!r} has an empty conversation")


def to_messages(
    turns: Sequence[Turn], num_videos: int, system_prompt: str = "", num_images: int = 0
) -> list[dict[str, Any]]:
    """Chat-template messages; visuals come at the start of the first question, or where `<video>` and `<image>` are."""
    messages: list[dict[str, Any]] = []
    if system_prompt:
        messages.append({"role": "system", "content": system_prompt})
    visuals = [
        {"type": kind}
        for kind, count in (("video", num_videos), ("image", num_images))
        if not any(f"<{kind}>" in turn[0] for turn in turns)
        for _ in range(count)
    ]
    for i, (question, answer, *_) in enumerate(turns):
        content = visuals if i == 0 else []
        messages.append({"role": "user", "content": [*content, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages
