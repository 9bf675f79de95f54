"""Uploaded files on disk under unguessable ids, with expiry.

    store = FileStore(folder, FileLimits())          # locks the folder, removes expired and incomplete files
    with store.new("clip.mp4", owner) as upload:
        upload.write(chunk)
        file = upload.finish()
    store.get(file.id, owner).path

A file is stored as two: `ID` with the content and `ID.json` with the metadata. The second is moved in last: without it
the first is incomplete and is removed at the next start.
"""

import fcntl
import hashlib
import json
import os
import re
import secrets
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from videopanda.serving.errors import NotFoundError, ServeError, TooLargeError, UnfitError

MARKER = "videopanda-uploads"  # marks a folder of uploads; its lock shows that a server is running
HEAD_BYTES = 512
_OWN_NAME = re.compile(r"(file-[0-9a-f]{24}|[0-9a-f]{32})(\.json)?")

# Only containers that hold their own pictures; playlists and FFmpeg scripts, which name other files, match nothing.
_SIGNATURES: tuple[tuple[str, str, re.Pattern[bytes]], ...] = tuple(
    (kind, mime, re.compile(pattern, re.DOTALL))
    for kind, mime, pattern in (
        ("video", "video/mp4", rb"....ftyp(?!heic|heix|mif1|msf1|avif|avis)"),
        ("video", "video/quicktime", rb"....(?:moov|mdat|wide|free|skip)"),
        ("video", "video/webm", rb"\x1a\x45\xdf\xa3"),  # also Matroska
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
    purpose: str
    bytes: int
    sha256: str
    kind: str
    mime: str
    created_at: int
    expires_at: float
    path: Path


def default_files(port: int) -> Path:
    """The default folder, one for each user and port."""
    return Path(tempfile.gettempdir()) / f"videopanda-{os.getuid()}" / f"uploads-{port}"


class FileStore:
    """The folder of uploaded files.

    Only files that the store made itself are ever removed: the folder carries a marker, and names are the store's own.

    Raises:
        ValueError: the folder contains other files, belongs to another user, or is used by another server.
    """

    def __init__(self, folder: Path, limits: FileLimits):
        self.folder, self.limits = folder, limits
        self._files, self._parts = folder / "files", folder / "parts"
        for one in (folder, self._files, self._parts):
            if one.is_symlink() or (one.exists() and not one.is_dir()):
                raise ValueError(f"{one} is not a plain folder (it may be a link): choose another folder with --files")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise ValueError(f"{folder} is owned by another user: choose another folder with --files")
        self._lock = self._claim()
        for one in (self._files, self._parts):
            one.mkdir(mode=0o700, exist_ok=True)
        for path in self._own(self._parts):  # of a server that was killed
            path.unlink()
        self._known = self._load()
        self.remove_expired()

    def _claim(self) -> IO[str]:
        """The marker of the folder, locked; a new one only if the folder is empty."""
        marker = self.folder / MARKER
        if not marker.is_file() and any(self.folder.iterdir()):
            raise ValueError(f"{self.folder} is neither empty nor a folder of uploads: choose another one with --files")
        lock = os.fdopen(os.open(marker, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise ValueError(f"another server uses {self.folder}: choose another folder with --files") from error
        return lock

    def close(self) -> None:
        """Release the folder; files stay until they expire."""
        self._lock.close()

    @staticmethod
    def _own(folder: Path) -> list[Path]:
        """The regular files in a folder with names created by the store."""
        return [
            path
            for path in folder.iterdir()
            if _OWN_NAME.fullmatch(path.name) and path.is_file() and not path.is_symlink()
        ]

    def _load(self) -> dict[str, StoredFile]:
        """Complete files; incomplete ones are removed."""
        known, own = {}, self._own(self._files)
        for path in own:
            content = path.with_suffix("")
            if path.suffix != ".json" or content not in own:
                continue
            try:
                file = StoredFile(**json.loads(path.read_text(encoding="utf-8")), path=content)
            except (OSError, ValueError, TypeError):
                continue
            if file.id == content.name and content.stat().st_size == file.bytes:
                known[file.id] = file
        for path in own:
            if path.name.removesuffix(".json") not in known:
                path.unlink()
        return known

    # -- writing -------------------------------------------------------------------------------------------------------
    def new(self, name: str, owner: str, purpose: str = "user_data", keep_seconds: float | None = None) -> "Upload":
        """Begin a file, which is kept for `keep_seconds` (default: the limit). Raises: ServeError: that exceeds the
        limit.
        """
        most = self.limits.keep_seconds
        if keep_seconds is not None and keep_seconds > most:
            raise ServeError(f"this server keeps files for at most {most:g} seconds", "expires_after[seconds]")
        return Upload(self, name, owner, purpose, most if keep_seconds is None else keep_seconds)

    def temporary(self) -> Path:
        """A new name for a file that the caller removes; leftovers are removed at the next start."""
        return self._parts / secrets.token_hex(16)

    @property
    def num_bytes(self) -> int:
        """Bytes of all files. May be called from any thread."""
        return sum(file.bytes for file in list(self._known.values()))

    def add(self, file: StoredFile, part: Path) -> None:
        """Add a complete file."""
        meta = {name: value for name, value in asdict(file).items() if name != "path"}
        written = part.with_suffix(".json")
        try:
            written.write_text(json.dumps(meta), encoding="utf-8")
            part.replace(file.path)
            written.replace(file.path.with_suffix(".json"))
        except OSError:
            for path in (written, file.path):
                path.unlink(missing_ok=True)
            raise
        self._known[file.id] = file

    # -- reading -------------------------------------------------------------------------------------------------------
    def get(self, id_: str, owner: str) -> StoredFile:
        """A file by its id.

        Raises:
            NotFoundError: it does not exist, has expired, or it belongs to another key.
        """
        self.remove_expired()
        file = self._known.get(id_)
        if file is None or file.owner != owner:
            raise NotFoundError(f"no file with the id {id_!r}: upload it first (POST /v1/files)")
        return file

    def list(self, owner: str) -> list[StoredFile]:
        """The files of an owner, newest first."""
        self.remove_expired()
        mine = [file for file in reversed(self._known.values()) if file.owner == owner]
        return sorted(mine, key=lambda file: file.created_at, reverse=True)

    def remove(self, id_: str, owner: str) -> None:
        """Delete a file. Raises NotFoundError."""
        self._forget(self.get(id_, owner))

    def remove_expired(self) -> None:
        """Delete expired files."""
        for file in [file for file in self._known.values() if file.expires_at <= time.time()]:
            self._forget(file)

    def _forget(self, file: StoredFile) -> None:
        del self._known[file.id]
        file.path.with_suffix(".json").unlink(missing_ok=True)
        file.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class LocalMedia:
    """A file to decode: where it is, what it is, and whether it is removed afterwards."""

    path: Path
    sha256: str
    kind: str
    mime: str
    is_temporary: bool = True

    def close(self) -> None:
        """Remove it if it is temporary."""
        if self.is_temporary:
            self.path.unlink(missing_ok=True)


def open_media(path: Path) -> LocalMedia:
    """A file of the operator, which is never removed. Raises UnfitError, OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        kind, mime = sniff_mime_type(head)
        digest.update(head)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return LocalMedia(path, digest.hexdigest(), kind, mime, is_temporary=False)


class Upload:
    """A file that is being written. Leaving the block removes it unless `finish` or `source` was called.

    Raises:
        TooLargeError: the file, or all files together, would be too large.
        StorageError: the disk is full.
    """

    def __init__(self, store: FileStore, name: str, owner: str, purpose: str, keep_seconds: float):
        self._store, self._name, self._owner = store, name, owner
        self._purpose, self._keep_seconds = purpose, keep_seconds
        self._path = store.temporary()
        self._opened = self._path.open("xb", buffering=0)
        self._digest, self._head, self._size = hashlib.sha256(), b"", 0
        self._kept = False
        self._writing = threading.Lock()  # a canceled request leaves the block while a thread still writes

    def __enter__(self) -> "Upload":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._writing:
            self._opened.close()
        if not self._kept:
            self._path.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        """Add bytes. Raises: ValueError: the block was left."""
        with self._writing:
            self._write(chunk)

    def _write(self, chunk: bytes) -> None:
        limits, self._size = self._store.limits, self._size + len(chunk)
        if self._size > limits.file_bytes:
            raise TooLargeError(f"the file is larger than {limits.file_bytes} bytes: cut or compress it")
        if self._store.num_bytes + self._size > limits.total_bytes:
            raise TooLargeError("upload storage is full: delete files or retry later")
        view = memoryview(chunk)
        while view:  # unbuffered: a full disk is noticed here, possibly after a part of the bytes
            view = view[self._opened.write(view) :]
        self._digest.update(chunk)
        self._head += chunk[: HEAD_BYTES - len(self._head)]

    def source(self) -> LocalMedia:
        """Pass the file to a reader, which closes it.

        Raises:
            UnfitError: it is neither a video nor an image.
        """
        self._opened.close()
        kind, mime = sniff_mime_type(self._head)
        self._kept = True
        return LocalMedia(self._path, self._digest.hexdigest(), kind, mime)

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
            purpose=self._purpose,
            bytes=self._size,
            sha256=self._digest.hexdigest(),
            kind=kind,
            mime=mime,
            created_at=int(now),
            expires_at=now + self._keep_seconds,
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
    raise UnfitError("the file is not a supported video or image (MP4, WebM, AVI, GIF, PNG, JPEG, …)")
