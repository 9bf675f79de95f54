"""Finds the tensors of a checkpoint in its files, without reading them.

for name, place in find_tensors(Path("checkpoint")).items():
    print(name, place.shape, place.dtype, place.path)
tensor = place.read()

Nothing pickled is executed. Bytes are read as they are needed, never a whole file at a time, so any checkpoint can be
processed in a few megabytes of memory. The one exception is PyTorch's file format before version 1.6, which can only be
loaded whole.
"""

import json
import math
import pickle
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

CHUNK_BYTES = 1 << 24  # read at a time
HEAD_FILE = "distillation_head.safetensors"  # heads that compare with a teacher, next to the weights of a model
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class CheckpointError(ValueError):
    """A folder or file is not a valid checkpoint; the message says why."""


@dataclass(frozen=True)
class TensorLocation:
    """The location of a tensor.

    offset: first byte in the file; None in a file of the old PyTorch format, where `key` finds the tensor.
    stride: in elements; None if the elements are contiguous.
    """

    path: Path
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int | None
    stride: tuple[int, ...] | None = None

    @property
    def num_elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Number of bytes of the elements, row by row without gaps."""
        return self.num_elements * self.dtype.itemsize

    @property
    def same_bytes(self) -> tuple:
        """A key that is equal for two places only if they are the same tensor in the same file."""
        return self.path, self.key if self.offset is None else self.offset, self.dtype, self.shape, self.stride

    def chunks(self) -> Iterator[bytes]:
        """The bytes of the elements, row by row.

        Raises:
            CheckpointError: the file ends too early.
        """
        if self.offset is None or self.stride is not None:
            yield from chunks_of(self.read())
        else:
            yield from self._stored(self.num_bytes)

    def read(self) -> Tensor:
        """The tensor, in its own memory.

        Raises:
            CheckpointError: the file ends too early.
        """
        if self.offset is None:
            return _old_format(self.path)[self.key]
        if not self.num_elements:
            return torch.empty(self.shape, dtype=self.dtype)
        stride = self.stride or torch.empty(self.shape, device="meta").stride()
        extent = 1 + sum((size - 1) * step for size, step in zip(self.shape, stride))
        buffer, filled = bytearray(extent * self.dtype.itemsize), 0
        for chunk in self._stored(len(buffer)):
            buffer[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
        return torch.frombuffer(buffer, dtype=self.dtype).as_strided(self.shape, stride)

    def _stored(self, num_bytes: int) -> Iterator[bytes]:
        assert self.offset is not None
        with self.path.open("rb") as file:
            file.seek(self.offset)
            while num_bytes:
                chunk = file.read(min(CHUNK_BYTES, num_bytes))
                if not chunk:
                    raise CheckpointError(f"{self.path} is incomplete: it ends inside {self.key}")
                num_bytes -= len(chunk)
                yield chunk


def chunks_of(tensor: Tensor) -> Iterator[bytes]:
    """The bytes of the elements of a tensor in memory, row by row."""
    flat = tensor.contiguous().view(-1).view(torch.uint8)
    for start in range(0, len(flat), CHUNK_BYTES):
        yield flat[start : start + CHUNK_BYTES].numpy().tobytes()


def find_tensors(folder: Path) -> dict[str, TensorLocation]:
    """All tensors of a checkpoint folder by name, in the order of its files.

    Reads `model.safetensors` or its shards, else `pytorch_model.bin` or its shards.

    Raises:
        CheckpointError: there are no weights, a file of the index is missing or incomplete, a file contains anything
            but tensors, or two files contain a tensor of the same name.
    """
    found: dict[str, TensorLocation] = {}
    paths, indexed = _weight_files(folder)
    for path in paths:
        read = read_safetensors_header if path.suffix == ".safetensors" else read_bin_header
        for name, place in read(path).items():
            if name in found:
                raise CheckpointError(f"{path.name} and {found[name].path.name} in {folder} both contain {name}")
            found[name] = place
    lost = sorted(indexed - found.keys())
    if lost:
        raise CheckpointError(
            f"{folder} is incomplete: its files lack {lost[0]}, which its index names ({len(lost)} tensors in all)"
        )
    return found


def _weight_files(folder: Path) -> tuple[list[Path], set[str]]:
    """The weight files, and the tensor names listed in their index."""
    for stem in ("model.safetensors", "pytorch_model.bin"):
        index, single = folder / f"{stem}.index.json", folder / stem
        if index.is_file():
            try:
                weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
                names = sorted(set(weight_map.values()))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(f"{index} is not an index of weight files") from error
            outside = [name for name in names if Path(name).name != name]
            if outside:
                raise CheckpointError(f"{index} names a file outside its folder: {outside[0]}")
            missing = [name for name in names if not (folder / name).is_file()]
            if missing:
                raise CheckpointError(f"{folder} is incomplete: {', '.join(missing)} is missing")
            return [folder / name for name in names], set(weight_map)
        if single.is_file():
            return [single], set()
        shards = sorted(folder.glob(f"{Path(stem).stem}-*-of-*{Path(stem).suffix}"))
        if shards:
            raise CheckpointError(f"{folder} is incomplete: it has {shards[0].name} but no {index.name}")
    raise CheckpointError(
        f"{folder} contains no weights: neither model.safetensors nor pytorch_model.bin, nor an index"
    )


def read_safetensors_header(path: Path) -> dict[str, TensorLocation]:
    """The tensors of a safetensors file.

    Raises:
        CheckpointError: the file is damaged or shorter than its header says.
    """
    size = _size_on_disk(path)
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if length > size - 8 and size >= 8 and length < 1 << 30:
            raise CheckpointError(f"{path} is incomplete: it has {size:,} bytes, its header alone {length:,}")
        raw = file.read(length) if 2 <= length <= size - 8 else b""
    places = {}
    try:
        header = json.loads(raw.decode("utf-8"))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            dtype, shape = DTYPES.get(entry["dtype"]), tuple(int(n) for n in entry["shape"])
            if dtype is None:
                raise CheckpointError(f"{path}: {name} has the unknown type {entry['dtype']}")
            begin, end = entry["data_offsets"]
            place = TensorLocation(path, name, dtype, shape, 8 + length + begin)
            if min((begin, *shape)) < 0 or end - begin != place.num_bytes:
                raise CheckpointError(f"{path} is damaged: {name} does not match its size in the file")
            places[name] = place
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a safetensors file, or its header is damaged") from error
    expected = max([8 + length, *(place.offset + place.num_bytes for place in places.values() if place.offset)])
    if expected > size:
        raise CheckpointError(f"{path} is incomplete: it has {size:,} of {expected:,} bytes")
    return places


def read_bin_header(path: Path) -> dict[str, TensorLocation]:
    """The tensors of a file of `torch.save`; nothing in it is executed.

    Raises:
        CheckpointError: the file is damaged or incomplete, or contains more than named tensors.
    """
    _size_on_disk(path)
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    size = path.stat().st_size
    places = {}
    for name, tensor in _load_plain(path, "meta").items():
        if tensor.dtype not in DTYPE_NAMES:
            raise CheckpointError(f"{path}: {name} has the unknown type {tensor.dtype}")
        stride = None if tensor.is_contiguous() else tensor.stride()
        offset = None
        if is_zip:
            begin = tensor.untyped_storage()._checkpoint_offset
            assert begin is not None
            offset = begin + int(tensor.storage_offset()) * tensor.dtype.itemsize
            if begin + tensor.untyped_storage().nbytes() > size:
                raise CheckpointError(f"{path} is damaged: {name} is beyond the end of the file")
        places[name] = TensorLocation(path, name, tensor.dtype, tuple(tensor.shape), offset, stride)
    return places


_old_format_file: dict[Path, dict[str, Tensor]] = {}


def _old_format(path: Path) -> dict[str, Tensor]:
    """A whole file of PyTorch's old format. The last one is cached, because its tensors are requested one by one."""
    if path not in _old_format_file:
        _old_format_file.clear()  # before the next one is loaded: never two of them in memory
        _old_format_file[path] = _load_plain(path, "cpu")
    return _old_format_file[path]


def _load_plain(path: Path, device: str) -> dict[str, Tensor]:
    damaged = (RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, AssertionError, struct.error)
    try:
        loaded = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it wants to run {code[1]}" if code else "it is not a plain file of weights"
        raise CheckpointError(f"{path} was not opened, because it could run code: {reason}") from error
    except damaged as error:
        raise CheckpointError(f"{path} is damaged or incomplete: PyTorch cannot read it") from error
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        raise CheckpointError(f"{path} does not contain a dictionary of named tensors")
    return loaded


def _size_on_disk(path: Path) -> int:
    """Size in bytes of a weight file, which must not be a Git LFS pointer."""
    size = path.stat().st_size
    if not size:
        raise CheckpointError(f"{path} is empty: download it again")
    with path.open("rb") as file:
        if file.read(24) == b"version https://git-lfs.":
            raise CheckpointError(f"{path} is a Git LFS pointer, not the file itself: run git lfs pull")
    return size
