"""Folders that bring their own code: they load with `trust_remote_code=True` where this package is not installed.

transformers finds a class through `auto_map` in a folder's configuration and loads its file, with the files that this
one imports, from the folder itself.
"""

import json
import shutil
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

# What the Auto classes find, by the file that tells them so.
AUTO_MAP = {
    "config.json": {
        "AutoConfig": "configuration_videopanda.VideoPandaConfig",
        "AutoModel": "modeling_videopanda.VideoPandaModel",
        "AutoModelForImageTextToText": "modeling_videopanda.VideoPandaForConditionalGeneration",
        "AutoModelForMultimodalLM": "modeling_videopanda.VideoPandaForConditionalGeneration",
    },
    "processor_config.json": {
        "AutoProcessor": "processing_videopanda.VideoPandaProcessor",
        "AutoVideoProcessor": "video_processing_videopanda.VideoPandaVideoProcessor",
    },
}


def add_code(file: Path) -> list[str]:
    """Add `auto_map` to a saved `config.json` or `processor_config.json` and put the code beside it.

    Returns the files of code that were written.
    """
    auto_map = AUTO_MAP[file.name]
    record = json.loads(file.read_text(encoding="utf-8"))
    record["auto_map"] = auto_map
    if file.name == "processor_config.json":
        record["video_processor"]["auto_map"] = auto_map
    file.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    code: set[Path] = set()
    for name in auto_map.values():
        module = Path(__file__).with_name(name.partition(".")[0] + ".py")
        code |= {module, *map(Path, get_relative_import_files(module))}
    return [str(shutil.copyfile(source, file.with_name(source.name))) for source in sorted(code)]


def export(checkpoint: str | Path, out: str | Path) -> list[str]:
    """Copy a checkpoint folder to a new folder `out` and add the code; returns the names of all files in it.

    Training state (subfolders and pickled files) stays behind. Weights are copied as they are.

    Raises:
        FileNotFoundError: there is no checkpoint folder.
        ValueError: the folder holds something else, lacks its processor, or `out` is in use.
    """
    source, target = Path(checkpoint), Path(out)
    if not source.is_dir():
        raise FileNotFoundError(f"no model folder at {source}")
    for name in AUTO_MAP:
        if not (source / name).is_file():
            raise ValueError(f"{source} is not a videopanda checkpoint: it has no {name}")
    try:
        kind = json.loads((source / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{source} is not a videopanda checkpoint: its config.json is damaged") from error
    if kind != "videopanda":
        raise ValueError(f"{source} is not a videopanda checkpoint: its model_type is {kind!r}")
    if not any(source.glob("*.safetensors")):
        raise FileNotFoundError(f"{source} has no weights (*.safetensors)")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is in use: choose a new folder")
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and file.suffix not in (".bin", ".pt", ".pth", ".pkl"):
            shutil.copyfile(file, target / file.name)
    for name in AUTO_MAP:
        add_code(target / name)
    return sorted(file.name for file in target.iterdir())


__all__ = ["AUTO_MAP", "add_code", "export"]
