"""The trained module, and the Hugging Face Trainer with our batches and checkpoints that survive a kill."""

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer

from videopanda.checkpoints.tensors import HEAD_FILE, CheckpointError, find_tensors
from videopanda.data.collate import Collator
from videopanda.data.loader import BatchStream, EpochDataset, Loader, NumberedBatch, make_loader
from videopanda.data.sample import Sample
from videopanda.data.shuffling import key_of
from videopanda.training.freezing import parameter_groups, rates_of, vision_modules
from videopanda.training.run_folder import complete_checkpoints, no_half_files, seal
from videopanda.training.stages import StageConfig
from videopanda.training.tasks import Task
from videopanda.training.validation import CONDITIONS, ValidationBatches, answer_sums, attention_shares, named

_ADAPTER_FILE = "adapter_model.safetensors"


class TaskModule(nn.Module):
    """Runs one batch through the task.

    Dropout (the only randomness) depends on `seed` and the batch number alone: neither the number of processes nor an
    interruption changes it.

    Args:
        model: what the task trains; a `PeftModel` if only an adapter is trained.
        task: its `head`, if any, is trained with the model. A teacher is not part of this module.
        seed: of dropout.
    """

    def __init__(self, model: Any, task: Task, seed: int):
        super().__init__()
        self.model = model
        self.head: Any = task.head
        self.task, self.seed = task, seed

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Named losses of a batch, which includes its `number` in the run; in evaluation, sums over its answers."""
        batch = dict(batch)
        number = batch.pop("number")
        if self.training:
            torch.manual_seed(key_of(str(self.seed), str(number)) >> 1)
        if dist.is_initialized() and "pixel_values_videos" not in batch and vision_modules(self.model):
            # All ranks must run the same modules in the same order, also with no clip in the batch: one of no frames.
            batch |= {name: tensor.to(batch["input_ids"].device) for name, tensor in self.model.no_video().items()}
        return self.task.step(self.model, batch) if self.training else {"sums": answer_sums(self.model, batch)}

    def save(self, folder: Path, processor: Any, state: Mapping[str, Tensor] | None = None) -> None:
        """Write model, head and processor. `state` is this module's, if the parameters here are only shards."""
        weights = None if state is None else _below("model.", state)
        self.model.save_pretrained(folder, state_dict=weights)
        if self.head is not None:
            head = self.head.state_dict() if state is None else _below("head.", state)
            save_file({name: tensor.contiguous().cpu() for name, tensor in head.items()}, folder / HEAD_FILE)
        processor.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Load what `save` wrote.

        Raises:
            CheckpointError: a weight is missing or unexpected.
        """
        adapter = folder / _ADAPTER_FILE
        if adapter.exists():
            from peft import set_peft_model_state_dict

            found: Any = set_peft_model_state_dict(self.model, load_file(adapter))
            if found.unexpected_keys:
                raise CheckpointError(f"{adapter}: {found.unexpected_keys[0]} is not part of the model")
        else:
            read_weights(self.model, folder)
        if self.head is not None:
            self.head.load_state_dict(load_file(folder / HEAD_FILE))


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


@torch.no_grad()
def read_weights(model: nn.Module, folder: Path) -> None:
    """Load the weights of a model folder into a model, one tensor at a time.

    Raises:
        CheckpointError: a weight is missing or unexpected.
    """
    state = model.state_dict()
    filled = set()
    for name, place in find_tensors(folder).items():
        if name not in state or state[name].shape != place.shape:
            raise CheckpointError(f"{folder}: {name} {list(place.shape)} is not part of the model")
        state[name].copy_(place.read())
        filled.add(state[name].data_ptr())
    missing = [name for name, tensor in state.items() if tensor.data_ptr() not in filled]  # tied weights share memory
    if missing:
        raise CheckpointError(f"{folder} lacks {missing[0]} ({len(missing)} weights in all)")


class StageTrainer(Trainer):
    """One learning rate per part, a data loader that resumes at the exact batch, checkpoints complete or ignored."""

    def __init__(
        self,
        model: TaskModule,
        stage: StageConfig,
        dataset: EpochDataset,
        collator: Collator,
        validation: Sequence[Sample] | None = None,
        **kwargs: Any,
    ):
        self.stage, self.dataset, self.collator, self.validation = stage, dataset, collator, validation
        self.module = model
        self.loss_sums: dict[str, Tensor] = {}  # since the last log, on the device: reading one waits for the step
        self.losses = 0
        self.step_losses: list[tuple[list[str], Tensor]] = []  # of this optimizer step: ids of rows, and their loss
        self.loader: Loader | None = None
        self.clock = time.monotonic()
        super().__init__(model=model, train_dataset=dataset, eval_dataset=validation, **kwargs)

    def create_accelerator_and_postprocess(self) -> None:
        """Shard on CPUs too: torch supports it, but accelerate silently ignores FSDP there.

        Raises:
            ValueError: the strategy is not available here.
        """
        super().create_accelerator_and_postprocess()
        state, strategy = self.accelerator.state, self.stage.strategy
        if strategy == "fsdp2" and state.distributed_type == DistributedType.MULTI_CPU:
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
            self.is_fsdp_enabled = True
        wanted = {"fsdp2": DistributedType.FSDP, "zero2": DistributedType.DEEPSPEED, "zero3": DistributedType.DEEPSPEED}
        if self.args.world_size > 1 and strategy in wanted and state.distributed_type != wanted[strategy]:
            raise ValueError(f"strategy {strategy} is not available here: accelerate chose {state.distributed_type}")

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
            stage.max_length if stage.pack_rows else 0,
        )
        if not len(stream):
            rows = stage.batch_size * self.args.world_size * stage.accumulation
            held = f"{len(self.dataset)} samples in {len(stream.rows)} rows"
            lower = "global_batch" if stage.global_batch else "batch_size"
            raise ValueError(f"{held} are fewer than one optimizer step of {rows} rows: lower {lower}")
        self.loader = make_loader(stream, self._collate, stage.num_workers, self.args.dataloader_pin_memory)
        return self.loader

    def _collate(self, batch: NumberedBatch) -> dict[str, Any]:
        return {**self.collator(batch.samples), "number": batch.number, "rows": [sample.id for sample in batch.samples]}

    def _init_training_state(self, *args: Any) -> tuple[int, int]:
        """Resume after the last batch of the checkpoint: the loader knows its position, so no batch is read twice."""
        epochs, batches = super()._init_training_state(*args)
        if self.state.global_step >= args[0]:  # the last step is done: no epoch is left
            return args[2], 0
        if batches:
            file = Path(args[3], f"loader_{self.args.process_index}_of_{self.args.world_size}.pt")
            assert self.loader is not None
            self.loader.load_state_dict(torch.load(file, weights_only=True))
        return epochs, 0

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step < self.state.max_steps:  # a run killed after its last step makes no further one
            super()._run_epoch(*args, **kwargs)

    # -- a step --------------------------------------------------------------------------------------------------------
    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, None]:
        """The batches of an optimizer step on this process, so that their losses are means over the whole step."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.stage.loss_mean == "step":
            with self.accelerator.autocast():
                self.module.task.prepare(batches, device)
        return batches, None

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with one parameter group per part."""
        if self.optimizer is None:
            stage = self.stage
            rates = rates_of(stage, self.module.model)
            groups = parameter_groups(self.module.model, rates, stage.weight_decay, self.module.head)
            fused = all(p.dtype == torch.float32 for group in groups for p in group["params"])
            self.optimizer = torch.optim.AdamW(groups, betas=(0.9, self.stage.adam_beta2), eps=1e-8, fused=fused)
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The mean loss of a batch; its named parts are summed for the log."""
        rows = inputs.pop("rows", [])
        with self.accelerator.autocast():
            losses = model(inputs)
        self.step_losses.append((rows, losses["loss"].detach()))
        for name, value in losses.items():
            if name != "loss":
                self.loss_sums[name] = self.loss_sums.get(name, 0.0) + value.detach().float()
        self.losses += 1
        return (losses["loss"], None) if return_outputs else losses["loss"]

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> float:
        norm = float(super()._get_grad_norm(model, grad_norm))
        found = [(rows, f"loss {loss.item()}") for rows, loss in self.step_losses if not loss.isfinite()]
        if not found and not math.isfinite(norm):
            found = [([row for rows, _ in self.step_losses for row in rows], f"gradient norm {norm}")]
        self.step_losses.clear()
        self._stop_together([f"{what} on rank {self.args.process_index}, rows {_named(rows)}" for rows, what in found])
        return norm

    def _stop_together(self, problems: list[str]) -> None:
        """Stop all processes if one has a non-finite number, before anything is saved."""
        if dist.is_initialized():
            flag = torch.tensor(float(len(problems)), device=self.args.device)
            dist.all_reduce(flag)
            if flag:
                gathered: list[list[str]] = [[]] * self.args.world_size
                dist.all_gather_object(gathered, problems)
                problems = [problem for some in gathered for problem in some]
        if problems:
            kept = complete_checkpoints(Path(str(self.args.output_dir)))
            raise DivergedError(
                f"training diverged at step {self.state.global_step + 1}: {'; '.join(problems)}. Lower the learning "
                f"rate or set max_grad_norm, and check these rows; the last good checkpoint is "
                f"{kept[-1] if kept else 'the start'}"
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the task's losses, averaged over all processes and steps since the last log."""
        if "loss" in logs:
            if self.loss_sums:
                means = self.accelerator.reduce(torch.stack([*self.loss_sums.values()]), "mean") / self.losses
                logs |= dict(zip(self.loss_sums, means.tolist()))
            self.loss_sums, self.losses = {}, 0
            now = time.monotonic()
            rows = self.stage.log_steps * self.stage.accumulation * self.stage.batch_size * self.args.world_size
            logs["rows_per_second"] = rows / (now - self.clock)
            self.clock = now
        super().log(logs, start_time)

    # -- validation ----------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Loss and accuracy on the held-out samples, over all processes (`videopanda.training.validation`)."""
        assert self.validation is not None
        start, model = time.monotonic(), self.model_wrapped
        place = self.args.process_index, self.args.world_size
        batches = ValidationBatches(self.validation, self.collator, self.stage.batch_size, *place)
        sums: dict[str, Tensor] = {}
        model.eval()
        # Compiled for training; compiling again for evaluation would cost more than it saves.
        with torch.compiler.set_stance("force_eager"), self.accelerator.autocast():
            shares = torch.zeros(2, device=self.args.device)  # sum and number
            if vision_modules(self.module.model):
                with attention_shares(self.module.model) as measure:
                    for counts, batch in batches.single():
                        batch = self._prepare_inputs({**batch, "number": 0})
                        share = measure(batch, partial(model, batch))
                        if counts and share is not None:
                            shares += torch.stack([share, torch.ones_like(share)])
            for counts, by_condition in batches.read(self.stage.num_workers):
                for suffix, batch in by_condition.items():
                    found = model(self._prepare_inputs({**batch, "number": 0}))["sums"]
                    sums[suffix] = sums.get(suffix, 0.0) + found * counts
                self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        model.train()
        metrics: dict[str, float] = {}
        for suffix in CONDITIONS:  # the same reductions on all processes, whichever of them had clips
            total = self.accelerator.reduce(torch.as_tensor(sums.get(suffix, torch.zeros(5)), device=self.args.device))
            if total[1]:
                metrics |= named(total, suffix)
        share, count = self.accelerator.reduce(shares).tolist()
        if count:
            metrics["validation_attention_to_video"] = share / count
        self.log(metrics)
        self.clock += time.monotonic() - start  # does not count as training time
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def measured(self) -> dict[str, dict[str, float]]:
        """The first and last results of validation, empty without it; measured now if the last one is missing."""
        if self.validation is None:
            return {}
        found = [entry for entry in self.state.log_history if "validation_loss" in entry]
        if not found or found[-1]["step"] != self.state.global_step:
            self.evaluate()
            found = [entry for entry in self.state.log_history if "validation_loss" in entry]
        ends = {"before": found[0], "after": found[-1]}
        return {name: {k: v for k, v in entry.items() if k != "epoch"} for name, entry in ends.items()}

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
        self.require_finite_weights()
        output = Path(str(self.args.output_dir))
        checkpoint = output / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero():
            shutil.rmtree(checkpoint, ignore_errors=True)  # left by an interrupted save
        self.accelerator.wait_for_everyone()
        with no_half_files(output, checkpoint, checkpoint.name):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                seal(checkpoint)
                for old in complete_checkpoints(output)[: -self.stage.keep_checkpoints]:
                    shutil.rmtree(old)

    def require_finite_weights(self) -> None:
        """Stop all processes if one has a non-finite trained weight.

        Raises:
            DivergedError: one is not.
        """
        tensors = [*(p for p in self.module.parameters() if p.requires_grad), *self.module.buffers()]
        locals_ = (getattr(tensor, "_local_tensor", tensor) for tensor in tensors if tensor.is_floating_point())
        is_finite = all(bool(tensor.detach().isfinite().all()) for tensor in locals_)
        self._stop_together([] if is_finite else [f"weights that are not finite on rank {self.args.process_index}"])


def _named(rows: list[str]) -> str:
    return ", ".join(rows[:8]) + (", ..." if len(rows) > 8 else "")


class DivergedError(Exception):
    """A loss, gradient or weight is not finite; nothing was saved."""
