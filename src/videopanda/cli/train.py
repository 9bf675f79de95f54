"""The verbs `videopanda train`, `finetune` and `teach`. Heavy imports are inside the functions."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer import Argument, Option

from videopanda.cli.checks import no_file, require_checkpoint, require_extra, require_paths, require_rows, require_stage
from videopanda.cli.options import AsJson, MediaRoot, Model, Set, TestShare, quiet, show

Output = Annotated[
    Path | None, Option(metavar="DIR", help="Folder for checkpoints and logs. Default: out/STAGE.", callback=no_file)
]
Lora = Annotated[bool, Option("--lora", help="Train LoRA adapters instead of the weights of the language model.")]
TrainQuantize = Annotated[str, Option(metavar="FORMAT", help="With --lora: nf4 keeps the language model in 4 bits.")]
T = TypeVar("T")

_READ_AT_ONCE = 4 << 20  # bytes; smaller annotation files are checked before torch is imported
_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: clusters requeue on it


def train_verb(
    stage: Annotated[str, Argument(help="language, prealign, spatial, spatiotemporal, pretrain or finetune.")],
    config: Annotated[
        str,
        Option(metavar="NAME|FILE", help="Settings: paper, scripts, nano, elva, custom, or a JSON file {key: value}."),
    ] = "paper",
    set_: Set = None,
    model: Annotated[Path | None, Option(metavar="DIR|NAME", help="Model to start from.")] = None,
    chat_template: Annotated[
        str | None, Option(metavar="FILE", help="Chat template. Default: the tokenizer's own.")
    ] = None,
    output: Output = None,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Show what the run would do, and try two steps on a small model.")
    ] = False,
    processes: Annotated[
        int | None, Option(metavar="N", min=1, help="With --dry-run: number of processes to simulate.")
    ] = None,
) -> None:
    """Train one stage. The same command resumes an interrupted run.

    Example:  videopanda train finetune --config nano --model out/pretrain --output out/finetune --set max_steps=200
    """
    require_stage(stage, config)
    model = require_checkpoint(model, plain=True)
    if model is None and stage != "language":
        raise ValueError(f"stage {stage} needs a model to start from: pass --model DIR")
    _log()
    settings = [*([f"chat_template={chat_template}"] if chat_template else []), *(set_ or [])]
    if processes is not None and not dry_run:
        raise ValueError("--processes requires --dry-run; to train on several processes, use torchrun")
    if dry_run:
        from videopanda.training.dry_run import plan, try_steps

        for line in plan(stage, config, settings, model, processes or 1):
            print(line)
        print(try_steps(stage, config, settings, model, processes or 1))
        return
    _train(stage, config, settings, model, output)


def finetune_verb(
    data: Annotated[str, Option(metavar="FILE", help="Conversations about clips, in any supported format.")],
    model: Annotated[Path, Option(metavar="DIR|NAME", help="Model to start from.")],
    media_root: MediaRoot = None,
    lora: Lora = False,
    quantize: TrainQuantize = "",
    set_: Set = None,
    output: Output = None,
) -> None:
    """Fine-tune a trained model on conversations about your own clips.

    Example:  videopanda finetune --data my.jsonl --model out/video-panda-7b --lora --output out/mine
    """
    _check_quantize(quantize, lora)
    require_paths(data)
    start = require_checkpoint(model)
    if not set_ and Path(data).is_file() and Path(data).stat().st_size < _READ_AT_ONCE:
        require_rows(data, media_root)
    _log()
    from videopanda.training.run import custom_settings

    settings = custom_settings(data, media_root, lora, quantize == "nf4")
    _train("finetune", "custom", [*settings, *(set_ or [])], start, output)


def teach_verb(
    clips: Annotated[
        Path, Argument(help="Folder with one subfolder of clips per class, or a file of questions about clips.")
    ],
    output: Annotated[Path, Option(metavar="DIR", help="Folder for the model and the report.", callback=no_file)],
    question: Annotated[str, Option(metavar="TEXT", help="The question about every clip of a folder.")] = "",
    media_root: MediaRoot = None,
    model: Model = None,
    lora: Lora = False,
    quantize: TrainQuantize = "",
    test_share: TestShare = 0.25,
    copies: Annotated[
        int | None,
        Option(
            metavar="N",
            min=0,
            help="Number of altered copies of each training recording. Default: 4 up to 200 recordings, else none.",
        ),
    ] = None,
    seed: Annotated[int, Option(metavar="S", min=0, help="Random seed of the split and the training.")] = 0,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Teach a model your clips, and test it on recordings that it has never seen.

    Labels and checks the clips, splits them by recording, trains until the
    loss on held-out clips stops improving, and reports accuracy before and
    after, with and without the video. The same command resumes.

    Example:  videopanda teach clips --question "Which word is signed?" --output out/mine

    Questions in a file, in any format of training data:  videopanda teach questions.jsonl --output out/mine
    """
    _check_quantize(quantize, lora)
    require_paths(clips)
    require_extra("train", "matplotlib", "torchdata", *(["peft"] if lora else []))
    start = require_checkpoint(model)
    _log()
    from videopanda.teach import next_commands, tables, teach

    options: dict[str, Any] = {"test_share": test_share, "copies": copies, "seed": seed, "settings": set_ or []}
    options["media_root"] = media_root
    report = _told(lambda: teach(clips, question, output, start, lora=lora, quantize=bool(quantize), **options))
    if not as_json:
        for warning in report["warnings"]:
            print(f"videopanda: WARNING: {warning}", file=sys.stderr)
    show(report, as_json, *tables(report), f"report: {output / 'teach.html'}\n{next_commands(output)}")


def _log() -> None:
    import logging

    quiet()
    logging.basicConfig(level=logging.INFO, format="%(message)s")


def _train(stage: str, config: str, set_: list[str], model: Path | None, output: Path | None) -> None:
    from videopanda.training.run import train

    folder = _told(lambda: train(stage, config, set_, model, output))
    print(f"trained model, and a page about the run (index.html): {folder}")


def _told(work: Callable[[], T]) -> T:
    """Run the training and return its result; exits with 75 if the run was stopped, with 1 if it diverged."""
    from videopanda.training.callbacks import RunStoppedError
    from videopanda.training.run import shutdown_distributed
    from videopanda.training.trainer import DivergedError

    try:
        done = work()
    except RunStoppedError as stopped:
        shutdown_distributed()
        print(f"videopanda: {stopped}; the same command continues", file=sys.stderr)
        raise typer.Exit(_STOPPED) from stopped
    except DivergedError as error:
        shutdown_distributed()
        print(f"videopanda: error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    shutdown_distributed()
    return done


def _check_quantize(quantize: str, lora: bool) -> None:
    if quantize not in ("", "nf4"):
        raise ValueError(f"--quantize must be nf4 for training, got {quantize!r}")
    if quantize and not lora:
        raise ValueError("--quantize requires --lora: quantized weights cannot be trained")
    if quantize:
        require_extra("qlora", "bitsandbytes")
