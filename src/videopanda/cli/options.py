"""Shared by all verbs: options (each defined once), loading a model, printing a report."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option

from videopanda.cli.checks import (
    existing_folder,
    finite,
    key_value,
    known_device,
    no_file,
    require_checkpoint,
    require_extra,
    server_url,
    size_in_bytes,
)

if TYPE_CHECKING:
    from rich.console import Console

TestShare = Annotated[
    float, Option(metavar="X", min=0.01, max=0.99, help="Share of each class's recordings held out for testing.")
]
Model = Annotated[Path | None, Option(metavar="DIR|NAME", help="Model folder or Hub name. Default: the bundled nano.")]
NumFrames = Annotated[int | None, Option(metavar="N", min=1, help="Number of frames. Default: the model's own.")]
Fps = Annotated[
    float | None,
    Option(metavar="X", min=0.001, callback=finite, help="Frames per second of the clip, instead of --num-frames."),
]
FramesBy = Annotated[
    Literal["motion", "scenes", "vectors"] | None,
    Option(metavar="RULE", help="Choose frames by motion, scenes or vectors."),
]
LookTwice = Annotated[
    bool, Option("--look-twice", help="Look at the whole clip coarsely, then closely at what the question is about.")
]
MaxVisualTokens = Annotated[
    int | None, Option(metavar="N", min=1, help="Read the whole clip at --fps (default 1); merge tokens beyond N.")
]
MaxNewTokens = Annotated[int, Option(metavar="N", min=1, help="Maximum length of an answer, in tokens.")]
Device = Annotated[
    str | None,
    Option(
        metavar="DEVICE", help="cpu, cuda, cuda:1 or mps. Default: cuda if available, else cpu.", callback=known_device
    ),
]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16", "auto"] | None,
    Option(metavar="TYPE", help="float32, bfloat16, float16, or auto (bfloat16 where the device has it)."),
]
MediaRoot = Annotated[
    Path | None,
    Option(
        metavar="DIR", help="Folder of the clips. Default: the folder of the annotations.", callback=existing_folder
    ),
]
Quantize = Annotated[
    Literal["", "int8", "nf4"], Option(metavar="FORMAT", help="Quantize the language model: int8 or nf4 (4 bits).")
]
Set = Annotated[
    list[str] | None,
    Option("--set", metavar="KEY=VALUE", help="Change one setting; may be repeated.", callback=key_value),
]
Change = Annotated[
    list[str] | None,
    Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change token merging or resolution, as in merge.layers=3,9; may be repeated.",
        callback=key_value,
    ),
]
Family = Annotated[str | None, Option(metavar="NAME", help="Family of a new model. Default: videopanda.")]
Preset = Annotated[str, Option(metavar="NAME", help="Preset of a new vision part. Default: the family's first.")]
AsJson = Annotated[bool, Option("--json", help="Print one JSON object on stdout, everything else on stderr.")]
Cache = Annotated[
    Path | None,
    Option(metavar="DIR", help="Keep visual tokens here, so that a clip is encoded only once.", callback=no_file),
]
CacheSize = Annotated[
    int | None,
    Option(
        metavar="SIZE",
        help="Maximum cache size (default 10GiB); least recently used entries are evicted.",
        parser=size_in_bytes,
    ),
]
BaseUrl = Annotated[
    str | None, Option(metavar="URL", help="OpenAI-compatible server, such as http://host/v1.", callback=server_url)
]
Bench = Annotated[str, Argument(help="Name of the benchmark, such as mvbench.")]
Annotations = Annotated[Path, Argument(help="Original annotations of the benchmark: folder or file.")]
Predictions = Annotated[Path, Argument(help="Predictions, JSON Lines.")]
Errata = Annotated[str, Option(metavar="MODE", help="Known errors: as-published, corrected or strict.")]
ScoresOutput = Annotated[Path, Option(metavar="FILE", help="Scores to write; a summary file goes next to them.")]
Seed = Annotated[int, Option(metavar="S", min=0, help="Random seed of the scenes.")]


def load_model(
    model: Path | None,
    device: str | None = None,
    dtype: str | None = None,
    set_: list[str] | None = None,
    quantize: str = "",
) -> Any:
    """Load a model with the settings applied, and its processor; prints a note if it is the bundled one."""
    if quantize:
        require_extra("qlora", "bitsandbytes")
    model = require_checkpoint(model)
    from videopanda.inference.load import load
    from videopanda.models.fields import parse_settings

    quiet()
    if model is None:
        print("videopanda: using the bundled nano model, trained on moving shapes only (see --model)", file=sys.stderr)
    return load(model, device, dtype, parse_settings(set_ or []), quantize)


@contextmanager
def progress_bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function that draws how many of how many requests are done, if errors go to a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def cache_bytes(cache: Path | None, cache_size: int | None) -> int:
    """The maximum size of a cache of visual tokens."""
    if cache_size is not None and cache is None:
        raise ValueError("--cache-size requires --cache")
    return 10 << 30 if cache_size is None else cache_size


def quiet() -> None:
    """Silence the progress bars of transformers, and the logs and warnings of transformers and other dependencies."""
    import warnings
    from logging import ERROR, getLogger

    from transformers import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for name in ("bitsandbytes", "torch.utils.cpp_extension"):  # the second: a CUDA build of torch without a GPU
        getLogger(name).setLevel(ERROR)
    # What DeepSpeed logs on import without a GPU. It sets its own log level, so raising that has no effect.
    getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
    for name in ("accelerate", "peft", "torch", "torchdata", "transformers"):
        warnings.filterwarnings("ignore", module=rf"{name}\b")


def show(report: Any, as_json: bool, *parts: Any) -> None:
    """Print a report: as one JSON object, or its parts, which are tables or text."""
    if as_json:
        print(json.dumps(report))
        return
    for part in parts:
        if isinstance(part, str):
            print(part)
        else:
            console().print(part)


def console() -> "Console":
    """The console that tables are printed on."""
    from rich.console import Console

    return Console(highlight=False, markup=False)  # answers may contain square brackets
