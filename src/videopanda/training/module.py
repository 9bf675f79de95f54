"""Model and task as one module: what a step computes, what is wrapped for many processes, what a folder keeps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from videopanda.checkpoints.tensors import CheckpointError, find_tensors
from videopanda.data.shuffling import key_of
from videopanda.training.tasks import Task

HEAD_FILE = "distillation_head.safetensors"  # as `videopanda convert` writes it
_ADAPTER_FILE = "adapter_model.safetensors"


class TaskModule(nn.Module):
    """Runs one batch through the task.

    What is drawn at random, which is dropout, depends on `seed` and the number of the batch alone: neither the number
    of processes nor an interruption changes it.

    Args:
        model: what the task trains; a `PeftModel` where only an adapter is trained.
        task: its `head`, if any, is trained with the model. A teacher is no part of this module.
        seed: of dropout.
    """

    def __init__(self, model: Any, task: Task, seed: int):
        super().__init__()
        self.model = model
        self.head: Any = task.head
        self.task, self.seed = task, seed

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Named losses of a batch; `number` is its number in the whole run."""
        batch = dict(batch)
        torch.manual_seed(key_of(str(self.seed), str(batch.pop("number"))) >> 1)
        if dist.is_initialized() and "pixel_values_videos" not in batch and hasattr(self.model, "get_video_features"):
            # All ranks must run the same parts in the same order, though only some have clips: here it has no frames.
            device, side = batch["input_ids"].device, self.model.config.stab_config.cell_size
            batch["pixel_values_videos"] = torch.zeros(1, 1, 3, side, side, device=device)
            batch["video_placement"] = torch.tensor([[0, 0, 1, 1, 0, 0]], device=device)
        return self.task.step(self.model, batch)

    def save(self, folder: Path, processor: Any, state: Mapping[str, Tensor] | None = None) -> None:
        """Write model, head and processor. `state` is this module's, where the parameters here are only shards."""
        weights = None if state is None else _below("model.", state)
        self.model.save_pretrained(folder, state_dict=weights)
        if self.head is not None:
            head = self.head.state_dict() if state is None else _below("head.", state)
            save_file({name: tensor.contiguous().cpu() for name, tensor in head.items()}, folder / HEAD_FILE)
        processor.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote.

        Raises:
            CheckpointError: a weight is missing, or one has no place.
        """
        adapter = folder / _ADAPTER_FILE
        if adapter.exists():
            from peft import set_peft_model_state_dict

            found: Any = set_peft_model_state_dict(self.model, load_file(adapter))
            if found.unexpected_keys:
                raise CheckpointError(f"{adapter}: {found.unexpected_keys[0]} has no place in the model")
        else:
            read_weights(self.model, folder)
        if self.head is not None:
            self.head.load_state_dict(load_file(folder / HEAD_FILE))


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


@torch.no_grad()
def read_weights(model: nn.Module, folder: Path) -> None:
    """Read the weights of a model folder into a model, one tensor at a time.

    Raises:
        CheckpointError: a weight is missing, or one has no place.
    """
    state = model.state_dict()
    filled = set()
    for name, place in find_tensors(folder).items():
        if name not in state or state[name].shape != place.shape:
            raise CheckpointError(f"{folder}: {name} {list(place.shape)} has no place in the model")
        state[name].copy_(place.read())
        filled.add(state[name].data_ptr())
    missing = [name for name, tensor in state.items() if tensor.data_ptr() not in filled]  # tied ones are there
    if missing:
        raise CheckpointError(f"{folder} lacks {missing[0]} ({len(missing)} weights in all)")
