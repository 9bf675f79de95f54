"""What `videopanda train` does: find the start, the data and the output of a stage, then run it."""

import logging
from pathlib import Path
from typing import Any

from videopanda.data.collate import Collator
from videopanda.data.conversations import ConversationDataset
from videopanda.data.scenes.dataset import ScenesDataset
from videopanda.data.shards import ShardDataset
from videopanda.models.videopanda import VideoPandaStabConfig
from videopanda.training.run import run_stage
from videopanda.training.stages import StageConfig, make_config
from videopanda.training.whiten import whiten_patch_embedding

logger = logging.getLogger(__name__)


def train(stage: str, config: str, set_: list[str], model: Path | None, output: Path | None, resume: bool) -> Path:
    """Run one stage; returns the folder of the trained model.

    Raises:
        ValueError: unknown stage, setting or value, no starting model, or an output folder that is in use.
    """
    settings = make_config(stage, config, set_)
    dataset = make_dataset(settings)
    start, processor = _start(settings, model, dataset)
    return run_stage(settings, start, processor, dataset, output or Path("out") / stage, resume)


def _start(settings: StageConfig, folder: Path | None, dataset: Any) -> tuple[Any, Any]:
    from videopanda.training import assemble, nano

    if settings.stage == "language":
        if folder is not None:
            raise ValueError("stage language starts from nothing: leave --model away")
        tokenizer = nano.make_tokenizer(seed=settings.seed)
        return nano.make_language_model(tokenizer, settings.seed), tokenizer
    if folder is None:
        raise ValueError(f"stage {settings.stage} starts from a model: pass --model DIR")
    if assemble.is_video_panda(folder):
        return assemble.load(folder)
    logger.info("putting a fresh STAB in front of %s", folder)
    if settings.stab == "nano":
        stab, initializer_range = nano.STAB, nano.INITIALIZER_RANGE
    else:
        stab, initializer_range = getattr(VideoPandaStabConfig, settings.stab)(), 0.02
    model, processor = assemble.put_stab_in_front(folder, stab, initializer_range, settings.seed)
    if settings.whiten_patches:
        clips = [dataset[i] for i in range(min(64, len(dataset)))]
        pixel_values = Collator(processor, settings.max_length, text=False)(clips)["pixel_values_videos"]
        whiten_patch_embedding(model.model.stab.patch_embedding.weight, pixel_values, seed=settings.seed)
    return model, processor


def make_dataset(settings: StageConfig) -> Any:
    """The samples of a stage, in their final order."""
    if settings.data != "scenes":
        if settings.align_weight:
            raise ValueError("files do not say what a cell shows: use --set align_weight=0, or data=scenes")
        share, group = settings.data_share, settings.group_by_clip
        if Path(settings.data, "shards.json").is_file():
            if settings.manifest:
                raise ValueError("shards are written without bad rows: pass the manifest to `videopanda data shard`")
            return ShardDataset(settings.data, settings.num_frames, settings.seed, share=share, group_by_clip=group)
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
        )
    if not settings.max_steps:
        raise ValueError("scenes are endless: say how long to train with --set max_steps=N")
    return ScenesDataset(
        num=settings.max_steps * settings.batch_size * settings.accumulation,
        seed=settings.seed,
        num_frames=settings.num_frames,
        captions=settings.scenes_captions,
        text_only=settings.stage == "language",
        max_things=settings.scenes_max_things,
        ramp=settings.scenes_ramp,
        plain=settings.scenes_plain,
    )
