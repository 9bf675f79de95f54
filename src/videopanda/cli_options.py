"""What the modules of the command line share: options, and how a model is loaded and a table printed."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

Model = Annotated[
    Path | None, typer.Option("--model", metavar="DIR", help="Checkpoint folder. Default: the bundled nano model.")
]
Frames = Annotated[
    int | None, typer.Option("--frames", metavar="N", min=1, help="Frames to look at. Default: the model's own number.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, everything else on stderr.")]
Seed = Annotated[int, typer.Option("--seed", metavar="S", min=0, help="Chooses the scenes.")]


def load_model(model: Path | None) -> Any:
    """The model and its processor; tells which model that is where the user did not choose one."""
    from videopanda.inference import load

    quiet()
    if model is None:
        print("videopanda: using the bundled nano model, which knows moving shapes only (see --model)", file=sys.stderr)
    return load(model)


def quiet() -> None:
    """Keep transformers from telling what it does."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def console() -> "Console":
    """Where tables are printed."""
    from rich.console import Console

    return Console(highlight=False, markup=False)  # answers may hold square brackets
