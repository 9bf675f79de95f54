"""The verb `videopanda evaluate judge`. Heavy imports are inside the function."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from videopanda.cli.checks import existing_file, refuse, require_checkpoint, require_paths
from videopanda.cli.options import Annotations, AsJson, BaseUrl, Bench, Errata, Predictions, ScoresOutput, show


def judge_verb(
    bench: Bench,
    path: Annotations,
    predictions: Predictions,
    output: ScoresOutput,
    name: Annotated[
        str | None, Option(metavar="ID", help="Name of the judge model on the server; prefer a dated version.")
    ] = None,
    base_url: BaseUrl = None,
    model: Annotated[
        Path | None, Option(metavar="DIR|NAME", help="Chat model as the judge, instead of a server.")
    ] = None,
    imported: Annotated[
        Path | None,
        Option("--import", metavar="PATH", help="Import verdicts of the official scripts from this file or folder."),
    ] = None,
    prompts: Annotated[
        Path | None, Option(metavar="FILE", help="JSON file with custom judge prompts.", callback=existing_file)
    ] = None,
    errata: Errata = "as-published",
    concurrency: Annotated[
        int | None, Option(metavar="N", min=1, help="Concurrent calls to the server. Default: 8.")
    ] = None,
    retries: Annotated[
        int | None, Option(metavar="N", min=0, help="Retries per call to the server. Default: 5.")
    ] = None,
    timeout: Annotated[
        float | None, Option(metavar="S", min=0.1, help="Seconds for one call to the server. Default: 60.")
    ] = None,
    price_in: Annotated[float | None, Option(metavar="X", min=0, help="Price of a million prompt tokens.")] = None,
    price_out: Annotated[float | None, Option(metavar="X", min=0, help="Price of a million completion tokens.")] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Only estimate what the run would cost.")] = False,
    as_json: AsJson = False,
) -> None:
    """Have a language model judge stored predictions. Replies are kept; the same command resumes.

    Exit code 1 means that some predictions could not be judged; they count as
    wrong and are listed.

    Example:  videopanda evaluate judge msvd-qa MSVD full.jsonl --name ID --base-url http://host/v1 --output j
    """
    from videopanda.evaluation.judging.clients import Judge, LocalJudge, RemoteJudge
    from videopanda.evaluation.judging.protocols import read_prompts
    from videopanda.evaluation.judging.run import import_file, judge_file, open_calls, prepare
    from videopanda.evaluation.scoring.score import table

    if sum(option is not None for option in (name, model, imported)) != 1:
        raise ValueError("choose a judge: one of --name, --model and --import")
    if base_url and not name:
        raise ValueError("--base-url is the server of a judge that --name names: omit it")
    if not name and (concurrency, retries, timeout) != (None, None, None):
        raise ValueError("--concurrency, --retries and --timeout are for calls to a server: they require --name")
    if imported:
        refuse("--import calls no judge", prompts=prompts, price_in=price_in, price_out=price_out, dry_run=dry_run)
    require_paths(predictions, imported)
    model = require_checkpoint(model, plain=True)
    work = prepare(bench, path, predictions, output, errata)
    if imported:
        summary = import_file(work, output, imported)
    else:
        used = read_prompts(prompts)
        asked: Judge = (
            LocalJudge(model)
            if model
            else RemoteJudge(str(name), base_url, 5 if retries is None else retries, timeout or 60.0)
        )
        cost = open_calls(work, output, used, asked.name, price_in, price_out)
        if dry_run:
            print(json.dumps(cost))
            return
        print(f"videopanda: {json.dumps(cost)}", file=sys.stderr)
        summary = judge_file(work, output, asked, used, 1 if model else concurrency or 8)
        for reason, count in Counter(summary["failed_calls"].values()).most_common(3):
            print(f"videopanda: {count} calls failed: {reason}", file=sys.stderr)
    show(summary, as_json, table(summary), f"scores: {output}, summary: {output.with_suffix('.summary.json')}")
    if not {"not_judged", "unparsable_verdict"}.isdisjoint(summary["wrong_without_being_read"]):
        raise typer.Exit(1)
