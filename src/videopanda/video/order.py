"""Orders of frames for baselines: what an answer owes to the frames and to their order.

frames[shuffled_order(len(frames), np.random.default_rng(0))]
"""

import numpy as np


def one_frame_order(num_frames: int) -> np.ndarray:
    """The middle frame in every place."""
    return np.full(num_frames, num_frames // 2)


def shuffled_order(num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """A random order that is never the right one.

    Raises:
        ValueError: a single frame has no other order.
    """
    if num_frames < 2:
        raise ValueError("the baseline 'shuffled' needs at least two frames")
    while True:
        order = rng.permutation(num_frames)
        if (order != np.arange(num_frames)).any():
            return order
