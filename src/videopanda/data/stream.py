"""A data set as a stream of batches with a position, for loaders that can stop anywhere and go on there.

    stream = BatchStream(dataset, batch_size=8, rank=0, world_size=4)
    loader = StatefulDataLoader(stream, batch_size=None, num_workers=2, worker_init_fn=start_worker)   # of torchdata
    state = loader.state_dict()                                              # ... loader.load_state_dict(state)

Batch after batch goes to rank after rank, and on a rank to worker after worker: the batches that a rank sees, and their
order, do not depend on the number of workers.
"""

import gc
from collections.abc import Iterator
from typing import Any, Protocol

from torch.utils.data import IterableDataset, get_worker_info

from videopanda.data.sample import Sample


class Ordered(Protocol):
    """A data set that has an order for every epoch."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def set_epoch(self, epoch: int) -> None:
        """Take the order of another epoch."""


def start_worker(worker_id: int) -> None:
    """Leave what the parent process made alone.

    A video decoder that a forked worker frees, in garbage collection, waits for ever for threads that were not copied.
    """
    gc.freeze()


class BatchStream(IterableDataset):
    """One epoch of full batches of this rank; the last ones, which not every rank would get, are left out.

    `state_dict` is the number of this rank's batches that were given (by this worker, where there are workers), and the
    epoch; `load_state_dict` makes the next iteration go on there.
    """

    def __init__(self, dataset: Ordered, batch_size: int, rank: int = 0, world_size: int = 1):
        if not 0 <= rank < world_size or batch_size < 1:
            numbers = f"batch_size={batch_size}, rank={rank}, world_size={world_size}"
            raise ValueError(f"{numbers}: batches need a sample, and ranks count from 0 to world_size - 1")
        self.dataset, self.batch_size, self.rank, self.world_size = dataset, batch_size, rank, world_size
        self.epoch = 0
        self.given = 0

    def set_epoch(self, epoch: int) -> None:
        """Begin another epoch."""
        self.epoch, self.given = epoch, 0
        self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset) // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[Sample]]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in range(first + self.given * step, len(self), step):
            start = (number * self.world_size + self.rank) * self.batch_size
            batch = [self.dataset[i] for i in range(start, start + self.batch_size)]
            self.given += 1
            yield batch
        self.given = 0

    def state_dict(self) -> dict[str, Any]:
        """Where this stream stands."""
        return {"epoch": self.epoch, "given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there with the next iteration."""
        self.set_epoch(state["epoch"])
        self.given = state["given"]
