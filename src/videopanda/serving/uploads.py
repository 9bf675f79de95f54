"""Uploaded files: on disk under names that nobody can guess, until their time is over.

    store = FileStore(folder, FileLimits())          # takes the folder for itself and clears what is over or half there
    with store.new("clip.mp4", owner) as upload:
        upload.write(chunk)
        file = upload.finish()
    store.get(file.id, owner).path

A file is two: `ID` with the content and `ID.json` with the rest. The second is written last: without it the first does
not count and goes at the next start.
"""

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from videopanda.serving.errors import NotFoundError, TooLargeError, UnfitError

HEAD_BYTES = 512

# Only containers that hold their own pictures; playlists and FFmpeg scripts, which name other files, match nothing.
_SIGNATURES: tuple[tuple[str, str, re.Pattern[bytes]], ...] = tuple(
    (kind, mime, re.compile(pattern, re.DOTALL))
    for kind, mime, pattern in (
        ("video", "video/mp4", rb"....ftyp(?!heic|heix|mif1|msf1|avif|avis)"),
        ("video", "video/quicktime", rb"....(?:moov|mdat|wide|free|skip)"),
        ("video", "video/webm", rb"\x1a\x45\xdf\xa3"),  # Matroska as well
        ("video", "video/x-msvideo", rb"RIFF....AVI "),
        ("video", "video/mp2t", rb"\x47.{187}\x47"),
        ("video", "video/mp2t", rb".{4}\x47.{191}\x47"),
        ("video", "video/mpeg", rb"\0\0\x01[\xba\xb3]"),
        ("video", "video/x-flv", rb"FLV\x01"),
        ("video", "video/ogg", rb"OggS"),
        ("video", "video/x-ms-asf", rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
        ("video", "image/gif", rb"GIF8[79]a"),
        ("image", "image/png", rb"\x89PNG\r\n\x1a\n"),
        ("image", "image/jpeg", rb"\xff\xd8\xff"),
        ("image", "image/webp", rb"RIFF....WEBP"),
        ("image", "image/bmp", rb"BM.{4}\0{4}"),
    )
)


@dataclass(frozen=True)
class FileLimits:
    """Bytes of one file, bytes of all files, and seconds that a file is kept."""

    file_bytes: int = 512 << 20
    total_bytes: int = 8 << 30
    keep_seconds: float = 24 * 3600.0


@dataclass(frozen=True)
class StoredFile:
    """An uploaded file. `kind` is "video" or "image", found by its content; `owner` is a digest of the API key."""

    id: str
    owner: str
    name: str
    bytes: int
    sha256: str
    kind: str
    mime: str
    created_at: int
    expires_at: float
    path: Path


class FileStore:
    """The folder of uploaded files.

    Raises:
        ValueError: another server uses the folder, or it belongs to somebody else.
    """

    def __init__(self, folder: Path, limits: FileLimits):
        self.folder, self.limits = folder, limits
        self._files, self._parts = folder / "files", folder / "parts"
        for one in (folder, self._files, self._parts):
            one.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise ValueError(f"{folder} belongs to another user: name a folder of your own with --files")
        self._lock = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ValueError(f"another server uses {folder}: name another folder with --files") from error
        shutil.rmtree(self._parts)  # of a server that was killed
        self._parts.mkdir(mode=0o700)
        self._known = self._load()
        self.remove_expired()

    def close(self) -> None:
        """Give the folder back; files stay until their time is over."""
        self._lock.close()

    def _load(self) -> dict[str, StoredFile]:
        """What is complete; everything else is removed."""
        known = {}
        for path in self._files.glob("*.json"):
            content = path.with_suffix("")
            try:
                known[content.name] = StoredFile(**json.loads(path.read_text(encoding="utf-8")), path=content)
                complete = content.stat().st_size == known[content.name].bytes
            except (OSError, ValueError, TypeError):
                complete = False
            if not complete:
                known.pop(content.name, None)
        for path in self._files.iterdir():
            if path.name.removesuffix(".json") not in known:
                path.unlink()
        return known

    # -- writing -------------------------------------------------------------------------------------------------------
    def new(self, name: str, owner: str) -> "Upload":
        """Begin a file."""
        return Upload(self, name, owner)

    def temporary(self) -> Path:
        """A fresh name for a file that its maker removes; what is left goes at the next start."""
        return self._parts / secrets.token_hex(16)

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self._known.values())

    def add(self, file: StoredFile, part: Path) -> None:
        """Take in a file that is completely there."""
        part.replace(file.path)
        meta = {name: value for name, value in asdict(file).items() if name != "path"}
        written = part.with_suffix(".json")
        written.write_text(json.dumps(meta), encoding="utf-8")
        written.replace(file.path.with_suffix(".json"))
        self._known[file.id] = file

    # -- reading -------------------------------------------------------------------------------------------------------
    def get(self, id_: str, owner: str) -> StoredFile:
        """A file by its id.

        Raises:
            NotFoundError: there is none, it expired, or it belongs to another key.
        """
        self.remove_expired()
        file = self._known.get(id_)
        if file is None or file.owner != owner:
            raise NotFoundError(f"no file with the id {id_!r}: upload it first (POST /v1/files)")
        return file

    def list(self, owner: str) -> list[StoredFile]:
        """The files of an owner, newest first."""
        self.remove_expired()
        return sorted((f for f in self._known.values() if f.owner == owner), key=lambda f: f.created_at, reverse=True)

    def remove(self, id_: str, owner: str) -> None:
        """Delete a file. Raises NotFoundError."""
        self._forget(self.get(id_, owner))

    def remove_expired(self) -> None:
        """Delete what has been kept long enough."""
        for file in [file for file in self._known.values() if file.expires_at <= time.time()]:
            self._forget(file)

    def _forget(self, file: StoredFile) -> None:
        del self._known[file.id]
        file.path.with_suffix(".json").unlink(missing_ok=True)
        file.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class LocalMedia:
    """A file to be read: where it is, what it is, and whether it goes afterwards."""

    path: Path
    sha256: str
    kind: str
    is_temporary: bool = True

    def close(self) -> None:
        """Remove it if nobody shall read it again."""
        if self.is_temporary:
            self.path.unlink(missing_ok=True)


class Upload:
    """A file that is being written. Unless `finish` or `source` is reached, leaving the block removes it.

    Raises:
        TooLargeError: more bytes than a file or all files may have.
    """

    def __init__(self, store: FileStore, name: str, owner: str):
        self._store, self._name, self._owner = store, name, owner
        self._path = store.temporary()
        self._opened = self._path.open("xb")
        self._digest, self._head, self._size = hashlib.sha256(), b"", 0
        self._kept = False

    def __enter__(self) -> "Upload":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._opened.close()
        if not self._kept:
            self._path.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        """Add bytes."""
        limits, self._size = self._store.limits, self._size + len(chunk)
        if self._size > limits.file_bytes:
            raise TooLargeError(f"the file has more than {limits.file_bytes} bytes: cut or compress it")
        if self._store.num_bytes + self._size > limits.total_bytes:
            raise TooLargeError("the server holds as many bytes of files as it may: delete files, or wait")
        self._opened.write(chunk)
        self._digest.update(chunk)
        self._head += chunk[: HEAD_BYTES - len(self._head)]

    def source(self) -> LocalMedia:
        """Hand the file to a reader, who closes it.

        Raises:
            UnfitError: it is neither a video nor an image.
        """
        self._opened.close()
        kind, _ = sniff_mime_type(self._head)
        self._kept = True
        return LocalMedia(self._path, self._digest.hexdigest(), kind)

    def finish(self) -> StoredFile:
        """Keep the file.

        Raises:
            UnfitError: it is neither a video nor an image.
        """
        self._opened.close()
        kind, mime = sniff_mime_type(self._head)
        now, id_ = time.time(), f"file-{secrets.token_hex(12)}"
        file = StoredFile(
            id=id_,
            owner=self._owner,
            name=self._name,
            bytes=self._size,
            sha256=self._digest.hexdigest(),
            kind=kind,
            mime=mime,
            created_at=int(now),
            expires_at=now + self._store.limits.keep_seconds,
            path=self._store.folder / "files" / id_,
        )
        self._store.add(file, self._path)
        self._kept = True
        return file


def sniff_mime_type(head: bytes) -> tuple[str, str]:
    """Kind ("video" or "image") and MIME type of a file that starts with these bytes (`HEAD_BYTES` are enough).

    Raises:
        UnfitError: it is neither.
    """
    if not head:
        raise UnfitError("the file is empty")
    for kind, mime, pattern in _SIGNATURES:
        if pattern.match(head):
            return kind, mime
    raise UnfitError("the file is neither a video nor an image that is known here (MP4, WebM, AVI, GIF, PNG, JPEG, …)")
