"""The verb `videopanda plan`. Heavy imports are inside the functions."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

from videopanda.cli.checks import duration, frame_size, require_checkpoint, size_in_bytes
from videopanda.cli.options import AsJson, Family, Fps, Model, NumFrames, Preset, Quantize, Set, quiet, show

if TYPE_CHECKING:
    from videopanda.plan.planner import Plan, Planner

_SOURCE_FPS = 30.0  # assumed without a clip


def plan_verb(
    model: Model = None,
    backbone: Annotated[
        str | None, Option(metavar="DIR|NAME", help="Plan a new model on this language model, such as qwen3-8b.")
    ] = None,
    family: Family = None,
    preset: Preset = "",
    set_: Set = None,
    video: Annotated[Path | None, Option(metavar="FILE", help="Clip that the question is about.")] = None,
    duration: Annotated[
        float | None,
        Option(metavar="TIME", help="Length of the clip, without --video: 90s, 30m, 1.5h. See --fps.", parser=duration),
    ] = None,
    resolution: Annotated[str, Option(metavar="WxH", help="Size of the frames, without --video.")] = "1280x720",
    num_frames: NumFrames = None,
    fps: Fps = None,
    text_tokens: Annotated[int, Option(metavar="N", min=0, help="Prompt tokens besides the clip.")] = 64,
    max_new_tokens: Annotated[int, Option(metavar="N", min=0, help="Maximum length of an answer, in tokens.")] = 64,
    device: Annotated[
        Literal["cpu", "cuda"] | None,
        Option(metavar="DEVICE", help="cpu or cuda: the device to plan for; need not be present."),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        Option(metavar="TYPE", help="float32, bfloat16 or float16. Default: float32 on cpu, else bfloat16."),
    ] = None,
    quantize: Quantize = "",
    fit: Annotated[
        int | None,
        Option(
            metavar="SIZE",
            help="Find what fits into SIZE, such as 24GiB: frames, or pixels with --num-frames.",
            parser=size_in_bytes,
        ),
    ] = None,
    samples: Annotated[
        int | None, Option(metavar="N", min=1, help="Also estimate the GPU-hours of training on N such samples.")
    ] = None,
    measure: Annotated[
        bool, Option("--measure", help="Measure this machine first and keep the profile for later plans.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Estimate what a question about a clip costs (tokens, FLOPs, memory, time), without weights.

    Tokens, FLOPs and memory are counted by running the model's own code on the
    meta device, so they match the real model. Times are based on a machine
    profile written by --measure; otherwise assumed rates are used and marked.
    Exit code 2 means that a request does not fit.

    Example:  videopanda plan --model out/7b --video clip.mp4

    A model that does not exist yet:  videopanda plan --backbone qwen3-8b --device cuda --duration 30m --fps 0.5

    What fits on a GPU:  videopanda plan --backbone qwen2.5-7b --device cuda --fit 24GiB
    """
    if model is not None and backbone is not None:
        raise ValueError("--model and --backbone are mutually exclusive: one plans a saved model, the other a new one")
    if num_frames is not None and fps is not None:
        raise ValueError("--num-frames and --fps are mutually exclusive")
    if quantize and samples is not None:
        raise ValueError("--samples plans training, which --quantize does not change: omit one of them")
    height, width, seconds, source_fps = _clip(video, duration, resolution)
    quiet()
    import torch

    from videopanda.plan import machine as machines
    from videopanda.plan.planner import Planner
    from videopanda.plan.report import as_dict, lines

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    kind = getattr(torch, dtype or ("float32" if device == "cpu" else "bfloat16"))
    if measure:
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("there is no GPU to measure: omit --device cuda")
        print(f"videopanda: machine profile: {machines.measure(device, kind).save()}", file=sys.stderr)
    profile = machines.load(device, kind) or machines.ASSUMED[device]
    config, processor, stamp_tokens = _model(model, backbone, family, preset, set_ or [], seconds)
    chosen = _frames(processor, num_frames, fps, seconds, source_fps)
    settings = {"text_tokens": text_tokens, "new_tokens": max_new_tokens}

    on_host = device == "cpu"
    whole = Planner(config, processor, kind, on_host=on_host, quantize=quantize, stamp_tokens=stamp_tokens)
    if fit is not None:
        plan = _fit(whole, fit, chosen if num_frames or fps else None, height, width, settings, backbone)
    else:
        whole.require_context(chosen, height, width, **settings)
        plan = whole.plan(chosen, height, width, **settings)
    side = plan.planner.video_processor.longer_side(height, width)
    head = f"{'model':<17}{backbone or model or 'the bundled nano model'}, frames on a canvas of {side} pixels"
    show(as_dict(plan, profile, samples) | {"canvas": side}, as_json, head, *lines(plan, profile, samples))
    plan.require(fit)


def _model(
    model: Path | None, backbone: str | None, family: str | None, preset: str, set_: list[str], seconds: float | None
) -> tuple[Any, Any, Callable[[int], int]]:
    """Configuration and video processor of a saved or a new model, and the text tokens of the frame times."""
    from videopanda.models.families import DEFAULT, changed_config, processor_class
    from videopanda.models.fields import parse_settings

    fields = parse_settings(set_)
    if backbone is not None:
        from videopanda.plan.backbones import config_of

        config = config_of(backbone, family or DEFAULT, preset, fields)
        if getattr(config, "timestamps", "none") != "none":
            raise ValueError(
                "counting timestamps needs a tokenizer: create the model with  videopanda init, then use --model"
            )
        return config, processor_class(config).video_processor_for(config), lambda frames: 0
    if family or preset:
        raise ValueError("--family and --preset require --backbone: a saved model has its own")
    from transformers import AutoProcessor

    from videopanda.inference.load import BUNDLED_MODEL
    from videopanda.models.load import check_checkpoint
    from videopanda.video.read import uniform_times

    folder = require_checkpoint(model) or BUNDLED_MODEL
    config, processor = check_checkpoint(folder), AutoProcessor.from_pretrained(folder)
    if "timestamps" in fields:
        processor.timestamps = changed_config(config, fields).timestamps

    def stamp_tokens(frames: int) -> int:
        end = frames if seconds is None else seconds  # without a clip, as if one frame were shown per second
        return processor.stamp_tokens(uniform_times(0.0, end, frames))

    if fields:
        config = changed_config(config, fields)
        return config, processor_class(config).video_processor_for(config), stamp_tokens
    return config, processor.video_processor, stamp_tokens


def _clip(video: Path | None, seconds: float | None, resolution: str) -> tuple[int, int, float | None, float]:
    """Height, width, seconds and frame rate."""
    if video is not None:
        from videopanda.video.read import read_video

        if seconds is not None:
            raise ValueError("--video has its own duration: omit --duration")
        first = read_video(video, num_frames=1)
        return first.height, first.width, first.duration, first.source_fps
    width, height = frame_size(resolution)
    return height, width, seconds, _SOURCE_FPS


def _frames(processor: Any, frames: int | None, fps: float | None, seconds: float | None, source_fps: float) -> int:
    from videopanda.plan.planner import shown_frames

    if fps is None:
        most = frames or processor.num_frames
        return most if seconds is None else shown_frames(processor, most, seconds, source_fps)
    if seconds is None:
        raise ValueError("--fps needs --video or --duration")
    return max(1, round(seconds * fps))


def _fit(
    whole: "Planner",
    budget: int,
    frames: int | None,
    height: int,
    width: int,
    settings: dict[str, int],
    backbone: str | None,
) -> "Plan":
    """The maximum number of frames that fit; with a number of frames, for a new model, the largest frames."""
    from videopanda.models.families import processor_class
    from videopanda.plan.planner import Planner

    if frames is None:
        most = whole.most_frames(height, width, budget, **settings)
        return whole.plan(most or 1, height, width, **settings)
    smaller = whole.model.config if backbone else None
    while smaller is not None and not _fits(whole, budget, frames, height, width, settings):
        smaller = smaller.smaller()
        if smaller is not None:
            processor = processor_class(smaller).video_processor_for(smaller)
            whole = Planner(smaller, processor, whole.dtype, on_host=whole.on_host, quantize=whole.quantize)
    whole.require_context(frames, height, width, **settings)
    return whole.plan(frames, height, width, **settings)


def _fits(planner: "Planner", budget: int, frames: int, height: int, width: int, settings: dict[str, int]) -> bool:
    if not planner.fits_context(frames, height, width, **settings):
        return False
    return planner.plan(frames, height, width, **settings).peak_bytes <= budget
