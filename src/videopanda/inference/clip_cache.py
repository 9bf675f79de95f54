"""Clips and images that were read, and what the model made of them, kept for the next question.

A `Visual` goes through three states: frames (decoded), tokens (encoded by STAB), and keys and values of the prompts
that began with it. Tokens replace frames; whatever is there counts against the limit of the cache.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from videopanda.inference.answer import EncodedClip
from videopanda.inference.batch import Layers
from videopanda.video.read import Video

STARTS_PER_VISUAL = 2  # a clip is nearly always asked about with one and the same text in front of it


@dataclass(eq=False)
class Visual:
    """A clip or an image.

    key: names content and sampling: two visuals with one key have the same frames.
    video: the frames; dropped once they are encoded.
    starts: keys and values of prompts up to this visual, by the keys of all their visuals and their token ids.
    """

    key: str
    is_image: bool
    video: Video | None
    frame_times: tuple[float, ...] = ()
    encoded: EncodedClip | None = None
    starts: OrderedDict[Any, Layers] = field(default_factory=OrderedDict)

    @property
    def num_bytes(self) -> int:
        """Memory that this holds."""
        frames = 0 if self.video is None else self.video.frames.nbytes
        tokens = 0 if self.encoded is None else self.encoded.tokens.nbytes
        return frames + tokens + sum(k.nbytes + v.nbytes for layers in self.starts.values() for k, v in layers)


class VisualCache:
    """The visuals that were used last, up to `max_bytes`. Safe to use from several threads."""

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self._visuals: OrderedDict[str, Visual] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> Visual | None:
        """The visual of this key, if it is still there."""
        with self._lock:
            if key in self._visuals:
                self._visuals.move_to_end(key)
            return self._visuals.get(key)

    def put(self, visual: Visual) -> None:
        """Take in a visual; the ones used longest ago make room."""
        with self._lock:
            self._put(visual)

    def remember(self, visual: Visual, start: Any, layers: Layers) -> None:
        """Keep the keys and values of a start with its visual."""
        with self._lock:
            visual.starts[start] = layers
            while len(visual.starts) > STARTS_PER_VISUAL:
                visual.starts.popitem(last=False)
            self._put(visual)

    def _put(self, visual: Visual) -> None:
        self._visuals[visual.key] = visual
        self._visuals.move_to_end(visual.key)
        total = sum(one.num_bytes for one in self._visuals.values())
        while total > self.max_bytes:
            _, oldest = self._visuals.popitem(last=False)
            total -= oldest.num_bytes

    @property
    def num_bytes(self) -> int:
        """Memory in use."""
        with self._lock:
            return sum(one.num_bytes for one in self._visuals.values())

    def __len__(self) -> int:
        return len(self._visuals)
