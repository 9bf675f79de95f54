"""A checksum of every weight, to detect even a single flipped bit later.

`record(folder)` writes `checksums.json` next to the weights of a checkpoint: for every tensor the SHA-256 of its type,
shape and bytes. Checksums depend on the values, not on the files: they stay valid if the weights are sharded
differently.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch

from videopanda.checkpoints.tensors import DTYPE_NAMES, CheckpointError, TensorLocation, find_tensors

FILE_NAME = "checksums.json"


def start(dtype: torch.dtype, shape: Iterable[int]) -> "hashlib._Hash":
    """A SHA-256 hash started with a tensor's type and shape; the bytes follow."""
    return hashlib.sha256(f"{DTYPE_NAMES[dtype]} {'x'.join(map(str, shape))}\n".encode())


def of_bytes(dtype: torch.dtype, shape: Iterable[int], chunks: Iterable[bytes]) -> str:
    """Checksum of a tensor of this type and shape, whose bytes come row by row."""
    digest = start(dtype, shape)
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def checksum(place: TensorLocation) -> str:
    """Checksum of the tensor at a place."""
    return of_bytes(place.dtype, place.shape, place.chunks())


def write(folder: Path, checksums: dict[str, str]) -> Path:
    """Write `checksums.json`; returns its path."""
    path = folder / FILE_NAME
    content = {"algorithm": "sha256 of type, shape and bytes", "tensors": dict(sorted(checksums.items()))}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def record(folder: str | Path) -> Path:
    """Compute and write the checksums of a checkpoint folder; returns the path of the file."""
    folder = Path(folder)
    return write(folder, {name: checksum(place) for name, place in find_tensors(folder).items()})


def read(folder: Path) -> dict[str, str] | None:
    """The recorded checksums by name of the tensor; None if none were recorded.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["tensors"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: it contains no checksums") from error
