"""Parameters, multiply-accumulates, latency and memory of vision parts, side by side in one run.

All models have their true shapes and random weights. Latencies are interleaved: each round runs every model once, so
other load on the machine affects all of them alike, and comparisons are ratios within a round.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from videopanda.bench.peers import SIDE, VideoChatGPTVision, VideoLlavaVision
from videopanda.bench.timing import in_turns, interval, machine, peak_bytes, ratios, synchronize
from videopanda.models.families import DEFAULT, fresh_config, model_class, processor_class

FRAMES, OUTPUT = 8, 4096  # OUTPUT: width of Vicuna-7B
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Table 3 of the Video-Panda paper: parameters in millions, multiply-accumulates in billions (it says FLOPs), latency in
# milliseconds on hardware that it does not name.
PAPER = {
    "video-panda": {"params": 45, "macs": 105.5, "latency_ms": 41},
    "video-llava": {"params": 425, "macs": 864.1, "latency_ms": 125},
    "video-chatgpt": {"params": 307, "macs": 8109.1, "latency_ms": 171},
}


class Vision(nn.Module):
    """The vision modules of a new model of the default family, as inference runs them."""

    def __init__(self, preset: str):
        super().__init__()
        text = {"model_type": "llama", "vocab_size": 4, "num_hidden_layers": 0, "hidden_size": OUTPUT}
        config = fresh_config(DEFAULT, preset, {}, text_config=text, video_token_id=0, image_token_id=1)
        model = model_class(config)(config)
        self.parts = nn.ModuleDict(model.vision_modules())
        self.encode_videos = model.get_video_features

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map the inputs of the processor to (V, E)."""
        return torch.cat(list(self.encode_videos(*inputs).pooler_output))


@dataclass(frozen=True)
class Contender:
    """A vision part in the comparison.

    build: makes the module with random weights.
    arguments: its inputs for source frames of (height, width) pixels; pixels first, on the CPU.
    portion: number of frames measured on a CPU, for models that process frames independently and would otherwise take
        minutes; the latency is scaled up. None: all frames.
    """

    build: Callable[[], nn.Module]
    arguments: Callable[[int, int], tuple[Tensor, ...]]
    frames: int = FRAMES
    portion: int | None = None


def own_arguments(height: int, width: int) -> tuple[Tensor, ...]:
    """Eight frames as the processor of the default family places them."""
    config = fresh_config(DEFAULT, "", {})
    inputs = processor_class(config).video_processor_for(config).layout([(FRAMES, height, width)])
    return tuple(torch.zeros(x.shape) if x.is_meta else x for x in inputs.values())


CONTENDERS = {
    "video-panda": Contender(lambda: Vision("released"), own_arguments),
    "eve-star": Contender(lambda: Vision("eve_star"), own_arguments),
    "video-llava": Contender(VideoLlavaVision, lambda *_: (torch.zeros(FRAMES, 3, SIDE, SIDE),)),
    "video-chatgpt": Contender(VideoChatGPTVision, lambda *_: (torch.zeros(100, 3, SIDE, SIDE),), 100, portion=10),
}


def count(name: str, height: int, width: int) -> dict[str, int]:
    """Parameters and multiply-accumulates (half of what torch counts as FLOPs), without computing anything.

    Attention is split into matrix products, because torch counts a fused one on a CPU as zero.
    """
    contender = CONTENDERS[name]
    with torch.device("meta"):
        model = contender.build().eval().requires_grad_(False)
    pixels, *rest = contender.arguments(height, width)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(pixels.to("meta"), *rest)
    return {"params": sum(p.numel() for p in model.parameters()), "macs": counter.get_total_flops() // 2}


class Runner:
    """A contender on a device, ready to be timed."""

    def __init__(self, name: str, height: int, width: int, device: torch.device, dtype: torch.dtype, compiled: bool):
        contender = CONTENDERS[name]
        self.device = device
        torch.manual_seed(0)
        self.model = contender.build().to(device, dtype).eval()
        pixels, *rest = contender.arguments(height, width)
        portion = contender.portion if device.type == "cpu" else None
        self.scale = contender.frames / portion if portion else 1.0
        pixels = torch.rand(pixels[:portion].shape if portion else pixels.shape)
        self.inputs = [pixels.to(device, dtype), *(x.to(device, dtype) if x.is_floating_point() else x for x in rest)]
        self.call: Any = self.model.encode if portion else self.model
        if compiled and isinstance(self.model, Vision):
            for part in self.model.parts.values():
                part.compile()

    @torch.inference_mode()
    def seconds(self) -> float:
        """Wall time of one pass over all frames."""
        synchronize(self.device)
        began = time.perf_counter()
        self.call(*self.inputs)
        synchronize(self.device)
        return (time.perf_counter() - began) * self.scale


def measure(
    names: Sequence[str],
    height: int,
    width: int,
    *,
    rounds: int,
    device: str = "cpu",
    dtype: str = "float32",
    compiled: bool = False,
    flops_only: bool = False,
) -> dict[str, Any]:
    """Compare vision parts; see `CONTENDERS` for names. Source frames have `height` × `width` pixels.

    Returns {"machine", "settings", "models"}; a model has params, macs, frames, the figures of the paper where it has
    any and, unless `flops_only`, latency_ms, peak_bytes and times_video_panda, its latency relative to that of
    video-panda in the same round; each with its interval.

    Raises:
        ValueError: an unknown name, data type or device.
    """
    unknown = sorted(set(names) - CONTENDERS.keys())
    if unknown:
        raise ValueError(f"no model {unknown[0]!r} in this comparison: choose from {', '.join(CONTENDERS)}")
    if dtype not in DTYPES:
        raise ValueError(f"no data type {dtype!r}: choose from {', '.join(DTYPES)}")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"device {device!r} is not available: choose cpu" + (" or cuda" * torch.cuda.is_available()))
    models: dict[str, dict[str, Any]] = {
        name: {**count(name, height, width), "frames": CONTENDERS[name].frames, "paper": PAPER.get(name)}
        for name in names
    }
    if not flops_only:
        place = torch.device(device)
        runners = {name: Runner(name, height, width, place, DTYPES[dtype], compiled) for name in names}
        for name, runner in runners.items():  # also warms up
            models[name]["peak_bytes"] = peak_bytes(runner.seconds, place)
        seconds = in_turns({name: runner.seconds for name, runner in runners.items()}, rounds)
        for name, values in seconds.items():
            models[name]["latency_ms"] = interval([1000 * value for value in values])
            models[name]["measured_frames"] = round(CONTENDERS[name].frames / runners[name].scale)
            if "video-panda" in seconds:
                models[name]["times_video_panda"] = ratios(values, seconds["video-panda"])
    settings = {"source": f"{width}x{height}", "rounds": rounds, "device": device, "dtype": dtype, "compile": compiled}
    return {"machine": machine(device), "settings": settings, "models": models}
