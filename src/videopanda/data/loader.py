"""A data set as a resumable stream of batches.

    stream = BatchStream(dataset, batch_size=8, rank=0, world_size=4)
    loader = make_loader(stream, collate, num_workers=2)      # torchdata's StatefulDataLoader
    state = loader.state_dict()                               # ... loader.load_state_dict(state)

Batches are dealt to the ranks in turn, and on a rank to its workers in turn: the batches of a rank, and their order, do
not depend on the number of workers.
"""

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from videopanda.data.rows import Rows, filled_rows
from videopanda.data.sample import Sample
from videopanda.data.shuffling import hash_keys

T = TypeVar("T")

MEGA_BATCH = 16  # steps (of all ranks) among which samples are grouped by length


class EpochDataset(Protocol):
    """A data set with an order for every epoch."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def set_epoch(self, epoch: int) -> None:
        """Switch to the order of another epoch."""

    def content(self) -> str:
        """A hash of the annotations that samples are made from; clips are not part of it."""

    def lengths(self) -> np.ndarray:
        """Approximate number of tokens of each sample, (N,), in the order of the epoch."""

    def files(self, index: int) -> Sequence[str]:
        """Files that are read to make a sample."""


class NumberedBatch(NamedTuple):
    """The samples of one batch, and its number among the batches of all ranks and epochs."""

    number: int
    samples: list[Sample]


class BatchStream(IterableDataset):
    """One epoch of full batches for this rank; trailing batches that not every rank would get are dropped.

    Args:
        dataset: the samples and their order.
        batch_size: samples per batch.
        rank, world_size: select the batches of this process.
        accumulation: the number of batches is rounded down to a multiple of it.
        group_by_length: put samples of similar length into the same step, and balance token counts across ranks.
        row_tokens: fill rows with samples up to this many tokens, by the lengths that the data set tells; `batch_size`
            is then a number of rows. 0: one sample per row.
        reading: folder in which every worker notes the files it is reading.

    `state_dict` is the epoch and the number of batches yielded so far (by this worker, if there are workers); after
    `load_state_dict` the next iteration resumes there.
    """

    def __init__(
        self,
        dataset: EpochDataset,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        group_by_length: bool = False,
        reading: Path | None = None,
        row_tokens: int = 0,
    ):
        if not 0 <= rank < world_size or batch_size < 1:
            numbers = f"batch_size={batch_size}, rank={rank}, world_size={world_size}"
            raise ValueError(f"{numbers}: batch_size must be at least 1 and rank between 0 and world_size - 1")
        self.dataset, self.batch_size, self.rank, self.world_size = dataset, batch_size, rank, world_size
        self.accumulation, self.group_by_length, self.reading = accumulation, group_by_length, reading
        self.row_tokens = row_tokens
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Start another epoch."""
        self.epoch, self.given = epoch, 0
        self.dataset.set_epoch(epoch)
        sizes = self.batch_size, self.world_size, self.accumulation
        if self.row_tokens:
            self.rows = filled_rows(self.dataset.lengths(), self.row_tokens)
            shuffled = np.argsort(hash_keys(np.arange(len(self.rows)), epoch))  # they come with the longest first
            self.order = shuffled[batch_order(len(self.rows), *sizes)]
        else:
            self.rows = Rows.of_one_sample(len(self.dataset))
            lengths = self.dataset.lengths() if self.group_by_length else None
            self.order = batch_order(len(self.rows), *sizes, lengths)

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[NumberedBatch]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in range(first + self.given * step, len(self), step):
            samples = []
            for index in (index for row in self.order[number, self.rank] for index in self.rows[row]):
                self._note(first, self.dataset.files(index) if self.reading else ())
                samples.append(self.dataset[index])
            self._note(first, ())
            self.given += 1
            yield NumberedBatch((self.epoch * len(self) + number) * self.world_size + self.rank, samples)
        self.given = 0

    def _note(self, worker: int, files: Sequence[str]) -> None:
        if self.reading:
            note_of(self.reading, self.rank, worker).write_text("\n".join(files), encoding="utf-8")

    def state_dict(self) -> dict[str, Any]:
        """The position of this stream."""
        return {"epoch": self.epoch, "given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a position with the next iteration."""
        self.set_epoch(state["epoch"])
        self.given = state["given"]


def note_of(folder: Path, rank: int, worker: int) -> Path:
    """The file in which a worker notes what it is reading."""
    return folder / f"rank{rank}-worker{worker}"


def batch_order(
    count: int, batch_size: int, world_size: int, accumulation: int = 1, lengths: np.ndarray | None = None
) -> np.ndarray:
    """The samples of every batch: indices (steps, world_size, batch_size).

    Without lengths, samples stay in their order. With them, every `MEGA_BATCH` steps are sorted by length and cut into
    steps of similar samples; samples are dealt to ranks in snake order, so token counts balance; the steps are then
    shuffled by a fixed rule, or every mega batch would begin with its longest samples.
    """
    at_once = batch_size * world_size
    steps = count // (at_once * accumulation) * accumulation
    indices = np.arange(steps * at_once)
    if lengths is None:
        return indices.reshape(steps, world_size, batch_size)
    groups = []
    for start in range(0, steps, MEGA_BATCH):
        mega = indices[start * at_once : (start + MEGA_BATCH) * at_once]
        mega = mega[np.argsort(-lengths[mega], kind="stable")].reshape(-1, batch_size, world_size)
        mega[:, 1::2] = mega[:, 1::2, ::-1]
        groups.append(mega[np.argsort(hash_keys(np.arange(len(mega)), start))])
    return np.concatenate([np.empty((0, batch_size, world_size), np.int64), *groups]).transpose(0, 2, 1)


def without_traces(batches: Iterator[T]) -> Iterator[T]:
    """The same, but errors that data cause in a worker as they are without workers: torch puts the trace of the worker
    in front of the message, and calls errors of its own making (`VideoReadError`) a RuntimeError.

    Raises:
        ValueError: a sample cannot be used; the message says which and why.
    """
    try:
        yield from batches
    except (ValueError, OSError, RuntimeError) as error:
        kind, _, reason = str(error).strip().rpartition("\n")[2].partition(": ")
        is_of_data = isinstance(error, ValueError | OSError) or kind.endswith("VideoReadError")
        if is_of_data and str(error).startswith("Caught ") and "DataLoader worker" in str(error):
            raise ValueError(reason) from error
        raise


class Loader(StatefulDataLoader):
    """Batches of a stream, collated."""

    dataset: BatchStream

    def __iter__(self) -> Iterator[Any]:
        """Start the workers.

        They are forks: one that garbage-collects a video decoder of this process would wait forever for threads that
        the fork did not copy. Objects that exist at the fork are therefore kept out of their collection.
        """
        gc.freeze()
        try:
            return without_traces(super().__iter__())
        finally:
            gc.unfreeze()

    def set_epoch(self, epoch: int) -> None:
        """Start another epoch."""
        self.dataset.set_epoch(epoch)


def _leave_process_group(worker: int) -> None:
    """Ctrl-C and a signal to the group are for the training process, which still needs its batches to finish a step."""
    os.setpgid(0, 0)


def make_loader(
    stream: BatchStream, collate: Callable[[NumberedBatch], Any], num_workers: int = 0, pin_memory: bool = False
) -> Loader:
    """A loader whose `state_dict` is the position after the last batch it yielded."""
    if stream.reading:
        os.makedirs(stream.reading, exist_ok=True)
    return Loader(
        stream,
        batch_size=None,
        collate_fn=collate,
        num_workers=num_workers,
        worker_init_fn=_leave_process_group,
        prefetch_factor=4 if num_workers else None,
        pin_memory=pin_memory,
    )
