"""VideoChat2-IT: `QA`, a list of instruction, question and answer, about one `video` or `image`.

{"video": "clips/x1.mp4", "QA": [{"i": "Answer briefly.", "q": "What is shown?", "a": "A cat."}], "start": 2, "end": 9}
"""

from collections.abc import Mapping
from typing import Any

from videopanda.data.formats.record import Record, RowError, Said, items, media_of, record_of, said


def videochat2(row: Mapping[str, Any], number: int, source: str) -> Record:
    """Read the pairs as one conversation in the order of the file (the original shuffles them at every access).

    The first pair's instruction precedes its question; any pair's instruction replaces an empty question.

    Raises:
        RowError: not exactly one medium, or a pair without question and instruction, or without answer.
    """
    media = media_of(row, "video", "image")
    if len(media) != 1:
        raise RowError("schema", f"a row must have one 'video' or one 'image', got {len(media)}")
    turns: list[Said] = []
    for k, member in enumerate(items(row, "QA")):
        if not isinstance(member, Mapping):
            raise RowError("schema", "a member of 'QA' must be an object with 'q' and 'a'")
        instruction, question = str(member.get("i") or "").strip(), str(member.get("q") or "").strip()
        asked = f"{instruction}\n{question}".strip() if k == 0 else question or instruction
        answer = {key: value for key, value in member.items() if key not in ("i", "q")}
        turns += [Said("user", asked), said({"role": "assistant", **answer}, "role", "a", {})]
    return record_of(row, number, source, media, turns, "front")
