"""Checks all rows of a table before anything is trained: what a stage would refuse, and changes without effect."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from videopanda.encoders.open import open_teacher
from videopanda.lab.results import FRAME_SIZE
from videopanda.lab.table import Table, TableRow
from videopanda.lab.teachers import KINDS
from videopanda.models.families import config_class, fixed_fields, fresh_config, model_class, processor_class
from videopanda.training import nano
from videopanda.training.build import encoder_fields
from videopanda.training.datasets import check_clips_fit
from videopanda.training.freezing import vision_modules
from videopanda.training.run import check_task
from videopanda.training.stages import StageConfig, make_config
from videopanda.training.whiten import patch_embedding

_TEACHER_NUMBERS = {"steps": 1, "batch_size": 2, "clips": 2}  # and the least that they can be


def check(table: Table, budget: str, start: Path | None = None) -> None:
    """Build every row without weights, as its stages would.

    Args:
        start: a language model in place of stage `language`.

    Raises:
        ValueError: a stage would refuse a row, or two rows are the same experiment.
    """
    for name, made in table.teachers.items():
        _check_teacher(name, made)
    seen: dict[str, str] = {}
    for row in table.rows:
        try:
            experiment = _experiment(table, row, budget, start)
        except ValueError as error:
            raise ValueError(f"table {table.name}, row {row.name!r}: {error}") from error
        if other := seen.get(experiment):
            raise ValueError(
                f"table {table.name}: rows {other!r} and {row.name!r} are the same experiment, because nothing that "
                "differs between them has an effect: change something else, or remove one"
            )
        seen[experiment] = row.name


def _experiment(table: Table, row: TableRow, budget: str, start: Path | None) -> str:
    """Everything that a row trains, as text."""
    chain = table.chain(row.name, 0, budget)
    stages = [make_config(training.stage, training.config, training.options) for training in chain]
    if start:
        changed = [key for key in {**table.fields, **row.fields} if key.startswith("text.")]
        changed += ["stage language"] * ("language" in {*row.stages, *row.steps})
        if changed:
            raise ValueError(f"{changed[0]} has no effect with --model: omit --model, or choose other rows with --row")
        stages = [stage for stage in stages if stage.stage != "language"]
    text, maker, config, model = _text_config(stages, start), None, None, None
    for stage in (stage for stage in stages if stage.stage != "language"):
        if config is None:
            maker, config = stage, _new_config(table, stage, text)
            with torch.device("meta"):
                model = model_class(config)(config)
        elif fixed := fixed_fields(config, stage.model_fields):
            raise ValueError(f"stage {stage.stage}: {fixed[0]} belongs under `fields`, which define the model")
        try:
            _check_stage(table, stage, model, config, stage is maker)
        except ValueError as error:
            raise ValueError(f"stage {stage.stage}: {error}") from error
    plain = [replace(stage, model_fields={}).as_dict() for stage in stages]
    adjusted = [stage.model_fields for stage in stages if stage is not maker]
    made = (config or text).to_dict()
    return json.dumps([plain, adjusted, made], sort_keys=True, default=str)


def _check_teacher(name: str, made: Mapping[str, Any]) -> None:
    """Check the settings with which `lab teacher` will be called."""
    if wrong := sorted(set(made) - {"kind", *_TEACHER_NUMBERS}):
        raise ValueError(f"teacher {name}: unknown key {wrong[0]!r}, choose from kind, {', '.join(_TEACHER_NUMBERS)}")
    if made.get("kind") not in KINDS:
        raise ValueError(f"teacher {name}: kind must be one of {', '.join(KINDS)}, got {made.get('kind')!r}")
    for key, least in _TEACHER_NUMBERS.items():
        if not isinstance(value := made.get(key, least), int) or value < least:
            raise ValueError(f"teacher {name}: {key} must be a whole number of at least {least}, got {value!r}")


def _text_config(stages: list[StageConfig], start: Path | None) -> Any:
    """The configuration of the language model of a row."""
    if start is not None:
        config = AutoConfig.from_pretrained(start)
        if model_class(config) is not None:
            raise ValueError(f"{start} already has a vision part: start from a plain language model")
        return config.get_text_config()
    language = next((stage for stage in stages if stage.stage == "language"), None)
    if language is None:
        raise ValueError("without stage language there is no language model: pass one with --model")
    with torch.device("meta"):
        return nano.make_language_model(_tokenizer(), 0, language.model_fields).config


@cache
def _tokenizer() -> Any:
    return nano.make_tokenizer(10)


def _new_config(table: Table, stage: StageConfig, text: Any) -> Any:
    """The configuration of the model that a stage makes. An encoder that the table trains has the default sizes."""
    trained_here = stage.encoder in table.teachers and hasattr(config_class(stage.model_family), "of_encoder")
    given = {} if trained_here else encoder_fields(stage.model_family, stage.encoder)
    given |= {"text_config": text.to_dict(), "video_token_id": 0, "image_token_id": 1}
    fields = {key: value for key, value in stage.model_fields.items() if not key.startswith("text.")}
    return fresh_config(stage.model_family, stage.model_preset, fields, **given)


def _check_stage(table: Table, stage: StageConfig, model: Any, config: Any, makes_model: bool) -> None:
    stage.learning_rates(vision_modules(model))
    check_clips_fit(stage, config)
    video_processor = processor_class(config).video_processor_for(config)
    check_task(stage, video_processor)
    if stage.teacher and not (stage.distill_weight or stage.is_guided):
        raise ValueError("the teacher has no effect: set distill_weight, tube_weight or frame_weight, or omit it")
    if stage.teacher and stage.teacher not in table.teachers and not stage.teacher_features:
        open_teacher(stage.teacher)
    if makes_model and stage.whiten_patches:
        clip = np.zeros((stage.num_frames, *FRAME_SIZE, 3), np.uint8)
        patch_embedding(model, video_processor(videos=[clip], return_tensors="pt")["pixel_values_videos"])
