"""What `videopanda train` does: find the start, the data, the teacher and the output of a stage, then run it."""

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, set_seed

from videopanda.data.collate import Collator
from videopanda.data.conversations import ConversationDataset
from videopanda.data.shards import ShardDataset
from videopanda.data.worlds.scenes.dataset import ScenesDataset
from videopanda.encoders.open import Teacher, open_teacher
from videopanda.models.families import model_class
from videopanda.models.load import load_checkpoint
from videopanda.training.adapter import add_adapter, load_quantized
from videopanda.training.distill import (
    Distillation,
    DistillVideoLanguage,
    FusedHead,
    LastLayerHead,
    StoredFeatures,
    every_fourth_layer,
)
from videopanda.training.packing import for_backbone
from videopanda.training.run import arguments, make_collator, run_stage
from videopanda.training.stages import StageConfig, make_config
from videopanda.training.tasks import Task, VideoLanguage
from videopanda.training.teacher_features import FeatureFolder, write_features
from videopanda.training.trainer import HEAD_FILE
from videopanda.training.whiten import patch_embedding, whiten_patch_embedding

logger = logging.getLogger(__name__)


def train(stage: str, config: str, set_: list[str], model: Path | None, output: Path | None, resume: bool) -> Path:
    """Run one stage; returns the folder of the trained model.

    Raises:
        ValueError: unknown stage, setting or value, no starting model, or an output folder that is in use.
    """
    folder = output or Path("out") / stage
    settings = make_config(stage, config, set_)
    # The Trainer's arguments find the other processes, if there are any.
    settings = settings.on(arguments(settings, folder).world_size)
    settings = for_backbone(settings, model)
    dataset = make_dataset(settings)
    start, processor = _start(settings, model, dataset)
    if settings.lora_rank:
        start = add_adapter(start, settings)
    task, collator = make_task(settings, start, processor, model)
    held_out = make_validation(settings, dataset)
    return run_stage(settings, start, processor, dataset, folder, resume, task, collator, held_out)


def own_settings(data: str, media_root: Path | None, lora: bool, quantize: bool) -> list[str]:
    """What `videopanda finetune` changes in the preset `own`."""
    settings = [f"data={data}", f"media_root={media_root or ''}"]
    if not torch.cuda.is_available():
        settings.append("dtype=float32")  # several times faster than bfloat16 on most CPUs
    if lora:
        settings += ["lora_rank=16", "language_model_lr=0.0002"]
    if quantize:
        settings.append("quantize=nf4")
    return settings


def make_features(stage: str, config: str, set_: list[str], model: Path, out: Path) -> int:
    """Write the teacher's features of a stage's data, as `write_features`; returns how many clips were new."""
    settings = for_backbone(make_config(stage, config, set_), model)
    if not settings.teacher:
        raise ValueError("name the teacher with --set teacher=DIR")
    args = arguments(settings, out)
    _, processor = _start(settings, model, None)
    teacher = _open_teacher(settings, processor)
    collator = make_collator(settings, processor, teacher_processor=teacher.video_processor(processor.video_processor))
    collator.text = False

    def batch(samples: Any) -> dict[str, torch.Tensor]:
        return {name: tensor.to(args.device) for name, tensor in collator(samples).items()}

    return write_features(settings, make_dataset(settings), batch, teacher, out, args.process_index, args.world_size)


def _start(settings: StageConfig, folder: Path | None, dataset: Any) -> tuple[Any, Any]:
    from videopanda.training import build, nano

    if settings.stage == "language":
        if folder is not None:
            raise ValueError("stage language starts from nothing: leave --model away")
        tokenizer = nano.make_tokenizer(seed=settings.seed)
        return nano.make_language_model(tokenizer, settings.seed), tokenizer
    if folder is None:
        raise ValueError(f"stage {settings.stage} starts from a model: pass --model DIR")
    if model_class(AutoConfig.from_pretrained(folder)) is not None:
        if settings.model_fields:
            raise ValueError(f"{next(iter(settings.model_fields))} is set when a model is made, and {folder} is made")
        return load_quantized(folder) if settings.quantize == "nf4" else load_checkpoint(folder, torch.float32)
    if settings.lora_rank:
        raise ValueError(f"LoRA needs a model whose vision part is trained, and {folder} is a bare language model")
    logger.info("putting a fresh vision part in front of %s", folder)
    model, processor = build.build_model(
        folder,
        seed=settings.seed,
        family=settings.model_family,
        preset=settings.model_preset,
        fields=settings.model_fields,
    )
    if settings.whiten_patches and dataset is not None:
        clips = [dataset[i] for i in range(min(64, len(dataset)))]
        pixel_values = Collator(processor, settings.max_length, text=False)(clips)["pixel_values_videos"]
        whiten_patch_embedding(patch_embedding(model), pixel_values, seed=settings.seed)
    return model, processor


def make_task(settings: StageConfig, model: Any, processor: Any, folder: Path | None) -> tuple[Task, Collator]:
    """What a step of a stage computes, and what makes its batches.

    Raises:
        ValueError: distillation without a teacher, or a teacher that cannot be opened.
    """
    if not settings.distill_weight:
        return VideoLanguage(settings.text_weight, settings.align_weight), make_collator(settings, processor)
    teacher: Any
    if settings.teacher_features:
        features = FeatureFolder(settings.teacher_features, settings)
        teacher, size = StoredFeatures(), features.size
        collator = make_collator(settings, processor, teacher_features=features.read)
    elif settings.teacher:
        teacher = _open_teacher(settings, processor)
        size = teacher.size
        seen = teacher.video_processor(processor.video_processor)
        collator = make_collator(settings, processor, teacher_processor=seen)
    else:
        raise ValueError(
            "this stage distils a teacher: name one with --set teacher=DIR (or teacher_features=DIR), or leave it out "
            "with --set distill_weight=0"
        )
    text = model.config.get_text_config()
    layers = every_fourth_layer(text.num_hidden_layers)
    set_seed(settings.seed)
    head: FusedHead | LastLayerHead
    if settings.distill_head == "fused":
        head = FusedHead(text.hidden_size, size, len(layers))
    else:
        head, layers = LastLayerHead(text.hidden_size, size), layers[:1]
    _load_head(head, folder)
    distillation = Distillation(head, processor.video_processor.max_cells, settings.distill_distance)
    return DistillVideoLanguage(distillation, teacher, layers, settings.distill_weight), collator


def _open_teacher(settings: StageConfig, processor: Any) -> Teacher:
    dtype = torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32
    return open_teacher(settings.teacher, processor.video_processor.max_cells, dtype)


def _load_head(head: torch.nn.Module, folder: Path | None) -> None:
    """Go on with the head that lies beside the model, if it is one of this kind."""
    path = folder / HEAD_FILE if folder else None
    if path is None or not path.exists():
        logger.info("the distillation head starts fresh")
        return
    found = load_file(path)
    fits = {name: tensor.shape for name, tensor in head.state_dict().items()}
    if {name: tensor.shape for name, tensor in found.items()} != fits:
        logger.info("the distillation head starts fresh: that in %s is of another kind or size", path)
        return
    head.load_state_dict(found)


def make_validation(settings: StageConfig, dataset: Any) -> Any:
    """The samples that are held out of `make_dataset`, or None where there are none."""
    if not settings.held_out:
        return None
    held_out = dataset.validation(settings.held_out) if settings.data == "scenes" else dataset.validation()
    if held_out is None:
        logger.info("%-16snone: the data have fewer than ten clips", "validation")
    return held_out


def make_dataset(settings: StageConfig) -> Any:
    """The samples of a stage, in their final order."""
    if settings.data != "scenes":
        if settings.align_weight:
            raise ValueError("files do not say what a cell shows: use --set align_weight=0, or data=scenes")
        share, group = settings.data_share, settings.group_by_clip
        if Path(settings.data, "shards.json").is_file():
            if settings.manifest:
                raise ValueError("shards are written without bad rows: pass the manifest to `videopanda data shard`")
            return ShardDataset(
                settings.data,
                settings.num_frames,
                settings.seed,
                share=share,
                group_by_clip=group,
                held_out=settings.held_out,
            )
        return ConversationDataset(
            settings.data,
            settings.media_root,
            settings.num_frames,
            settings.seed,
            format=settings.data_format,
            share=share,
            group_by_clip=group,
            manifest=settings.manifest or None,
            max_bad_share=settings.max_bad_share,
            held_out=settings.held_out,
        )
    if not settings.max_steps:
        raise ValueError("scenes are endless: say how long to train with --set max_steps=N")
    processes = arguments(settings, Path("out")).world_size
    return ScenesDataset(
        num=settings.max_steps * settings.batch_size * settings.accumulation * processes,
        seed=settings.seed,
        num_frames=settings.num_frames,
        captions=settings.scenes_captions,
        text_only=settings.stage == "language",
        max_things=settings.scenes_max_things,
        ramp=settings.scenes_ramp,
        plain=settings.scenes_plain,
    )
