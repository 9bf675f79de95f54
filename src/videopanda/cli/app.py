"""The command `videopanda`: one verb per function. Heavy imports are inside the verbs to keep `--help` fast.

videopanda demo
videopanda answer clip.mp4 "How many objects are there in total?"
"""

import json
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from videopanda.cli.answer import answer_verb, chat_verb
from videopanda.cli.bench import bench_app
from videopanda.cli.checks import (
    no_file,
    refuse,
    require_checkpoint,
    require_extra,
    require_language_model,
    require_new,
    require_paths,
)
from videopanda.cli.data import data_app
from videopanda.cli.errors import run
from videopanda.cli.evaluate import evaluate_app
from videopanda.cli.find import find_verb
from videopanda.cli.hub import pull_verb, push_verb
from videopanda.cli.lab import lab_app
from videopanda.cli.options import AsJson, Family, Preset, Seed, Set, console, load_model, quiet, show
from videopanda.cli.plan import plan_verb
from videopanda.cli.serve import mcp_verb, serve_verb
from videopanda.cli.train import finetune_verb, teach_verb, train_verb
from videopanda.cli.watch import watch_verb

app = typer.Typer(
    help="Train, verify, run and serve encoder-free video-language models.\n\n"
    "Start with  [bold]videopanda demo[/bold]. Each command has its own --help with an example.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
scenes_app = typer.Typer(
    help="Scenes: a generated world with exact answers, for training and testing.", no_args_is_help=True
)
app.add_typer(scenes_app, name="scenes")
app.add_typer(data_app, name="data")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(bench_app, name="bench")
app.add_typer(lab_app, name="lab")

_ASSETS = Path(__file__).parents[1] / "assets"


def _version(is_asked: bool) -> None:
    if is_asked:
        print(version("videopanda"))
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, Option("--version", is_eager=True, callback=_version, help="Print the version and exit.")
    ] = False,
) -> None: ...


app.command("answer")(answer_verb)
app.command("chat")(chat_verb)


@app.command("demo")
def demo_verb(
    output: Annotated[Path, Option(metavar="DIR", help="Folder for the picture.", callback=no_file)] = Path(
        "videopanda_demo"
    ),
) -> None:
    """Show the bundled model answering questions about the bundled clip, with the frames that it saw.

    Example:  videopanda demo --output out/demo
    """
    output.mkdir(parents=True, exist_ok=True)
    from rich.table import Table

    from videopanda.inference.answer import ask
    from videopanda.video.contact_sheet import SheetRow, contact_sheet
    from videopanda.video.read import read_video

    asked = json.loads((_ASSETS / "demo.json").read_text(encoding="utf-8"))["questions"]
    network, processor = load_model(None)
    video = read_video(_ASSETS / "demo.mp4", num_frames=processor.video_processor.num_frames)
    answers = ask(network, processor, video, [item["question"] for item in asked])
    grid = Table("question", "answer", "truth", title=f"What {_ASSETS.name}/demo.mp4 shows", title_justify="left")
    lines = []
    for item, answer in zip(asked, answers):
        grid.add_row(item["question"], answer.answer, item["answer"])
        lines.append(f"{item['question']}  {answer.answer}  (truth: {item['answer']})")
    contact_sheet([SheetRow(video.frames, lines, video.timestamps)]).save(output / "contact_sheet.png")
    console().print(grid)
    print(f"the frames that it saw: {output / 'contact_sheet.png'}")
    print(f"ask it yourself, in your own words:  videopanda chat {shlex.quote(str(_ASSETS / 'demo.mp4'))}")


@scenes_app.command("make")
def scenes_make_verb(
    out: Annotated[Path, Argument(help="Folder to write or resume.", callback=no_file)],
    num: Annotated[int, Option(metavar="N", min=1, help="Number of clips.")] = 1000,
    seed: Seed = 0,
    split: Annotated[str, Option(help="train, validation or test.")] = "train",
    long: Annotated[bool, Option("--long", help="Make clips of minutes to hours with rare events.")] = False,
    minutes: Annotated[str, Option(metavar="M,…", help="With --long: lengths of the clips; --num clips of each.")] = "",
    world: Annotated[
        str, Option(metavar="NAME", help="scenes, or tabletop (solid objects in perspective).")
    ] = "scenes",
) -> None:
    """Write scenes as mp4 files with questions and answers in the conversation format.

    Example:  videopanda scenes make data/scenes --num 1000 --seed 0

    Long clips with rare events:  videopanda scenes make --long --minutes 1,10,60 --num 5 --split test data/long
    """
    if minutes and not long:
        raise ValueError("--minutes requires --long")
    if long and world != "scenes":
        raise ValueError("--long supports only the world scenes: omit --world")
    if long:
        from videopanda.data.worlds.long.make import LENGTHS, make_long

        try:
            lengths = [float(part) for part in minutes.split(",")] if minutes else LENGTHS
        except ValueError as error:
            raise ValueError(f"--minutes must be numbers such as 1,10,60, got {minutes!r}") from error
        folder = make_long(out, num, seed, split, lengths)
        print(f"{num * len(lengths)} long clips with questions: {folder / 'annotations.json'}")
        return
    if out.is_dir() and any(out.iterdir()) and not (out / "scenes.json").exists():
        raise ValueError(f"{out} contains other files: choose a new folder")
    if world == "tabletop":
        require_extra("worlds", "panda3d")
    from videopanda.data.worlds.scenes.make import make

    folder = make(out, num, seed, split, world=world)
    print(f"{num} clips with questions: {folder / 'annotations.json'}\ncontact sheet: {folder / 'contact_sheet.png'}")


app.command("find")(find_verb)
app.command("watch")(watch_verb)
app.command("serve")(serve_verb)
app.command("mcp")(mcp_verb)
app.command("pull")(pull_verb)
app.command("push")(push_verb)
app.command("train")(train_verb)
app.command("finetune")(finetune_verb)
app.command("teach")(teach_verb)
app.command("plan")(plan_verb)


@app.command("init")
def init_verb(
    out: Annotated[Path, Argument(help="New folder for the checkpoint.")],
    backbone: Annotated[
        str | None, Option(metavar="DIR|NAME", help="Causal language model: folder or Hub name.")
    ] = None,
    model: Annotated[
        Path | None,
        Option(metavar="DIR|NAME", help="Trained model: to change with --set, or its vision part for --backbone."),
    ] = None,
    family: Family = None,
    preset: Preset = "",
    encoder: Annotated[
        str, Option(metavar="DIR|NAME", help="Pretrained vision encoder, for a family that has one.")
    ] = "",
    set_: Set = None,
    chat_template: Annotated[
        str | None, Option(metavar="FILE|vicuna", help="Chat template. Default: the tokenizer's own.")
    ] = None,
    seed: Annotated[int, Option(metavar="S", min=0, help="Random seed of the new weights.")] = 0,
) -> None:
    """Make an untrained model, the start of training: a language model with a new vision part.

    Example:  videopanda init --backbone vicuna-7b-v1.5 --chat-template vicuna out/fresh

    Every field of the configuration can be set:  videopanda init --backbone DIR --set stab.row_tokens=false out/fresh

    Add a compressor to a trained model:  videopanda init --model out/nano --set compression.kind=mamba out/nano-mamba

    Put the vision part of a trained model in front of another language model:

    videopanda init --backbone HuggingFaceTB/SmolLM2-135M-Instruct --model nano out/fresh
    """
    if backbone is None and model is None:
        raise ValueError("pass --backbone (a language model), --model (a trained model to change), or both")
    if model is not None:
        refuse("--model has its vision part", family=family, preset=preset, encoder=encoder)
    if backbone is None and chat_template:
        raise ValueError("--chat-template is for a new language model: omit it, or pass --backbone")
    model = require_checkpoint(model)
    if backbone is not None:
        require_language_model(backbone)
    if chat_template not in (None, "vicuna"):
        require_paths(chat_template)
    require_new(out)
    from videopanda.models.families import DEFAULT
    from videopanda.models.fields import parse_settings
    from videopanda.training.build import change_checkpoint, make_checkpoint

    quiet()
    if backbone is None:
        assert model is not None
        print("\n".join(change_checkpoint(out, model, parse_settings(set_ or []), seed=seed)))
        return
    fresh: dict[str, Any] = {"family": family or DEFAULT, "preset": preset, "fields": parse_settings(set_ or [])}
    fresh |= {"encoder": encoder, "trained": model or ""}
    print("\n".join(make_checkpoint(out, backbone, **fresh, chat_template=chat_template, seed=seed)))


@app.command("doctor")
def doctor_verb(as_json: AsJson = False) -> None:
    """Check the installation: versions, GPU, decoders, extras.

    Exit code 1 means that something needed is broken.

    Example:  videopanda doctor
    """
    from dataclasses import asdict

    from rich.table import Table

    from videopanda.doctor import examine

    checks = examine()
    broken = [check for check in checks if check.state == "broken"]
    table = Table("check", "found", "tested", "state", box=None, pad_edge=False)
    for check in checks:
        table.add_row(check.name, check.found, check.tested, check.state)
    fixes = sorted((check for check in checks if check.fix), key=lambda check: check.state == "missing")
    report = {"ok": not broken, "checks": [asdict(check) for check in checks]}
    show(report, as_json, table, *(f"{check.name}: {check.fix}" for check in fixes))
    if broken:
        raise typer.Exit(1)


@app.command("export")
def export_verb(
    checkpoint: Annotated[Path, Argument(help="Checkpoint folder.")], out: Annotated[Path, Argument(help="New folder.")]
) -> None:
    """Copy a checkpoint together with the code it needs, for the Hub, vLLM, or machines without this package.

    Example:  videopanda export out/finetune out/for_the_hub
    """
    checkpoint = require_checkpoint(checkpoint) or checkpoint
    require_new(out)
    from videopanda.checkpoints.export import export

    files = export(checkpoint, out)
    print(f"{out}: {len(files)} files; loads with trust_remote_code=True where videopanda is not installed")


@app.command("convert")
def convert_verb(
    source: Annotated[Path, Argument(help="Official checkpoint: folder or Hub name.")],
    out: Annotated[Path, Argument(help="New folder.")],
    allow: Annotated[
        list[str] | None, Option(metavar="KEY|PATTERN", help="Drop unknown tensors with this name; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Convert an official Video-Panda or EVE checkpoint into a folder that every other command reads.

    Example:  videopanda convert Video-Panda-7B/videopanda_fitu out/video-panda-7b
    """
    require_new(out)
    from videopanda.hub import folder_of

    source = folder_of(source, pickled=True)
    from videopanda.models.families import converter

    quiet()
    conversion = converter()
    plan = conversion.convert(source, out, allow or [])
    if as_json:
        print(json.dumps(plan.as_dict()))
        return
    print(*conversion.lines(plan), sep="\n")
    console().print(conversion.table(plan))
    for note in plan.settings.notes:
        print(f"videopanda: {note}", file=sys.stderr)
    print(f"{out}: written with its report, conversion.json; check the folder with  videopanda verify {out}")


@app.command("verify")
def verify_verb(
    checkpoint: Annotated[Path, Argument(help="Checkpoint folder.")],
    against: Annotated[
        Path | None, Option(metavar="SRC", help="Official checkpoint that the weights must match bit for bit.")
    ] = None,
    record: Annotated[
        bool, Option("--record", help="Write checksums of the current weights if all checks pass.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check a checkpoint: names, shapes, values, checksums, consistent answers.

    Exit code 1 means that a check failed.

    Example:  videopanda verify out/video-panda-7b
    """
    checkpoint = require_checkpoint(checkpoint) or checkpoint
    require_paths(against)
    from videopanda.checkpoints.verify import tables, verify

    quiet()
    report = verify(checkpoint, against, record)
    recorded = [f"checksums recorded: {checkpoint / 'checksums.json'}"] if report.recorded else []
    show(report.as_dict(), as_json, tables(report), *recorded)
    if not report.passed:
        raise typer.Exit(1)


def main() -> None:
    """Run the command."""
    run(app)
