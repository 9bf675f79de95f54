"""Describes what a stage would do and tries two steps on a small model, before a cluster is used.

    videopanda train pretrain --model DIR --set data=valley_.json --dry-run --processes 64

The plan is arithmetic. The trial is real: processes over gloo, the stage's own data, batches, strategy and checkpoints;
only the model is small (width 64, two layers or as many as its merges need), without a teacher; a step has one row per
process.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor, AutoTokenizer

from videopanda.data.rows import filled_rows
from videopanda.encoders.open import open_teacher
from videopanda.models.families import config_class, model_class, processor_class
from videopanda.models.fields import with_fields
from videopanda.training import build, nano
from videopanda.training.adapter import add_adapter
from videopanda.training.chat_template import read_template
from videopanda.training.datasets import check_clips_fit, frame_sampling, make_dataset
from videopanda.training.freezing import PartReport, head_rate, on_paper, rates_of, set_stage
from videopanda.training.packing import for_backbone
from videopanda.training.run import make_head, run_stage, shutdown_distributed
from videopanda.training.stages import StageConfig, make_config

MOST_PROCESSES = 4  # of the trial
TIMEOUT = 600.0  # time limit of the trial, in seconds
_WIDTH = 64
# An H100's dense bfloat16 rate, and the share of it that training of this kind reaches.
_FLOPS, _SHARE = 989e12, 0.4


def plan(stage: str, config: str, set_: list[str], folder: Path | None, processes: int) -> list[str]:
    """Describe the stage on a number of processes, line by line.

    Raises:
        ValueError: as `train` would.
    """
    settings = make_config(stage, config, set_).on(processes)
    if folder is None and stage != "language":
        raise ValueError(f"stage {stage} needs a model to start from: pass --model DIR")
    settings = for_backbone(settings, folder)
    dataset = make_dataset(settings, frame_sampling(settings, folder))
    model, config_ = _on_paper(settings, folder)
    check_clips_fit(settings, config_)
    if settings.lora_rank:
        model = add_adapter(model, settings)
    rates = rates_of(settings, model)
    reports = set_stage(model, rates)
    if settings.distill_weight:
        with torch.device("meta"):
            head, _ = make_head(settings, config_.get_text_config(), _teacher_size(settings))
        count = sum(parameter.numel() for parameter in head.parameters())
        reports.append(PartReport("distillation head", count, head_rate(rates), count))
    rows = settings.batch_size * settings.accumulation * processes
    visual = 0
    if model_class(config_) is not None:
        visual = processor_class(config_).video_processor_for(config_).token_count(settings.num_frames, 1080, 1920)
    tokens, held = visual + 150, len(dataset)
    if settings.pack_rows:
        dataset.visual_tokens["video"] = visual
        tokens, held = settings.max_length, len(filled_rows(dataset.lengths(), settings.max_length))
    steps = settings.max_steps or math.ceil(held // rows * settings.epochs)
    total = sum(report.num_parameters for report in reports)
    trained = sum(report.num_trainable for report in reports)
    shards = {"ddp": (1, 1), "zero2": (1, processes), "zero3": (processes, processes), "fsdp2": (processes, processes)}
    of_weights, of_rest = shards[settings.strategy]
    state = (4 * total / of_weights + 12 * trained / of_rest) / 1e9  # weights; gradients and two moments
    text = config_.get_text_config()
    kept = 2 if settings.gradient_checkpointing else 34  # bytes per value of a layer's width, in half precision
    active = settings.batch_size * tokens * text.hidden_size * text.num_hidden_layers * kept / 1e9
    passes = 6 + 2 * settings.gradient_checkpointing
    hours = steps * rows * tokens * (passes * trained + 4 * (total - trained)) / (_FLOPS * _SHARE) / 3600
    return [
        json.dumps(settings.as_dict(), indent=2),
        *map(str, reports),
        f"data             {len(dataset):,} samples; {rows:,} rows per step on {processes} processes; {steps:,} steps",
        f"tokens           about {tokens:,} per row ({visual:,} visual, at 16:9), at most {settings.max_length:,}",
        f"memory           about {state:.1f} GB of weights, gradients and moments per process ({settings.strategy}), "
        f"{active:.1f} GB of activations",
        f"time             about {hours:,.1f} GPU-hours without a teacher at {_SHARE:.0%} of {_FLOPS:.3g} FLOP/s",
    ]


def _teacher_size(settings: StageConfig) -> int:
    """Width of the teacher's features; that of LanguageBind where none is named yet."""
    if settings.teacher_features:
        return json.loads(Path(settings.teacher_features, "features.json").read_text(encoding="utf-8"))["size"]
    return open_teacher(settings.teacher).size if settings.teacher else 1024


def _on_paper(settings: StageConfig, folder: Path | None) -> tuple[torch.nn.Module, Any]:
    """The model without weights, and its configuration."""
    if folder is None:
        with torch.device("meta"):
            tokenizer = nano.make_tokenizer(10, settings.seed)
            model = nano.make_language_model(tokenizer, settings.seed, settings.model_fields)
        return model, model.config
    config = build.config_of(settings, folder)
    return on_paper(settings, config), config


def try_steps(stage: str, config: str, set_: list[str], folder: Path | None, processes: int) -> str:
    """Run two steps of the stage on at most four processes over gloo; returns a description of the result.

    Raises:
        ValueError: the trial failed or hung; the message contains the end of its output.
    """
    count = min(processes, MOST_PROCESSES)
    job = json.dumps([stage, config, set_, str(folder) if folder else None])
    with tempfile.TemporaryDirectory() as out:
        # Without GPUs, and one thread each: the trial must leave the machine usable.
        command = ["env", "CUDA_VISIBLE_DEVICES=", "DS_ACCELERATOR=cpu", "OMP_NUM_THREADS=1", sys.executable]
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
        command += ["-m", "videopanda.training.dry_run", job, out]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        except subprocess.TimeoutExpired as error:
            end = (error.stderr or b"").decode(errors="replace")[-2000:]
            raise ValueError(f"the trial on {count} processes hung for {TIMEOUT:.0f} s:\n{end}") from error
        if done.returncode:
            raise ValueError(f"the trial on {count} processes failed:\n{done.stderr[-2000:]}")
        rows = [json.loads(line) for line in Path(out, "run", "metrics.jsonl").read_text().splitlines()]
    losses = ", ".join(f"{row['loss']:.3f}" for row in rows if "loss" in row)
    return (
        f"trial            2 steps on {count} processes ({make_config(stage, config, set_).strategy}): losses {losses}"
    )


def _trial(job: str, out: Path) -> None:
    stage, config, set_, folder = json.loads(job)
    settings = make_config(stage, config, set_)
    settings = replace(
        settings, batch_size=1, accumulation=1, global_batch=0, max_steps=2, dtype="float32", compile=False,
        distill_weight=0.0, tube_weight=0.0, frame_weight=0.0, lora_rank=0, quantize="none", log_steps=1, save_steps=1,
        report_to="", whiten_patches=False,
    )  # fmt: skip
    start = Path(folder) if folder else None
    settings = for_backbone(settings, start)
    model, processor = _small(settings, start, out)
    run_stage(settings, model, processor, make_dataset(settings, frame_sampling(settings, start)), out / "run")


def _small(settings: StageConfig, folder: Path | None, out: Path) -> tuple[Any, Any]:
    """A small model of the same kind, with the processor of the real one."""
    torch.manual_seed(settings.seed)
    if folder is None:
        tokenizer = nano.make_tokenizer(10, settings.seed)
        return nano.make_language_model(tokenizer, settings.seed, settings.model_fields), tokenizer
    config: Any = build.config_of(settings, folder)
    text = _shrunk(config.text_config, on_paper(settings, config))
    if model_class(AutoConfig.from_pretrained(folder)) is not None:
        values = {**config.to_dict(), "text_config": text}
        config = type(config)(**with_fields(type(config), values, _narrow(type(config))))
        return model_class(config)(config), AutoProcessor.from_pretrained(folder)
    small = out / f"language-{os.getpid()}"
    AutoModelForCausalLM.from_config(type(config.text_config)(**text)).save_pretrained(small)
    AutoTokenizer.from_pretrained(folder).save_pretrained(small)
    return build.build_model(
        small,
        seed=settings.seed,
        family=settings.model_family,
        preset=settings.model_preset,
        fields={**settings.model_fields, **_narrow(config_class(settings.model_family))},
        encoder=settings.encoder,
        chat_template=read_template(settings.chat_template),
    )


def _narrow(config: Any) -> dict[str, int]:
    """The fields that make the vision part of a family as narrow as the language model of the trial."""
    parts = {name.removesuffix("_config"): kind for name, kind in config.sub_configs.items() if kind is not AutoConfig}
    return {f"{name}.hidden_size": _WIDTH for name, kind in parts.items() if hasattr(kind(), "hidden_size")}


def _shrunk(text: Any, model: Any) -> dict[str, Any]:
    """A small language model, as deep as the merges inside it need; `model` is the whole one, without weights."""
    values, schedule = text.to_dict(), model.model.schedule()
    depth = max(2, *(k + 1 for k in schedule.layers)) if schedule is not None and schedule.layers else 2
    small = {"hidden_size": _WIDTH, "intermediate_size": 2 * _WIDTH, "num_attention_heads": 4}
    small["num_hidden_layers"] = min(depth, text.num_hidden_layers)
    small |= {"num_key_value_heads": 4, "head_dim": _WIDTH // 4}
    values |= {name: value for name, value in small.items() if name in values}
    if values.get("layer_types"):
        values["layer_types"] = values["layer_types"][: values["num_hidden_layers"]]
    return values


if __name__ == "__main__":
    _trial(sys.argv[1], Path(sys.argv[2]))
    shutdown_distributed()
