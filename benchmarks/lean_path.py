"""What the lean path of the vision part gains and loses: number types, oneDNN against MKL, a roofline, long clips.

    python benchmarks/lean_path.py [--rounds 7] > lean-path.json

Released size, random weights, square frames. Needs 6 GiB. Everything of one kind runs in turns.
"""

import argparse
import json

import torch
import torch.nn.functional as F

from videopanda.bench.efficiency import DTYPES, Runner
from videopanda.bench.timing import in_turns, interval, machine, peak_bytes, ratios, seconds
from videopanda.models.videopanda import modeling_videopanda_layers as layers

SIZE, CPU = 448, torch.device("cpu")


def without_convolutions(call):
    """What a call gives where linear maps are matrix products."""
    before, layers.CONVOLUTION_FROM = layers.CONVOLUTION_FROM, 2**62
    try:
        return call()
    finally:
        layers.CONVOLUTION_FROM = before


def copy_seconds(rounds):
    """Median time to copy 256 MiB."""
    source = torch.randn(2**26)
    target = torch.empty_like(source)
    return interval([seconds(lambda: target.copy_(source)) for _ in range(rounds)])["median"]


def memory(model, frames):
    """Peak beside weights and input, and the size of the tokens, which it holds, in bytes."""
    clip, placement = torch.zeros(1, frames, 3, SIZE, SIZE), torch.tensor([[0, 0, 16, 16, frames, frames]])
    kept = []
    return peak_bytes(lambda: kept.append(model(clip, placement)), CPU), kept[0].nbytes


@torch.inference_mode()
def main():
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    runners = {name: Runner("video-panda", SIZE, SIZE, CPU, dtype, False) for name, dtype in DTYPES.items()}
    whole = runners["float32"]
    pixels = torch.randn(whole.inputs[0].shape)
    for name, runner in runners.items():
        runner.inputs[0] = pixels.to(DTYPES[name])
    tokens = {name: runner.call(*runner.inputs).float() for name, runner in runners.items()}
    exact = tokens.pop("float32")
    calls = {name: runner.seconds for name, runner in runners.items()}
    taken = in_turns({**calls, "float32, F.linear": lambda: without_convolutions(whole.seconds)}, rounds)
    x, weight = torch.randn(2048, 4096), torch.randn(4096, 4096)
    maps = {"linear": lambda: layers.linear(x, weight), "F.linear": lambda: F.linear(x, weight)}
    products = in_turns({name: lambda call=call: seconds(call) for name, call in maps.items()}, rounds)
    copies = copy_seconds(rounds)
    del runners["bfloat16"], runners["float16"]
    peaks, sizes = {}, {}
    for frames in (8, 64, 512):
        peaks[frames], sizes[frames] = memory(whole.model, frames)
    report = {
        "machine": machine(),
        "frames": 8,
        "size": f"{SIZE}x{SIZE}",
        "relative_error": {name: ((y - exact).norm() / exact.norm()).item() for name, y in tokens.items()},
        "largest_error": {name: (y - exact).abs().max().item() for name, y in tokens.items()},
        "seconds": {name: interval(values) for name, values in taken.items()},
        "times_float32": {name: ratios(values, taken["float32"]) for name, values in taken.items()},
        "products_per_second": {k: 2048 * 4096**2 / interval(v)["median"] for k, v in products.items()},
        "copy_bytes_per_second": 2 * 2**28 / copies,
        "peak_bytes": peaks,
        "token_bytes": sizes,
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
