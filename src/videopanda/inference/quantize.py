"""Weights of the language model in 8 or 4 bits: less memory, nearly the same numbers, and on a CPU no more speed.

The vision modules, the embeddings and the head keep their type: they are small, or most sensitive to rounding.

Not by torchao: its release 0.18 has packed 4-bit weights for GPUs only, and once installed it prints warnings about
missing libraries into every command that imports transformers. Its 8-bit weights are rounded as these are.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = {"int8": 0, "int4": 32}  # weights in a row that share a scale; 0: the whole row


class QuantizedLinear(nn.Module):
    """A linear map whose weights are whole numbers, symmetric about 0, times a float16 scale per group.

    Two 4-bit numbers share a byte. Products are those of the unpacked weights, in the type of the input, so each call
    pays for unpacking.
    """

    def __init__(self, linear: nn.Linear, bits: str):
        super().__init__()
        self.four = bits == "int4"
        most = 7 if self.four else 127
        weight_OGK = linear.weight.detach().float().unflatten(1, (-1, GROUPS[bits] or linear.in_features))
        scale_OG1 = (weight_OGK.abs().amax(-1, keepdim=True) / most).clamp(min=1e-7).half()
        level_OI = (weight_OGK / scale_OG1.float()).round().clamp(-most, most).to(torch.int8).flatten(1)
        if self.four:
            shifted_OI = (level_OI + 8).to(torch.uint8)
            level_OI = shifted_OI[:, ::2] | shifted_OI[:, 1::2] << 4  # (O, I / 2)
        self.bias = linear.bias
        self.levels: Tensor
        self.scale: Tensor
        self.register_buffer("levels", level_OI)
        self.register_buffer("scale", scale_OG1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., I) to (..., O)."""
        return F.linear(x, self.unpacked(x.dtype), self.bias)

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The weights (O, I)."""
        level_OI = self.levels.to(dtype)
        if self.four:
            level_OI = torch.stack([self.levels & 15, self.levels >> 4], dim=-1).flatten(1).to(dtype) - 8
        return (level_OI.unflatten(1, (self.scale.shape[1], -1)) * self.scale.to(dtype)).flatten(1)


def quantize(model: Any, bits: str) -> None:
    """Give the linear maps of the language model's layers weights of 8 ("int8") or 4 bits ("int4"), in place.

    Raises:
        ValueError: there are no such weights, or a width is not a multiple of 32 (4 bits).
    """
    if bits not in GROUPS:
        raise ValueError(f"the format must be int8 or int4, got {bits!r}")
    layers = model.get_decoder()
    found = [(name, module) for name, module in layers.named_modules() if type(module) is nn.Linear]
    for name, module in found:
        if GROUPS[bits] and module.in_features % GROUPS[bits]:
            raise ValueError(
                f"{bits} weights come in groups of {GROUPS[bits]}, but {name} is {module.in_features} wide"
            )
    for name, module in found:
        parent, _, last = name.rpartition(".")
        setattr(layers.get_submodule(parent), last, QuantizedLinear(module, bits))


def weight_bytes(model: nn.Module) -> int:
    """What parameters and buffers take."""
    return sum({id(x): x.nbytes for x in [*model.parameters(), *model.buffers()]}.values())
