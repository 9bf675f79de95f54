"""Writes safetensors shards tensor by tensor, from streams of bytes."""

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from videopanda.checkpoints import checksums
from videopanda.checkpoints.tensors import DTYPE_NAMES

SHARD_BYTES = 4_000_000_000


@dataclass(frozen=True)
class Outgoing:
    """A tensor to be written: name, type, shape, and a function that yields its bytes row by row."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[bytes]]

    @property
    def num_bytes(self) -> int:
        """Size of the elements."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_shards(
    folder: Path, tensors: Iterable[Outgoing], stem: str = "model", shard_bytes: int = SHARD_BYTES
) -> dict[str, str]:
    """Write tensors in their order to files of at most `shard_bytes` (a larger tensor gets its own), with an index.

    Returns:
        The checksum of every tensor by its name.
    """
    shards: list[list[Outgoing]] = []
    room = 0
    for tensor in tensors:
        if not shards or tensor.num_bytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(tensor)
        room -= tensor.num_bytes
    found: dict[str, str] = {}
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        single = len(shards) == 1
        name = f"{stem}.safetensors" if single else f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        found |= _write_file(folder / name, shard)
        weight_map |= {tensor.name: name for tensor in shard}
    if len(shards) > 1:
        total = sum(tensor.num_bytes for shard in shards for tensor in shard)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return found


def _write_file(path: Path, tensors: Sequence[Outgoing]) -> dict[str, str]:
    # Wide types first: every tensor then starts at a multiple of its element size.
    ordered = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        begin, end = end, end + tensor.num_bytes
        header[tensor.name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    found = {}
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in ordered:
            digest = checksums.start(tensor.dtype, tensor.shape)
            written = 0
            for chunk in tensor.chunks():
                digest.update(chunk)
                written += file.write(chunk)
            assert written == tensor.num_bytes, tensor.name
            found[tensor.name] = digest.hexdigest()
    return found
