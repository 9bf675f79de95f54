"""Model families, one folder each, and what they share: torch and transformers only."""

import pkgutil
from importlib import import_module
from pathlib import Path


def folders() -> list[str]:
    """The families of this package: folders with a configuration, a model and processors."""
    found = [module.name for module in pkgutil.iter_modules(__path__) if module.ispkg]
    parts = ("configuration", "modeling", "processing", "video_processing")
    return [name for name in found if all(Path(__path__[0], name, f"{part}_{name}.py").is_file() for part in parts)]


def home_of(name: str) -> str | None:
    """The module of the family that has a public class of this name."""
    homes = (f"{__name__}.{family}" for family in folders())
    return next((home for home in homes if name in import_module(home).__all__), None)
