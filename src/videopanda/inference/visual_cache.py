"""Visual tokens on disk: a clip that any process has encoded is neither decoded nor encoded again.

    cache = TokenDiskCache("~/.cache/videopanda/tokens", 10 * 2**30)
    key = cache.key(vision_key(model, processor), clip_key("clip.mp4", num_frames=8, sampling="uniform"))
    entry = cache.get(key)            # None if there is none, or it is corrupt
    cache.put(key, tokens, {"frame_times": [...]})

An entry is a safetensors file whose name is a hash of everything that decides the tokens: content of the clip, frames
chosen, decoders, weights, configuration, data type. It is written to a temporary file and renamed, so that readers see
all of it or nothing, whenever a process dies. No locking: concurrent writers of one key write identical bytes.
"""

import hashlib
import json
import logging
import os
import time
import uuid
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

FORMAT = 3  # part of every key: incremented when the vision part's arithmetic or the format of entries changes
_STALE_SECONDS = 3600.0  # a partly written file older than this belongs to a process that died
_BYTES = (bytes, bytearray, memoryview)
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """tokens: (V, E). facts: what was kept with them, plain values. layout: of the tokens; see `EncodedVisual`."""

    tokens: Tensor
    facts: dict[str, Any]
    layout: Tensor | None = None


class TokenDiskCache:
    """A folder of entries, of at most `max_bytes` in total; the least recently used ones are evicted.

    Raises:
        OSError: the folder cannot be created.
        ValueError: the size is not positive.
    """

    def __init__(self, folder: str | Path, max_bytes: int):
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be positive, got {max_bytes}")
        self.folder, self.max_bytes = Path(folder).expanduser(), max_bytes
        self.folder.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def key(*parts: str) -> str:
        """The name of an entry."""
        return hashlib.sha256(json.dumps([FORMAT, torch.__version__, *parts]).encode()).hexdigest()

    def get(self, key: str) -> Entry | None:
        """The entry, which counts as used now; None if there is none, or a corrupt one, which is removed."""
        file = self._file(key)
        try:
            content = file.read_bytes()  # at once: the file may be replaced or removed at any time
            # A copy: unaligned buffers change the summation order of kernels.
            tensors = {name: tensor.clone() for name, tensor in load(content).items()}
            facts = _metadata(content)
            if facts["sha256"] != _sha256(tensors, facts["facts"]):
                raise SafetensorError("checksum mismatch")
            entry = Entry(tensors["tokens"], json.loads(facts["facts"]), tensors.get("layout"))
        except FileNotFoundError:  # never written, or removed meanwhile
            return None
        except (SafetensorError, ValueError, KeyError) as error:
            _LOG.warning("%s is corrupt and will be regenerated: %s", file, error)
            _remove(file)
            return None
        except OSError as error:
            _LOG.warning("%s cannot be read: %s", file, error)
            return None
        with suppress(OSError):  # already removed, or owned by another user
            os.utime(file)
        return entry

    def put(self, key: str, tokens: Tensor, facts: dict[str, Any], layout: Tensor | None = None) -> None:
        """Write an entry and evict old ones if needed. A full disk is logged, not raised."""
        given = {"tokens": tokens} if layout is None else {"tokens": tokens, "layout": layout}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in given.items()}
        told = json.dumps(facts)
        content = save(tensors, {"facts": told, "sha256": _sha256(tensors, told)})
        if len(content) > self.max_bytes:
            return
        file = self._file(key)
        draft = file.with_name(f"{file.name}.{uuid.uuid4().hex}.draft")
        try:
            self._make_room(len(content))
            file.parent.mkdir(exist_ok=True)
            draft.write_bytes(content)
            draft.replace(file)
        except OSError as error:
            _LOG.warning("visual tokens cannot be written to %s: %s", self.folder, error)
            _remove(draft)

    @property
    def size(self) -> int:
        """Bytes of all entries."""
        return sum(size for _, size, _ in self._files())

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Last use, size and path of everything in the folder; other processes may be adding and removing."""
        for path in self.folder.glob("??/*.safetensors*"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            yield status.st_mtime, status.st_size, path

    def _make_room(self, needed: int) -> None:
        files = sorted(self._files(), key=lambda entry: entry[0])
        for used, _, path in files:
            if path.suffix == ".draft" and time.time() - used > _STALE_SECONDS:
                _remove(path)
        entries = [entry for entry in files if entry[2].suffix != ".draft"]
        total = needed + sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total <= self.max_bytes:
                return
            _remove(path)
            total -= size


def _metadata(content: bytes) -> dict[str, str]:
    """Of a safetensors file: eight bytes with the length of a JSON header, then the header."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return dict(header["__metadata__"])


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:  # Windows, while another process reads it
        _LOG.warning("%s cannot be removed: %s", file, error)


def _sha256(tensors: dict[str, Tensor], facts: str) -> str:
    content = hashlib.sha256(facts.encode())
    for _, tensor in sorted(tensors.items()):
        content.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


# -- keys --------------------------------------------------------------------------------------------------------------
def clip_key(
    video: Any,
    *,
    num_frames: int | None,
    sampling: str,
    start: float | None = None,
    end: float | None = None,
    fps: float | None = None,
) -> str | None:
    """Content of a clip and the choice of its frames; None for sources that can be read only once or are missing.

    Raises:
        OSError: the file cannot be read.
    """
    if hasattr(video, "frames"):
        content = hashlib.sha256()
        for frame in map(np.asarray, video.frames):  # which may differ in size
            content.update(json.dumps(frame.shape).encode())
            content.update(frame.tobytes())
        content.update(json.dumps(float(video.duration)).encode())
        return f"frames {content.hexdigest()}"
    if not is_stored(video):
        return None
    content = hashlib.sha256(video) if isinstance(video, _BYTES) else _files_sha256(Path(video))
    choice = json.dumps([num_frames, sampling, start, end, _decoders(), *([] if fps is None else [fps])])
    return f"file {content.hexdigest()} {choice}"


def is_stored(video: Any) -> bool:
    """Whether a video can be read several times: bytes, a file, or a folder of pictures."""
    if isinstance(video, _BYTES):
        return True
    return isinstance(video, str | os.PathLike) and (Path(video).is_file() or Path(video).is_dir())


def _files_sha256(path: Path) -> Any:
    """Of a file, or of all files of a folder of pictures with their names, which give their order."""
    content = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if path.is_dir():
            content.update(f"\0{file.name}\0".encode("utf-8", "surrogateescape"))
        if file.is_dir():
            continue
        with file.open("rb") as opened:
            while part := opened.read(1 << 20):
                content.update(part)
    return content


def _decoders() -> list[str]:
    """The decoders that may be used for a file, with versions: the file determines which one."""
    found = []
    for name in ("av", "torchcodec", "pillow"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found


_VISION_KEYS: "weakref.WeakKeyDictionary[Any, str]" = weakref.WeakKeyDictionary()


def vision_key(model: Any, processor: Any) -> str:
    """Weights of the vision modules, their configuration, data type, device, and settings of the processor.

    Hashed once for each model: later changes of the weights are not noticed.
    """
    if model not in _VISION_KEYS:
        vision = {name: v for name, v in model.config.to_dict().items() if name not in ("text_config", "_name_or_path")}
        content = hashlib.sha256(json.dumps(vision, sort_keys=True, default=str).encode())
        for part in model.vision_modules().values():
            for name, tensor in part.state_dict().items():
                content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                content.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        _VISION_KEYS[model] = content.hexdigest()
    settings = [processor.time_prompt, processor.timestamps, processor.video_processor.to_json_string()]
    return json.dumps([_VISION_KEYS[model], str(model.dtype), model.device.type, *settings])
