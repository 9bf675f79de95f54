"""One stage of training, from a folder to a folder: `videopanda train`, `finetune` and `data features`.

    videopanda train pretrain --config nano --model out/prealign --output out/pretrain

The loop, mixed precision, checkpoints and resuming are the Hugging Face Trainer's. Every checkpoint is an ordinary
model folder; `metrics.jsonl`, `run.json`, `curves.png` and `index.html`, which shows them, are written next to it.
"""

import logging
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import AutoConfig, PrinterCallback, set_seed

from videopanda.checkpoints import checksums
from videopanda.checkpoints.tensors import HEAD_FILE
from videopanda.data.collate import Collator
from videopanda.data.loader import EpochDataset
from videopanda.data.sample import Sample
from videopanda.encoders.open import Teacher, open_teacher
from videopanda.models.families import model_class
from videopanda.models.load import load_checkpoint, multiplies_bfloat16
from videopanda.training import build, nano
from videopanda.training.adapter import ADAPTER, add_adapter, load_quantized, merge
from videopanda.training.arguments import arguments
from videopanda.training.callbacks import EarlyStop, RunStoppedError, StallWatchdog, StopOnSignal
from videopanda.training.chat_template import read_template
from videopanda.training.datasets import check_clips_fit, count_tokens, frame_sampling, make_dataset, make_validation
from videopanda.training.distill import (
    Distillation,
    DistillVideoLanguage,
    FusedHead,
    LastLayerHead,
    StoredFeatures,
    every_fourth_layer,
)
from videopanda.training.freezing import on_paper, rates_of, recompute_activations, set_stage
from videopanda.training.guidance import GuidedVideoLanguage, VideoGuidance, WholeFrames
from videopanda.training.packing import for_backbone, packing_report, set_rows
from videopanda.training.progress import ProgressLine
from videopanda.training.run_folder import (
    MetricsFile,
    add_to_record,
    check_settings,
    check_unused,
    last_good_checkpoint,
    locked,
    no_half_files,
    publish,
    step_of,
    write_record,
)
from videopanda.training.run_page import write_page, write_samples
from videopanda.training.stages import StageConfig, make_config
from videopanda.training.tasks import Task, VideoLanguage
from videopanda.training.teacher_features import FeatureFolder, write_features
from videopanda.training.trainer import StageTrainer, TaskModule
from videopanda.training.validation import MAX_SAMPLES, line_of
from videopanda.training.whiten import patch_embedding, whiten_patch_embedding

logger = logging.getLogger(__name__)


def train(
    stage: str, config: str, set_: list[str], model: Path | None, output: Path | None, resume: bool = True
) -> Path:
    """Run one stage, continuing an earlier run with the same settings; returns the folder of the trained model.

    Raises:
        ValueError: unknown stage, setting or value, no starting model, or the output folder is in use.
    """
    folder = output or Path("out") / stage
    settings = _settings(stage, config, set_)
    args = arguments(settings, folder)  # connects to the other processes, if there are any
    if args.process_index == 0:
        check_unused(folder, resume)
    settings = for_backbone(settings.on(args.world_size), model)
    if settings.compile and not _can_compile():
        settings = replace(settings, compile=False)
    check_settings(folder, settings, None, args.world_size, model)
    if model is not None and settings.stage != "language":
        planned = build.config_of(settings, model)
        on_paper(settings, planned)
        check_clips_fit(settings, planned)
    dataset = make_dataset(settings, frame_sampling(settings, model))
    start, processor = _start(settings, model, dataset)
    count_tokens(dataset, processor, settings)
    if settings.lora_rank:
        start = add_adapter(start, settings)
    task, collator = make_task(settings, start, processor, model)
    held_out = make_validation(settings, dataset)
    return run_stage(settings, start, processor, dataset, folder, resume, task, collator, held_out, model)


def _settings(stage: str, config: str, set_: list[str]) -> StageConfig:
    """A stage on this machine: "auto" becomes the type in which it computes fast."""
    settings = make_config(stage, config, set_)
    if settings.dtype != "auto":
        return settings
    native = multiplies_bfloat16("cuda" if torch.cuda.is_available() else "cpu")
    return replace(settings, dtype="bfloat16" if native else "float32")


def custom_settings(data: str, media_root: Path | None, lora: bool, quantize: bool) -> list[str]:
    """The changes of `videopanda finetune` to the preset `custom`."""
    settings = [f"data={data}", f"media_root={media_root or ''}"]
    if not torch.cuda.is_available():
        settings.append("dtype=float32")  # several times faster than bfloat16 on most CPUs
    if lora:
        settings += ["lora_rank=16", "language_model_lr=0.0002"]
    return settings + ["quantize=nf4", "save_dtype=bfloat16"] * quantize  # of a large model, 14 instead of 28 GB


def make_features(stage: str, config: str, set_: list[str], model: Path, out: Path) -> int:
    """Write the teacher's features for a stage's data, see `write_features`; returns the number of new clips."""
    settings = for_backbone(_settings(stage, config, set_), model)
    if not settings.teacher:
        raise ValueError("choose the teacher with --set teacher=DIR")
    args = arguments(settings, out)
    _, processor = _start(settings, model, None)
    teacher = _open_teacher(settings, processor)
    collator = make_collator(settings, processor, teacher_processor=_seen(settings, teacher, processor))
    collator.text = False

    def batch(samples: Any) -> dict[str, torch.Tensor]:
        return {name: tensor.to(args.device) for name, tensor in collator(samples).items()}

    sampling = frame_sampling(settings, model)
    ranks = args.process_index, args.world_size
    return write_features(settings, make_dataset(settings, sampling), sampling, batch, teacher, out, *ranks)


def _start(settings: StageConfig, folder: Path | None, dataset: Any) -> tuple[Any, Any]:
    if settings.stage == "language":
        if folder is not None:
            raise ValueError('stage "language" trains from scratch: remove --model')
        if settings.data != "scenes":
            raise ValueError("stage language reads descriptions of Scenes, whose words are its tokens: set data=scenes")
        tokenizer = nano.make_tokenizer(seed=settings.seed)
        return nano.make_language_model(tokenizer, settings.seed, settings.model_fields), tokenizer
    if folder is None:
        raise ValueError(f"stage {settings.stage} needs a model to start from: pass --model DIR")
    if settings.teacher and not settings.teacher_features:
        open_teacher(settings.teacher)  # its weights are read later; what is no teacher is refused before the model is
    if model_class(AutoConfig.from_pretrained(folder)) is not None:
        quantized = settings.quantize == "nf4"
        model, processor = load_quantized(folder) if quantized else load_checkpoint(folder, torch.float32)
        if settings.scenes_vocabulary:
            nano.grow_vocabulary(model, processor, settings.scenes_vocabulary)
        build.change_fields(model, processor, settings.model_fields, folder)
        build.as_trained(model, processor, settings)
        return model, processor
    if settings.lora_rank:
        raise ValueError(f"LoRA needs a trained checkpoint, but {folder} is a plain language model")
    if settings.scenes_vocabulary:
        raise ValueError(f"scenes_vocabulary needs a trained checkpoint, but {folder} is a plain language model")
    logger.info("adding a fresh vision part to %s", folder)
    model, processor = build.build_model(
        folder,
        seed=settings.seed,
        family=settings.model_family,
        preset=settings.model_preset,
        fields=settings.model_fields,
        encoder=settings.encoder,
        chat_template=read_template(settings.chat_template),
    )
    if settings.whiten_patches and dataset is not None:
        clips = [dataset[i] for i in range(min(64, len(dataset)))]
        pixel_values = Collator(processor, settings.max_length, text=False)(clips)["pixel_values_videos"]
        whiten_patch_embedding(patch_embedding(model, pixel_values), pixel_values, seed=settings.seed)
    build.as_trained(model, processor, settings)
    return model, processor


def make_task(settings: StageConfig, model: Any, processor: Any, folder: Path | None) -> tuple[Task, Collator]:
    """The task and the collator of a stage.

    Raises:
        ValueError: distillation without a teacher, or a teacher that cannot be opened.
    """
    if settings.stage != "language":  # which has no clips
        check_task(settings, processor.video_processor)
    if not settings.distill_weight and not settings.is_guided:
        nothing = None
        if settings.align_weight and settings.align_to == "phrases":
            nothing = processor.tokenizer.encode(" nothing", add_special_tokens=False)[0]
        task = VideoLanguage(settings.text_weight, settings.align_weight, nothing)
        return task, make_collator(settings, processor)
    teacher: Any
    if settings.teacher_features:
        sampling = processor.video_processor.frame_sampling
        features = FeatureFolder(settings.teacher_features, settings, sampling)
        teacher, size = StoredFeatures(), features.size
        collator = make_collator(settings, processor, teacher_features=features.read)
    else:
        teacher = _open_teacher(settings, processor)
        size = teacher.size
        collator = make_collator(settings, processor, teacher_processor=_seen(settings, teacher, processor))
    set_seed(settings.seed)
    if settings.is_guided:
        width = model.config.get_text_config().hidden_size
        guidance = VideoGuidance(width, size, settings.tube_weight, settings.frame_weight)
        _load_head(guidance, folder)
        return GuidedVideoLanguage(guidance, teacher, settings.text_weight), collator
    head, layers = make_head(settings, model.config.get_text_config(), size)
    _load_head(head, folder)
    distillation = Distillation(head, processor.video_processor.max_cells, settings.distill_distance)
    weights = settings.distill_weight, settings.text_weight
    return DistillVideoLanguage(distillation, teacher, layers, *weights), collator


def check_task(settings: StageConfig, video_processor: Any) -> None:
    """Check that a model with this video processor can learn what a stage asks for.

    Raises:
        ValueError: single cells of compressed tokens are compared, or a teacher is missing.
    """
    taught = settings.distill_weight or settings.is_guided
    if (taught or settings.align_weight) and video_processor.compression:
        raise ValueError(
            "the tokens of this model are compressed, so they cannot be compared with single cells: "
            "--set align_weight=0 distill_weight=0 tube_weight=0 frame_weight=0, or train without a compressor"
        )
    if taught and not (settings.teacher or settings.teacher_features):
        off = "tube_weight=0 --set frame_weight=0" if settings.is_guided else "distill_weight=0"
        raise ValueError(
            "this stage distills a teacher: choose one with --set teacher=DIR (or teacher_features=DIR), or train "
            f"without one with --set {off}"
        )


def make_head(settings: StageConfig, text: Any, size: int) -> tuple[FusedHead | LastLayerHead, tuple[int, ...]]:
    """A fresh distillation head for a teacher of width `size`, and the hidden states that it reads."""
    layers = every_fourth_layer(text.num_hidden_layers)
    if settings.distill_head == "fused":
        return FusedHead(text.hidden_size, size, len(layers)), layers
    return LastLayerHead(text.hidden_size, size), layers[:1]


def _open_teacher(settings: StageConfig, processor: Any) -> Teacher:
    dtype = torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32
    return open_teacher(settings.teacher, None if settings.is_guided else processor.video_processor.max_cells, dtype)


def _seen(settings: StageConfig, teacher: Teacher, processor: Any) -> Any:
    """The processor of the frames that the teacher sees."""
    if settings.is_guided:
        return WholeFrames(teacher.image_size, teacher.mean, teacher.std, settings.num_frames)
    return teacher.video_processor(processor.video_processor)


def _load_head(head: torch.nn.Module, folder: Path | None) -> None:
    """Load the head saved with the model, if it is of this kind and size."""
    path = folder / HEAD_FILE if folder else None
    if path is None or not path.exists():
        logger.info("the distillation head is initialized from scratch")
        return
    found = load_file(path)
    fits = {name: tensor.shape for name, tensor in head.state_dict().items()}
    if {name: tensor.shape for name, tensor in found.items()} != fits:
        logger.info("the distillation head is initialized from scratch: the one in %s has another type or size", path)
        return
    head.load_state_dict(found)


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
    start: Path | None = None,
) -> Path:
    """Train `model` on `dataset` (of `Sample`s) with the settings of `stage`, and save it with its processor in
    `output`.

    Args:
        task: what a step computes; default: cross-entropy and alignment with the weights of the stage.
        collator: makes its batches; default `make_collator(stage, processor)`.
        validation: samples held out of `dataset`, on which loss and accuracy are measured ten times and at the end.
        start: folder that `model` comes from, for the record.

    Raises:
        ValueError: another run uses `output`, or it contains a run: `resume` is not set, or settings or data differ.
        RunStoppedError: a signal stopped the run after a checkpoint.
        DivergedError: a loss, gradient or weight is not finite.
        OSError: a checkpoint cannot be written; no partial one is left.
    """
    wrapped = [type(model.get_decoder().layers[0]).__name__]
    args = arguments(stage, output, wrapped, "no" if validation is None else "steps")
    if args.process_index == 0:
        check_unused(output, resume)
    collator = collator or make_collator(stage, processor)
    with locked(output) if args.process_index == 0 else nullcontext():
        return _run(stage, model, processor, dataset, output, args, task, collator, validation, start)


def _run(
    stage: StageConfig,
    model: Any,
    processor: Any,
    dataset: EpochDataset,
    output: Path,
    args: Any,
    task: Task | None,
    collator: Collator,
    validation: Sequence[Sample] | None,
    start_folder: Path | None,
) -> Path:
    reports = set_stage(model, rates_of(stage, model))
    for report in reports:
        logger.info("%s", report)
    if collator.text:
        set_rows(collator, model)
        logger.info("%s", packing_report(model.config, collator))
    for norm in (module for module in model.modules() if hasattr(module, "synchronized")):
        norm.synchronized = stage.sync_batch_norm
    if stage.compile:
        compile_blocks(model)
    if stage.gradient_checkpointing:
        recompute_activations(model)
    metrics, stop = MetricsFile(output / "metrics.jsonl"), StopOnSignal()
    if validation is not None:
        logger.info("%-16s%d samples held out from training", "validation", min(len(validation), MAX_SAMPLES))
    content = dataset.content()
    check_settings(output, stage, content, args.world_size, start_folder)
    watch = [StallWatchdog(stage.stall_seconds, args.process_index, output / "reading")] if stage.stall_seconds else []
    early = []
    if stage.early_stop and validation is not None:
        early = [EarlyStop(model, stage.early_stop, output / ".best")]
    trainer = StageTrainer(
        model=TaskModule(model, task or VideoLanguage(stage.text_weight, stage.align_weight), stage.seed),
        args=args,
        dataset=dataset,
        collator=collator,
        validation=validation,
        processing_class=processor,
        callbacks=[metrics, stop, ProgressLine(), *watch, *early],
        stage=stage,
    )
    trainer.remove_callback(PrinterCallback)
    start: list[Any] = [None]
    if trainer.is_world_process_zero():
        start = [last_good_checkpoint(output)]
        data = {"samples": len(dataset), "sha256": content}
        write_record(output, stage, reports, data, args.world_size, start_folder)
        metrics.rewind(step_of(start[0]))
        write_page(output)
    if dist.is_initialized():
        dist.broadcast_object_list(start)  # all processes resume from the same one
    args.eval_on_start = validation is not None and not start[0]
    trainer.train(resume_from_checkpoint=str(start[0]) if start[0] else None)
    shutil.rmtree(output / "reading", ignore_errors=True)
    if stop.stopped:
        raise RunStoppedError(f"stopped after step {trainer.state.global_step}")
    for callback in early:
        callback.restore()
        trainer.evaluate()
    measured = trainer.measured()
    trainer.require_finite_weights()
    if stage.save_dtype == "bfloat16" and not stage.lora_rank:
        model.to(torch.bfloat16)
    part = output / ".saving"
    with no_half_files(output, part, "the trained model"):
        trainer.save_model(str(part / ADAPTER if stage.lora_rank else part))
        if trainer.is_world_process_zero():
            from videopanda.training.plots import plot_curves

            if stage.lora_rank:
                merged = merge(model, part / ADAPTER)
                merged.to(getattr(torch, stage.save_dtype)).save_pretrained(part)
                processor.save_pretrained(part)
            checksums.record(part)
            publish(part, output)
            if measured:
                add_to_record(output, {"validation": measured})
                logger.info("%s", line_of(measured["after"]))
            plot_curves(output / "metrics.jsonl", output / "curves.png", title=stage.stage)
            write_samples(dataset, output)
            write_page(output)
    return output


def shutdown_distributed() -> None:
    """Wait for all ranks, then destroy the process group; must be the last call.

    A process that exits while gloo's threads are running is aborted, and one that exits before the others breaks their
    connections.
    """
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def make_collator(stage: StageConfig, processor: Any, **fields: Any) -> Collator:
    """The collator of a stage."""
    return Collator(
        processor,
        stage.max_length,
        supervise="all" if stage.stage == "language" else "answers",
        fill_rows=stage.pack_rows,
        pad_to=stage.max_length if stage.compile else None,
        text=stage.text_weight > 0,
        cell_words=stage.align_weight > 0 and stage.align_to == "cells",
        frame_times=stage.is_guided,
        frame_phrases=stage.align_weight > 0 and stage.align_to == "phrases",
        additive_mask=stage.compile,
        flip_seed=stage.seed if stage.official_flip else None,
        resolution=(stage.random_resolution, stage.seed) if stage.random_resolution else None,
        **fields,
    )


def _can_compile() -> bool:
    """Whether torch can compile here; logs the reason if not."""
    import torch._dynamo

    logger.info("compiling: the first step takes about a minute")
    try:
        torch.compile(torch.sin, dynamic=False)(torch.ones(8, device="cuda" if torch.cuda.is_available() else "cpu"))
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        logger.warning(
            "torch.compile does not work here, training continues without it (is g++ installed?): %s", reason
        )
        return False
    return True


def compile_blocks(model: Any) -> None:
    """Compile every decoder layer on its own: seconds instead of minutes, and most of the gain.

    At a few hundred tokens compiled eager attention is faster on CPU than the fused one (a quarter of the step).
    """
    decoder = model.get_decoder()
    decoder.set_attn_implementation("eager")
    for layer in decoder.layers:
        layer.compile(dynamic=False)
