"""Model families, one folder each, and what they share: torch and transformers only."""

import pkgutil
from importlib import import_module


def folders() -> list[str]:
    """The families of this package."""
    return [found.name for found in pkgutil.iter_modules(__path__) if found.ispkg]


def home_of(name: str) -> str | None:
    """The module of the family that has a public class of this name."""
    homes = (f"{__name__}.{family}" for family in folders())
    return next((home for home in homes if name in import_module(home).__all__), None)
