"""Whole evaluations in one call: predictions with and without the clip, scores, one report. The same call resumes.

run([Bench("mvbench", Path("MVBench/json"), Path("MVBench/video"))], Path("out/evaluation"), model, limit=50)
# or: videopanda evaluate run mvbench=MVBench/json --media-root mvbench=MVBench/video --limit 50 --output …
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group

from videopanda.evaluation.benchmarks.table import benchmark
from videopanda.evaluation.predict import PredictJob, predict
from videopanda.evaluation.reporting.report import report
from videopanda.evaluation.reporting.write import overview, write
from videopanda.evaluation.scoring.score import score_file
from videopanda.evaluation.scoring.scorers import DEFAULTS
from videopanda.inference.load import load

DEFAULT_CONDITIONS = ("full", "no_video", "one_frame", "shuffled")


@dataclass(frozen=True)
class Bench:
    """A benchmark, where its annotations are, and the folder of its videos."""

    name: str
    annotations: Path
    videos: Path


def run(
    benches: Sequence[Bench],
    output: Path,
    model: Path | None = None,
    *,
    device: str | None = None,
    loaded: tuple[Any, Any] | None = None,
    conditions: Sequence[str] = DEFAULT_CONDITIONS,
    limit: int | None = None,
    errata: str = "as-published",
    num_frames: int | None = None,
    batch_size: int = 8,
    max_new_tokens: int = 64,
    cache: Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Ask, score and report; everything is kept in `output`, and existing predictions are not asked for again.

    Args:
        conditions: what is shown: "full", and baselines (`evaluation.conditions`).
        limit: ask only this many questions of each benchmark, the same ones every time.
        loaded: the model and its processor, if the caller already has them.
        settings: changes of the model that need no training, see `inference.load.load`; with `loaded` they are its own.

    Returns:
        The report, see `reporting.report`; `not_scored` lists benchmarks whose answers need a judge.

    Raises:
        ValueError: unknown benchmark or condition, no annotations or videos, or `output` has files of another run.
    """
    jobs: dict[str, list[PredictJob]] = {}
    for bench in benches:
        if bench.name in jobs:
            raise ValueError(f"{bench.name} is named twice")
        jobs[bench.name] = [
            PredictJob(
                bench.name,
                bench.annotations,
                bench.videos,
                model,
                condition,
                errata=errata,
                num_frames=num_frames,
                batch_size=batch_size,
                max_new_tokens=max_new_tokens,
                limit=limit,
                cache=cache,
            )
            for condition in conditions
        ]
    for job in (job for each in jobs.values() for job in each):  # refuses, before the model is loaded
        if not any(question.source.path for batch in job.batches for question in batch):
            raise FileNotFoundError(f"none of the videos of {job.bench} is in {job.videos}: pass --media-root NAME=DIR")
    loaded = loaded or load(model, device, settings=settings)
    progress, scores, judged = Console(stderr=True), [], []
    for name, each in jobs.items():
        for job in each:
            progress.print(f"{benchmark(name).title}: {job.condition.replace('_', ' ')}", highlight=False)
            predictions = output / name / f"{job.condition}.jsonl"
            predict(job, predictions, loaded=loaded)
            if not _can_score(job):
                continue
            scores.append(predictions.with_suffix(".scores.jsonl"))
            score_file(name, job.path, predictions, scores[-1], mode=errata, limit=limit)
        if not _can_score(each[0]):
            judged.append(name)
    measured = report(scores) if scores else {"benchmarks": []}
    if scores:
        write(measured, output / "report")
    return {**measured, "not_scored": judged}


def _can_score(job: PredictJob) -> bool:
    return any(
        question.item.has_answer and question.item.task in DEFAULTS for batch in job.batches for question in batch
    )


def table(measured: dict[str, Any]) -> Group:
    """The headlines, and which benchmarks have none."""
    notes = [f"{name}: its answers need a judge; see  videopanda evaluate judge" for name in measured["not_scored"]]
    return Group(overview(measured), *notes)
