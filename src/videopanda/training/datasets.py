"""The samples of a stage, from its settings: training and validation."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoProcessor

from videopanda.data.conversations import ConversationDataset, Sampling
from videopanda.data.shards import ShardDataset
from videopanda.data.worlds.scenes.dataset import ScenesDataset
from videopanda.models.configuration import context_length
from videopanda.models.families import model_class, processor_class
from videopanda.training.arguments import arguments
from videopanda.training.stages import StageConfig
from videopanda.video.disk_cache import FrameCache

logger = logging.getLogger(__name__)

_USUAL_SIZES = ((1080, 1920), (1920, 1080), (1080, 2560))  # height and width of clips


def frame_sampling(settings: StageConfig, folder: Path | None) -> Sampling:
    """The rule by which the model chooses frames of a file, in training as in answering."""
    if folder is None or settings.stage == "language" or model_class(AutoConfig.from_pretrained(folder)) is None:
        return "uniform"  # as that of a fresh model
    rule = AutoProcessor.from_pretrained(folder).video_processor.frame_sampling
    if settings.data == "scenes" and rule != "uniform":
        raise ValueError(
            f"Scenes are drawn at evenly spaced times, but {folder} samples frames by the rule {rule!r}: write clips "
            "with `videopanda scenes make` and pass them with --set data=FILE"
        )
    return rule


def make_dataset(settings: StageConfig, sampling: Sampling = "uniform") -> Any:
    """The samples of a stage, in their final order; frames are chosen by the rule `sampling` of `read_video`."""
    if settings.data != "scenes":
        if settings.align_weight:
            raise ValueError("annotation files carry no per-cell labels: use --set align_weight=0 or data=scenes")
        cache = FrameCache(settings.frame_cache, int(settings.frame_cache_gb * 1e9)) if settings.frame_cache else None
        shared: dict[str, Any] = {
            "num_frames": settings.num_frames,
            "seed": settings.seed,
            "share": settings.data_share,
            "group_by_clip": settings.group_by_clip,
            "held_out": settings.held_out,
            "sampling": sampling,
            "cache": cache,
        }
        if Path(settings.data, "shards.json").is_file():
            if settings.manifest:
                raise ValueError("shards never contain bad rows: pass the manifest to `videopanda data shard`")
            return ShardDataset(settings.data, **shared)
        return ConversationDataset(
            settings.data,
            settings.media_root,
            format=settings.data_format,
            manifest=settings.manifest or None,
            max_bad_share=settings.max_bad_share,
            **shared,
        )
    if not settings.max_steps:
        raise ValueError("the Scenes stream is infinite: set the length with --set max_steps=N")
    processes = arguments(settings, Path("out")).world_size
    return ScenesDataset(
        num=settings.max_steps * settings.batch_size * settings.accumulation * processes,
        seed=settings.seed,
        num_frames=settings.num_frames,
        captions=settings.scenes_captions,
        brief=settings.scenes_brief,
        text_only=settings.stage == "language",
        described=settings.scenes_text,
        themes=settings.themes,
        max_things=settings.scenes_max_things,
        ramp=settings.scenes_ramp,
        plain=settings.scenes_plain,
        wordings=settings.scenes_wordings,
        outside=settings.scenes_outside,
        exact_times=settings.scenes_exact_times,
    )


def make_validation(settings: StageConfig, dataset: Any) -> Any:
    """The samples held out of `make_dataset`, or None."""
    if not settings.held_out:
        return None
    held_out = dataset.validation(settings.held_out) if settings.data == "scenes" else dataset.validation()
    if held_out is None:
        logger.info("%-16snone: the data has fewer than ten clips", "validation")
    return held_out


def check_clips_fit(settings: StageConfig, config: Any) -> None:
    """Check that clips of `num_frames` fit into a row, and into the context of the language model, whose row they share
    with a conversation. A clip of another size that does not fit is told by its name, when its row is made.

    Args:
        config: of the model to train, see `config_of`.

    Raises:
        ValueError: no clip of a usual shape fits.
    """
    if model_class(config) is None or not settings.text_weight:
        return  # no clips, or no rows
    count = partial(processor_class(config).video_processor_for(config).token_count, settings.num_frames)
    small = count(144, 192)  # as the clips of Scenes; families that keep the size of a clip need fewer tokens
    least = small if settings.data == "scenes" else min(count(*size) for size in _USUAL_SIZES)
    if least > settings.max_length:
        raise ValueError(
            f"{settings.num_frames:,} frames take at least {least:,} visual tokens, but max_length is "
            f"{settings.max_length:,}: set num_frames lower, or max_length higher"
        )
    if min(least, small) > (limit := context_length(config.get_text_config())):
        raise ValueError(
            f"{settings.num_frames:,} frames take at least {min(least, small):,} visual tokens, but the language model "
            f"has positions for {limit:,}: set num_frames lower"
        )


def count_tokens(dataset: Any, processor: Any, settings: StageConfig) -> None:
    """Tell a data set of files how many tokens a clip of 16:9 and an image have, for the lengths of its samples."""
    if hasattr(dataset, "visual_tokens") and hasattr(processor, "video_processor"):
        count = processor.video_processor.token_count
        dataset.visual_tokens = {
            "video": count(settings.num_frames, 1080, 1920),
            "image": count(1, 1080, 1920, "image"),
        }
