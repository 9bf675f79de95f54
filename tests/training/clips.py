"""A small data set of clips that training tests share."""

import numpy as np

from tiny import clip
from videopanda.data.sample import Sample


class Clips:
    """Clips with questions; every sixth sample is text alone."""

    def set_epoch(self, epoch: int) -> None:
        pass

    def __len__(self) -> int:
        return 80

    def __getitem__(self, index: int) -> Sample:
        videos = () if index % 6 == 5 else (clip(8, 30, 40, seed=index),)
        return Sample(str(index), videos, (((f"Question {index}?", "yes " * (1 + index % 5)),),))

    def lengths(self) -> np.ndarray:
        return np.ones(len(self))

    def files(self, index: int) -> list[str]:
        return [f"clip {index}"]
