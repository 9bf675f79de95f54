"""Loads a checkpoint folder for inference.

model, processor = load("path/to/checkpoint")            # None: the small model that comes with the package
"""

import json
from pathlib import Path

import torch

from videopanda.models.videopanda import VideoPandaForConditionalGeneration, VideoPandaProcessor, refuse_official

BUNDLED_MODEL = Path(__file__).parents[1] / "assets" / "nano"


def load(
    model: str | Path | None = None, device: str | None = None
) -> tuple[VideoPandaForConditionalGeneration, VideoPandaProcessor]:
    """Load a checkpoint folder, ready for inference. None is the bundled model.

    `device` is a torch device; default CUDA where there is one, else the CPU, where every model runs in float32.

    Raises:
        FileNotFoundError: there is no such folder, or no weights in it.
        ValueError: the folder holds something else, or not all of a Video-Panda checkpoint.
    """
    folder = BUNDLED_MODEL if model is None else Path(model)
    check_checkpoint(folder)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float32 if device == "cpu" else "auto"
    try:
        processor = VideoPandaProcessor.from_pretrained(folder)
        network, report = VideoPandaForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, output_loading_info=True
        )
    except OSError as error:
        raise ValueError(f"{folder} is not a complete videopanda checkpoint: {str(error).splitlines()[0]}") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ValueError(
            f"{folder} is not a complete videopanda checkpoint: it lacks {missing[0]} ({len(missing)} weights in all)"
        )
    return network.to(device).eval(), processor


def check_checkpoint(folder: Path) -> None:
    """See that a folder looks like a checkpoint of this project.

    Raises:
        FileNotFoundError: there is no such folder, or no weights in it.
        ValueError: the folder holds something else; for an official checkpoint the message names the command to run.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no model folder at {folder}")
    config = folder / "config.json"
    if not config.is_file():
        raise ValueError(f"{folder} is not a videopanda checkpoint: it has no config.json")
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
        kind = settings.get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder} is not a videopanda checkpoint: its config.json is damaged") from error
    refuse_official(settings, folder)
    if kind != "videopanda":
        raise ValueError(f"{folder} is not a videopanda checkpoint: its model_type is {kind!r}")
    if not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(f"{folder} has no weights (*.safetensors)")
