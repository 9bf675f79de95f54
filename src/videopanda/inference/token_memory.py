"""A bounded number of visual tokens for a stream of any length: recent steps unchanged, older ones merged.

    memory = TokenMemory(max_tokens=2048, window=8)
    memory.add(visual.tokens, visual.layout, [0.0, 1.0, 2.0, 3.0])      # times of the frames of this chunk
    memory.tokens, memory.layout, memory.spans

A *step* is the tokens of one frame, or of the frames that a compressor averages. When there are too many
tokens, the two consecutive steps that are most similar become their mean, weighted by the frames that each stands for
(MA-LMM, He et al., CVPR 2024, merges a memory bank the same way). So every frame contributes to the tokens, stretches
where nothing happens shrink first, and the cost of a step does not grow with the stream.

Dimensions: V tokens; S tokens of a step; E width of the language model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from videopanda.models.visual import CELL


@dataclass(frozen=True, eq=False)
class Step:
    """tokens: (S, E). places: (S, 3) row, column and kind. frames: how many it stands for; start, end: their times."""

    tokens: Tensor
    places: Tensor
    frames: int
    start: float
    end: float


class TokenMemory:
    """The steps of a stream.

    Args:
        max_tokens: tokens to keep at most.
        window: number of latest steps that are never merged.

    Raises:
        ValueError: the window does not leave room for a merged step; raised when the first step is added.
    """

    def __init__(self, max_tokens: int, window: int = 0):
        if max_tokens < 1 or window < 0:
            raise ValueError(f"max_tokens must be positive and window not negative, got {max_tokens} and {window}")
        self.max_tokens, self.window = max_tokens, window
        self.steps: list[Step] = []
        self._similar: list[float] = []  # of each step and the one after it
        self.num_tokens = self.merged = 0
        self.dropped: list[tuple[float, float]] = []  # the last stretches that were lost
        self.num_dropped = 0

    def copy(self) -> "TokenMemory":
        """A memory that can be added to without changing this one."""
        other = TokenMemory(self.max_tokens, self.window)
        other.__dict__.update(self.__dict__)
        other.steps, other._similar, other.dropped = list(self.steps), list(self._similar), list(self.dropped)
        return other

    def add(self, tokens_VE: Tensor, layout_V4: Tensor, times: Sequence[float], frames: int = 1) -> None:
        """Add the tokens of a chunk whose frames are shown at `times`; `frames` of them share a number in the layout.

        A number without tokens, as where those of several frames merge (ToMe), belongs to the step before it.
        """
        layout_V4 = layout_V4.cpu()
        number_S, count_S = torch.unique_consecutive(layout_V4[:, 0], return_counts=True)
        edges = [0, *(number_S[1:] * frames).tolist(), len(times)]
        parts = zip(tokens_VE.split(count_S.tolist()), layout_V4[:, 1:].split(count_S.tolist()), edges, edges[1:])
        for tokens_SE, places_S3, first, end in parts:
            shown = times[first:end] or times[-1:]
            # A copy: a view would keep the tokens of the whole chunk.
            self._append(Step(tokens_SE.clone(), places_S3.clone(), len(shown), shown[0], shown[-1]))

    def _append(self, step: Step) -> None:
        if len(step.tokens) * (self.window + 1) > self.max_tokens:
            raise ValueError(
                f"max_visual_tokens must be at least {len(step.tokens) * (self.window + 1)}, got {self.max_tokens}: a "
                f"step takes {len(step.tokens)} tokens, and at least {self.window + 1} are kept"
            )
        if self.steps:
            self._similar.append(similarity(self.steps[-1], step))
        self.steps.append(step)
        self.num_tokens += len(step.tokens)
        while self.num_tokens > self.max_tokens:
            self._shrink()

    def _shrink(self) -> None:
        """Merge the most similar neighbors outside the window, or drop the oldest step if none can merge."""
        pairs = self._similar[: len(self.steps) - self.window - 1]
        best = max(range(len(pairs)), key=pairs.__getitem__, default=None)
        if best is None or pairs[best] == -torch.inf:
            lost = self.steps.pop(0)
            self._similar[:1] = []
            self.num_tokens -= len(lost.tokens)
            self.num_dropped += lost.frames
            self.dropped = [*self.dropped[-99:], (lost.start, lost.end)]
            return
        a, b = self.steps[best : best + 2]
        share = a.frames / (a.frames + b.frames)
        mean_SE = (share * a.tokens.float() + (1 - share) * b.tokens.float()).to(a.tokens.dtype)
        self.steps[best : best + 2] = [replace(a, tokens=mean_SE, frames=a.frames + b.frames, end=b.end)]
        del self._similar[best]
        self.num_tokens -= len(b.tokens)
        self.merged += 1
        for left in (best - 1, best):
            if 0 <= left < len(self._similar):
                self._similar[left] = similarity(*self.steps[left : left + 2])

    @property
    def tokens(self) -> Tensor:
        """All tokens, (V, E)."""
        return torch.cat([step.tokens for step in self.steps])

    @property
    def layout(self) -> Tensor:
        """Their layout, (V, 4), with the number of the step as the frame."""
        return torch.cat([F.pad(step.places, (1, 0), value=number) for number, step in enumerate(self.steps)])

    @property
    def spans(self) -> list[tuple[float, float, int]]:
        """First and last time, and number of frames, of each step."""
        return [(step.start, step.end, step.frames) for step in self.steps]

    @property
    def selection(self) -> tuple[str, ...]:
        """What each step stands for, in words."""
        return tuple(f"frames from {start:.2f} to {end:.2f} s: {count}" for start, end, count in self.spans)


def similarity(a: Step, b: Step) -> float:
    """Mean cosine of the cells of two steps at the same places; -inf where their grids differ."""
    if not torch.equal(a.places, b.places):
        return -torch.inf
    is_cell_S = (a.places[:, 2] == CELL).to(a.tokens.device)
    cosine_S = F.cosine_similarity(a.tokens.float(), b.tokens.float(), dim=1)
    return float(cosine_S[is_cell_S].mean()) if bool(is_cell_S.any()) else float(cosine_S.mean())
