"""The training stages as data: one table for the paper, one for the bundled nano model.

    config = make_config("pretrain", preset="nano", overrides=["stab_lr=3e-4", "max_steps=500"])

`prealign`, `pretrain` and `finetune` are the paper's three stages (Sec. 3.4, Tab. 6). `language` is not in the paper:
it gives nano what a real backbone brings along, a language model that has read text about the world.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

STAGES = ("language", "prealign", "pretrain", "finetune")
PARTS = ("stab", "projector", "language_model")


@dataclass(frozen=True)
class StageConfig:
    """Everything that decides the outcome of one stage. Learning rates of 0 freeze a part."""

    stage: str
    # Data: "scenes" (drawn on the fly), a file of conversations, a mixture, or a folder of shards (docs/data.md).
    data: str = "scenes"
    data_format: str = "auto"  # of the file, where its content does not tell
    media_root: str = ""  # folder that video paths are relative to; default the file's own folder
    data_share: float = 1.0  # part of the samples that is used, chosen by (id, seed)
    group_by_clip: bool = False  # all conversations about a clip in one row
    manifest: str = ""  # of `videopanda data check`: what it calls bad is left out
    max_bad_share: float = 0.01  # larger parts of all rows are not left out, but an error
    num_frames: int = 8  # frames that the model sees of every clip
    max_length: int = 2048  # tokens per row; conversations that do not fit are left out whole
    system_prompt: str = ""  # in front of every conversation; "" = what the chat template says by itself
    official_flip: bool = False  # mirror half of the clips, as the official frame transform does
    scenes_max_things: int = 4
    scenes_ramp: float = 0.0  # share of the stage in which the number of things grows from 1 to the maximum
    scenes_plain: float = 0.0  # share of scenes on a plain background
    scenes_captions: int = 2  # captions per clip, beside its questions
    # A fresh STAB, where the starting folder is a bare language model.
    stab: Literal["released", "paper", "eve_star", "nano"] = "released"
    whiten_patches: bool = False  # start a fresh patch embedding as a whitening of the first 64 clips
    # Loss.
    text_weight: float = 1.0  # of the cross-entropy on answers; 0 = the language model does not run
    align_weight: float = 0.0  # of the alignment of visual tokens with words, for data that knows what a cell shows
    # Learning rate per part; warm-up, then cosine to zero.
    stab_lr: float = 4e-5
    projector_lr: float = 4e-5
    language_model_lr: float = 4e-5
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    adam_beta2: float = 0.999
    max_grad_norm: float = 0.0  # 0 = no clipping
    # Length and batch.
    epochs: float = 1.0
    max_steps: int = 0  # 0 = as many as the epochs make
    batch_size: int = 8  # rows per process and step
    accumulation: int = 1
    # Machine.
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the arithmetic; weights and optimiser stay float32
    compile: bool = False
    gradient_checkpointing: bool = False
    num_workers: int = 0
    seed: int = 42
    # Records.
    log_steps: int = 10
    save_steps: int = 200
    keep_checkpoints: int = 1
    save_dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights in the output folder

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ValueError(f"unknown stage {self.stage!r}: choose one of {', '.join(STAGES)}")
        for name in ("num_frames", "max_length", "batch_size", "accumulation", "log_steps", "save_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.data_share <= 1:
            raise ValueError(f"data_share must lie in (0, 1], not {self.data_share}")
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"max_bad_share must lie in [0, 1], not {self.max_bad_share}")
        if not 0 <= self.warmup_ratio < 1:
            raise ValueError(f"warmup_ratio must lie in [0, 1), not {self.warmup_ratio}")
        for name in ("stab_lr", "projector_lr", "language_model_lr", "text_weight", "align_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, it is {getattr(self, name)}")
        if self.official_flip and self.align_weight > 0:
            raise ValueError("official_flip mirrors the picture but not the words that align_weight aligns: choose one")
        if self.text_weight == 0 and self.align_weight == 0:
            raise ValueError("nothing to learn: text_weight and align_weight are both 0")

    @property
    def learning_rates(self) -> dict[str, float]:
        """Learning rate of every part of the model."""
        return {part: getattr(self, f"{part}_lr") for part in PARTS}

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for `run.json`."""
        return asdict(self)


# Paper Tab. 6 and Sec. 4.1. Global batch 2048 / 2048 / 1024: batch_size × accumulation × processes must make it so.
PAPER = {
    "prealign": StageConfig(
        "prealign", data="valley_.json", data_share=0.5, stab_lr=4e-4, projector_lr=4e-4, language_model_lr=0.0
    ),
    "pretrain": StageConfig("pretrain", data="valley_.json", warmup_ratio=0.01, save_steps=300),
    "finetune": StageConfig(
        "finetune",
        data="videochatgpt_tune_.json",
        stab_lr=2e-5,
        projector_lr=2e-5,
        language_model_lr=2e-5,
        warmup_ratio=0.01,
        batch_size=4,
        save_steps=400,
    ),
}

_NANO = StageConfig(
    "pretrain",
    stab="nano",
    max_length=448,
    scenes_captions=1,
    batch_size=4,  # many small steps: looking things up is learned by their number, not by that of rows
    adam_beta2=0.99,
    max_grad_norm=1.0,
    compile=True,
    num_workers=1,
    log_steps=50,
    save_steps=500,
)
NANO = {
    "language": replace(
        _NANO, stage="language", stab_lr=0.0, projector_lr=0.0, language_model_lr=1e-3, max_steps=2400,
        scenes_ramp=0.2,
    ),
    "prealign": replace(
        _NANO, stage="prealign", seed=44, stab_lr=2e-3, projector_lr=2e-3, language_model_lr=0.0, max_steps=700,
        batch_size=64, num_frames=4, adam_beta2=0.98, whiten_patches=True, text_weight=0.0, align_weight=1.0,
        compile=False,
    ),
    "pretrain": replace(
        _NANO, seed=45, stab_lr=3e-4, projector_lr=3e-4, language_model_lr=1e-3, max_steps=4000, align_weight=0.1,
        scenes_ramp=0.15,
    ),
    "finetune": replace(
        _NANO, stage="finetune", seed=46, stab_lr=3e-4, projector_lr=3e-4, language_model_lr=7e-4, max_steps=12000,
        align_weight=0.1, save_dtype="bfloat16",
    ),
}  # fmt: skip
PRESETS = {"paper": PAPER, "nano": NANO}


def make_config(stage: str, preset: str | Path = "paper", overrides: Sequence[str] = ()) -> StageConfig:
    """The stage's row of a preset, or of a JSON file {field: value}, then single `key=value` changes.

    Raises:
        ValueError: unknown stage, preset, field, or a value of the wrong type; the message names the nearest field.
    """
    values: dict[str, Any] = {}
    table = PRESETS.get(str(preset))
    if table is None:
        path = Path(preset)
        if not path.is_file():
            raise ValueError(f"--config {preset}: neither a file nor one of {', '.join(PRESETS)}")
        values = _read_settings(path)
        name = values.pop("preset", "paper")
        if name not in PRESETS:
            raise ValueError(f"{path}: preset {name!r} is not one of {', '.join(PRESETS)}")
        table = PRESETS[name]
    if stage not in table:
        raise ValueError(f"preset {preset} has no stage {stage!r}: choose one of {', '.join(table)}")
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator:
            raise ValueError(f"--set {item}: write it as key=value")
        values[key.strip()] = text.strip()
    types = {field.name: field.type for field in fields(StageConfig)}
    for key, value in values.items():
        if key not in types or key == "stage":
            near = get_close_matches(key, types, n=1)
            raise ValueError(f"unknown setting {key!r}" + (f": did you mean {near[0]!r}?" if near else ""))
        values[key] = _convert(key, value, types[key])
    return replace(table[stage], **values)


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold one JSON object {{setting: value}}")
    return values


def _convert(key: str, value: Any, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{key} must be one of {', '.join(get_args(kind))}, not {value!r}")
        return value
    if kind is bool:
        names = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if str(value).lower() not in names:
            raise ValueError(f"{key} must be true or false, not {value!r}")
        return names[str(value).lower()]
    try:
        converted = kind(value)
        if isinstance(value, float) and converted != value:
            raise ValueError("not a whole number")
        return converted
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key} must be of type {kind.__name__}, not {value!r}") from error
