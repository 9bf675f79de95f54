"""Weights of the language model in 8 or 4 bits, by bitsandbytes: less memory, nearly the same numbers.

The vision modules, the embeddings and the head keep their type: they are small, or most sensitive to rounding.
bitsandbytes was measured against linear maps of our own (docs/speed.md): the same error and size in 8 bits, and in
4 bits a third of the time.
"""

import logging
from typing import Any

from torch import nn

FORMATS = ("int8", "nf4")


def quantize(model: Any, format: str, device: str | None = None) -> None:
    """Give the linear maps of the language model's layers weights of 8 ("int8") or 4 bits ("nf4"), in place.

    "nf4" is NormalFloat in blocks of 64 whose scales have 8 bits (QLoRA, 2305.14314), as in training with adapters;
    products use the dequantized weights.

    Args:
        device: where the quantized maps go, one after the other, so that it never holds the full weights; None is
            where they are.

    Raises:
        ValueError: there is no such format, or bitsandbytes is not installed.
    """
    if format not in FORMATS:
        raise ValueError(f"the format must be {' or '.join(FORMATS)}, got {format!r}")
    # On a CPU it would log which Hub kernels it does not use.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import bitsandbytes as bnb
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"quantized weights need bitsandbytes: pip install 'videopanda[qlora]' ({error})") from error
    layers = model.get_decoder()
    for name, linear in [(name, module) for name, module in layers.named_modules() if type(module) is nn.Linear]:
        sizes, biased, weight = (linear.in_features, linear.out_features), linear.bias is not None, linear.weight
        if format == "int8":
            made: Any = bnb.nn.Linear8bitLt(*sizes, biased, has_fp16_weights=False)
        else:
            made = bnb.nn.Linear4bit(*sizes, biased, quant_type=format, compute_dtype=weight.dtype)
        made.load_state_dict(linear.state_dict())
        parent, _, last = name.rpartition(".")
        setattr(layers.get_submodule(parent), last, made.to(device or weight.device).requires_grad_(False))
