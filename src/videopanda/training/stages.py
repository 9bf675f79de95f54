"""The training stages as data: one table for the paper, one for the bundled nano model.

    config = make_config("pretrain", preset="nano", overrides=["vision_lr=3e-4", "max_steps=500"])

`prealign`, `pretrain` and `finetune` are the paper's three stages (Sec. 3.2, Tab. 6). `language` is not in the paper:
it gives nano what a real backbone already has: a language model trained on text about the world.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from videopanda.data.worlds.scenes.dataset import TRAINING_THEMES
from videopanda.data.worlds.scenes.world import THEMES
from videopanda.models.families import DEFAULT, config_class, fresh_config, fresh_fields
from videopanda.models.fields import argument_types, convert, parse_settings, unknown
from videopanda.models.prompts import TRAINING_SYSTEM_PROMPT

STAGES = ("language", "prealign", "spatial", "spatiotemporal", "pretrain", "finetune")


@dataclass(frozen=True)
class StageConfig:
    """Everything that decides the outcome of one stage. Learning rates of 0 freeze a part."""

    stage: str
    # Data: "scenes" (drawn on the fly), a file of conversations, a mixture, or a folder of shards (docs/data.md).
    data: str = "scenes"
    data_format: str = "auto"  # annotation format, if it cannot be detected
    media_root: str = ""  # folder that video paths are relative to; default: the file's own folder
    data_share: float = 1.0  # share of the samples to use, chosen by (id, seed)
    group_by_clip: bool = False  # all conversations about a clip in one row
    manifest: str = ""  # written by `videopanda data check`: rows that it lists as bad are skipped
    max_bad_share: float = 0.01  # a larger share of bad rows is an error
    validation: int = 64  # clips (at most a tenth of all) held out to measure loss and accuracy on; 0 = none
    early_stop: int = 0  # validations without a better loss after which training ends, with the best weights; 0 = never
    num_frames: int = 8  # frames that the model sees of every clip
    max_length: int = 2048  # tokens per row; conversations that do not fit are dropped entirely
    timestamps: Literal["", "none", "frame"] = ""  # "frame" writes "<1.5 seconds>" before each frame; "" = as the model
    system_prompt: str = ""  # put into the chat template of the model; "" = leave the template as it is
    official_flip: bool = False  # mirror half of the clips, as the official frame transform does
    random_resolution: float = 0.0  # smallest scale of a frame, drawn for every frame; 0 = all are full
    scenes_max_things: int = 4
    scenes_ramp: float = 0.0  # share of the stage during which the number of objects grows from 1 to the maximum
    scenes_plain: float = 0.0  # share of scenes on a plain background
    scenes_captions: int = 2  # captions per clip, in addition to its questions
    scenes_brief: bool = False  # captions only name the objects, as captions from the web often do
    scenes_wordings: float = 0.0  # share of rephrased questions; above 0, some cannot be answered from the clip
    scenes_outside: float = 0.0  # share of clips of another world; the answer is always that the model cannot tell
    scenes_exact_times: float = 0.0  # share of clips at other speeds and moments, with questions about exact times
    scenes_vocabulary: int = 0  # grow the tokenizer to this many tokens with words of these questions; 0 = keep it
    scenes_themes: str = ""  # comma-separated names; "" = all
    scenes_text: Literal["frames", "whole"] = "frames"  # what stage `language` reads: descriptions of frames or clips
    # A new vision part, if the starting folder is a plain language model; see `fresh_config`.
    model_family: str = DEFAULT
    model_preset: str = ""  # "" = the first one of the family
    model_fields: dict[str, str] = field(default_factory=dict)  # dotted names, as in --set NAME.FIELD=VALUE
    encoder: str = ""  # folder of the pretrained tower of a new model, for the family that has one
    chat_template: str = ""  # file or "vicuna"; "" = the tokenizer's own
    whiten_patches: bool = False  # initialize a new patch embedding by whitening the patches of the first 64 clips
    # Loss.
    loss_mean: Literal["step", "batch"] = "step"  # all tokens of a step weigh alike, or the means of its batches do
    text_weight: float = 1.0  # weight of the cross-entropy on answers; 0 = the language model does not run
    distill_weight: float = 0.0  # weight of the distillation of a video teacher (Video-Panda paper, Eq. 19)
    distill_distance: Literal["cosine", "mse"] = "cosine"
    distill_head: Literal["fused", "last_layer"] = "fused"  # the released head, or the paper's wording
    teacher: str = ""  # folder of weights, or module:function (docs/scale.md)
    teacher_features: str = ""  # folder written by `videopanda data features`; the teacher itself does not run
    tube_weight: float = 0.0  # weight of the teacher's guidance (docs/elva.md) of places over time
    frame_weight: float = 0.0  # and of single frames, contrasted with those of all clips
    align_weight: float = 0.0  # weight of aligning visual tokens with words, for data with per-cell labels
    align_to: Literal["cells", "phrases"] = "cells"  # words of each cell, or of each frame's caption
    # LoRA on the language model; vision modules are trained fully unless their learning rate is 0.
    lora_rank: int = 0  # 0 = the language model itself is trained
    lora_alpha: int = 0  # 0 = twice the rank
    lora_dropout: float = 0.0
    quantize: Literal["none", "nf4"] = "none"  # format of the frozen language model in memory
    # Learning rate per part; warm-up, then cosine to zero.
    vision_lr: float = 4e-5  # everything except the language model
    language_model_lr: float = 4e-5
    module_lr: dict[str, float] = field(default_factory=dict)  # single vision modules, as in --set lr.projector=0
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    adam_beta2: float = 0.999
    max_grad_norm: float = 1.0  # 0 = no clipping; the first gradients of a fresh vision part are large
    # Length and batch.
    epochs: float = 1.0
    max_steps: int = 0  # 0 = as many as `epochs` requires
    batch_size: int = 8  # rows per process and step
    accumulation: int = 1
    global_batch: int = 0  # rows per step over all processes; if not 0, it determines the accumulation
    group_by_length: bool = False  # batch samples of similar length, and give all ranks about the same number of tokens
    pack_rows: bool = False  # several clips in one row, up to max_length tokens; rows need no grouping by length then
    # Machine.
    # Of the computation; weights and optimizer stay float32. auto: bfloat16 where the hardware has it, else float32.
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    gradient_checkpointing: bool = False
    sync_batch_norm: bool = False  # batch-norm statistics over the clips of all processes
    num_workers: int = 0
    frame_cache: str = ""  # folder that keeps decoded frames between epochs and runs; "" = decode every time
    frame_cache_gb: float = 50.0  # its maximum size
    seed: int = 42
    strategy: Literal["ddp", "fsdp2", "zero2", "zero3"] = "ddp"  # used with several processes
    # Records.
    log_steps: int = 10
    save_steps: int = 200
    keep_checkpoints: int = 2  # the previous one is kept in case the newest is damaged
    save_dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights in the output folder
    report_to: str = ""  # tensorboard, wandb or trackio; several with commas
    stall_seconds: float = 600.0  # a rank without a step for this long reports what it is doing; 0 = never

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ValueError(f"unknown stage {self.stage!r}: choose one of {', '.join(STAGES)}")
        for name in (
            "num_frames",
            "max_length",
            "batch_size",
            "accumulation",
            "log_steps",
            "save_steps",
            "keep_checkpoints",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if wrong := set(self.themes) - set(THEMES):
            raise ValueError(f"scenes_themes must be among {', '.join(THEMES)}, got {sorted(wrong)[0]!r}")
        if self.quantize != "none" and not self.lora_rank:
            raise ValueError("quantized weights cannot be trained: set lora_rank as well")
        if not 0 < self.data_share <= 1:
            raise ValueError(f"data_share must be in (0, 1], got {self.data_share}")
        for name in ("scenes_wordings", "scenes_outside", "scenes_exact_times", "random_resolution"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"max_bad_share must be in [0, 1], got {self.max_bad_share}")
        for name in ("warmup_ratio", "adam_beta2", "lora_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        numbers = {**vars(self), **{f"lr.{name}": rate for name, rate in self.module_lr.items()}}
        for name, value in numbers.items():
            if isinstance(value, int | float) and not 0 <= value < math.inf:
                raise ValueError(f"{name} must {'not be negative' if value < 0 else 'be a finite number'}, got {value}")
        if not any((self.vision_lr, self.language_model_lr, *self.module_lr.values())):
            raise ValueError("nothing is trained: all learning rates are 0")
        language_model_lr = self.module_lr.get("language_model", self.language_model_lr)
        if self.lora_rank and not language_model_lr:
            raise ValueError("lora_rank adapts the language model, whose learning rate is 0: set language_model_lr")
        if self.scenes_vocabulary and (self.lora_rank or not language_model_lr):
            raise ValueError(
                "scenes_vocabulary adds word embeddings, which are trained only with the whole language model: set "
                "scenes_vocabulary=0, or lora_rank=0 and language_model_lr above 0"
            )
        if self.stage == "language":
            for name in ("align_weight", "distill_weight", "tube_weight", "frame_weight", "lora_rank"):
                if getattr(self, name):
                    raise ValueError(f"stage language trains a new language model on text: set {name}=0")
        if not self.epochs:
            raise ValueError("epochs must be positive, got 0")
        if not self.lora_rank and (self.lora_alpha or self.lora_dropout):
            raise ValueError("lora_alpha and lora_dropout require lora_rank")
        if self.encoder and self.whiten_patches:
            raise ValueError("whiten_patches would overwrite the pretrained encoder: set whiten_patches=false")
        if self.official_flip and self.align_weight > 0:
            raise ValueError(
                "official_flip mirrors the picture but not the words that align_weight uses: choose one of the two"
            )
        if self.random_resolution and self.align_weight and self.align_to == "cells":
            raise ValueError("random_resolution changes what a cell shows: set align_to=phrases, or align_weight=0")
        if self.strategy == "zero3" and self.align_weight > 0:
            raise ValueError("align_weight needs the full embedding matrix, which ZeRO-3 shards: use one or the other")
        if self.strategy == "zero3" and self.teacher and not self.teacher_features:
            raise ValueError(
                "zero3 would shard the teacher as well: write its features with `data features` and set "
                "teacher_features, or use fsdp2, zero2 or ddp"
            )
        if self.strategy == "zero3" and self.save_dtype != "float32":
            raise ValueError(f"zero3 saves weights in float32, not {self.save_dtype}: set save_dtype=float32")
        if self.early_stop and self.strategy != "ddp":
            raise ValueError(f"early_stop keeps whole weights, which {self.strategy} shards: set strategy=ddp")
        if self.early_stop and not self.held_out:
            raise ValueError("early_stop measures held-out clips: set validation and text_weight above 0")
        if self.strategy == "zero3" and self.lora_rank:
            raise ValueError("a LoRA adapter cannot be merged from ZeRO-3 shards: use fsdp2, zero2 or ddp")
        if self.text_weight == self.align_weight == self.distill_weight == 0:
            raise ValueError("nothing to learn: text_weight, align_weight and distill_weight are all 0")
        if self.distill_weight and (self.align_weight or not self.text_weight):
            raise ValueError("distill_weight requires text_weight > 0 and align_weight = 0")
        if self.is_guided and (self.align_weight or self.distill_weight or not self.text_weight):
            raise ValueError(
                "tube_weight and frame_weight require text_weight > 0, align_weight = 0 and distill_weight = 0"
            )
        if self.is_guided and self.loss_mean != "step":
            raise ValueError("tube_weight and frame_weight compare the frames of a whole step: set loss_mean=step")
        if self.pack_rows and self.data == "scenes":
            raise ValueError("rows of Scenes are full, one clip with all its questions each: set pack_rows=false")
        if unknown := set(self.loggers) - {"tensorboard", "wandb", "trackio"}:
            raise ValueError(f"report_to must name tensorboard, wandb or trackio, got {sorted(unknown)[0]!r}")

    def learning_rates(self, vision: Iterable[str]) -> dict[str, float]:
        """Learning rate of every part of a model whose vision modules have these names.

        Raises:
            ValueError: `module_lr` names an unknown module.
        """
        rates = {**dict.fromkeys(vision, self.vision_lr), "language_model": self.language_model_lr}
        for name, rate in self.module_lr.items():
            if name not in rates:
                raise ValueError(unknown(f"lr.{name}", [f"lr.{known}" for known in rates]))
            rates[name] = rate
        return rates

    def on(self, processes: int) -> "StageConfig":
        """This stage on a number of processes: `global_batch`, if any, decides the accumulation.

        Raises:
            ValueError: the global batch cannot be divided evenly.
        """
        if not self.global_batch:
            return self
        at_once = self.batch_size * processes
        if self.global_batch % at_once:
            raise ValueError(
                f"global_batch={self.global_batch} is not a multiple of {at_once} rows ({self.batch_size} on each of "
                f"{processes} processes): change batch_size or global_batch, or set global_batch=0"
            )
        return replace(self, accumulation=self.global_batch // at_once)

    @property
    def is_guided(self) -> bool:
        """Whether a teacher guides the last layer (`training/guidance.py`)."""
        return bool(self.tube_weight or self.frame_weight)

    @property
    def held_out(self) -> int:
        """Clips to hold out: none if no text is learned, or with zero3, whose ranks must encode in step."""
        return self.validation if self.text_weight and self.strategy != "zero3" else 0

    @property
    def themes(self) -> tuple[str, ...]:
        """The themes in `scenes_themes`."""
        return tuple(name.strip() for name in self.scenes_themes.split(",")) if self.scenes_themes else TRAINING_THEMES

    @property
    def loggers(self) -> list[str]:
        """The loggers in `report_to`."""
        return [name.strip() for name in self.report_to.split(",") if name.strip()]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for `run.json`."""
        values = asdict(self)
        dotted = {**values.pop("model_fields"), **{f"lr.{name}": v for name, v in values.pop("module_lr").items()}}
        return {**values, **dotted}


# Video-Panda paper, Tab. 6 and Sec. 4.1; what it leaves out is as in the official scripts, except mirroring and
# clipping. Their loop averages the means of batches.
_PAPER = StageConfig(
    "pretrain",
    data="valley_.json",
    model_preset="paper",
    distill_head="last_layer",
    loss_mean="batch",
    dtype="bfloat16",
    strategy="zero2",
    distill_weight=1.0,
    max_length=4096,
    warmup_ratio=0.01,
    global_batch=2048,
    group_by_length=True,
    gradient_checkpointing=True,
    save_steps=300,
)
PAPER = {
    "prealign": replace(
        _PAPER, stage="prealign", data_share=0.5, vision_lr=4e-4, language_model_lr=0.0,
        warmup_ratio=0.03, save_steps=200,
    ),
    "pretrain": _PAPER,
    "finetune": replace(
        _PAPER, stage="finetune", data="videochatgpt_tune_.json", vision_lr=2e-5,
        language_model_lr=2e-5, batch_size=4, global_batch=1024, save_steps=400,
    ),
}  # fmt: skip
# The published scripts: the released block and head, 16 nodes of 4 GPUs with 8, 8 and 4 rows each, which is a quarter
# of the paper's global batches, and no gradient clipping.
SCRIPTS = {
    name: replace(
        stage,
        model_preset="released",
        distill_head="fused",
        global_batch=stage.global_batch // 4,
        official_flip=True,
        system_prompt=TRAINING_SYSTEM_PROMPT,
        max_grad_norm=0.0,
    )
    for name, stage in PAPER.items()
}

_NANO = StageConfig(
    "pretrain",
    model_preset="nano",
    max_length=448,
    scenes_captions=1,
    batch_size=4,  # many small steps: lookups are learned with the number of steps, not of rows
    adam_beta2=0.99,
    compile=True,
    num_workers=1,
    save_steps=500,
)
NANO = {
    "language": replace(
        _NANO, stage="language", vision_lr=0.0, language_model_lr=1e-3, max_steps=2400,
        scenes_ramp=0.2,
    ),
    "prealign": replace(
        _NANO, stage="prealign", seed=44, vision_lr=2e-3, language_model_lr=0.0, max_steps=700,
        batch_size=64, num_frames=4, adam_beta2=0.98, whiten_patches=True, text_weight=0.0, align_weight=1.0,
        compile=False,
    ),
    "pretrain": replace(
        _NANO, seed=45, vision_lr=3e-4, language_model_lr=1e-3, max_steps=4000, align_weight=0.1,
        scenes_ramp=0.15,
    ),
    "finetune": replace(
        _NANO, stage="finetune", seed=46, vision_lr=3e-4, language_model_lr=7e-4, max_steps=12000,
        align_weight=0.1, save_dtype="bfloat16",
    ),
}  # fmt: skip
# With guidance by a teacher (docs/elva.md). Stages, data and losses are published; learning rates, batches and frames
# are those of EVE and Video-Panda. Nothing merges until the last stage, which draws a new share for every step.
_GUIDED = StageConfig(
    "spatial",
    data="elva_image.json",
    model_family="elva",
    strategy="zero2",
    num_frames=1,
    max_length=4096,
    warmup_ratio=0.01,
    global_batch=512,
    group_by_length=True,
    gradient_checkpointing=True,
    save_steps=300,
)
GUIDED = {
    "prealign": replace(_GUIDED, stage="prealign", vision_lr=4e-4, language_model_lr=0.0, warmup_ratio=0.03),
    "spatial": _GUIDED,
    "spatiotemporal": replace(
        _GUIDED, stage="spatiotemporal", data="elva_video.json", num_frames=16, tube_weight=1.0, frame_weight=1.0,
        batch_size=4,
    ),
    "finetune": replace(
        _GUIDED, stage="finetune", data="elva_tune.json", num_frames=32, vision_lr=2e-5, language_model_lr=2e-5,
        global_batch=128, batch_size=1, max_length=8192, random_resolution=0.5,
        model_fields={"merge.layers": "published", "merge.random_keep": "0.3"},
    ),
}  # fmt: skip
# A few hundred clips of your own, on one machine.
CUSTOM = {
    "finetune": StageConfig(
        "finetune", group_by_clip=True, epochs=3.0, batch_size=4, log_steps=1, save_steps=100,
        vision_lr=2e-5, language_model_lr=2e-5,
    )
}  # fmt: skip
PRESETS = {"paper": PAPER, "scripts": SCRIPTS, "nano": NANO, "elva": GUIDED, "custom": CUSTOM}


_NOT_SET = ("stage", "model_fields", "module_lr")


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
    values |= parse_settings(overrides)
    types = {found.name: found.type for found in fields(StageConfig) if found.name not in _NOT_SET}
    of_model = argument_types(config_class(values.get("model_family", table[stage].model_family)))
    changes: dict[str, Any] = {"model_fields": dict(table[stage].model_fields), "module_lr": {}}
    for key, value in values.items():
        head, dot, name = key.partition(".")
        if dot and head == "lr":
            changes["module_lr"][name] = convert(key, value, float)
        elif dot:
            changes["model_fields"][key] = value
        elif key in types:
            changes[key] = convert(key, value, types[key])
        elif key in of_model:
            changes["model_fields"][key] = value
        else:
            raise ValueError(unknown(key, [*types, *of_model]))
    settings = replace(table[stage], **changes)
    if changes["model_fields"] or not changes.keys().isdisjoint(("model_family", "model_preset")):
        # What can be checked without the language model.
        told = {key: value for key, value in settings.model_fields.items() if not key.startswith("text.")}
        check = fresh_fields if settings.encoder else fresh_config  # whose folder says what values are possible
        deep = {"model_type": "llama", "num_hidden_layers": 10_000, "vocab_size": 32002}  # any layer may be named
        check(settings.model_family, settings.model_preset, told, text_config=deep)
    return settings


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must contain one JSON object {{setting: value}}")
    return values
