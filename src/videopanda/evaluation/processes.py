"""The rank of this process and the number of processes, for programs started by torchrun."""

from typing import NamedTuple

import torch
from torch import distributed


class DistributedRank(NamedTuple):
    """A process among those that share the work."""

    rank: int
    world_size: int
    device: str | None  # None: the default


def distributed_rank() -> DistributedRank:
    """The rank given by the launcher; without one, the only process."""
    if not distributed.is_torchelastic_launched():
        return DistributedRank(0, 1, None)
    distributed.init_process_group("gloo")
    rank, world_size, local = distributed.get_rank(), distributed.get_world_size(), distributed.get_node_local_rank()
    distributed.destroy_process_group()  # processes meet in their files only, so none waits for another
    return DistributedRank(rank, world_size, f"cuda:{local}" if torch.cuda.is_available() else "cpu")
