"""A checkpoint together with the code that it needs, for the Hub, vLLM and places without this package."""

import shutil
from pathlib import Path

from videopanda.models.hub import add_code
from videopanda.models.load import check_checkpoint

_FILES = ("config.json", "processor_config.json")


def export(checkpoint: str | Path, out: str | Path) -> list[str]:
    """Copy a checkpoint folder to a new folder `out` and add the code; returns the names of all files in it.

    Training state (subfolders and pickled files) stays behind. Weights are copied as they are.

    Raises:
        FileNotFoundError: there is no checkpoint folder, or no weights in it.
        ValueError: the folder holds something else, lacks its processor, or `out` is in use.
    """
    source, target = Path(checkpoint), Path(out)
    config = type(check_checkpoint(source))
    if not (source / "processor_config.json").is_file():
        raise ValueError(f"{source} is not a complete videopanda checkpoint: it has no processor_config.json")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is in use: choose a new folder")
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and file.suffix not in (".bin", ".pt", ".pth", ".pkl"):
            shutil.copyfile(file, target / file.name)
    for name in _FILES:
        add_code(target / name, config)
    return sorted(file.name for file in target.iterdir())
