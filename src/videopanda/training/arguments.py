"""Translates a stage to arguments of the Hugging Face Trainer, FSDP and DeepSpeed."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainingArguments

from videopanda.training.stages import StageConfig


class _Arguments(TrainingArguments):
    @property
    def device(self) -> torch.device:
        """On CPUs without the number of the process: no checkpoint can be loaded to "cpu:1", where an older Trainer
        puts the optimizer when it resumes.
        """
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device


def arguments(
    stage: StageConfig, output: Path, wrapped: Sequence[str] = (), evaluate: Literal["no", "steps"] = "no"
) -> TrainingArguments:
    """The arguments of a stage. `wrapped` names the classes of the layers that FSDP shards one by one.

    Raises:
        ValueError: DeepSpeed or a logger is needed and not installed, or the launcher asks to split rows over
            processes.
    """
    refuse_split_rows()
    for name in stage.loggers:
        if find_spec(name) is None:
            extra = "train" if name == "tensorboard" else "loggers"
            raise ValueError(f"report_to={name} needs that package: pip install 'videopanda[{extra}]'")
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
        if find_spec("deepspeed") is None:
            raise ValueError(
                f"strategy {stage.strategy} needs DeepSpeed: pip install 'videopanda[deepspeed]', or choose another "
                "with --set strategy=fsdp2"
            )
        sharded = {"deepspeed": deepspeed_config(stage)}
    return _Arguments(
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
        logging_nan_inf_filter=False,  # it would log a loss of NaN as 0.0
        save_steps=stage.save_steps,
        eval_strategy=evaluate,
        eval_steps=0.1,  # of the run
        seed=stage.seed,
        report_to=stage.loggers,
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        **sharded,
    )


def refuse_split_rows() -> None:
    """Raise ValueError if `accelerate launch` asks for a kind of parallelism that would silently train something else.

    Its ring attention knows causal masks only; rows here have questions that share a clip and do not see each other.
    """
    sizes = {
        "context": os.environ.get("PARALLELISM_CONFIG_CP_SIZE", "1"),
        "sequence": os.environ.get("PARALLELISM_CONFIG_SP_SIZE", "1"),
        "tensor": os.environ.get("PARALLELISM_CONFIG_TP_SIZE", "1"),
    }
    for kind, size in sizes.items():
        if int(size) > 1:
            raise ValueError(
                f"{kind} parallelism is not supported: start without --parallelism_config_*_size; for long rows use "
                "--set strategy=fsdp2 --set gradient_checkpointing=true"
            )


def deepspeed_config(stage: StageConfig) -> dict[str, Any]:
    """ZeRO-2 as in the official script, or ZeRO-3; no gradient clipping unless the stage sets it."""
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
