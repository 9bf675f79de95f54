"""LLaMA-Factory and ms-swift: chats with lists of media.

    {"messages": [{"role": "user", "content": "<video>What is shown?"}, {"role": "assistant", "content": "A cat."}],
     "videos": ["clips/x1.mp4"]}

LLaMA-Factory expects a placeholder for every clip; `dataset_info.json` may rename columns and roles (`Names`).
ms-swift puts clips without a placeholder first, and also has the older form `query`, `response`, `history`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from videopanda.data.formats.record import Record, RowError, Said, items, media_of, record_of, said, text


@dataclass(frozen=True)
class Names:
    """The names set by `columns` and `tags` of a LLaMA-Factory data set."""

    messages: str = "conversations"
    system: str = "system"
    videos: str = "videos"
    images: str = "images"
    role_tag: str = "from"
    content_tag: str = "value"
    user_tag: str = "human"
    assistant_tag: str = "gpt"
    system_tag: str = "system"


OPENAI = Names("messages", role_tag="role", content_tag="content", user_tag="user", assistant_tag="assistant")


def llama_factory(row: Mapping[str, Any], number: int, source: str, names: Names | None = None) -> Record:
    """Read a row with the given names; without them, those of `messages` or of `conversations`, whichever it has."""
    names = names or (OPENAI if "messages" in row else Names())
    media = media_of(row, names.videos, names.images, names.system)
    return record_of(row, number, source, media, _turns(row, names), "refuse", names.system)


def ms_swift(row: Mapping[str, Any], number: int, source: str) -> Record:
    """Read `messages`, or `query`, `response` and `history`."""
    if "messages" in row:
        turns = _turns(row, OPENAI)
    else:
        turns = []
        for turn in [*items(row, "history"), [text(row, "query"), text(row, "response")]]:
            if not isinstance(turn, list) or len(turn) != 2:
                raise RowError("schema", "'history' must contain pairs of question and answer")
            turns += [Said("user", turn[0]), Said("assistant", turn[1])]
    return record_of(row, number, source, media_of(row, "videos", "images", used=["history"]), turns, "front")


def _turns(row: Mapping[str, Any], names: Names) -> list[Said]:
    roles = {names.user_tag: "user", names.assistant_tag: "assistant", names.system_tag: "system"}
    return [said(turn, names.role_tag, names.content_tag, roles) for turn in items(row, names.messages)]
