"""Protects the table of stages (paper Tab. 6) and how single settings are changed."""

import json
from dataclasses import fields, replace
from typing import Literal, get_args, get_origin

import pytest

from videopanda.training.stages import NANO, PAPER, STAGES, StageConfig, make_config

# stage: (vision modules, language model), share of warm-up steps, rows per process and step.
TABLE = {
    "prealign": ((4e-4, 0.0), 0.03, 8),
    "pretrain": ((4e-5, 4e-5), 0.01, 8),
    "finetune": ((2e-5, 2e-5), 0.01, 4),
}
FIELDS = {field.name: field for field in fields(StageConfig)}
# There is one family yet; dotted fields have tests of their own.
SETTABLE = [name for name in FIELDS if name not in ("stage", "model_family", "model_fields", "module_lr")]


# -- the table ---------------------------------------------------------------------------------------------------------
def test_the_paper_has_three_stages():
    found = {
        name: ((stage.vision_lr, stage.language_model_lr), stage.warmup_ratio, stage.batch_size)
        for name, stage in PAPER.items()
    }
    assert found == TABLE
    for stage in PAPER.values():
        assert (stage.epochs, stage.max_steps, stage.weight_decay, stage.adam_beta2) == (1.0, 0, 0.0, 0.999)
        assert (stage.text_weight, stage.align_weight, stage.dtype) == (1.0, 0.0, "bfloat16")
        assert (stage.distill_weight, stage.max_grad_norm) == (1.0, 1.0)
        assert stage.loss_mean == "batch"  # as the official loop


@pytest.mark.parametrize("preset", ["paper", "nano"])
def test_rows_stand_under_their_own_name(preset):
    table = {"paper": PAPER, "nano": NANO}[preset]
    assert all(stage.stage == name for name, stage in table.items())
    assert [name for name in STAGES if name in table] == list(table)
    for name, stage in table.items():
        assert make_config(name, preset) == stage


def test_only_prealign_and_language_freeze_anything():
    frozen = {
        (preset, name): {part for part, rate in stage.learning_rates(["vision"]).items() if rate == 0}
        for preset, table in (("paper", PAPER), ("nano", NANO))
        for name, stage in table.items()
    }
    assert {key: parts for key, parts in frozen.items() if parts} == {
        ("paper", "prealign"): {"language_model"},
        ("nano", "prealign"): {"language_model"},
        ("nano", "language"): {"vision"},
    }


# What else must be set for a value to make sense.
WITH = {name: {"distill_weight": 0.0} for name in ("align_weight", "tube_weight", "frame_weight")}
WITH["tube_weight"] = WITH["frame_weight"] = {"distill_weight": 0.0, "loss_mean": "step"}
WITH |= {"early_stop": {"strategy": "ddp"}, "lora_rank": {"language_model_lr": 1e-4}}
WITH |= {name: {"lora_rank": 4, "language_model_lr": 1e-4} for name in ("quantize", "lora_alpha", "lora_dropout")}
WITH |= {"scenes_vocabulary": {"language_model_lr": 1e-4}}


# -- single settings ---------------------------------------------------------------------------------------------------
def other_value(name: str):
    """A valid value of the field's type that is not its default."""
    field = FIELDS[name]
    default = PAPER["prealign"].as_dict()[name]
    if get_origin(field.type) is Literal:
        return next(value for value in get_args(field.type) if value != default)
    if field.type is bool:
        return not default
    if name == "report_to":
        return "tensorboard, wandb"
    if name == "model_preset":
        return "eve_star"
    if name == "adam_beta2":
        return 0.5
    if name == "scenes_themes":
        return "still, move"
    return "elsewhere" if field.type is str else default + {int: 3, float: 0.25}[field.type]


@pytest.mark.parametrize("name", SETTABLE)
def test_every_setting_can_be_set(name):
    value, more = other_value(name), WITH.get(name, {})
    config = make_config("prealign", "paper", [f"{key}={v}" for key, v in {name: value, **more}.items()])
    assert config == replace(PAPER["prealign"], **{name: value, **more})
    assert config != PAPER["prealign"]
    assert type(config.as_dict()[name]) is type(value)


def test_later_changes_win_and_blanks_do_not_count():
    config = make_config("pretrain", "nano", ["max_steps=5", " vision_lr = 3e-4 ", "max_steps=7"])
    assert config == replace(NANO["pretrain"], max_steps=7, vision_lr=3e-4)


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("True", True), ("1", True), ("yes", True), ("no", False), ("0", False)]
)
def test_the_ways_to_write_true_and_false(text, value):
    assert make_config("pretrain", "paper", [f"compile={text}"]).compile is value


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("vision_rl=1", "unknown setting 'vision_rl': did you mean 'vision_lr'?"),
        ("learning_rat=1", "unknown setting 'learning_rat'"),
        ("zzzzzz=1", "unknown setting 'zzzzzz'"),
        ("stage=pretrain", "unknown setting 'stage'"),
        ("compile=maybe", "compile must be true or false, got 'maybe'"),
        ("compile=", "compile must be true or false, got ''"),
        ("max_steps=many", "max_steps must be a whole number, got 'many'"),
        ("max_steps=3.5", "max_steps must be a whole number, got '3.5'"),
        ("vision_lr=fast", "vision_lr must be a number, got 'fast'"),
        ("lr.stab=fast", "lr.stab must be a number, got 'fast'"),
        ("merge.layers=1", "unknown setting 'merge.layers' in family videopanda: family elva has it"),
        ("stab.row_token=false", "unknown setting 'stab.row_token': did you mean 'stab.row_tokens'?"),
        ("stab.row_tokens=maybe", "stab.row_tokens must be true or false, got 'maybe'"),
        (
            "stab.downsampling=mean",
            "stab.downsampling must be one of lsd, average, .* got 'mean'",
        ),
        ("stab.segment_frames=2.5", "stab.segment_frames must be a whole number or none, got '2.5'"),
        ("stab.num_heads=3", "hidden_size 1024 is not a multiple of num_heads 3"),
        ("model_family=videopandas", "unknown family 'videopandas'"),
        ("dtype=float16", "dtype must be one of auto, float32, bfloat16, got 'float16'"),
        ("batch_size=0", "batch_size must be at least 1, got 0"),
        ("save_steps=-1", "save_steps must be at least 1, got -1"),
        ("warmup_ratio=1", r"warmup_ratio must be in \[0, 1\), got 1.0"),
        ("max_steps", "--set max_steps: write it as key=value"),
        ("report_to=mail", "report_to must name tensorboard, wandb or trackio, got 'mail'"),
        ("quantize=nf4", "quantized weights cannot be trained: set lora_rank as well"),
        ("align_weight=1", "distill_weight requires text_weight > 0 and align_weight = 0"),
        ("text_weight=0", "distill_weight requires text_weight > 0 and align_weight = 0"),
        ("global_batch=-1", "global_batch must not be negative, got -1"),
        ("max_steps=-5", "max_steps must not be negative, got -5"),  # trained a whole epoch
        ("weight_decay=-1", "weight_decay must not be negative, got -1.0"),
        ("max_grad_norm=-1", "max_grad_norm must not be negative, got -1.0"),
        ("vision_lr=nan", "vision_lr must be a finite number, got nan"),
        ("lr.projector=inf", "lr.projector must be a finite number, got inf"),
        ("adam_beta2=1.5", r"adam_beta2 must be in \[0, 1\), got 1.5"),
        ("epochs=0", "epochs must be positive, got 0"),
        ("lora_alpha=32", "lora_alpha and lora_dropout require lora_rank"),
        ("vision_lr=0", "nothing is trained: all learning rates are 0"),
    ],
)
def test_a_wrong_setting_is_told(item, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make_config("prealign", "paper", [item])


# -- presets and files -------------------------------------------------------------------------------------------------
def test_a_file_changes_a_preset_and_the_command_line_wins(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"preset": "nano", "max_steps": 5, "compile": False, "data": "a.json", "vision_lr": 1}))
    config = make_config("prealign", path, ["max_steps=9"])
    assert config == replace(NANO["prealign"], max_steps=9, compile=False, data="a.json", vision_lr=1.0)
    assert type(config.vision_lr) is float


def test_a_file_without_preset_changes_the_paper(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"batch_size": 2}))
    assert make_config("prealign", str(path)) == replace(PAPER["prealign"], batch_size=2)


def test_what_a_run_records_makes_it_again(tmp_path):
    """`run.json` holds the settings of a run; without the name of the stage they are a file for --config."""
    settings = make_config("pretrain", "nano", ["max_steps=3", "compile=no", "stab.row_tokens=no", "lr.projector=0"])
    values = settings.as_dict()
    assert values.pop("stage") == "pretrain"
    path = tmp_path / "again.json"
    path.write_text(json.dumps(values))
    assert make_config("pretrain", path) == settings


@pytest.mark.parametrize(
    ("stage", "preset", "message"),
    [
        ("prealign", "huge", "--config huge: neither a file nor one of paper, scripts, nano, elva, custom"),
        ("language", "paper", "preset paper has no stage 'language': choose one of prealign, pretrain, finetune"),
        ("warmup", "nano", "preset nano has no stage 'warmup'"),
    ],
)
def test_unknown_stages_and_presets(stage, preset, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make_config(stage, preset)


def test_a_wrong_setting_in_a_file_is_told(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"batchsize": 2}))
    with pytest.raises(ValueError, match="unknown setting 'batchsize': did you mean 'batch_size'"):
        make_config("prealign", path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"align_weight": 1.0}, "align_weight needs the full embedding matrix"),
        ({"lora_rank": 4}, "a LoRA adapter cannot be merged"),
        ({"save_dtype": "bfloat16"}, "zero3 saves weights in float32"),
        ({"teacher": "siglip"}, "zero3 would shard the teacher as well"),
    ],
)
def test_what_zero3_cannot_do(fields, message):
    with pytest.raises(ValueError, match=message):
        StageConfig("finetune", strategy="zero3", **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lora_rank": 4, "language_model_lr": 0.0}, "lora_rank adapts the language model, whose learning rate is 0"),
        ({"scenes_vocabulary": 2000, "lora_rank": 4}, "scenes_vocabulary adds word embeddings, which are trained only"),
        ({"scenes_vocabulary": 2000, "language_model_lr": 0.0}, "scenes_vocabulary adds word embeddings, which are"),
        ({"early_stop": 3, "validation": 0}, "early_stop measures held-out clips: set validation and text_weight"),
        ({"stage": "language", "lora_rank": 4}, "stage language trains a new language model on text: set lora_rank=0"),
        ({"stage": "language", "align_weight": 1.0}, "language model on text: set align_weight=0"),
    ],
)
def test_settings_without_effect_together_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        StageConfig(**{"stage": "finetune", **fields})


def test_any_layer_of_a_deep_language_model_may_merge():
    """How many layers there are is known only with the model; the default has 32."""
    assert make_config("finetune", "elva", ["merge.layers=3,9,40"]).model_fields["merge.layers"] == "3,9,40"


def test_an_unknown_stage_cannot_be_built():
    with pytest.raises(ValueError, match="unknown stage 'sft': choose one of language, prealign, spatial"):
        StageConfig("sft")
