"""Which parts of a model a stage trains, and at which learning rate.

report = set_stage(model, {"stab": 4e-4, "projector": 4e-4, "language_model": 0.0})
print(report)          # TRAINABLE  stab  24,086,866 ...   FROZEN  language_model ...
"""

from dataclasses import dataclass

from torch import nn

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


def part_of(name: str) -> str:
    """The part that a parameter belongs to, by its name in the model or a bare causal LM.

    Either may be wrapped in a `PeftModel`, or sit next to a distillation head, which is "head".
    """
    if name.startswith("head."):
        return "head"
    name = name.removeprefix(_ADAPTED)
    for part in ("stab", "projector"):
        if name.startswith(f"model.{part}."):
            return part
    return "language_model"  # its decoder, embeddings and output head


def set_stage(model: nn.Module, learning_rates: dict[str, float]) -> list[PartReport]:
    """Freeze the parts whose learning rate is 0, make all others trainable, and report both.

    Of a `PeftModel` only what the adapter added is trained.
    """
    counts, trained = dict.fromkeys(learning_rates, 0), dict.fromkeys(learning_rates, 0)
    for name, parameter in model.named_parameters():
        part = part_of(name)
        is_added = "lora_" in name or ".modules_to_save." in name
        parameter.requires_grad_(learning_rates[part] > 0 and (is_added or not name.startswith(_ADAPTED)))
        counts[part] += parameter.numel()
        trained[part] += parameter.numel() * parameter.requires_grad
    return [PartReport(part, counts[part], learning_rates[part], trained[part]) for part in counts if counts[part]]


def parameter_groups(model: nn.Module, learning_rates: dict[str, float], weight_decay: float) -> list[dict]:
    """Optimizer groups of everything trainable: one learning rate per part, weight decay on matrices only."""
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((part_of(name), parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rates[part],
            "weight_decay": weight_decay if matrix else 0.0,
            "part": part,
        }
        for (part, matrix), parameters in groups.items()
    ]
