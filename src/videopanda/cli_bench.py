"""The verbs `videopanda bench …`. Heavy imports stand inside the verbs, as in `cli`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from videopanda.cli_options import AsJson, console

bench_app = typer.Typer(help="Measure what a model costs, next to its peers.", no_args_is_help=True)


@bench_app.callback()
def bench() -> None:
    """Measure what a model costs, next to its peers."""  # a callback keeps the verb's name while there is only one


@bench_app.command("efficiency")
def efficiency_verb(
    models: Annotated[
        str, typer.Option("--models", metavar="NAME,…", help="Which vision parts to compare. Default: all.")
    ] = "",
    source: Annotated[
        str, typer.Option("--source", metavar="WxH", help="Size of the source video; decides the token grid.")
    ] = "448x448",
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", min=1, help="Times that each model is run.")] = 5,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = "float32",
    compiled: Annotated[bool, typer.Option("--compile", help="Compile Video-Panda with torch.compile.")] = False,
    flops_only: Annotated[
        bool, typer.Option("--flops-only", help="Count parameters and multiply-accumulates; run nothing.")
    ] = False,
    as_json: AsJson = False,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Also draw a bubble chart.")] = None,
) -> None:
    """Parameters, multiply-accumulates, latency and memory of vision parts at their true shapes, in one run.

    Weights are random. Latencies are interleaved; compare them as the ratios of one run, not across runs. On a CPU
    Video-ChatGPT runs 10 of its 100 frames, which know nothing of each other, and the time is scaled.

    Example:  videopanda bench efficiency --flops-only --json
    """
    from videopanda.bench.efficiency import CONTENDERS, measure
    from videopanda.bench.report import draw, table

    width, _, height = source.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise ValueError(f"--source is a size such as 1280x720, got {source!r}")
    names = models.split(",") if models else list(CONTENDERS)
    report = measure(
        names,
        int(height),
        int(width),
        rounds=rounds,
        device=device,
        dtype=dtype,
        compiled=compiled,
        flops_only=flops_only,
    )
    if plot:
        draw(report, plot)
    if as_json:
        print(json.dumps(report))
        return
    console().print(table(report))
    if plot:
        print(f"chart: {plot}")
