"""Our 8- and 4-bit linear maps against those of bitsandbytes: bytes, error and time, in turns (docs/speed.md).

python benchmarks/quantized_linear.py [--device cuda] [--rounds 10]
"""

import argparse
import copy
import time
from statistics import median

import bitsandbytes as bnb
import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEIGHT = 4096, 4096  # a projection of a 7B model


GROUPS = {"int8": 0, "int4": 32}  # weights in a row that share a scale; 0: the whole row


class OwnLinear(nn.Module):
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


def theirs(linear: nn.Linear, bits: str) -> nn.Module:
    """A linear map of bitsandbytes with the same weights."""
    if bits == "int8":
        made = bnb.nn.Linear8bitLt(WIDTH, HEIGHT, bias=False, has_fp16_weights=False)
    else:
        made = bnb.nn.Linear4bit(WIDTH, HEIGHT, bias=False, quant_type="nf4", compute_dtype=linear.weight.dtype)
    made.load_state_dict(linear.state_dict())
    return made


def size(module: nn.Module) -> int:
    """Bytes of weights and scales."""
    total = sum(x.nbytes for x in [*module.parameters(), *module.buffers()])
    weight = getattr(module, "weight", None)
    for holder, names in ((getattr(weight, "quant_state", None), ("absmax",)), (weight, ("SCB",))):
        total += sum(getattr(holder, name).nbytes for name in names if getattr(holder, name, None) is not None)
    return total


def main() -> None:
    """Print one line per map, number of tokens and data type."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, bitsandbytes {bnb.__version__}, {options.device}")
    for dtype in (torch.float32, torch.bfloat16):
        plain = nn.Linear(WIDTH, HEIGHT, bias=False).to(options.device, dtype).requires_grad_(False)
        made = {"plain": plain}
        for bits in ("int8", "int4"):
            made[f"ours {bits}"] = OwnLinear(plain, bits).to(options.device)
            made[f"bitsandbytes {bits}"] = theirs(copy.deepcopy(plain), bits).to(options.device)
        for tokens in (1, 256):
            x = torch.randn(1, tokens, WIDTH, device=options.device, dtype=dtype)
            exact = nn.functional.linear(x.double(), plain.weight.double())
            seconds: dict[str, list[float]] = {name: [] for name in made}
            for turn in range(options.rounds + 1):
                for name, module in made.items():
                    began = time.perf_counter()
                    with torch.inference_mode():
                        found = module(x)
                    if options.device == "cuda":
                        torch.cuda.synchronize()
                    if turn:  # the first one warms up
                        seconds[name].append(time.perf_counter() - began)
                    else:
                        error = ((found.double() - exact).norm() / exact.norm()).item()
                        print(f"{dtype!s:>15} {tokens:>4} tokens {name:>18} error {error:.1e}, {size(module)} bytes")
            for name, values in seconds.items():
                print(f"{dtype!s:>15} {tokens:>4} tokens {name:>18} {1000 * median(values):9.2f} ms")


if __name__ == "__main__":
    main()
