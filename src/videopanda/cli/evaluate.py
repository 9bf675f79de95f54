"""The verbs `videopanda evaluate …`. Heavy imports are inside the functions."""

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from videopanda.cli.checks import existing_file, no_file, require_checkpoint, require_extra, require_paths
from videopanda.cli.judge import judge_verb
from videopanda.cli.options import (
    Annotations,
    AsJson,
    Bench,
    Cache,
    CacheSize,
    Change,
    Device,
    Errata,
    Fps,
    FramesBy,
    LookTwice,
    MaxNewTokens,
    MaxVisualTokens,
    MediaRoot,
    Model,
    NumFrames,
    Predictions,
    ScoresOutput,
    Seed,
    cache_bytes,
    load_model,
    quiet,
    show,
)

evaluate_app = typer.Typer(help="Measure the accuracy of a model.", no_args_is_help=True)


@evaluate_app.command("scenes")
def scenes_verb(
    model: Model = None,
    num: Annotated[int, Option(metavar="N", min=12, help="Number of questions.")] = 2000,
    seed: Seed = 0,
    as_json: AsJson = False,
    output: Annotated[
        Path | None, Option(metavar="DIR", help="Keep report, predictions and clips in this folder.", callback=no_file)
    ] = None,
    media_root: Annotated[
        Path | None,
        Option(
            metavar="DIR",
            help="Write the clips to this folder, or reuse those in it. Default: the output folder.",
            callback=no_file,
        ),
    ] = None,
    no_baselines: Annotated[bool, Option("--no-baselines", help="Skip the baselines (six times faster).")] = False,
    wordings: Annotated[
        str, Option(metavar="NAME|FILE", help="Wordings of the questions: written, held-out, or a file.")
    ] = "written",
    set_: Change = None,
) -> None:
    """Measure accuracy on unseen test scenes, next to baselines without the video or with altered frames.

    Example:  videopanda evaluate scenes --num 240 --output out/scenes
    """
    if wordings not in ("written", "held-out") and not Path(wordings).is_file():
        raise ValueError(f"--wordings must be written, held-out or a file, got {wordings!r}")
    from videopanda.evaluation.scenes_report import scenes_report, table

    loaded = load_model(model, set_=set_)
    with ExitStack() as stack:
        folder = output or Path(stack.enter_context(TemporaryDirectory()))
        report = scenes_report(
            folder, loaded, model, num, seed, not no_baselines, media_root=media_root, wordings=wordings
        )
    show(report, as_json, table(report), *([f"report, clips, predictions, scores: {output}"] if output else []))


@evaluate_app.command("run")
def run_verb(
    bench: Annotated[
        list[str], Argument(help="Benchmarks and their annotations, NAME=PATH, such as mvbench=MVBench/json.")
    ],
    output: Annotated[Path, Option(metavar="DIR", help="Folder to write or resume.", callback=no_file)],
    media_root: Annotated[
        list[str] | None,
        Option(metavar="[NAME=]DIR", help="Folder of the clips of all benchmarks, or of one; may be repeated."),
    ] = None,
    model: Model = None,
    limit: Annotated[
        int | None, Option(metavar="N", min=1, help="Ask only N questions of each benchmark, the same ones every time.")
    ] = None,
    condition: Annotated[
        list[str] | None,
        Option(metavar="NAME", help="full or a baseline; may be repeated. Default: full and three baselines."),
    ] = None,
    errata: Errata = "as-published",
    num_frames: NumFrames = None,
    batch_size: Annotated[int, Option(metavar="N", min=1, help="Questions per batch.")] = 8,
    max_new_tokens: MaxNewTokens = 64,
    device: Device = None,
    cache: Cache = None,
    set_: Change = None,
    as_json: AsJson = False,
) -> None:
    """Ask, score and report several benchmarks, with baselines. The same command resumes an interrupted run.

    Example:  videopanda evaluate run mvbench=MVBench/json --media-root MVBench/video --limit 50 --output out/evaluation
    """
    from videopanda.evaluation.benchmarks.table import benchmark

    roots = {name: folder for name, _, folder in (root.rpartition("=") for root in media_root or [])}
    chosen = []
    for entry in bench:
        name, is_pair, annotations = entry.partition("=")
        if not is_pair and Path(name).is_file():
            raise ValueError(f"{name} needs the name of a benchmark: write NAME={name}, such as custom={name}")
        benchmark(name)
        path = Path(annotations or name)
        if not path.exists():
            raise FileNotFoundError(f"no annotations of {name} at {path}: write {name}=PATH")
        videos = Path(roots.get(name) or roots.get("") or (path if path.is_dir() else path.parent))
        require_paths(videos)
        chosen.append((name, path.resolve(), videos.resolve()))
    if unknown := roots.keys() - {"", *(name for name, _, _ in chosen)}:
        raise ValueError(f"--media-root {min(unknown)}=DIR: {min(unknown)} is none of the benchmarks of this command")
    model = require_checkpoint(model)
    quiet()
    from videopanda.evaluation.run import DEFAULT_CONDITIONS, Bench, run, table
    from videopanda.models.fields import parse_settings

    measured = run(
        [Bench(*one) for one in chosen],
        output,
        model.resolve() if model else None,
        device=device,
        conditions=condition or DEFAULT_CONDITIONS,
        limit=limit,
        errata=errata,
        num_frames=num_frames,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        cache=cache.resolve() if cache else None,
        settings=parse_settings(set_ or []),
    )
    written = f"predictions and scores: {output}, report: {output / 'report' / 'report.md'}"
    show(measured, as_json, table(measured), written)


@evaluate_app.command("inspect")
def inspect_verb(
    bench: Bench,
    path: Annotations,
    errata: Errata = "as-published",
    media_root: Annotated[Path | None, Option(metavar="DIR", help="List the videos missing from this folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the contents of annotation files: questions, rejected rows with reasons, duplicates, known errors.

    Example:  videopanda evaluate inspect activitynet-qa activitynet-qa/ --errata corrected
    """
    from videopanda.evaluation.benchmarks.inspect import inspect, table

    report = inspect(bench, path, errata, media_root)
    show(report, as_json, table(report))


@evaluate_app.command("predict")
def predict_verb(
    bench: Bench,
    path: Annotations,
    output: Annotated[Path, Option(metavar="FILE", help="Predictions to write or resume.")],
    media_root: MediaRoot = None,
    model: Model = None,
    condition: Annotated[
        str, Option(metavar="NAME", help="full, or a baseline: no_video, one_frame, shuffled, reversed or wrong_video.")
    ] = "full",
    errata: Errata = "as-published",
    num_frames: NumFrames = None,
    fps: Fps = None,
    max_visual_tokens: MaxVisualTokens = None,
    last_frames: Annotated[int, Option(metavar="N", min=0, help="Show only the last N frames, read at --fps.")] = 0,
    frames_by: FramesBy = None,
    look_twice: LookTwice = False,
    batch_size: Annotated[int, Option(metavar="N", min=1, help="Questions per batch.")] = 8,
    max_new_tokens: MaxNewTokens = 64,
    prompts: Annotated[
        Path | None, Option(metavar="FILE", help="JSON file with custom prompt templates.", callback=existing_file)
    ] = None,
    seed: Annotated[int, Option(metavar="S", min=0, help="Random seed of the shuffled frames.")] = 0,
    engine: Annotated[
        Literal["local", "ray"], Option(metavar="NAME", help="local (one process, or torchrun) or ray.")
    ] = "local",
    workers: Annotated[
        int | None, Option(metavar="N", min=1, help="With --engine ray: number of Ray actors. Default: 1.")
    ] = None,
    cache: Cache = None,
    cache_size: CacheSize = None,
    set_: Change = None,
    as_json: AsJson = False,
) -> None:
    """Ask a model all questions of a benchmark. The same command resumes an interrupted run.

    Example:  videopanda evaluate predict mvbench MVBench/json --media-root MVBench/video --output full.jsonl
    """
    from videopanda.evaluation.benchmarks.table import benchmark

    benchmark(bench)
    if fps is not None and max_visual_tokens is None and not last_frames and not look_twice:
        raise ValueError("--fps requires --max-visual-tokens, --last-frames or --look-twice")
    if workers is not None and engine != "ray":
        raise ValueError("--workers requires --engine ray; for several local processes, use torchrun")
    max_bytes = cache_bytes(cache, cache_size)
    require_paths(path)
    model = require_checkpoint(model)
    from videopanda.evaluation.predict import PredictJob, predict
    from videopanda.evaluation.processes import distributed_rank
    from videopanda.evaluation.prompts import read_prompts
    from videopanda.models.fields import parse_settings

    quiet()
    job = PredictJob(
        bench=bench,
        path=path.resolve(),
        videos=(media_root or (path if path.is_dir() else path.parent)).resolve(),
        model=model.resolve() if model else None,
        condition=condition,
        errata=errata,
        num_frames=num_frames,
        fps=fps or 1.0,
        max_visual_tokens=max_visual_tokens,
        last_frames=last_frames,
        frames_by=frames_by,
        look_twice=look_twice,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        seed=seed,
        prompts=read_prompts(prompts),
        cache=cache.resolve() if cache else None,
        cache_bytes=max_bytes,
        settings=parse_settings(set_ or []),
    )
    rank, world_size, device = distributed_rank()
    report = predict(
        job,
        output,
        rank=rank,
        world_size=world_size,
        device=device,
        ray_workers=(workers or 1) if engine == "ray" else None,
    )
    if report["complete"] and len(report["failures"].get("missing_video", ())) == report["questions"]:
        raise FileNotFoundError(f"none of the videos is in {job.videos}: pass their folder with --media-root")
    failures = "".join(f", {kind.replace('_', ' ')} {len(ids)}" for kind, ids in report["failures"].items())
    counts = f"{report['questions']} questions, answered {report['answered']}{failures}: {output}"
    show(report, as_json, *([counts] if report["complete"] else []))


@evaluate_app.command("score")
def score_verb(
    bench: Bench,
    path: Annotations,
    predictions: Predictions,
    output: ScoresOutput,
    scorer: Annotated[
        str | None, Option(metavar="NAME", help="Scoring method. Default: the one for the type of each question.")
    ] = None,
    errata: Errata = "as-published",
    wordnet: Annotated[
        Path | None, Option(metavar="DIR", help="Folder of the WordNet database, for the scorers synonyms and wups.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score stored predictions offline, without a judge.

    Every question counts, including those without a usable answer.

    Example:  videopanda evaluate score mvbench MVBench/json predictions.jsonl --output scores.jsonl
    """
    require_paths(predictions, wordnet)
    from videopanda.evaluation.scoring.score import score_file, table

    summary = score_file(bench, path, predictions, output, scorer, errata, wordnet)
    show(summary, as_json, table(summary), f"scores: {output}, summary: {output.with_suffix('.summary.json')}")


evaluate_app.command("judge")(judge_verb)


@evaluate_app.command("needle")
def needle_verb(
    scores: Annotated[Path, Argument(help="Score file.")],
    data: Annotated[Path, Option(metavar="DIR", help="Folder of the long scenes.")],
    output: Annotated[Path, Option(metavar="DIR", help="Folder for needle.json and needle.png.", callback=no_file)],
    as_json: AsJson = False,
) -> None:
    """Plot accuracy on long scenes by length of the clip and position of the event.

    Example:  videopanda evaluate needle full.scores.jsonl --data data/long --output report
    """
    require_paths(scores, data / "annotations.json")
    from videopanda.evaluation.needle import needle_report, write_needle

    report = needle_report(scores, data)
    files = write_needle(report, output)
    lines = []
    for part in report["lengths"]:
        low, high = (100 * end for end in part["ci95"])
        lines.append(
            f"{part['minutes']:g} min: {100 * part['accuracy']:.1f} % of {part['n']} ({low:.0f} to {high:.0f})"
        )
    show(report, as_json, *lines, f"written: {', '.join(map(str, files))}")


@evaluate_app.command("report")
def report_verb(
    scores: Annotated[list[Path], Argument(help="Score files, each next to its summary.")],
    output: Annotated[Path, Option(metavar="DIR", help="Folder for Markdown, JSON and plots.")] = Path("report"),
    as_json: AsJson = False,
) -> None:
    """Build tables and plots from score files: intervals, question types, baselines, published numbers.

    Prints the main results; everything else is in report.md.

    Example:  videopanda evaluate report full.scores.jsonl no_video.scores.jsonl --output report
    """
    require_extra("eval", "matplotlib")
    from videopanda.evaluation.reporting.report import report
    from videopanda.evaluation.reporting.write import overview, write

    measured = report(scores)
    files = write(measured, output)
    show(measured, as_json, overview(measured), f"written: {', '.join(map(str, files))}")
