"""Files in a folder that several processes share and that stays below a size, and decoded frames kept in one.

    cache = FrameCache("~/.cache/videopanda/frames", 50 * 2**30)
    video = cache.read_video("clip.mp4", num_frames=8)        # decoded at most once; equal to that of `read_video`

An entry is written to a temporary file and renamed, so that readers see all of it or nothing, whenever a process dies.
No locking: concurrent writers of one key write the same.
"""

import hashlib
import io
import json
import logging
import math
import os
import re
import time
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from videopanda.video.read import Video, VideoSource, read_video

_STALE_SECONDS = 3600.0  # after which a file that is being written belongs to a process that died
_NAME = re.compile(r"[0-9a-f]{64}\.(npz|safetensors)(\.[0-9a-f]{32}\.draft)?")
_BYTES = (bytes, bytearray, memoryview)
_LOG = logging.getLogger(__name__)


class DiskCache:
    """A folder of files by key, of at most `max_bytes` in total; the least recently used ones are evicted.

    Raises:
        OSError: the folder cannot be made.
        ValueError: the size is not positive.
    """

    suffix: str  # of the files
    corrupt: tuple[type[Exception], ...] = (ValueError, KeyError, TypeError, EOFError)  # what `parse` raises

    def __init__(self, folder: str | Path, max_bytes: int):
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be positive, got {max_bytes}")
        self.folder, self.max_bytes = Path(folder).expanduser(), max_bytes
        self.folder.mkdir(parents=True, exist_ok=True)

    def parse(self, content: bytes) -> Any:
        """The entry in a file with this content."""
        raise NotImplementedError

    def get(self, key: str) -> Any:
        """The entry, which counts as used now; None if there is none, or a corrupt one, which is removed."""
        file = self._file(key)
        try:
            entry = self.parse(file.read_bytes())  # at once: the file may be replaced or removed at any time
        except FileNotFoundError:  # never written, or removed meanwhile: either way it can be made again
            return None
        except OSError as error:
            _LOG.warning("%s cannot be read: %s", file, error)
            return None
        except self.corrupt as error:
            _LOG.warning("%s is corrupt and will be regenerated: %s", file, error)
            _remove(file)
            return None
        with suppress(OSError):  # gone again, or of another user
            os.utime(file)
        return entry

    def write(self, key: str, content: bytes) -> None:
        """Write an entry, and evict old ones if needed. A full disk is logged, not raised."""
        if len(content) > self.max_bytes:
            return
        file = self._file(key)
        draft = file.with_name(f"{file.name}.{uuid.uuid4().hex}.draft")
        try:
            if self._make_room(len(content)):
                file.parent.mkdir(exist_ok=True)
                draft.write_bytes(content)
                draft.replace(file)
        except OSError as error:
            _LOG.warning("%s cannot be written to %s: %s", file.name, self.folder, error)
            _remove(draft)

    @property
    def size(self) -> int:
        """Bytes of all entries."""
        return sum(size for _, size, _ in files_in(self.folder))

    def _make_room(self, needed: int) -> bool:
        return evict(self.folder, self.max_bytes, needed) >= needed

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{self.suffix}"


def evict(folder: Path, max_bytes: int, needed: int = 0, before: float = math.inf) -> int:
    """Remove the least recently used entries of a cache until `needed` more bytes fit; returns the room left then.

    Args:
        before: seconds since the epoch; entries that were used later stay.
    """
    files = sorted(files_in(folder), key=lambda entry: entry[0])
    for used, _, path in files:
        if path.suffix == ".draft" and time.time() - used > _STALE_SECONDS:
            _remove(path)
    entries = [entry for entry in files if entry[2].suffix != ".draft"]
    room = max_bytes - sum(size for _, size, _ in entries)
    for used, size, path in entries:
        if room >= needed or used >= before:
            break
        _remove(path)
        room += size
    return room


def files_in(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """Last use, size and path of every file of a cache, and of no other file in the folder; other processes may be
    adding and removing.
    """
    for path in folder.glob("??/*"):
        if not _NAME.fullmatch(path.name):
            continue
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        yield status.st_mtime, status.st_size, path


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:  # Windows, while another process reads it
        _LOG.warning("%s cannot be removed: %s", file, error)


# -- decoded frames ----------------------------------------------------------------------------------------------------
class FrameCache(DiskCache):
    """Decoded frames of files, by the content of the file and the choice of frames.

    Nothing that was used since this object was made is evicted: an epoch reads all clips in turn, so that what is full
    stays as useful as it is, and evicting would only write without end. With several writers the folder can become
    larger by a 64th of its size for each.
    """

    suffix = ".npz"
    corrupt = (*DiskCache.corrupt, zipfile.BadZipFile)

    def __init__(self, folder: str | Path, max_bytes: int):
        super().__init__(folder, max_bytes)
        self._began = time.time()
        self._room, self._is_full = 0, False  # bytes that may be written until the folder is looked at again

    def read_video(self, video: VideoSource, **choice: Any) -> Video:
        """As `videopanda.read_video`, from the cache if it is there. Streams and still pictures are not kept."""
        key = self._key(video, choice)
        found = self.get(key) if key else None
        if found is None:
            found = read_video(video, **choice)
            if key and not found.is_still:
                self.write(key, _packed(found))
        return found

    def parse(self, content: bytes) -> Video:
        """The frames and facts of a video."""
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:  # checks the sum of what it reads
            arrays = {name: stored[name] for name in stored.files}
        return Video(**json.loads(str(arrays.pop("facts"))), **arrays)

    def _key(self, video: VideoSource, choice: dict[str, Any]) -> str | None:
        content = None
        with suppress(OSError):  # `read_video` says what is wrong
            content = content_sha256(video)
        if content is None:
            return None
        return hashlib.sha256(json.dumps(["frames", content, sorted(choice.items()), decoders()]).encode()).hexdigest()

    def _make_room(self, needed: int) -> bool:
        if needed > self._room and not self._is_full:
            room = evict(self.folder, self.max_bytes, needed, before=self._began)
            self._is_full = room < needed
            self._room = max(needed, min(room, self.max_bytes // 64))
        if self._is_full:
            return False
        self._room -= needed
        return True


def _packed(video: Video) -> bytes:
    values = {field.name: getattr(video, field.name) for field in fields(Video)}
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    facts = json.dumps(
        {name: value for name, value in values.items() if name not in arrays}, default=lambda x: x.item()
    )
    file = io.BytesIO()
    np.savez(file, facts=np.array(facts), **arrays)  # type: ignore[arg-type]  # none is called `allow_pickle`
    return file.getvalue()


# -- content -----------------------------------------------------------------------------------------------------------
def content_sha256(video: Any) -> str | None:
    """A hash of the bytes of a source; None for one that can be read only once, or is missing.

    Raises:
        OSError: the file cannot be read.
    """
    if not is_stored(video):
        return None
    content = hashlib.sha256(video) if isinstance(video, _BYTES) else _files_sha256(Path(video))
    return content.hexdigest()


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


def decoders() -> list[str]:
    """The decoders that may be used for a file, with versions: the file determines which one."""
    found = []
    for name in ("av", "torchcodec", "pillow"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found
