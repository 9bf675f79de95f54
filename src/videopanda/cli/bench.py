"""The verbs `videopanda bench …`. Heavy imports are inside the functions."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from videopanda.cli.checks import frame_size, require_extra
from videopanda.cli.options import AsJson, Device, Model, quiet, show

Rounds = Annotated[int, Option(metavar="N", min=1, help="Number of interleaved rounds.")]
BenchDevice = Annotated[str, Option(metavar="DEVICE", help="cpu or cuda.")]
BenchDtype = Annotated[str, Option(metavar="TYPE", help="float32, bfloat16 or float16.")]

bench_app = typer.Typer(help="Measure what a model costs, compared with its peers.", no_args_is_help=True)


@bench_app.command("efficiency")
def efficiency_verb(
    models: Annotated[str, Option(metavar="NAME,…", help="Vision parts to compare. Default: all.")] = "",
    resolution: Annotated[
        str, Option(metavar="WxH", help="Size of the source video; decides the token grid.")
    ] = "448x448",
    rounds: Rounds = 5,
    device: BenchDevice = "cpu",
    dtype: BenchDtype = "float32",
    compiled: Annotated[bool, Option("--compile", help="Compile Video-Panda with torch.compile.")] = False,
    flops_only: Annotated[
        bool, Option("--flops-only", help="Count parameters and multiply-accumulates; run nothing.")
    ] = False,
    as_json: AsJson = False,
    plot: Annotated[Path | None, Option(metavar="FILE", help="Also draw a bubble chart.")] = None,
) -> None:
    """Measure parameters, multiply-accumulates, latency and memory of vision parts at their published sizes.

    Weights are random. Models run in interleaved rounds: compare the ratios
    within one run, not times across runs. On a CPU, Video-ChatGPT runs 10 of
    its 100 independent frames, and its time is scaled up.

    Example:  videopanda bench efficiency --flops-only --json
    """
    if plot:
        require_extra("bench", "matplotlib")
    from videopanda.bench.efficiency import CONTENDERS, measure
    from videopanda.bench.report import draw, table

    width, height = frame_size(resolution)
    names = models.split(",") if models else list(CONTENDERS)
    report = measure(
        names, height, width, rounds=rounds, device=device, dtype=dtype, compiled=compiled, flops_only=flops_only
    )
    if plot:
        draw(report, plot)
    show(report, as_json, table(report), *([f"chart: {plot}"] if plot else []))


@bench_app.command("decode")
def decode_verb(
    rounds: Rounds = 5,
    minutes: Annotated[int, Option(metavar="N", min=1, help="Length of the long clip.")] = 60,
    as_json: AsJson = False,
) -> None:
    """Measure the time to read 8 frames of a short and a long clip.

    The decoders are PyAV and torchcodec; the bench writes its own clips, of one
    minute and of --minutes.

    Example:  videopanda bench decode --minutes 10
    """
    from videopanda.bench.decoding import measure
    from videopanda.bench.report import rows_table

    report = measure(rounds, minutes)
    missing = [f"{decoder} was not measured: {reason}" for decoder, reason in report["missing"].items()]
    show(report, as_json, rows_table(report, "8 frames"), *missing)


@bench_app.command("generate")
def generate_verb(
    model: Model = None,
    video: Annotated[Path | None, Option(metavar="FILE", help="Clip to ask about. Default: the demo clip.")] = None,
    rounds: Rounds = 5,
    max_new_tokens: Annotated[int, Option(metavar="N", min=2, help="Length of every answer, in tokens.")] = 32,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Measure time per answer and memory of the weights, plain and quantized.

    Reports the time to the first token, tokens per second, and the time of a
    second question about the same clip.

    Answers always run to --max-new-tokens, so their text is meaningless.

    Example:  videopanda bench generate --rounds 3
    """
    from videopanda.bench.generating import measure
    from videopanda.bench.report import rows_table
    from videopanda.inference.load import BUNDLED_MODEL

    quiet()
    report = measure(video or BUNDLED_MODEL.parent / "demo.mp4", model, rounds, max_new_tokens, device)
    show(report, as_json, rows_table(report, f"Answers of {max_new_tokens} tokens"))


@bench_app.command("train")
def train_verb(
    model: Model = None,
    clips: Annotated[int, Option(metavar="N", min=1, help="Clips of Scenes per step.")] = 4,
    rounds: Rounds = 5,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Measure time and peak memory of a training step.

    With and without activation checkpointing, in float32 and with bfloat16
    autocast. Then the same data in three kinds of rows: one per question with
    padding, as the Hugging Face Trainer makes them, one per clip, and rows that
    are filled with several clips.

    Example:  videopanda bench train --clips 2
    """
    from videopanda.bench import rows, stepping
    from videopanda.bench.report import rows_table

    quiet()
    report = stepping.measure(model, clips, rounds, device)
    packing = rows.measure(model, clips, rounds, device)
    tables = rows_table(report, f"A step of {clips} clips"), rows_table(packing, "The same data in other rows")
    show({**report, "packing": packing}, as_json, *tables)


@bench_app.command("elva")
def elva_verb(
    backbone: Annotated[
        str, Option(metavar="NAME", help="Shape of the language model; weights are random.")
    ] = "smollm2-135m",
    num_frames: Annotated[str, Option(metavar="N,…", help="Numbers of frames to compare at, such as 32,128.")] = "32",
    rounds: Rounds = 3,
    device: BenchDevice = "cpu",
    dtype: BenchDtype = "float32",
    flops_only: Annotated[bool, Option("--flops-only", help="Count FLOPs; run nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure the time to the first token with native frames: plain, with token merging, at hybrid resolution.

    The baseline is a SigLIP-shaped encoder in front of the same language model.
    On a CPU the encoder reads one frame, and its time is scaled up. Published
    figures of a 7B model are printed next to ours.

    Example:  videopanda bench elva --flops-only
    """
    from videopanda.bench.elva import measure
    from videopanda.bench.report import rows_table

    quiet()
    counts = [int(part) if part.isdecimal() else 0 for part in num_frames.split(",")]
    if min(counts) < 1:
        raise ValueError(f"--num-frames must be positive numbers such as 32,128, got {num_frames!r}")
    report = measure(backbone, counts, rounds, device=device, dtype=dtype, flops_only=flops_only)
    show(report, as_json, rows_table(report, "Frames to first token"))
