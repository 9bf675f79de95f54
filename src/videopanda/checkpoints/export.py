"""Exports a checkpoint with the code it needs, for the Hub, vLLM and machines without this package."""

import shutil
from pathlib import Path

from videopanda.checkpoints.tensors import HEAD_FILE
from videopanda.models.hub import add_code
from videopanda.models.load import check_checkpoint

_FILES = ("config.json", "processor_config.json")
_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".safetensors", ".md")
TAUGHT = "teach.json"  # the report of `videopanda teach`
# Records of how the folder was made, which contain local paths, and heads that only training needs.
_LEFT_OUT = ("run.json", "conversion.json", TAUGHT, "teach_settings.json", HEAD_FILE)


def export(checkpoint: str | Path, out: str | Path) -> list[str]:
    """Copy a checkpoint folder to a new folder `out` and add the code; returns the names of all files in it.

    Training state, heads that compare with a teacher and the records of a run are not copied. The model's weights are
    copied unchanged.

    Raises:
        FileNotFoundError: the checkpoint folder or its weights are missing.
        ValueError: the folder is not a checkpoint, lacks its processor, or `out` already exists.
    """
    source, target = Path(checkpoint), Path(out)
    config = type(check_checkpoint(source))
    if not (source / "processor_config.json").is_file():
        raise ValueError(f"{source} is not a complete videopanda checkpoint: it has no processor_config.json")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} already exists: choose a new folder")
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and file.suffix in _SUFFIXES and file.name not in _LEFT_OUT:
            shutil.copyfile(file, target / file.name)
    for name in _FILES:
        add_code(target / name, config)
    return sorted(file.name for file in target.iterdir())
