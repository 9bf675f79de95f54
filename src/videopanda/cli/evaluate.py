"""The verbs `videopanda evaluate …`. Heavy imports stand inside the verbs, as in `cli`."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from videopanda.cli.options import (
    AsJson,
    Cache,
    CacheSize,
    Frames,
    Model,
    Seed,
    console,
    load_model,
    quiet,
    size_in_bytes,
)

evaluate_app = typer.Typer(help="Measure how often a model is right.", no_args_is_help=True)

Bench = Annotated[str, typer.Argument(help="Name of the benchmark, such as mvbench.", show_default=False)]
Annotations = Annotated[Path, typer.Argument(help="Its original annotations: folder or file.", show_default=False)]
Predictions = Annotated[Path, typer.Argument(help="Predictions, JSON Lines.", show_default=False)]
Errata = Annotated[
    str, typer.Option("--errata", metavar="MODE", help="Known errors: as-published, corrected or strict.")
]
Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="File for the scores; a summary is put beside it.")]


@evaluate_app.command("scenes")
def scenes_verb(
    model: Model = None,
    num: Annotated[int, typer.Option("--num", metavar="N", min=12, help="Number of questions.")] = 2000,
    seed: Seed = 0,
    as_json: AsJson = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Keep report, predictions and clips in this folder.")
    ] = None,
    no_baselines: Annotated[
        bool, typer.Option("--no-baselines", help="Ask only about the real clips: five times faster.")
    ] = False,
) -> None:
    """Exact-match accuracy on unseen test scenes, next to blind, one-frame, shuffled and wrong-video baselines.

    Example:  videopanda evaluate scenes --num 240 --out out/scenes
    """
    from videopanda.evaluation.scenes import evaluate, table

    network, processor = load_model(model)
    report = evaluate(network, processor, num, seed, baselines=not no_baselines, out=out)
    if as_json:
        print(json.dumps(report))
        return
    console().print(table(report))
    if out:
        print(f"report, predictions, clips: {out}")


@evaluate_app.command("inspect")
def inspect_verb(
    bench: Bench,
    path: Annotations,
    errata: Errata = "as-published",
    videos: Annotated[
        Path | None, typer.Option("--videos", metavar="DIR", help="Say which of the videos are not in this folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what annotation files hold: questions, rejected rows with reasons, duplicates, known errors.

    Example:  videopanda evaluate inspect activitynet-qa activitynet-qa/ --errata corrected
    """
    from videopanda.evaluation.benchmarks.inspect import inspect, table

    report = inspect(bench, path, errata, videos)
    if as_json:
        print(json.dumps(report))
    else:
        console().print(table(report))


@evaluate_app.command("predict")
def predict_verb(
    bench: Bench,
    path: Annotations,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Predictions; an unfinished file is completed.")],
    videos: Annotated[
        Path | None, typer.Option("--videos", metavar="DIR", help="Folder of the videos. Default: the annotations'.")
    ] = None,
    model: Model = None,
    condition: Annotated[
        str,
        typer.Option(
            "--condition",
            metavar="NAME",
            help="full, or a baseline: no_video, one_frame, shuffled, reversed or wrong_video.",
        ),
    ] = "full",
    errata: Errata = "as-published",
    frames: Frames = None,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", min=1, help="Questions per batch.")] = 8,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", metavar="N", min=1, help="Longest answer, in tokens.")
    ] = 64,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="JSON with templates in place of our own.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="S", min=0, help="Chooses the order of shuffled frames.")] = 0,
    engine: Annotated[
        str, typer.Option("--engine", metavar="NAME", help="local (alone or under torchrun) or ray.")
    ] = "local",
    workers: Annotated[int, typer.Option("--workers", metavar="N", min=1, help="Actors of the Ray engine.")] = 1,
    cache: Cache = None,
    cache_size: CacheSize = "10GiB",
    as_json: AsJson = False,
) -> None:
    """Ask a model all questions of a benchmark. Interrupted, the same command goes on where it stopped.

    Example:  videopanda evaluate predict mvbench MVBench/json --videos MVBench/video --model out/7b --out full.jsonl
    """
    from videopanda.evaluation.predict import Job, predict
    from videopanda.evaluation.processes import place
    from videopanda.evaluation.prompts import read_prompts

    if engine not in ("local", "ray"):
        raise ValueError(f"unknown engine {engine!r}; there are local and ray")
    quiet()
    job = Job(
        bench=bench,
        path=path.resolve(),
        videos=(videos or (path if path.is_dir() else path.parent)).resolve(),
        model=model.resolve() if model else None,
        condition=condition,
        errata=errata,
        num_frames=frames,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        seed=seed,
        prompts=read_prompts(prompts),
        cache=cache.resolve() if cache else None,
        cache_bytes=size_in_bytes(cache_size),
    )
    rank, world_size, device = place()
    report = predict(
        job, out, rank=rank, world_size=world_size, device=device, ray_workers=workers if engine == "ray" else None
    )
    if as_json:
        print(json.dumps(report))
    elif report["complete"]:
        failures = "".join(f", {kind.replace('_', ' ')} {len(ids)}" for kind, ids in report["failures"].items())
        print(f"{report['questions']} questions, answered {report['answered']}{failures}: {out}")


@evaluate_app.command("score")
def score_verb(
    bench: Bench,
    path: Annotations,
    predictions: Predictions,
    out: Out,
    scorer: Annotated[
        str | None, typer.Option("--scorer", metavar="NAME", help="Default: by the kind of each question.")
    ] = None,
    errata: Errata = "as-published",
    wordnet: Annotated[
        Path | None, typer.Option("--wordnet", metavar="DIR", help="WordNet database, for synonyms and wups.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score stored predictions offline, without a judge. Every question counts, also those without a usable answer.

    Example:  videopanda evaluate score mvbench MVBench/json predictions.jsonl --out scores.jsonl
    """
    from videopanda.evaluation.scoring.score import score_file, table

    summary = score_file(bench, path, predictions, out, scorer, errata, wordnet)
    if as_json:
        print(json.dumps(summary))
        return
    console().print(table(summary))
    print(f"scores: {out}, summary: {out.with_suffix('.summary.json')}")


@evaluate_app.command("judge")
def judge_verb(
    bench: Bench,
    path: Annotations,
    predictions: Predictions,
    out: Out,
    judge: Annotated[
        str | None, typer.Option("--judge", metavar="ID", help="Dated name of the judge, as its server calls it.")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option("--base-url", metavar="URL", help="OpenAI-compatible server of your own.")
    ] = None,
    local: Annotated[
        Path | None, typer.Option("--local", metavar="DIR", help="A Hugging Face chat model as the judge.")
    ] = None,
    imported: Annotated[
        Path | None, typer.Option("--import", metavar="PATH", help="Take the verdicts of official scripts.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="JSON with prompts in place of our own.")
    ] = None,
    errata: Errata = "as-published",
    concurrency: Annotated[int, typer.Option("--concurrency", metavar="N", min=1, help="Calls at a time.")] = 8,
    retries: Annotated[
        int, typer.Option("--retries", metavar="N", min=0, help="Tries more for a busy or broken server.")
    ] = 5,
    timeout: Annotated[float, typer.Option("--timeout", metavar="S", min=0.1, help="Seconds for one call.")] = 60.0,
    price_in: Annotated[
        float | None, typer.Option("--price-in", metavar="X", min=0, help="Price of a million tokens of prompts.")
    ] = None,
    price_out: Annotated[
        float | None, typer.Option("--price-out", metavar="X", min=0, help="Price of a million tokens of replies.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only estimate what the run would cost.")] = False,
    as_json: AsJson = False,
) -> None:
    """Have a language model judge stored predictions. Every reply is kept; the same command goes on after a break.

    Exit code 1 says that some could not be judged; they are counted as wrong and listed.

    Example:  videopanda evaluate judge msvd-qa MSVD full.jsonl --judge NAME --base-url http://localhost:8000/v1 --out j
    """
    from videopanda.evaluation.judging.clients import Judge, LocalJudge, RemoteJudge
    from videopanda.evaluation.judging.protocols import read_prompts
    from videopanda.evaluation.judging.run import import_file, judge_file, open_calls, prepare
    from videopanda.evaluation.scoring.score import table

    if sum(option is not None for option in (judge, local, imported)) != 1:
        raise ValueError("name the judge with one of --judge, --local and --import")
    work = prepare(bench, path, predictions, out, errata)
    if imported:
        summary = import_file(work, out, imported)
    else:
        used = read_prompts(prompts)
        asked: Judge = LocalJudge(local) if local else RemoteJudge(str(judge), base_url, retries, timeout)
        cost = open_calls(work, out, used, asked.name, price_in, price_out)
        if dry_run:
            print(json.dumps(cost))
            return
        print(f"videopanda: {json.dumps(cost)}", file=sys.stderr)
        summary = judge_file(work, out, asked, used, 1 if local else concurrency)
        for reason, count in Counter(summary["failed_calls"].values()).most_common(3):
            print(f"videopanda: {count} calls failed: {reason}", file=sys.stderr)
    if as_json:
        print(json.dumps(summary))
    else:
        console().print(table(summary))
        print(f"scores: {out}, summary: {out.with_suffix('.summary.json')}")
    if "not_judged" in summary["wrong_without_being_read"]:
        raise typer.Exit(1)


@evaluate_app.command("report")
def report_verb(
    scores: Annotated[list[Path], typer.Argument(help="Files of scores, each with its summary.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for Markdown, JSON and plots.")] = Path(
        "report"
    ),
    as_json: AsJson = False,
) -> None:
    """Put scores into tables and plots: intervals, types, baselines without the video, published numbers.

    Example:  videopanda evaluate report full.scores.jsonl no_video.scores.jsonl --out report
    """
    from videopanda.evaluation.reporting.report import report
    from videopanda.evaluation.reporting.write import markdown, write

    measured = report(scores)
    files = write(measured, out)
    if as_json:
        print(json.dumps(measured))
        return
    print("\n\n".join(markdown(table) for table in measured["benchmarks"]))
    print(f"\nwritten: {', '.join(map(str, files))}")
