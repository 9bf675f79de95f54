"""The LLaVA family: `conversations` of `from` and `value` about one `video`.

    {"id": "x1", "video": "clips/x1.mp4",
     "conversations": [{"from": "human", "value": "<video>\nWhat is shown?"}, {"from": "gpt", "value": "A cat."}]}

Video-LLaVA's `train_json`, Qwen's fine-tuning example, VideoLLaMA3 (lists of media) and the rows of VideoChat-Flash
use exactly this form. Valley, LLaVA-Video-178K and the converted form of Video-ChatGPT-100K differ a little.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from videopanda.data.formats.record import (
    RANGE_KEYS,
    Medium,
    Record,
    RowError,
    Said,
    conversation,
    items,
    mark,
    name_of,
    paths,
    refuse_unused,
    said,
    text,
    videos,
)

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_USED = {"video", "image", "system", "system_prompt", *(key for keys in RANGE_KEYS for key in keys)}


def llava(row: Mapping[str, Any], number: int, source: str) -> Record:
    """Read a row with `video`, `image` or neither (text only); `<image>` may stand for a video.

    An answer before the first question is dropped, as in the official code.

    Raises:
        RowError: both kinds of media, or a conversation that `conversation` or `mark` refuses.
    """
    files, images = paths(row, "video"), paths(row, "image")
    if files and images:
        raise RowError("schema", "both 'video' and 'image'; a row of this format has one of them")
    if any(path.endswith(".pkl") for path in files):
        raise RowError("schema", "features in a .pkl file are not read; --format videochatgpt reads the video instead")
    refuse_unused(row, _USED)
    media = videos(row, files) + tuple(Medium("image", path) for path in images)
    turns = [said(turn, "from", "value", _ROLES) for turn in items(row, "conversations")]
    system, pairs = conversation(row, turns, drop_first_answer=True)
    return Record(name_of(row, number), source, media, mark(pairs, media, missing="refuse"), system)


def llava_video(row: Mapping[str, Any], number: int, source: str) -> Record:
    """LLaVA-Video-178K: as `llava`; `data_source` names the folder that the row belongs to."""
    return replace(llava(row, number, source), source=text(row, "data_source"))


def valley(row: Mapping[str, Any], number: int, source: str) -> Record:
    """Valley's `chat.json`: media in the sub-folder `source` (else `webvid`), ".mp4" may be missing.

    The re-hosted `valley_.json` of Video-LLaVA and Video-Panda has complete paths: read that as `llava`.
    """
    path = text(row, "video")
    folder = row.get("source", "webvid")
    if not isinstance(folder, str):
        raise RowError("schema", "'source' must be the name of a folder")
    path = path if path.endswith(".mp4") else f"{path}.mp4"
    return llava({**row, "video": f"{folder}/{path}"}, number, source)


def videochatgpt(row: Mapping[str, Any], number: int, source: str) -> Record:
    """Video-ChatGPT-100K: `q`, `a`, `video_id`; or the converted form, whose `video` is a .pkl file of features.

    The clip is found by the video's name with any common suffix.
    """
    if "conversations" in row:
        return llava({**row, "video": PurePosixPath(text(row, "video")).stem}, number, source)
    name = text(row, "video_id")
    refuse_unused(row, _USED)
    system, turns = conversation(row, [Said("user", text(row, "q")), Said("assistant", text(row, "a"))])
    media = videos(row, [name])
    return Record(name, source, media, mark(turns, media, missing="front"), system)
