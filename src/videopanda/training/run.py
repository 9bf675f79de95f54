"""One stage of training, from a folder to a folder.

    videopanda train pretrain --config nano --model out/prealign --output out/pretrain

The loop, mixed precision, checkpoints and resuming are the Hugging Face Trainer's. Every checkpoint is an ordinary
model folder; `metrics.jsonl`, `run.json` and `curves.png` lie beside them.
"""

import json
import logging
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from videopanda.data.collate import Collator
from videopanda.training.parts import parameter_groups, set_stage
from videopanda.training.stages import StageConfig
from videopanda.training.tasks import Task, VideoLanguage
from videopanda.weights import checksums

logger = logging.getLogger(__name__)


class InOrder(Sampler[int]):
    """Items 0, 1, 2, ...: data sets here order themselves by (id, seed), on every rank alike."""

    def __init__(self, num: int):
        self.num = num

    def __iter__(self):
        return iter(range(self.num))

    def __len__(self) -> int:
        return self.num


class StageTrainer(Trainer):
    """The Trainer with a task, one learning rate per part, and data in its own order."""

    def __init__(self, *args: Any, stage: StageConfig, task: Task, **kwargs: Any):
        self.stage, self.task = stage, task
        self.loss_sums: dict[str, float] = {}
        self.unwrapped: torch.nn.Module = kwargs["model"]
        super().__init__(*args, **kwargs)
        # A task's loss is a mean over its batch, so the mean over accumulated batches is still to be taken.
        self.model_accepts_loss_kwargs = False

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with one group per part."""
        if self.optimizer is None:
            groups = parameter_groups(self.unwrapped, self.stage.learning_rates, self.stage.weight_decay)
            fused = all(p.dtype == torch.float32 for group in groups for p in group["params"])
            self.optimizer = torch.optim.AdamW(groups, betas=(0.9, self.stage.adam_beta2), eps=1e-8, fused=fused)
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Ask the task; remember its named parts for the log."""
        with self.accelerator.autocast():
            losses = self.task.step(model, inputs)
        for name, value in losses.items():
            if name != "loss":
                self.loss_sums[name] = self.loss_sums.get(name, 0.0) + value.item()
        return (losses["loss"], None) if return_outputs else losses["loss"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the task's losses, averaged since the last log."""
        steps = self.stage.log_steps * self.stage.accumulation
        if "loss" in logs:
            logs |= {name: total / steps for name, total in self.loss_sums.items()}
            self.loss_sums.clear()
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        return InOrder(len(self.train_dataset))  # type: ignore[arg-type]


class MetricsFile(TrainerCallback):
    """Appends every log entry to `metrics.jsonl`."""

    def __init__(self, path: Path):
        self.path = path

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Write one line."""
        if state.is_world_process_zero and logs:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def run_stage(
    stage: StageConfig,
    model: Any,
    processor: Any,
    dataset: Dataset,
    output: Path,
    resume: bool = False,
    task: Task | None = None,
) -> Path:
    """Train `model` on `dataset` (of `Sample`s) as `stage` says and save it, with its processor, in `output`.

    Raises:
        ValueError: `output` holds another run and `resume` is not set.
    """
    output.mkdir(parents=True, exist_ok=True)
    checkpoint = get_last_checkpoint(str(output))
    if (output / "run.json").exists() and not resume:
        raise ValueError(f"{output} already holds a run: pass --resume to go on with it, or choose another --output")
    reports = set_stage(model, stage.learning_rates)
    for report in reports:
        logger.info("%s", report)
    write_run_file(output, stage, reports)
    if stage.compile:
        compile_blocks(model)
    trainer = StageTrainer(
        model=model,
        args=_arguments(stage, output),
        train_dataset=dataset,
        data_collator=Collator(
            processor,
            stage.max_length,
            supervise="all" if stage.stage == "language" else "answers",
            pad_to=stage.max_length if stage.compile else None,
            text=stage.text_weight > 0,
            cell_words=stage.align_weight > 0,
            additive_mask=stage.compile,
            system_prompt=stage.system_prompt,
            flip_seed=stage.seed if stage.official_flip else None,
        ),
        processing_class=processor,
        callbacks=[MetricsFile(output / "metrics.jsonl")],
        stage=stage,
        task=task or VideoLanguage(stage.text_weight, stage.align_weight),
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    if stage.save_dtype == "bfloat16":
        model.to(torch.bfloat16)
    trainer.save_model(str(output))
    if trainer.is_world_process_zero():
        from videopanda.training.plots import plot_curves

        checksums.record(output)
        plot_curves(output / "metrics.jsonl", output / "curves.png", title=stage.stage)
    return output


def _arguments(stage: StageConfig, output: Path) -> TrainingArguments:
    cuda = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(output),
        use_cpu=not cuda,
        bf16=stage.dtype == "bfloat16",
        per_device_train_batch_size=stage.batch_size,
        gradient_accumulation_steps=stage.accumulation,
        num_train_epochs=stage.epochs,
        max_steps=stage.max_steps or -1,
        lr_scheduler_type="cosine",
        warmup_steps=stage.warmup_ratio,  # below 1 it is a share of all steps
        max_grad_norm=stage.max_grad_norm,
        gradient_checkpointing=stage.gradient_checkpointing,
        dataloader_num_workers=stage.num_workers,
        dataloader_prefetch_factor=4 if stage.num_workers else None,
        dataloader_pin_memory=cuda,
        dataloader_drop_last=True,
        remove_unused_columns=False,
        logging_steps=stage.log_steps,
        save_steps=stage.save_steps,
        save_total_limit=stage.keep_checkpoints,
        seed=stage.seed,
        report_to=[],
        disable_tqdm=False,
    )


def compile_blocks(model: Any) -> None:
    """Compile every decoder layer on its own: seconds instead of minutes, and most of the gain.

    At a few hundred tokens compiled eager attention is faster on CPU than the fused one (a quarter of the step).
    """
    decoder = model.get_decoder()
    decoder.set_attn_implementation("eager")
    for layer in decoder.layers:
        layer.compile(dynamic=False)


def git_revision() -> str | None:
    """Commit of the source tree that runs, or None outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write_run_file(output: Path, stage: StageConfig, reports: list) -> None:
    """Everything that a repetition needs."""
    packages = ("videopanda", "torch", "transformers", "accelerate", "numpy", "av")
    record = {
        "stage": stage.as_dict(),
        "parts": [vars(report) for report in reports],
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        "git_revision": git_revision(),
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
    }
    (output / "run.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
