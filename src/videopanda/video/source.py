"""Opens what `videopanda.video.read` is given: paths, folders, FIFOs, bytes and file objects.

    with ExitStack() as stack:
        source = open_source("clip.mp4", Deadline(60), stack)

Everything opened on the way, and the copy of a source that cannot be rewound, is closed with the stack.
"""

import codecs
import io
import os
import re
import select
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import av

from videopanda.video.container import Deadline, UnreadableError
from videopanda.video.pictures import Pictures, is_heif, list_pictures, open_pictures

_PLAYLIST_BYTES = 1 << 24
_COPY_BYTES = 1 << 20
_MP4_BOXES = 1000  # outermost ones that are looked at; a file has about four
# What FLV, ASF (WMV) and IVF files begin with.
_BEGINNINGS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        rb"FLV\x01.\0\0\0\x09\0{4}",
        rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c",
        rb"DKIF\0\0\x20\0",
    )
)
_BEGINNING_BYTES = 16  # at most
_TEXT_BYTES = 1024  # in which no container has only words
# Playlists, scripts and pictures that are written as text, and the first line of Y4M.
_WRITTEN = re.compile(rb"\s*(?:#EXTM3U|ffconcat|<)|P[1-7Ff]\s|#define|/\* XPM|YUV4MPEG")
# PyAV 17 cannot ask for a file whose name is not ASCII: such a file is handed over open, and may name no others.
_TAKES_ANY_NAME = int(av.__version__.partition(".")[0]) >= 18


def name_of(source: Any) -> str:
    """The name of a source in error messages. Raises TypeError for anything that cannot be a source."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<{memoryview(source).nbytes} bytes>"
    if isinstance(source, io.TextIOBase) or not callable(getattr(source, "read", None)):
        raise TypeError(f"source must be a path, bytes or a file object in binary mode, got {type(source).__name__}")
    return f"<{type(source).__name__} {getattr(source, 'name', '')}".rstrip() + ">"


@dataclass(frozen=True, eq=False)
class OpenSource:
    """An opened source: pictures or a container.

    path: of a container opened by name, which may refer to files in its folder.
    plain: the input for torchcodec, which does not restrict referenced files; None for what it must not read.
    is_copy: of a pipe, which gives its bytes only once.
    refused: why files that the source names were not opened.
    """

    stack: ExitStack
    pictures: Pictures | None = None
    file: BinaryIO | None = None
    path: str | None = None
    plain: str | bytes | None = None
    is_still: bool = False
    is_copy: bool = False
    refused: list[str] = field(default_factory=list)

    def opener(self) -> dict[str, Any]:
        """The arguments of `av.open`: what to open, and how to handle referenced files (as in playlists)."""
        if self.path is not None and (self.path.isascii() or _TAKES_ANY_NAME):
            # With "file:" no other part of the name is taken for a protocol.
            return {"file": f"file:{self.path}", "io_open": self._open_named}
        assert self.file is not None
        self.file.seek(0)
        return {"file": self.file, "io_open": self._open_named}

    def _open_named(self, url: str, flags: int, options: dict[str, str]) -> BinaryIO:
        path = url.removeprefix("file:")
        own = self.path
        try:
            if own is None:
                raise UnreadableError(f"it names another file, {url}: give the path of the playlist instead")
            if path != own and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(os.path.dirname(own))):
                raise UnreadableError(f"it names {url}, which is outside its folder")
            return self.stack.enter_context(open(path, "rb"))
        except UnreadableError as error:
            self.refused.append(str(error))
            raise OSError(str(error)) from error
        except OSError as error:
            self.refused.append(f"it names {url}: {error.strerror}")
            raise


def open_source(source: Any, deadline: Deadline, stack: ExitStack) -> OpenSource:
    """Find out what a source is and open it. Raises `UnreadableError` and whatever the file raises."""
    name: str | None = None
    data: bytes | None = None
    file: BinaryIO
    if isinstance(source, (str, os.PathLike)):
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path := os.fspath(source)):
            raise UnreadableError("URLs are not read; download the file and give its path")
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            return OpenSource(stack, pictures=list_pictures(Path(path)))
        if stat.S_ISFIFO(mode):
            file = _spool(_read_fifo(path, deadline, stack), stack)
        elif not stat.S_ISREG(mode):
            raise UnreadableError("not a regular file")
        else:
            file = stack.enter_context(open(path, "rb"))  # noqa: SIM115 (the stack closes it)
            name = path
    elif isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        file = io.BytesIO(data)
    else:
        file = source
        if not (file.seekable() if hasattr(file, "seekable") else hasattr(file, "seek")):
            file = _spool(_read_chunks(file, deadline), stack)
    file.seek(0)
    if _is_text(file.read(_TEXT_BYTES)):
        raise UnreadableError("it is a text file, not a video")
    file.seek(0)
    head = file.read(_BEGINNING_BYTES)
    if not head:
        raise UnreadableError("the file is empty")
    if head.startswith(b"ffconcat"):
        raise UnreadableError("a script that joins other files: pass an HLS playlist or a single file")
    if head.startswith(b"#EXTM3U"):
        text = head + file.read(_PLAYLIST_BYTES)
        if b"#EXTINF" in text and b"#EXT-X-ENDLIST" not in text:
            raise UnreadableError("a live playlist, without an end (#EXT-X-ENDLIST): record it first")
    is_motion_jpeg = name is not None and name.lower().endswith((".mjpeg", ".mjpg"))
    pictures = None if is_motion_jpeg else open_pictures(file)
    if pictures is not None:
        return OpenSource(stack, pictures=pictures)
    if _is_joined(file, head, deadline):
        raise UnreadableError("several files joined end to end, of which only the first would be read")
    plain = None if head.lstrip().startswith((b"#EXTM3U", b"<")) else name or data  # playlists
    is_copy = name is None and data is None and file is not source
    return OpenSource(stack, file=file, path=name, plain=plain, is_still=is_heif(file), is_copy=is_copy)


def _is_text(head: bytes) -> bool:
    """Whether a file begins with words that are no video."""
    if _WRITTEN.match(head):
        return False
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return text != "" and all(letter.isprintable() or letter in "\n\r\t\f" for letter in text)


def _is_joined(file: BinaryIO, head: bytes, deadline: Deadline) -> bool:
    """Whether a second file follows, as `cat` makes it, in a format of which FFmpeg reads only the first, without a
    word. The parts of other formats are read one after another.
    """
    if head[4:8] == b"ftyp":
        return _is_joined_mp4(file)
    beginning = next((pattern for pattern in _BEGINNINGS if pattern.match(head)), None)
    if beginning is None:
        return False
    file.seek(1)
    seen = b""
    for chunk in _read_chunks(file, deadline):
        if not chunk:
            break
        if beginning.search(seen + chunk):
            return True
        seen = chunk[1 - _BEGINNING_BYTES :]
    return False


def _is_joined_mp4(file: BinaryIO) -> bool:
    start, kinds = 0, list[bytes]()
    while len(kinds) < _MP4_BOXES:
        file.seek(start)
        head = file.read(16)
        size = int.from_bytes(head[8:16] if head[:4] == b"\0\0\0\1" else head[:4], "big")
        if size < 8:  # the end
            return kinds.count(b"ftyp") > 1 and kinds.count(b"moov") > 1
        if head[4:8] == b"moof":  # fragments may repeat their header
            return False
        kinds.append(head[4:8])
        start += size
    return False


def _read_fifo(path: str, deadline: Deadline, stack: ExitStack) -> Iterator[bytes]:
    # Opened without blocking: an ordinary open would wait for a writer, and nothing could end that.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    stack.callback(os.close, descriptor)
    while True:
        ready, _, _ = select.select([descriptor], [], [], min(0.1, deadline.remaining()))
        deadline.check()
        if ready:
            yield os.read(descriptor, _COPY_BYTES)


def _read_chunks(file: BinaryIO, deadline: Deadline) -> Iterator[bytes]:
    while True:
        deadline.check()
        yield file.read(_COPY_BYTES)


def _spool(chunks: Iterable[bytes], stack: ExitStack) -> BinaryIO:
    """Copy a source that cannot be rewound to a temporary file on disk; an empty chunk is the end."""
    spool = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (the stack closes it)
    for chunk in chunks:
        if not chunk:
            break
        spool.write(chunk)
    return spool
