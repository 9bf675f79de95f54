"""An answer with its provenance: prints as its text, and in a notebook with the frames that the model saw."""

import base64
import html
import io
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np


@dataclass(frozen=True, repr=False)
class Answer:
    """An answer and its provenance. `str()` of it is the text.

    frame_times: seconds at which the frames that the model saw are first shown.
    frame_indices: their numbers in the file; None if no file was read.
    visual_tokens: number of tokens that the clip takes in the language model.
    prompt_tokens, completion_tokens: of the whole prompt, clip included, and of the answer.
    finish_reason: "stop", or "length" if the answer was cut at `max_new_tokens`.
    decoder: what decoded the file, with its version; None if no file was read.
    timings: seconds for "decode", "preprocess" and "generate" (encoding included), of the whole batch of questions.
    model: folder of the checkpoint.
    token_ids: of the answer, the end token included.
    selection: why these frames: a line per frame, or per step of a memory; None if the model's own rule chose them.
    frames: what the model saw, before preprocessing, uint8 (T, H, W, 3); None for a clip from the cache on disk.
    """

    question: str
    answer: str
    frame_times: tuple[float, ...]
    frame_indices: tuple[int, ...] | None
    visual_tokens: int
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    decoder: str | None
    timings: dict[str, float]
    model: str
    token_ids: tuple[int, ...] = ()
    selection: tuple[str, ...] | None = None
    frames: np.ndarray | list[np.ndarray] | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return self.answer

    def __repr__(self) -> str:
        times = self.frame_times
        seen = f"{len(times)} frames from {times[0]:.2f} to {times[-1]:.2f} s, " if times else ""
        return f"Answer({self.answer!r}, {seen}{self.visual_tokens} visual tokens, {sum(self.timings.values()):.2f} s)"

    def as_dict(self) -> dict[str, Any]:
        """All fields but frames and token ids, as plain values."""
        values = asdict(replace(self, frames=None))
        del values["frames"], values["token_ids"]
        return values

    def _repr_html_(self) -> str:
        """The frames, the question, the answer and the cost, for notebooks."""
        picture = ""
        if self.frames is not None and len(self.frames):
            from videopanda.video.contact_sheet import SheetRow, contact_sheet

            picture = as_html(contact_sheet([SheetRow(self.frames, [], self.frame_times)]))
        cost = f"{self.visual_tokens:,} visual tokens, {sum(self.timings.values()):.2f} s"
        return (
            f"<div>{picture}<p>{html.escape(self.question)}<br><b>{html.escape(self.answer)}</b>"
            f"<br><small>{cost}</small></p></div>"
        )


def as_html(picture: Any) -> str:
    """A PIL image of frames as an HTML element that contains it."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="frames" style="max-width:100%" src="data:image/png;base64,{data}">'
