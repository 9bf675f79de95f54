"""VideoChat2-IT: `QA`, a list of instruction, question and answer, about one `video` or `image`.

{"video": "clips/x1.mp4", "QA": [{"i": "Answer briefly.", "q": "What is shown?", "a": "A cat."}], "start": 2, "end": 9}
"""

from collections.abc import Mapping
from typing import Any

from videopanda.data.formats.record import Medium, Record, RowError, items, mark, name_of, pair, paths, seconds


def videochat2(row: Mapping[str, Any], number: int, source: str) -> Record:
    """Read the pairs as one conversation in the order of the file (the original shuffles them at every access).

    The first pair's instruction stands before its question, and any pair's in place of a question that is empty.

    Raises:
        RowError: not exactly one medium, or a pair without question and instruction, or without answer.
    """
    videos, images = paths(row, "video"), paths(row, "image")
    if len(videos) + len(images) != 1:
        raise RowError("schema", f"a row must have one 'video' or one 'image', not {len(videos) + len(images)}")
    start, end = seconds(row)
    media = (Medium("video", videos[0], start, end) if videos else Medium("image", images[0]),)
    said: list[tuple[str, Any]] = []
    for k, turn in enumerate(items(row, "QA")):
        if not isinstance(turn, Mapping):
            raise RowError("schema", "a member of 'QA' must be an object with 'q' and 'a'")
        instruction, question = str(turn.get("i") or "").strip(), str(turn.get("q") or "").strip()
        asked = f"{instruction}\n{question}".strip() if k == 0 else question or instruction
        said += [("user", asked), ("assistant", turn.get("a"))]
    return Record(name_of(row, number), source, media, mark(pair(said), media, missing="front"))
