"""What `videopanda train` does: find the start, the data and the output of a stage, then run it."""

import logging
from pathlib import Path
from typing import Any

from videopanda.data.scenes.dataset import ScenesDataset
from videopanda.training.run import run_stage
from videopanda.training.stages import StageConfig, make_config

logger = logging.getLogger(__name__)


def train(
    stage: str, config: str | Path, set_: list[str], model: Path | None, output: Path | None, resume: bool
) -> Path:
    """Run one stage; returns the folder of the trained model."""
    settings = make_config(stage, config, set_)
    start, processor = _start(settings, model)
    return run_stage(settings, start, processor, make_dataset(settings), output or Path("out") / stage, resume)


def _start(settings: StageConfig, folder: Path | None) -> tuple[Any, Any]:
    if settings.stage == "language":
        from videopanda.training.nano import make_language_model, make_tokenizer

        tokenizer = make_tokenizer(seed=settings.seed)
        return make_language_model(tokenizer, settings.seed), tokenizer
    if folder is None:
        raise ValueError(f"stage {settings.stage} starts from a model: pass --model DIR")
    from videopanda.training.assemble import load_start
    from videopanda.training.nano import STAB

    return load_start(folder, STAB, settings.seed)


def make_dataset(settings: StageConfig) -> ScenesDataset:
    """The samples of a stage, in their final order."""
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
