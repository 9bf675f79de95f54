"""Checkpoint folders of any family: which ones can be used, and loading them whole."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig

from .families import model_class

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def check_checkpoint(folder: str | Path) -> PreTrainedConfig:
    """Check that a folder looks like a usable checkpoint; returns its configuration.

    Raises:
        FileNotFoundError: the folder or its weights are missing.
        ValueError: the folder is not a checkpoint; for an official checkpoint the message names the command to run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no model folder at {folder}")
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} is not a videopanda checkpoint: it has no config.json")
    try:
        kind = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder} is not a videopanda checkpoint: its config.json is damaged") from error
    try:
        config = AutoConfig.from_pretrained(folder)
    except KeyError as error:
        raise ValueError(f"{file} is damaged: it lacks {error}") from error
    except ValueError as error:  # the message of an official checkpoint, or a long one about an unknown type
        if "videopanda convert" in str(error):
            raise
        raise ValueError(f"{folder} is not a videopanda checkpoint: its model_type is {kind!r}") from error
    if model_class(config) is None:
        raise ValueError(
            f"{folder} is a plain {kind} model, not a videopanda checkpoint: give it a vision part with  "
            f"videopanda init --backbone {folder} OUT"
        )
    if not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(f"{folder} has no weights (*.safetensors)")
    return config


def multiplies_bfloat16(device: str) -> bool:
    """Whether a CPU or GPU has instructions for bfloat16. Others emulate them, several times slower than float32."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("bf16"))  # the last one on Arm


def load_checkpoint(folder: str | Path, dtype: torch.dtype | str, **options: Any) -> tuple[Any, Any]:
    """Model and processor of a checkpoint folder; `options` go to `from_pretrained` of the model.

    Raises:
        FileNotFoundError: the folder or its weights are missing.
        ValueError: the folder is not a checkpoint, or is incomplete.
    """
    check_checkpoint(folder)
    if not any((Path(folder) / name).is_file() for name in _TOKENIZERS):
        raise ValueError(f"{folder} is not a complete videopanda checkpoint: it has no tokenizer.json")
    try:
        processor = AutoProcessor.from_pretrained(folder)
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, **options
        )
    except OSError as error:
        raise ValueError(f"{folder} is not a complete videopanda checkpoint: {str(error).splitlines()[0]}") from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(f"the weights in {folder} do not have the sizes that its config.json gives") from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{folder} is not a complete videopanda checkpoint: it lacks {missing[0]} ({len(missing)} weights in all)"
        )
    require_finite(model, folder)
    return model, processor


def require_finite(model: Any, folder: str | Path) -> None:
    """Refuse weights of a diverged run.

    Raises:
        ValueError: a weight or buffer is infinite or NaN.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not tensor.is_meta and not bool(tensor.isfinite().all()):
            raise ValueError(f"{folder}: {name} has values that are not finite: the run that wrote it diverged")
