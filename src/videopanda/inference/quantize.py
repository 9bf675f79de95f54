"""Weights of the language model in 8 or 4 bits, by bitsandbytes: less memory, nearly the same numbers.

The vision modules, the embeddings and the head keep their type: they are small, or most sensitive to rounding.
bitsandbytes was measured against linear maps of our own (docs/speed.md): the same error and size in 8 bits, and in
4 bits a third of the time.
"""

import logging
from typing import Any

import torch
from torch import nn

FORMATS = ("int8", "int4")


def quantize(model: Any, bits: str) -> None:
    """Give the linear maps of the language model's layers weights of 8 ("int8") or 4 bits ("int4"), in place.

    4 bits are NormalFloat in blocks of 64 (QLoRA, 2305.14314); products use the dequantized weights.

    Raises:
        ValueError: there is no such format, or bitsandbytes is not installed.
    """
    if bits not in FORMATS:
        raise ValueError(f"the format must be int8 or int4, got {bits!r}")
    # On a CPU it would log which Hub kernels it does not use.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import bitsandbytes as bnb
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"quantized weights need bitsandbytes: pip install 'videopanda[qlora]' ({error})") from error
    layers = model.get_decoder()
    for name, linear in [(name, module) for name, module in layers.named_modules() if type(module) is nn.Linear]:
        sizes, biased, weight = (linear.in_features, linear.out_features), linear.bias is not None, linear.weight
        if bits == "int8":
            made: Any = bnb.nn.Linear8bitLt(*sizes, biased, has_fp16_weights=False)
        else:
            made = bnb.nn.Linear4bit(*sizes, biased, quant_type="nf4", compute_dtype=weight.dtype)
        made.load_state_dict(linear.state_dict())
        parent, _, last = name.rpartition(".")
        setattr(layers.get_submodule(parent), last, made.to(weight.device).requires_grad_(False))


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers, including the scales of quantized weights."""
    tensors = [*model.parameters(), *model.buffers()]
    for weight in list(tensors):
        scales = getattr(getattr(weight, "quant_state", None), "absmax", getattr(weight, "SCB", None))
        if isinstance(scales, torch.Tensor):
            tensors.append(scales)
    return sum({id(x): x.nbytes for x in tensors}.values())
