"""Output files of commands: replaced as a whole, and only if the existing file is of the same kind."""

import io
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

Kind = Callable[[bytes], bool]  # whether a file's content is of the kind that is to be written


def lines_with(*keys: str) -> Kind:
    """JSON Lines whose first line has these keys."""
    return lambda content: _has(content.partition(b"\n")[0], keys)


def object_with(*keys: str) -> Kind:
    """One JSON object with these keys."""
    return lambda content: _has(content, keys)


def begins_with(text: bytes) -> Kind:
    """A file that begins with this text."""
    return lambda content: content.startswith(text)


def _has(text: bytes, keys: tuple[str, ...]) -> bool:
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return isinstance(found, dict) and found.keys() >= {*keys}


def png(figure: Any, software: str) -> bytes:
    """A matplotlib figure as a PNG that names the command that made it; the figure is closed."""
    from matplotlib import pyplot as plt

    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120, metadata={"Software": software})
    plt.close(figure)
    return content.getvalue()


def check_replaceable(path: Path, kind: Kind) -> None:
    """Check that writing a file replaces nothing of another kind; an empty file may be replaced.

    Raises:
        ValueError: a file of another kind is there.
    """
    if path.is_dir() or (path.exists() and (content := path.read_bytes()) and not kind(content)):
        raise ValueError(f"{path} exists and was not written by this command: choose another --output or remove it")


def replace_file(path: Path, content: bytes | str, kind: Kind) -> None:
    """Write a file whole or not at all.

    Raises:
        ValueError: something of another kind is there.
    """
    check_replaceable(path, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
