"""Conversations about video files: the LLaVA-style JSON that most of the field trains on.

    dataset = ConversationDataset("annotations.json", num_frames=8, seed=0)
    dataset[0].conversations        # ((("What colour is the circle?", "red"), ...),)

One JSON array or one JSON object per line; each row has `video` (a path, relative to `media_root`) and `conversations`
of alternating `human` and `gpt` turns, the first of which may carry one `<video>` marker.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from videopanda.data.sample import Sample, Turn
from videopanda.video import read_video

MARKERS = ("<video>", "<image>")


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """All rows of a .json array or .jsonl file.

    Raises:
        ValueError: the file is not JSON of that shape; the message names the line.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path} must hold a JSON array of conversations, not {type(rows).__name__}")
    return rows


def to_turns(row: Mapping[str, Any]) -> tuple[Turn, ...]:
    """(question, answer) pairs of a row, without visual markers.

    Raises:
        ValueError: turns that do not alternate human, gpt, or a second marker for the one clip.
    """
    name = row.get("id", "?")
    if "image" in row:
        raise ValueError(f"row {name!r} is about an image: only videos and text can be trained on so far")
    said = row.get("conversations") or []
    speakers = [str(turn.get("from")).lower() for turn in said]
    if not said or speakers != ["human", "gpt"] * (len(said) // 2):
        raise ValueError(f"row {name!r}: turns must alternate human, gpt, but are {speakers}")
    texts = [str(turn["value"]) for turn in said]
    if sum(text.count(marker) for text in texts for marker in MARKERS) > 1:
        raise ValueError(f"row {name!r}: more than one visual marker for one clip")
    for marker in MARKERS:
        texts = [text.replace(marker, "") for text in texts]
    texts = [text.strip() for text in texts]
    return tuple(zip(texts[::2], texts[1::2]))


class ConversationDataset:
    """Rows of a conversation file in an order that depends on (seed, row number) only. Clips are decoded on access.

    Raises:
        ValueError: a row is malformed (all rows are checked at once).
        VideoReadError: on access, when the clip cannot be read. It is never replaced by another.
    """

    def __init__(self, path: str | Path, media_root: str | Path | None = None, num_frames: int = 8, seed: int = 0):
        self.root = Path(media_root) if media_root else Path(path).parent
        self.num_frames = num_frames
        self.rows = [(str(row.get("id", i)), row.get("video"), to_turns(row)) for i, row in enumerate(read_rows(path))]
        self.order = np.random.default_rng(seed).permutation(len(self.rows))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        name, video, turns = self.rows[self.order[index]]
        videos = () if video is None else (read_video(self.root / video, num_frames=self.num_frames),)
        return Sample(name, videos, (turns,))
