"""A small data set of clips that training tests share, and a stage that learns from it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tiny import clip, tiny_model, tiny_processor
from videopanda.data.sample import Sample
from videopanda.training.run import run_stage
from videopanda.training.stages import StageConfig


class Clips:
    """Clips with questions; every sixth sample is text alone."""

    def set_epoch(self, epoch: int) -> None:
        pass

    def __len__(self) -> int:
        return 80

    def __getitem__(self, index: int) -> Sample:
        videos = () if index % 6 == 5 else (clip(8, 30, 40, seed=index),)
        return Sample(str(index), videos, (((f"Question {index}?", "yes " * (1 + index % 5)),),))

    def content(self) -> str:
        return "80 clips"

    def lengths(self) -> np.ndarray:
        return np.ones(len(self))

    def files(self, index: int) -> list[str]:
        return [f"clip {index}"]


class Disturbed(Clips):
    """Does something at one sample."""

    def __init__(self, index: int, disturb):
        self.index, self.disturb = index, disturb

    def __getitem__(self, index: int) -> Sample:
        if index == self.index:
            self.disturb()
        return super().__getitem__(index)


class Timed:
    """Frames that know when they are shown, as a decoded clip does."""

    def __init__(self, frames: np.ndarray):
        self.frames, self.duration = frames, 4.0
        self.timestamps = tuple(np.arange(len(frames)) * 4.0 / len(frames))


def timed(sample: Sample) -> Sample:
    """The sample with the times of its frames."""
    return replace(sample, videos=tuple(map(Timed, sample.videos)))


STAGE = StageConfig(
    "pretrain",
    data="clips",
    dtype="float32",
    vision_lr=1e-3,
    language_model_lr=1e-3,
    log_steps=1,
)


def run_clips(folder: Path, resume: bool = False, dataset=None, model=None, held_out=None, **fields) -> Path:
    """Train a tiny model on clips, with settings of the stage changed."""
    torch.set_num_threads(1)
    stage = StageConfig(**{**STAGE.as_dict(), **fields})
    model, dataset = model or tiny_model(), dataset or Clips()
    return run_stage(stage, model, tiny_processor(), dataset, folder, resume, validation=held_out)


def held_out() -> list[Sample]:
    """Three samples that `Clips` does not have, the second of them text alone."""
    clips = [() if i == 1 else (clip(8, 30, 40, seed=900 + i),) for i in range(3)]
    return [Sample(f"held {i}", videos, (((f"Question {i}?", "yes"),),)) for i, videos in enumerate(clips)]


def metrics(folder: Path) -> list[dict]:
    """The record of a run, step by step."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]
