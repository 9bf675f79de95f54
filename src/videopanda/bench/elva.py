"""Time to the first token of a native video model, plain, merging and at hybrid resolution, compared with an encoder.

    report = measure("smollm2-135m", (32,), rounds=3)

The same language model, with random weights, reads 32 frames of 336 × 336 pixels in four ways: from a SigLIP-shaped
vision transformer with a projector, and from the light embedding of ELVA (ICCV 2025), whose tokens stay, merge, or
merge with two of three frames at half the side. Times are interleaved and compared within a round.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from videopanda.bench.efficiency import DTYPES
from videopanda.bench.timing import in_turns, interval, machine, peak_bytes, ratios, seconds
from videopanda.inference.batch import Prompt, prefill
from videopanda.inference.clip import EncodedClip
from videopanda.inference.kv_prefix import CacheLayout
from videopanda.models.families import model_class, processor_class
from videopanda.models.merge_schedule import MergeSchedule
from videopanda.plan.backbones import config_of
from videopanda.plan.planner import Planner
from videopanda.plan.trace import trace

FAMILY = "elva"
SIDE = 336  # pixels of a frame: 12 × 12 cells of 28 pixels, 157 tokens
ENCODER = "encoder"
# What the paper reports for 32 frames and a 7B model: TFLOP and seconds on a GPU that it does not name; its encoder is
# not named either. Marked "secondary" in docs/elva.md.
PAPER = {ENCODER: (260, 2.59), "native": (75, 0.51), "merged": (25, 0.26), "merged, hybrid": (14, 0.22)}
PAPER_BACKBONE = "qwen2-7b"
KEEP, EVERY = 0.5, 3


class Encoder(nn.Module):
    """SigLIP So400m/14 at 384 pixels, its 27 × 27 patches averaged 2 × 2 to 13 × 13, and a projector of two layers."""

    def __init__(self, output: int):
        super().__init__()
        config = SiglipVisionConfig(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=27,
            num_attention_heads=16,
            image_size=384,
            patch_size=14,
            vision_use_head=False,
        )
        self.tower, self.side = SiglipVisionModel(config), 27
        self.projector = nn.Sequential(nn.Linear(1152, output), nn.GELU(), nn.Linear(output, output))

    def forward(self, pixels_TCXY: Tensor) -> Tensor:
        """Map frames (T, 3, 384, 384) to tokens (T · 169, E), one frame at a time, which bounds memory."""
        return torch.cat([self.projector(self._pooled(frame_CXY[None])) for frame_CXY in pixels_TCXY])

    def _pooled(self, pixels_1CXY: Tensor) -> Tensor:
        patches_1ND = self.tower(pixels_1CXY).last_hidden_state
        grid_1DSS = patches_1ND.transpose(1, 2).unflatten(2, (self.side, self.side))
        return nn.functional.avg_pool2d(grid_1DSS, 2).flatten(2).transpose(1, 2)[0]


MERGE = {"merge.layers": "published", "merge.keep": str(KEEP)}
# Fields of the configuration for each way of reading the clip natively.
VARIANTS = {"native": {}, "merged": MERGE, "merged, hybrid": {**MERGE, "hybrid.every": str(EVERY)}}


def tera_flops(backbone: str, frames: int) -> dict[str, float]:
    """10¹² FLOPs up to the first token, by the planner, for each way."""
    found, text = {}, config_of(backbone, FAMILY).text_config
    for name, fields in VARIANTS.items():
        config = config_of(backbone, FAMILY, "", fields)
        planner = Planner(config, processor_class(config).video_processor_for(config), torch.bfloat16)
        flops = planner.plan(frames, SIDE, SIDE, text_tokens=1).flops
        found[name] = (flops["vision"] + flops["prefill"]) / 1e12
        if name == "native":
            with torch.inference_mode(False), torch.device("meta"):
                encoder = Encoder(text.hidden_size).eval()
                vision = trace(lambda: encoder(torch.empty(1, 3, 384, 384)), encoder.parameters())  # noqa: B023
            reading = planner.prompt_flops(frames * len(vision.result) + 1)
            found[ENCODER] = (frames * vision.flops + reading) / 1e12
    return found


@torch.inference_mode()
def measure(
    backbone: str,
    frames: Sequence[int],
    rounds: int,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    portion: int = 1,
    flops_only: bool = False,
) -> dict[str, Any]:
    """Compare the four ways for each number of frames, round by round.

    Args:
        backbone: a published shape, see `plan/backbones.py`.
        portion: frames that the encoder really reads on a CPU; it treats frames independently, so its time is scaled.
        flops_only: count, and run nothing.

    Returns {"machine", "settings", "rows"}; a row has way, frames, tokens, tera_flops, those of the paper's 7B model by
    our count and as published, and unless `flops_only` first_token_seconds (pixels to logits), speedup over native,
    peak_bytes beyond the weights, kv_bytes and the published seconds.
    """
    rows = []
    for count in frames:
        flops, at_paper = tera_flops(backbone, count), tera_flops(PAPER_BACKBONE, count)
        taken = {} if flops_only else _measured(backbone, count, rounds, device, DTYPES[dtype], portion)
        for name, (paper_flops, paper_seconds) in PAPER.items():
            row: dict[str, Any] = {"way": name, "frames": count, "tera_flops": round(flops[name], 3)}
            row["tera_flops_7b"] = round(at_paper[name], 1)
            row["paper_tera_flops"] = paper_flops if count == 32 else None
            if taken:
                row |= taken[name] | {"paper_seconds": paper_seconds if count == 32 else None}
            rows.append(row)
    settings = {"backbone": backbone, "side": SIDE, "rounds": rounds, "dtype": dtype, "device": device}
    return {"machine": machine(device), "settings": {**settings, "keep": KEEP, "every": EVERY}, "rows": rows}


def _measured(backbone: str, frames: int, rounds: int, device: str, dtype: torch.dtype, portion: int) -> dict[str, Any]:
    place = torch.device(device)
    config = config_of(backbone, FAMILY)
    torch.manual_seed(0)
    model = model_class(config)(config).eval().to(place, dtype)
    encoder = Encoder(config.text_config.hidden_size).eval().to(place, dtype)
    layout = CacheLayout.of(config.text_config)
    noise = np.random.default_rng(0).integers(0, 256, (frames, SIDE, SIDE, 3), dtype=np.uint8)
    kept: dict[str, tuple[int, int]] = {}

    def first_token(name: str, clip: EncodedClip) -> None:
        assert clip.tokens is not None
        prompt = [config.video_token_id] * len(clip.tokens) + [0]
        (kv,), logits_1V = prefill(model, layout, [Prompt(prompt, [clip])])
        logits_1V.argmax().item()
        kept[name] = len(clip.tokens), kv.num_bytes

    def native(name: str, fields: dict[str, str]) -> Callable[[], float]:
        own = config_of(backbone, FAMILY, "", fields)
        inputs = processor_class(own).video_processor_for(own)(videos=[noise], do_sample_frames=False)

        def run() -> None:
            model.model.merge_schedule = MergeSchedule.of(own.merge_config)
            (visual,) = model.encode(inputs, "video")
            first_token(name, EncodedClip("", "video", "", tokens=visual.tokens, layout=visual.layout))

        return lambda: seconds(run)

    shown = frames if device == "cuda" else min(portion, frames)
    pixels = torch.rand(shown, 3, 384, 384, device=place, dtype=dtype)

    def encoded() -> float:
        tokens: list[Tensor] = []

        def see() -> None:
            tokens.append(encoder(pixels))
            tokens[0].sum().item()  # waits for the device

        looking = seconds(see) * frames / shown
        clip = EncodedClip("", "video", "", tokens=tokens[0].repeat(frames // shown, 1))
        model.model.merge_schedule = MergeSchedule(())
        return looking + seconds(lambda: first_token(ENCODER, clip))

    calls = {ENCODER: encoded, **{name: native(name, fields) for name, fields in VARIANTS.items()}}
    peaks = {name: peak_bytes(call, place) for name, call in calls.items()}  # also warms up
    taken = in_turns(calls, rounds)
    return {
        name: {
            "tokens": kept[name][0],
            "first_token_seconds": interval(values),
            "speedup": ratios(taken["native"], values),
            "peak_bytes": peaks[name],
            "kv_bytes": kept[name][1],
        }
        for name, values in taken.items()
    }
