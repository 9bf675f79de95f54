"""The verbs `videopanda lab …`. Heavy imports are inside the functions."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from videopanda.cli.checks import require_checkpoint, require_extra, require_paths
from videopanda.cli.options import AsJson, quiet, show

lab_app = typer.Typer(help="Run the papers' tables, or your own, at a small scale.", no_args_is_help=True)

TableName = Annotated[str, Argument(help="Name of a table (see lab list), or a file.")]
Budget = Annotated[
    str, Option(metavar="NAME", help="Budget of the table, such as small or full (see lab list --json).")
]
Runs = Annotated[Path, Option(metavar="DIR", help="Folder for all training runs and evaluations.")]
Results = Annotated[
    Path | None, Option(metavar="FILE", help="Results file to write or extend. Default: NAME.json in --runs.")
]
_STOPPED = 75


@lab_app.command("list")
def list_verb(as_json: AsJson = False) -> None:
    """List the tables that come with the package.

    Example:  videopanda lab list
    """
    quiet()
    from rich.table import Table as Grid

    from videopanda.lab.table import names, read

    grid, report = Grid("table", "rows", "title", show_edge=False, box=None, padding=(0, 2, 0, 0)), {}
    for table in (read(name) for name in names()):
        grid.add_row(table.name, str(len(table.rows)), table.title)
        report[table.name] = {
            "title": table.title,
            "source": table.source,
            "rows": [row.name for row in table.rows],
            "budgets": {name: vars(budget) for name, budget in table.budgets.items()},
        }
    show(report, as_json, grid)


@lab_app.command("run")
def run_verb(
    table: TableName,
    budget: Budget = "small",
    seeds: Annotated[
        int | None, Option(metavar="N", min=1, help="Seeds per row. Default: those of the budget.")
    ] = None,
    jobs: Annotated[int, Option(metavar="N", min=1, help="Training runs at the same time.")] = 1,
    model: Annotated[
        Path | None, Option(metavar="DIR|NAME", help="Start from this language model instead of training one.")
    ] = None,
    row: Annotated[list[str] | None, Option(metavar="NAME", help="Run only this row; may be repeated.")] = None,
    runs: Runs = Path("out/lab"),
    output: Results = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Print the commands that would run.")] = False,
) -> None:
    """Train and evaluate every row of a table. The same command resumes an interrupted run.

    Example:  videopanda lab run table4 --budget small --jobs 2
    """
    model = require_checkpoint(model, plain=True)
    quiet()
    from videopanda.lab.run import LabStoppedError, cells, run
    from videopanda.lab.table import only, read

    chosen = only(read(table), row or [])
    if dry_run:
        units = {unit.folder: unit for cell in cells(chosen, budget, runs, seeds, model) for unit in cell.units}
        print(*(unit.command for unit in units.values()), sep="\n")
        return
    results = output or runs / f"{chosen.name}.json"
    try:
        run(chosen, budget, runs, results, seeds, jobs, model)
    except LabStoppedError as error:
        print("videopanda: stopped; the same command continues")
        raise typer.Exit(_STOPPED) from error
    print(f"results: {results}; next:  videopanda lab report {table} --budget {budget} --input {results}")


@lab_app.command("report")
def report_verb(
    table: TableName,
    budget: Budget = "small",
    input_: Annotated[
        Path | None, Option("--input", metavar="FILE", help="Results file. Default: NAME.json in --runs.")
    ] = None,
    runs: Runs = Path("out/lab"),
    output: Annotated[Path, Option(metavar="DIR", help="Folder for Markdown, JSON and pictures.")] = Path("report"),
    as_json: AsJson = False,
) -> None:
    """Compare the rows of a table: intervals, differences from the reference row, use of the video, cost.

    Example:  videopanda lab report table4 --input benchmarks/lab/table4.json --output report
    """
    require_extra("train", "matplotlib")
    require_paths(input_)
    quiet()
    from videopanda.lab.pictures import write_pictures
    from videopanda.lab.report import report
    from videopanda.lab.results import ResultsFile
    from videopanda.lab.table import read
    from videopanda.lab.write import markdown, write

    described = read(table)
    results = input_ or runs / f"{described.name}.json"
    if not results.exists():
        raise ValueError(f"no results at {results}: run  videopanda lab run {table} --budget {budget}  or use --input")
    content = ResultsFile(results, described).content
    found = report(content, described, budget)
    pictures = write_pictures(content["rows"], found, runs, output)
    files = write(found, output, pictures)
    show(found, as_json, markdown(found), f"written: {', '.join(map(str, files))}")


@lab_app.command("teacher")
def teacher_verb(
    kind: Annotated[
        Literal["video-text", "image-text", "video", "image"],
        Option(metavar="NAME", help="video-text, image-text, video or image."),
    ],
    model: Annotated[Path, Option(metavar="DIR|NAME", help="Language model whose tokenizer the teacher uses.")],
    output: Annotated[Path, Option(metavar="DIR", help="Folder for the teacher.")],
    steps: Annotated[int, Option(metavar="N", min=1, help="Training steps.")] = 600,
    batch_size: Annotated[int, Option(metavar="N", min=2, help="Clips per step.")] = 64,
    clips: Annotated[int, Option(metavar="N", min=2, help="Clips of Scenes to train on.")] = 4096,
) -> None:
    """Train a small teacher on Scenes, for tables about distillation.

    Example:  videopanda lab teacher --kind image-text --model out/language --output out/teacher
    """
    model = require_checkpoint(model, plain=True) or model
    quiet()
    from videopanda.lab.teachers import train_teacher

    folder = train_teacher(kind, model, output, steps, batch_size, clips)
    print(f"teacher: {folder}; what it learned: {folder / 'training.json'}")
