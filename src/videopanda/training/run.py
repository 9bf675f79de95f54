"""One stage of training, from a folder to a folder.

    videopanda train pretrain --config nano --model out/prealign --output out/pretrain

The loop, mixed precision, checkpoints and resuming are the Hugging Face Trainer's. Every checkpoint is an ordinary
model folder; `metrics.jsonl`, `run.json` and `curves.png` lie beside them.
"""

import json
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from transformers import TrainingArguments

from videopanda.checkpoints import checksums
from videopanda.data.collate import Collator
from videopanda.data.loader import EpochDataset
from videopanda.data.sample import Sample
from videopanda.models.videopanda.modeling_videopanda_layers import MaskedBatchNorm
from videopanda.training.adapter import ADAPTER, merge
from videopanda.training.callbacks import RunStoppedError, StallWatch, StopOnSignal
from videopanda.training.freezing import set_stage, vision_modules
from videopanda.training.packing import adds_masks, checked_windows, packing_report
from videopanda.training.stages import StageConfig
from videopanda.training.tasks import Task, VideoLanguage
from videopanda.training.trainer import MetricsFile, StageTrainer, TaskModule, complete_checkpoints
from videopanda.training.validation import MAX_SAMPLES, line_of

logger = logging.getLogger(__name__)

# Where things lie, and what is written: a run may go on with other ones.
MAY_CHANGE = {
    *("data", "media_root", "manifest", "teacher", "teacher_features"),
    *("log_steps", "save_steps", "keep_checkpoints", "report_to", "stall_seconds"),
}


def run_stage(
    stage: StageConfig,
    model: Any,
    processor: Any,
    dataset: EpochDataset,
    output: Path,
    resume: bool = False,
    task: Task | None = None,
    collator: Collator | None = None,
    validation: Sequence[Sample] | None = None,
) -> Path:
    """Train `model` on `dataset` (of `Sample`s) as `stage` says and save it, with its processor, in `output`.

    Args:
        task: what a step computes; default cross-entropy and alignment with the weights of the stage.
        collator: makes its batches; default `make_collator(stage, processor)`.
        validation: samples held out of `dataset`, on which loss and accuracy are measured ten times and at the end.

    Raises:
        ValueError: `output` holds a run and `resume` is not set, or a run of other settings or data.
        RunStoppedError: a signal has ended the run behind a checkpoint.
    """
    if (output / "run.json").exists() and not resume:
        raise ValueError(f"{output} already holds a run: pass --resume to go on with it, or choose another --output")
    for name in stage.loggers:
        try:
            import_module(name)
        except ImportError as error:
            extra = "train" if name == "tensorboard" else "loggers"
            raise ValueError(f"report_to={name} needs that package: pip install 'videopanda[{extra}]'") from error
    output.mkdir(parents=True, exist_ok=True)
    reports = set_stage(model, stage.learning_rates(vision_modules(model)))
    for report in reports:
        logger.info("%s", report)
    collator = collator or make_collator(stage, processor)
    if collator.text:
        collator.windows = checked_windows(model)
        collator.additive_mask |= adds_masks(model.get_decoder())
        logger.info("%s", packing_report(model.config, collator.windows))
    for norm in (module for module in model.modules() if isinstance(module, MaskedBatchNorm)):
        norm.synchronised = stage.sync_batch_norm
    if stage.compile:
        compile_blocks(model)
    if stage.gradient_checkpointing:
        model.activation_checkpointing_enable()
    metrics, stop = MetricsFile(output / "metrics.jsonl"), StopOnSignal()
    args = arguments(
        stage, output, [type(model.get_decoder().layers[0]).__name__], "no" if validation is None else "steps"
    )
    args.eval_on_start = validation is not None and not complete_checkpoints(output)
    if validation is not None:
        logger.info("%-16s%d samples that are not trained on", "validation", min(len(validation), MAX_SAMPLES))
    content = dataset.content()
    if (output / "run.json").exists():
        check_settings(output, stage, content, args.world_size)
    watch = [StallWatch(stage.stall_seconds, args.process_index, output / "reading")] if stage.stall_seconds else []
    trainer = StageTrainer(
        model=TaskModule(model, task or VideoLanguage(stage.text_weight, stage.align_weight), stage.seed),
        args=args,
        dataset=dataset,
        collator=collator,
        validation=validation,
        processing_class=processor,
        callbacks=[metrics, stop, *watch],
        stage=stage,
    )
    checkpoints = complete_checkpoints(output)
    trainer.accelerator.wait_for_everyone()  # all have looked at the folder before anything is written
    if trainer.is_world_process_zero():
        data = {"samples": len(dataset), "sha256": content}
        write_run_file(output, stage, reports, data, args.world_size)
        metrics.rewind(int(checkpoints[-1].name.partition("-")[2]) if checkpoints else 0)
    trainer.train(resume_from_checkpoint=str(checkpoints[-1]) if checkpoints else None)
    measured = trainer.measured()
    shutil.rmtree(output / "reading", ignore_errors=True)
    if stop.stopped:
        raise RunStoppedError(f"stopped behind step {trainer.state.global_step}: go on with --resume")
    if stage.save_dtype == "bfloat16" and not stage.lora_rank:
        model.to(torch.bfloat16)
    trainer.save_model(str(output / ADAPTER if stage.lora_rank else output))
    if trainer.is_world_process_zero():
        from videopanda.training.plots import plot_curves

        if stage.lora_rank:
            merge(Path(model.config._name_or_path), output / ADAPTER).save_pretrained(output)
            processor.save_pretrained(output)
        if measured:
            record = json.loads((output / "run.json").read_text(encoding="utf-8"))
            text = json.dumps({**record, "validation": measured}, indent=2)
            (output / "run.json").write_text(text + "\n", encoding="utf-8")
            logger.info("%s", line_of(measured["after"]))
        checksums.record(output)
        plot_curves(output / "metrics.jsonl", output / "curves.png", title=stage.stage)
    return output


def part_processes() -> None:
    """Wait for all processes and part from them: the last thing that a program does which ran stages on several.

    A process that ends while gloo's threads still run is aborted ("terminate called without an active exception"), and
    one that ends before the others takes their connections with it.
    """
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def make_collator(stage: StageConfig, processor: Any, **fields: Any) -> Collator:
    """What makes the batches of a stage."""
    return Collator(
        processor,
        stage.max_length,
        supervise="all" if stage.stage == "language" else "answers",
        pad_to=stage.max_length if stage.compile else None,
        text=stage.text_weight > 0,
        cell_words=stage.align_weight > 0,
        additive_mask=stage.compile,
        system_prompt=stage.system_prompt,
        flip_seed=stage.seed if stage.official_flip else None,
        **fields,
    )


def arguments(
    stage: StageConfig, output: Path, wrapped: Sequence[str] = (), evaluate: Literal["no", "steps"] = "no"
) -> TrainingArguments:
    """What the Trainer reads of a stage. `wrapped` names the classes of layers that FSDP shards each by itself."""
    cuda, several = torch.cuda.is_available(), int(os.environ.get("WORLD_SIZE", "1")) > 1  # as launchers say it
    sharded: dict[str, Any] = {}
    if stage.strategy == "fsdp2" and several:
        sharded = {
            "fsdp": True,
            "fsdp_config": {
                "fsdp_version": 2,
                "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
                "transformer_layer_cls_to_wrap": list(wrapped),
                "state_dict_type": "FULL_STATE_DICT",
            },
        }
    elif stage.strategy in ("zero2", "zero3") and several:
        sharded = {"deepspeed": deepspeed_config(stage)}
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
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        logging_steps=stage.log_steps,
        logging_nan_inf_filter=False,
        save_steps=stage.save_steps,
        eval_strategy=evaluate,
        eval_steps=0.1,  # of the run
        seed=stage.seed,
        report_to=stage.loggers,
        disable_tqdm=False,
        ddp_find_unused_parameters=False,
        **sharded,
    )


def deepspeed_config(stage: StageConfig) -> dict[str, Any]:
    """ZeRO-2 as in the official script, or ZeRO-3; no gradient clipping unless the stage asks for it."""
    zero: dict[str, Any] = {"stage": int(stage.strategy[-1]), "overlap_comm": False, "contiguous_gradients": True}
    if zero["stage"] == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    return {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": stage.dtype == "bfloat16"},
        "gradient_clipping": stage.max_grad_norm,
        "train_micro_batch_size_per_gpu": stage.batch_size,
        "gradient_accumulation_steps": stage.accumulation,
    }


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


def check_settings(output: Path, stage: StageConfig, content: str, processes: int) -> None:
    """Compare the settings and data of a run with those that its `run.json` holds.

    Raises:
        ValueError: one is another, which changes what the run computes; the message names it.
    """
    record = json.loads((output / "run.json").read_text(encoding="utf-8"))
    changed = [
        f"{name} was {record['stage'][name]} and is {value}"
        for name, value in stage.as_dict().items()
        if name not in MAY_CHANGE and record["stage"].get(name, value) != value
    ]
    if record["machine"].get("processes", processes) != processes:
        changed.append(f"there were {record['machine']['processes']} processes and are {processes}")
    if record.get("data", {}).get("sha256", content) != content:
        changed.append("the data were others")
    if changed:
        raise ValueError(
            f"{output} holds a run of other settings: {', '.join(changed)}. Go on with the old ones, or start from a "
            "checkpoint of it with --model and another --output"
        )


def write_run_file(output: Path, stage: StageConfig, reports: list, data: dict[str, Any], processes: int = 1) -> None:
    """Everything that a repetition needs."""
    packages = ("videopanda", "torch", "transformers", "accelerate", "numpy", "av")
    record = {
        "stage": stage.as_dict(),
        "data": data,
        "parts": [vars(report) for report in reports],
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        "git_revision": git_revision(),
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads(), "processes": processes},
    }
    (output / "run.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
