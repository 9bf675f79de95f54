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

from videopanda.data.formats.record import Record, RowError, Said, items, media_of, paths, record_of, said, text

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def llava(row: Mapping[str, Any], number: int, source: str) -> Record:
    """Read a row with `video`, `image` or neither (text only); `<image>` may stand for a video.

    An answer before the first question is dropped, as in the official code.

    Raises:
        RowError: as of `media_of` and `record_of`.
    """
    if any(path.endswith(".pkl") for path in paths(row, "video")):
        raise RowError("schema", "features in a .pkl file are not read; --format videochatgpt reads the video instead")
    media = media_of(row, "video", "image")
    turns = [said(turn, "from", "value", ROLES) for turn in items(row, "conversations")]
    return record_of(row, number, source, media, turns, "refuse", drop_first_answer=True)


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
    named = {**row, "id": text(row, "video_id"), "video": text(row, "video_id")}
    turns = [Said("user", text(row, "q")), Said("assistant", text(row, "a"))]
    return record_of(named, number, source, media_of(named, "video", "image"), turns, "front")
