"""Which parts of a model a stage trains, and at which learning rate.

report = set_stage(model, {"projector": 4e-4, "language_model": 0.0})
print(report)          # TRAINABLE  projector  24,086,866 ...   FROZEN  language_model ...
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from videopanda.models.families import model_class
from videopanda.training.stages import StageConfig

_ADAPTED = "base_model.model."  # where PEFT keeps the model that it adapts


@dataclass(frozen=True)
class PartReport:
    """Parameters of one part and whether this stage trains them."""

    part: str
    num_parameters: int
    learning_rate: float
    num_trainable: int

    def __str__(self) -> str:
        state = f"TRAINABLE  lr {self.learning_rate:g}" if self.num_trainable else "FROZEN"
        if 0 < self.num_trainable < self.num_parameters:
            state += f"  {self.num_trainable:,} of them"
        return f"{self.part:<16}{self.num_parameters:>15,}  {state}"


def vision_modules(model: Any) -> dict[str, nn.Module]:
    """The vision modules of a model, also inside a `PeftModel`; none of a plain language model."""
    return getattr(model, "vision_modules", dict)()


def rates_of(stage: StageConfig, model: Any) -> dict[str, float]:
    """Learning rate of every part of a model. Pretrained vision modules are frozen unless the stage names them.

    Raises:
        ValueError: `lr.NAME` names an unknown module.
    """
    pretrained = getattr(model, "pretrained_modules", ())
    rates = stage.learning_rates(vision_modules(model))
    return {name: 0.0 if name in pretrained and name not in stage.module_lr else rate for name, rate in rates.items()}


def on_paper(stage: StageConfig, config: Any) -> nn.Module:
    """The model of a configuration without weights, as a stage trains it, after a check that it trains something.

    Raises:
        ValueError: nothing is trained, `lr.NAME` names an unknown module, or an adapter does not fit the model.
    """
    with torch.device("meta"):
        model: Any = model_class(config)(config)
    rates = rates_of(stage, model)
    if not any(rate for name, rate in rates.items() if stage.text_weight or name != "language_model"):
        parts = ", ".join(rates if stage.text_weight else vision_modules(model))
        raise ValueError(f"nothing is trained: the learning rates of {parts} are 0")
    if stage.lora_rank:
        model.check_adaptable()
    return model


def _parts(model: nn.Module) -> dict[int, str]:
    """The module name of each vision parameter, by the parameter's id."""
    return {id(weight): name for name, module in vision_modules(model).items() for weight in module.parameters()}


def set_stage(model: nn.Module, learning_rates: dict[str, float]) -> list[PartReport]:
    """Freeze the parts whose learning rate is 0, make all others trainable, and report both.

    Of a `PeftModel` only what the adapter added is trained.
    """
    parts = _parts(model)
    counts, trained = dict.fromkeys(learning_rates, 0), dict.fromkeys(learning_rates, 0)
    for name, parameter in model.named_parameters():
        part = parts.get(id(parameter), "language_model")  # its decoder, embeddings and output head
        is_added = "lora_" in name or ".modules_to_save." in name
        parameter.requires_grad_(learning_rates[part] > 0 and (is_added or not name.startswith(_ADAPTED)))
        counts[part] += parameter.numel()
        trained[part] += parameter.numel() * parameter.requires_grad
    return [PartReport(part, counts[part], learning_rates[part], trained[part]) for part in counts if counts[part]]


def parameter_groups(
    model: nn.Module, learning_rates: dict[str, float], weight_decay: float, head: nn.Module | None = None
) -> list[dict]:
    """Optimizer groups: one learning rate per part; weight decay on matrices only. They contain the trainable
    parameters. The rate of a distillation `head` is `head_rate`.
    """
    parts = _parts(model)
    rates = {**learning_rates, "head": head_rate(learning_rates)}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            part = parts.get(id(parameter), "language_model")
            groups.setdefault((part, parameter.ndim > 1), []).append(parameter)
    for parameter in head.parameters() if head is not None else ():
        groups.setdefault(("head", parameter.ndim > 1), []).append(parameter)
    return [
        {"params": parameters, "lr": rates[part], "weight_decay": weight_decay if matrix else 0.0, "part": part}
        for (part, matrix), parameters in groups.items()
    ]


def head_rate(learning_rates: Mapping[str, float]) -> float:
    """The learning rate of a distillation head: that of the first vision module, as in the official code, that is
    trained; else that of the language model.
    """
    return next((rate for rate in learning_rates.values() if rate), 0.0)


def recompute_activations(model: Any, recompute: bool = True) -> None:
    """Activation checkpointing on or off, by the name that it has in this version of transformers."""
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # as in 5.16.1
    getattr(model, f"{name}_checkpointing_{'enable' if recompute else 'disable'}")()
