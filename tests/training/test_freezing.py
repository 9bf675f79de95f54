"""Protects what a stage trains: which parameters, each once, at which learning rate."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tiny import tiny_config, tiny_model
from videopanda.training.adapter import add_adapter
from videopanda.training.freezing import on_paper, parameter_groups, set_stage, vision_modules
from videopanda.training.stages import NANO, PAPER, SCRIPTS, make_config

NAMES = json.loads(Path(__file__).with_name("trainable_names.json").read_text())

VISION = ("stab", "projector")
VISUAL = {"model.stab", "model.projector"}
LANGUAGE = {"model.language_model", "lm_head"}
TRAINABLE = {"prealign": VISUAL, "pretrain": VISUAL | LANGUAGE, "finetune": VISUAL | LANGUAGE}


@pytest.fixture
def model():
    return tiny_model("paper").train()


@pytest.fixture
def causal_lm():
    return AutoModelForCausalLM.from_config(tiny_config(text="qwen3").text_config)


def top_level(names) -> set[str]:
    return {"lm_head" if name.startswith("lm_head") else ".".join(name.split(".")[:2]) for name in names}


@pytest.mark.parametrize("table", [PAPER, SCRIPTS], ids=["paper", "scripts"])
@pytest.mark.parametrize("stage", TRAINABLE)
def test_the_names_that_each_stage_trains(table, stage):
    """Written down for the released layout with two layers: nothing is frozen or trained unseen."""
    model = tiny_model().train()
    set_stage(model, table[stage].learning_rates(VISION))
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == NAMES[stage]


@pytest.mark.parametrize("frozen", [False, True], ids=["stab trained", "stab frozen"])
def test_the_names_that_an_adapter_trains(frozen):
    settings = ["lora_rank=2", *(["vision_lr=0"] if frozen else [])]
    stage = make_config("finetune", "custom", settings)
    model = add_adapter(tiny_model(), stage)
    set_stage(model, stage.learning_rates(VISION))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == NAMES["lora, stab frozen" if frozen else "lora"]


@pytest.mark.parametrize("table", [PAPER, NANO], ids=["paper", "nano"])
@pytest.mark.parametrize("stage", TRAINABLE)
def test_what_each_stage_trains(model, table, stage):
    set_stage(model, table[stage].learning_rates(VISION))
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert top_level(trainable) == TRAINABLE[stage]
    assert top_level(frozen) == (VISUAL | LANGUAGE) - TRAINABLE[stage]


def test_a_part_that_was_frozen_is_trained_again(model):
    set_stage(model, PAPER["prealign"].learning_rates(VISION))
    set_stage(model, PAPER["pretrain"].learning_rates(VISION))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_report_counts_every_parameter(model):
    reports = set_stage(model, PAPER["prealign"].learning_rates(VISION))
    size = lambda *modules: sum(p.numel() for module in modules for p in module.parameters())  # noqa: E731
    assert {report.part: (report.num_parameters, report.learning_rate) for report in reports} == {
        "stab": (size(model.model.stab), 4e-4),
        "projector": (size(model.model.projector), 4e-4),
        "language_model": (size(model.model.language_model, model.lm_head), 0.0),
    }
    assert sum(report.num_parameters for report in reports) == size(model)
    assert [str(report).split()[2:] for report in reports] == [
        ["TRAINABLE", "lr", "0.0004"],
        ["TRAINABLE", "lr", "0.0004"],
        ["FROZEN"],
    ]


def test_a_bare_language_model_has_one_part(causal_lm):
    (report,) = set_stage(causal_lm, NANO["language"].learning_rates(vision_modules(causal_lm)))
    assert (report.part, report.num_parameters) == ("language_model", sum(p.numel() for p in causal_lm.parameters()))
    assert all(parameter.requires_grad for parameter in causal_lm.parameters())


@pytest.mark.parametrize("stage", TRAINABLE)
def test_groups_hold_every_trainable_parameter_once(model, stage):
    rates = {"stab": 1e-3, "projector": 2e-3, "language_model": 3e-3 if stage != "prealign" else 0.0}
    set_stage(model, rates)
    groups = parameter_groups(model, rates, weight_decay=0.1)
    grouped = Counter(id(parameter) for group in groups for parameter in group["params"])
    assert grouped == {id(p): 1 for p in model.parameters() if p.requires_grad}
    parts = {id(p): part for part, module in model.vision_modules().items() for p in module.parameters()}
    for group in groups:
        for parameter in group["params"]:
            assert group["lr"] == rates[parts.get(id(parameter), "language_model")]
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)
    assert {group["weight_decay"] for group in groups} == {0.0, 0.1}
    torch.optim.AdamW(groups)  # accepts them: no parameter in two groups


def test_a_single_module_has_a_rate_of_its_own():
    stage = make_config("prealign", "paper", ["lr.projector=0", "vision_lr=2e-4"])
    assert stage.learning_rates(VISION) == {"stab": 2e-4, "projector": 0.0, "language_model": 0.0}
    with pytest.raises(ValueError, match=r"^unknown setting 'lr.projektor': did you mean 'lr.projector'\?$"):
        make_config("prealign", "paper", ["lr.projektor=0"]).learning_rates(VISION)


def test_the_head_learns_as_fast_as_the_first_vision_module(model):
    rates, head = {"stab": 1e-3, "projector": 2e-3, "language_model": 0.0}, torch.nn.Linear(2, 3)
    groups = [group for group in parameter_groups(model, rates, 0.1, head) if group["part"] == "head"]
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-3, 0.1), (1e-3, 0.0)]


def test_a_head_learns_though_the_first_vision_module_is_frozen(model):
    frozen = {"stab": 0.0, "projector": 0.0, "language_model": 0.0}
    for rates in ({**frozen, "projector": 2e-3}, {**frozen, "language_model": 2e-3}):
        groups = parameter_groups(model, rates, 0.0, torch.nn.Linear(2, 3))
        assert {group["lr"] for group in groups if group["part"] == "head"} == {2e-3}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["vision_lr=0", "lr.language_model=0"], "the learning rates of stab, projector, language_model are 0"),
        (["lr.stab=0", "lr.projector=0", "lr.language_model=0"], "rates of stab, projector, language_model are 0"),
        (["vision_lr=0", "text_weight=0", "align_weight=1"], "the learning rates of stab, projector are 0"),
    ],
)
def test_a_stage_that_trains_nothing_is_refused_before_anything_is_read(settings, told):
    with pytest.raises(ValueError, match=f"^nothing is trained: .*{told}$"):
        on_paper(make_config("finetune", "custom", settings), tiny_config())


def test_tied_embeddings_are_one_parameter():
    model = tiny_model("paper", text="qwen2")
    model.lm_head.weight = model.model.language_model.embed_tokens.weight
    rates = PAPER["pretrain"].learning_rates(VISION)
    set_stage(model, rates)
    grouped = Counter(id(p) for group in parameter_groups(model, rates, 0.0) for p in group["params"])
    assert grouped == {id(p): 1 for p in model.parameters()}
