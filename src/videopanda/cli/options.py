"""What the modules of the command line share: options, and how a model is loaded and a table printed."""

import re
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
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache", metavar="DIR", help="Keep visual tokens here: a clip that was seen before is not encoded again."
    ),
]
CacheSize = Annotated[
    str, typer.Option("--cache-size", metavar="SIZE", help="Most room for them; what was not used for longest goes.")
]
Seed = Annotated[int, typer.Option("--seed", metavar="S", min=0, help="Chooses the scenes.")]


def load_model(model: Path | None) -> Any:
    """The model and its processor; tells which model that is where the user did not choose one."""
    from videopanda.inference.load import load

    quiet()
    if model is None:
        print("videopanda: using the bundled nano model, which knows moving shapes only (see --model)", file=sys.stderr)
    return load(model)


def size_in_bytes(text: str) -> int:
    """The bytes that a size such as 24GiB stands for."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text)
    if not found:
        raise ValueError(f"a size of memory is written as 24GiB, not {text!r}")
    return int(float(found[1]) * 2 ** (10 * " KMGT".index(found[2] or " ")))


def quiet() -> None:
    """Keep transformers from telling what it does."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def console() -> "Console":
    """Where tables are printed."""
    from rich.console import Console

    return Console(highlight=False, markup=False)  # answers may hold square brackets
