"""Which samples share a training row, chosen by their lengths.

    rows = filled_rows(dataset.lengths(), room=4096)
    rows[0]                                             # indices of the samples of one row

Best fit, longest first: a sample goes into the fullest row that has room for it. How many rows there are depends on the
lengths alone, not on the order of the samples, so all epochs have the same number of steps; samples of equal length
change places from epoch to epoch. Six million samples take seconds.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rows:
    """Row r holds `samples[bounds[r]:bounds[r + 1]]`."""

    samples: np.ndarray
    bounds: np.ndarray

    @classmethod
    def of_one_sample(cls, count: int) -> "Rows":
        """Every sample has a row to itself."""
        return cls(np.arange(count), np.arange(count + 1))

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, row: int) -> list[int]:
        return self.samples[self.bounds[row] : self.bounds[row + 1]].tolist()


def filled_rows(lengths: np.ndarray, room: int) -> Rows:
    """Put samples of these lengths (N,) into rows of at most `room` tokens; longer ones count as `room`."""
    lengths = np.clip(np.ceil(lengths).astype(np.int64), 1, room)
    row_of = np.empty(len(lengths), np.int64)
    open_rows: list[list[np.ndarray]] = [[] for _ in range(room + 1)]  # by the tokens that they have left
    has_rows = np.zeros(room + 1, bool)
    made = 0
    order = np.argsort(-lengths, kind="stable")
    for samples in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1):  # all samples of one length
        length = int(lengths[samples[0]]) if len(samples) else 1
        while len(samples):
            left = length + int(np.argmax(has_rows[length:]))
            if has_rows[left]:
                rows = np.concatenate(open_rows[left])
                open_rows[left] = [rows[len(samples) :]] if len(rows) > len(samples) else []
                has_rows[left] = bool(open_rows[left])
                rows = rows[: len(samples)]
            else:
                left, count = room, -(-len(samples) // (room // length))
                rows = np.arange(made, made + count)
                made += count
            row_of[samples[: len(rows)]] = rows
            samples = samples[len(rows) :]
            open_rows[left - length].append(rows)
            has_rows[left - length] = True
    return Rows(np.argsort(row_of, kind="stable"), np.searchsorted(np.sort(row_of), np.arange(made + 1)))
