"""The verbs `videopanda train` and `videopanda finetune`. Heavy imports are inside the functions."""

from pathlib import Path
from typing import Annotated

import typer

from videopanda.cli.checks import require_checkpoint, require_json, require_paths, require_rows, require_settings
from videopanda.cli.options import MediaRoot, Set, quiet

Output = Annotated[Path | None, typer.Option("--output", metavar="DIR", help="Folder for checkpoints and logs.")]
Resume = Annotated[bool, typer.Option("--resume", help="Resume from the last checkpoint in --output.")]

_STAGES = ("language", "prealign", "pretrain", "finetune")  # known here so that a typo does not wait for torch
_PRESETS = ("paper", "scripts", "nano", "custom")
_READ_AT_ONCE = 4 << 20  # bytes of annotations that are checked before torch is imported, which takes longer
_STOPPED = 75  # "try again", by the old convention of sysexits; clusters requeue on it


def train_verb(
    stage: Annotated[str, typer.Argument(help="language, prealign, pretrain or finetune.", show_default=False)],
    config: Annotated[
        str,
        typer.Option(
            "--config", metavar="NAME|FILE", help="Settings: paper, scripts, nano, custom, or a JSON file {key: value}."
        ),
    ] = "paper",
    set_: Set = None,
    model: Annotated[Path | None, typer.Option("--model", metavar="DIR", help="Checkpoint to start from.")] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(
            "--chat-template", metavar="FILE", help="Jinja file, or vicuna, for a plain language model without one."
        ),
    ] = None,
    output: Output = None,
    resume: Resume = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done and try two steps on a small model.")
    ] = False,
    processes: Annotated[
        int, typer.Option("--processes", metavar="N", min=1, help="Number of processes to simulate in the dry run.")
    ] = 1,
) -> None:
    """Train one stage; prints frozen and trainable parts first.

    Example:  videopanda train finetune --config nano --model out/pretrain --output out/finetune --set max_steps=200
    """
    if stage not in _STAGES:
        raise ValueError(f"no stage {stage!r}: choose one of {', '.join(_STAGES)}")
    require_settings(set_)
    require_checkpoint(model)
    if config not in _PRESETS and not Path(config).is_file():
        raise ValueError(f"--config {config}: neither a file nor one of {', '.join(_PRESETS)}")
    if config not in _PRESETS:
        require_json(Path(config))
    if model is None and stage != "language":
        raise ValueError(f"stage {stage} needs a model to start from: pass --model DIR")
    _log()
    settings = [*([f"chat_template={chat_template}"] if chat_template else []), *(set_ or [])]
    if dry_run:
        from videopanda.training.dry_run import plan, try_steps

        for line in plan(stage, config, settings, model, processes):
            print(line)
        print(try_steps(stage, config, settings, model, processes))
        return
    _train(stage, config, settings, model, output, resume)


def finetune_verb(
    data: Annotated[str, typer.Option("--data", metavar="FILE", help="Conversations about clips, any known format.")],
    model: Annotated[Path, typer.Option("--model", metavar="DIR", help="Video-Panda to start from.")],
    media_root: MediaRoot = None,
    lora: Annotated[
        bool, typer.Option("--lora", help="Train LoRA adapters in the language model instead of its weights.")
    ] = False,
    quantize: Annotated[
        str, typer.Option("--quantize", metavar="FORMAT", help="With --lora: nf4 keeps the language model in 4 bits.")
    ] = "",
    set_: Set = None,
    output: Output = None,
    resume: Resume = False,
) -> None:
    """Fine-tune a trained model on your own clips.

    Example:  videopanda finetune --data my.jsonl --model out/video-panda-7b --lora --output out/mine
    """
    if quantize not in ("", "nf4"):
        raise ValueError(f"--quantize must be nf4, got {quantize!r}")
    if quantize and not lora:
        raise ValueError("--quantize nf4 needs --lora: quantized weights cannot be trained")
    require_settings(set_)
    require_paths(data, media_root)
    require_checkpoint(model)
    if not set_ and Path(data).is_file() and Path(data).stat().st_size < _READ_AT_ONCE:
        require_rows(data, media_root)
    _log()
    from videopanda.training.run import custom_settings

    settings = custom_settings(data, media_root, lora, quantize == "nf4")
    _train("finetune", "custom", [*settings, *(set_ or [])], model, output, resume)


def _log() -> None:
    import logging

    quiet()
    logging.basicConfig(level=logging.INFO, format="%(message)s")


def _train(stage: str, config: str, set_: list[str], model: Path | None, output: Path | None, resume: bool) -> None:
    import sys

    from videopanda.training.callbacks import RunStoppedError
    from videopanda.training.run import shutdown_distributed, train
    from videopanda.training.trainer import DivergedError

    try:
        folder = train(stage, config, set_, model, output, resume)
    except RunStoppedError as stopped:
        shutdown_distributed()
        print(f"videopanda: {stopped}; to continue:  {_resuming(sys.argv[1:])}", file=sys.stderr)
        raise typer.Exit(_STOPPED) from stopped
    except DivergedError as error:
        shutdown_distributed()
        print(f"videopanda: error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    shutdown_distributed()
    print(f"trained model, metrics.jsonl, curves.png: {folder}")


def _resuming(arguments: list[str]) -> str:
    """The command that resumes the run of this one. A launcher such as torchrun goes in front of it as before."""
    import shlex

    return shlex.join(["videopanda", *arguments, *([] if "--resume" in arguments else ["--resume"])])
