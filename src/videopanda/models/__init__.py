"""Model families, one folder each, and their shared code: torch and transformers only."""

import pkgutil
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any


def folders() -> list[str]:
    """The families of this package: folders with a configuration, a model and processors."""
    parts = ("configuration", "modeling", "processing", "video_processing")
    homes = [Path(path, module.name) for path in __path__ for module in pkgutil.iter_modules([path]) if module.ispkg]
    return [home.name for home in homes if all((home / f"{part}_{home.name}.py").is_file() for part in parts)]


def home_of(name: str) -> str | None:
    """The module of the family that has a public class of this name."""
    homes = (f"{__name__}.{family}" for family in folders())
    return next((home for home in homes if name in import_module(home).__all__), None)


def on_first_use(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package that imports each of its names from its module, {name: module}, on first use."""

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f".{homes[name]}", package), name)

    return find
