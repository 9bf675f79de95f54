"""LLaMA-Factory and ms-swift: chats with lists of media.

    {"messages": [{"role": "user", "content": "<video>What is shown?"}, {"role": "assistant", "content": "A cat."}],
     "videos": ["clips/x1.mp4"]}

LLaMA-Factory wants a marker for every clip; its `dataset_info.json` may give columns and roles other names (`Names`).
ms-swift puts clips without a marker in front, and knows the older form `query`, `response`, `history`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from videopanda.data.formats.record import Medium, Record, RowError, items, mark, name_of, pair, paths, text


@dataclass(frozen=True)
class Names:
    """What LLaMA-Factory's `columns` and `tags` of a data set call things."""

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
    system, said = _said(row, names)
    media = _media(row, names)
    return Record(name_of(row, number), source, media, mark(pair(said), media, missing="refuse"), system)


def ms_swift(row: Mapping[str, Any], number: int, source: str) -> Record:
    """Read `messages`, or `query`, `response` and `history`. Columns for preference training are not looked at."""
    if row.get("audios") or row.get("objects"):
        raise RowError("schema", "'audios' and 'objects' are not supported")
    if "messages" in row:
        system, said = _said(row, OPENAI)
    else:
        system = str(row.get("system") or "")
        said = []
        for turn in [*items(row, "history"), [text(row, "query"), text(row, "response")]]:
            if not isinstance(turn, list) or len(turn) != 2:
                raise RowError("schema", "'history' must hold pairs of question and answer")
            said += [("user", turn[0]), ("assistant", turn[1])]
    media = _media(row, OPENAI)
    return Record(name_of(row, number), source, media, mark(pair(said), media, missing="front"), system)


def _media(row: Mapping[str, Any], names: Names) -> tuple[Medium, ...]:
    images, videos = paths(row, names.images), paths(row, names.videos)
    if images and videos:
        raise RowError("schema", "both images and videos: their order is not known")
    return tuple(Medium("image", path) for path in images) + tuple(Medium("video", path) for path in videos)


def _said(row: Mapping[str, Any], names: Names) -> tuple[str, list[tuple[str, Any]]]:
    """The system prompt and the turns of a row, with roles called user and assistant."""
    system = row.get(names.system) or ""
    roles = {names.user_tag: "user", names.assistant_tag: "assistant", names.system_tag: "system"}
    said: list[tuple[str, Any]] = []
    for turn in items(row, names.messages):
        if not isinstance(turn, Mapping):
            raise RowError("schema", f"a turn must be an object with {names.role_tag!r} and {names.content_tag!r}")
        role = str(turn.get(names.role_tag))
        said.append((roles.get(role, role), turn.get(names.content_tag)))
    if said and said[0][0] == "system":
        system = said.pop(0)[1]
    if not isinstance(system, str):
        raise RowError("schema", "the system prompt must be a string")
    return system, said
