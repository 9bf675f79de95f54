"""The loop: the Hugging Face Trainer with our module, our batches, and checkpoints that a kill cannot break."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from transformers import Trainer, TrainerCallback

from videopanda.data.collate import Collator
from videopanda.data.loader import Batch, BatchStream, Loader, Ordered, make_loader
from videopanda.training.freezing import parameter_groups
from videopanda.training.module import TaskModule
from videopanda.training.stages import StageConfig

_COMPLETE = "complete"  # this file says that all of a checkpoint is there


class StageTrainer(Trainer):
    """One learning rate per part, data in its own order with an exact position, whole checkpoints only."""

    def __init__(self, model: TaskModule, stage: StageConfig, dataset: Ordered, collator: Collator, **kwargs: Any):
        self.stage, self.dataset, self.collator = stage, dataset, collator
        self.module = model
        self.loss_sums: dict[str, float] = {}
        self.loader: Loader | None = None
        self.clock = time.monotonic()
        super().__init__(model=model, train_dataset=dataset, **kwargs)

    def create_accelerator_and_postprocess(self) -> None:
        """Shard on CPUs, too: torch can, but accelerate leaves FSDP out there without a word.

        Raises:
            ValueError: the strategy cannot be had.
        """
        super().create_accelerator_and_postprocess()
        state, strategy = self.accelerator.state, self.stage.strategy
        if strategy == "fsdp2" and state.distributed_type == DistributedType.MULTI_CPU:
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
            self.is_fsdp_enabled = True
        wanted = {"fsdp2": DistributedType.FSDP, "zero2": DistributedType.DEEPSPEED, "zero3": DistributedType.DEEPSPEED}
        if self.args.world_size > 1 and strategy in wanted and state.distributed_type != wanted[strategy]:
            raise ValueError(f"strategy {strategy} cannot be had here: accelerate made {state.distributed_type}")

    # -- data ----------------------------------------------------------------------------------------------------------
    def get_train_dataloader(self) -> Loader:
        """The batches of this process."""
        stage = self.stage
        stream = BatchStream(
            self.dataset,
            stage.batch_size,
            self.args.process_index,
            self.args.world_size,
            stage.accumulation,
            stage.group_by_length,
            Path(str(self.args.output_dir), "reading") if stage.stall_seconds else None,
        )
        if not len(stream):
            rows = stage.batch_size * self.args.world_size * stage.accumulation
            raise ValueError(f"{len(self.dataset)} samples do not make one step of {rows}: lower batch_size")
        self.loader = make_loader(stream, self._collate, stage.num_workers, self.args.dataloader_pin_memory)
        return self.loader

    def _collate(self, batch: Batch) -> dict[str, Any]:
        return {**self.collator(batch.samples), "number": batch.number}

    def _init_training_state(self, *args: Any) -> tuple[int, int]:
        """Go on behind the last batch of the checkpoint: the loader knows its position, so no batch is read twice."""
        epochs, batches = super()._init_training_state(*args)
        if batches:
            file = Path(args[3], f"loader_{self.args.process_index}_of_{self.args.world_size}.pt")
            assert self.loader is not None
            self.loader.load_state_dict(torch.load(file, weights_only=True))
        return epochs, 0

    # -- a step --------------------------------------------------------------------------------------------------------
    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with one group per part."""
        if self.optimizer is None:
            stage = self.stage
            groups = parameter_groups(self.module.model, stage.learning_rates, stage.weight_decay)
            if self.module.head is not None:  # learns as fast as STAB, as in the official code
                head = torch.nn.ModuleDict({"head": self.module.head})
                groups += parameter_groups(head, {"head": stage.stab_lr}, stage.weight_decay)
            fused = all(p.dtype == torch.float32 for group in groups for p in group["params"])
            self.optimizer = torch.optim.AdamW(groups, betas=(0.9, self.stage.adam_beta2), eps=1e-8, fused=fused)
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of a batch, a mean over it; its named parts are remembered for the log."""
        with self.accelerator.autocast():
            losses = model(inputs)
        for name, value in losses.items():
            if name != "loss":
                self.loss_sums[name] = self.loss_sums.get(name, 0.0) + value.item()
        return (losses["loss"], None) if return_outputs else losses["loss"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the task's losses, averaged over all processes since the last log."""
        if "loss" in logs:
            steps = self.stage.log_steps * self.stage.accumulation
            sums = torch.tensor(list(self.loss_sums.values()), dtype=torch.float64, device=self.args.device)
            means = self.accelerator.reduce(sums, "mean") / steps
            logs |= dict(zip(self.loss_sums, means.tolist()))
            self.loss_sums.clear()
            now = time.monotonic()
            rows = self.stage.log_steps * self.stage.accumulation * self.stage.batch_size * self.args.world_size
            logs["rows_per_second"] = rows / (now - self.clock)
            self.clock = now
        super().log(logs, start_time)

    # -- checkpoints ---------------------------------------------------------------------------------------------------
    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            self.module.save(Path(output_dir or str(self.args.output_dir)), self.processing_class, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if model is None:
            self.module.load(Path(resume_from_checkpoint))
        else:  # shards
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        assert self.loader is not None
        name = f"loader_{self.args.process_index}_of_{self.args.world_size}.pt"
        torch.save(self.loader.state_dict(), Path(output_dir, name))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            output = Path(str(self.args.output_dir))
            (output / f"checkpoint-{self.state.global_step}" / _COMPLETE).touch()
            for old in complete_checkpoints(output)[: -self.stage.keep_checkpoints]:
                shutil.rmtree(old)


def complete_checkpoints(output: Path) -> list[Path]:
    """Checkpoints of a run of which all is there, oldest first. One that a kill has cut off is not among them."""
    found = [path for path in output.glob("checkpoint-*") if (path / _COMPLETE).exists()]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]))


class MetricsFile(TrainerCallback):
    """Appends every log entry to `metrics.jsonl`."""

    def __init__(self, path: Path):
        self.path = path

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Write one line."""
        if state.is_world_process_zero and logs:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")

    def rewind(self, step: int) -> None:
        """Take away what was logged behind a step that the run goes on from, and a line that a kill has cut off."""
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            self.path.write_text("".join(kept), encoding="utf-8")
