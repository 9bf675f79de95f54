"""The verbs `videopanda pull` and `videopanda push`. Heavy imports are inside the functions."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from typer import Argument, Option

from videopanda.cli.checks import no_file, require_checkpoint, require_paths
from videopanda.cli.options import console, quiet

_MAX_BYTES = 4 << 30  # of weights in memory; larger models are not run by `pull`, to stay within 6 GB


def pull_verb(
    name: Annotated[str, Argument(help="Hub name: org/name, org/name@revision, org/name:folder.")],
    output: Annotated[
        Path | None, Option(metavar="DIR", help="Folder for a converted official checkpoint.", callback=no_file)
    ] = None,
) -> None:
    """Download a model, convert it if it is an official checkpoint, and verify it. The same command resumes.

    Example:  videopanda pull jh-yi/Video-Panda-7B:videopanda_fitu --output out/video-panda-7b
    """
    from videopanda.hub import folder_of

    is_official = not (folder_of(name, files=("*.json",)) / "processor_config.json").is_file()
    if is_official and output is None:
        raise ValueError(f"{name} is an official checkpoint: choose a folder for the converted one with --output DIR")
    folder = folder_of(name, pickled=True)
    quiet()
    if is_official:
        assert output is not None
        if not (output / "config.json").is_file():
            from videopanda.models.families import converter

            print(f"converting {name}")
            converter().convert(folder, output)
        folder = output
    require_checkpoint(folder)
    from videopanda.checkpoints.verify import tables, verify

    report = verify(folder, max_bytes=_MAX_BYTES)
    console().print(tables(report))
    if not report.passed:
        raise typer.Exit(1)
    model = output if folder == output else name
    print(f"ready:  videopanda answer CLIP QUESTION --model {model}")


def push_verb(
    checkpoint: Annotated[Path, Argument(help="Checkpoint folder.")],
    name: Annotated[str, Argument(help="Name on the Hub: org/name.")],
    scores: Annotated[
        list[Path] | None,
        Option(metavar="FILE", help="Summary written by `evaluate score`, for the card; may be repeated."),
    ] = None,
    license_: Annotated[str, Option("--license", metavar="ID", help="License, such as apache-2.0.")] = "",
    limitation: Annotated[
        list[str] | None, Option(metavar="TEXT", help="What the model cannot do, for the card; may be repeated.")
    ] = None,
    private: Annotated[bool, Option("--private", help="Make the repository private.")] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Only print the card and the file names.")] = False,
) -> None:
    """Upload a checkpoint with the code it needs and a model card.

    The card describes data, scores and limitations. A checkpoint that contains
    local paths is refused.

    Example:  videopanda push out/mine org/name --scores out/mine-test/custom/full.scores.summary.json
    """
    from videopanda.hub import parse, upload

    hub = parse(name)
    if hub is None or hub.revision or hub.subfolder:
        raise ValueError(f"expected a Hub name such as org/name, got {name!r}")
    if not checkpoint.is_dir():
        raise FileNotFoundError(f"no model folder at {checkpoint}")
    require_checkpoint(checkpoint)
    require_paths(*(scores or []))
    from videopanda.checkpoints.export import export
    from videopanda.checkpoints.model_card import local_paths, model_card
    from videopanda.models.load import check_checkpoint

    quiet()
    check_checkpoint(checkpoint)
    card = model_card(checkpoint, hub.repo, scores=scores or [], license_=license_, limits=limitation or [])
    with TemporaryDirectory() as place:
        folder = Path(place, "model")
        export(checkpoint, folder)
        (folder / "README.md").write_text(card, encoding="utf-8")
        if found := local_paths(folder):
            raise ValueError(f"{checkpoint} contains a path of this machine ({found[0]}): remove it before pushing")
        if dry_run:
            print(card)
            print("\n".join(sorted(file.name for file in folder.iterdir())))
            return
        print(f"pushed: {upload(folder, hub.repo, private)}")
