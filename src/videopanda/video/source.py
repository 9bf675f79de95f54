"""Opens what `videopanda.video.read` is given: paths, folders, FIFOs, bytes and file objects.

    with ExitStack() as stack:
        place = locate("clip.mp4", Deadline(60), stack)

What is opened on the way, and a copy of what cannot be rewound, is closed with the stack.
"""

import io
import os
import re
import select
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from videopanda.video import container
from videopanda.video.container import Deadline, Timeline, UnreadableError

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_IMAGE_SIGNATURE = re.compile(rb"\x89PNG\r\n|\xff\xd8\xff|RIFF....WEBP|BM.{4}\0{4}", re.DOTALL)
_COPY_BYTES = 1 << 20


def name_of(source: Any) -> str:
    """What error messages call a source. Raises TypeError for what cannot be one."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<{memoryview(source).nbytes} bytes>"
    if isinstance(source, io.TextIOBase) or not callable(getattr(source, "read", None)):
        raise TypeError(f"source must be a path, bytes or a file object in binary mode, not {type(source).__name__}")
    return f"<{type(source).__name__} {getattr(source, 'name', '')}".rstrip() + ">"


@dataclass(frozen=True)
class Place:
    """An opened source: images, or a container with the form in which torchcodec takes it (None where it cannot)."""

    images: Sequence[Any] | None = None
    opener: Callable[[], str | BinaryIO] = io.BytesIO
    plain: str | bytes | None = None


def locate(source: Any, deadline: Deadline, stack: ExitStack) -> Place:
    """Find out what a source is and open it. Raises `UnreadableError` and whatever the file raises."""
    plain: str | bytes | None = None
    file: BinaryIO
    if isinstance(source, (str, os.PathLike)):
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path := os.fspath(source)):
            raise UnreadableError("URLs are not read; download the file and give its path")
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            return Place(images=_list_images(Path(path)))
        if stat.S_ISFIFO(mode):
            file = _spool(_read_fifo(path, deadline, stack), stack)
        elif not stat.S_ISREG(mode):
            raise UnreadableError("not a regular file")
        else:
            file = stack.enter_context(open(path, "rb"))  # noqa: SIM115 (the stack closes it)
            plain = path
    elif isinstance(source, (bytes, bytearray, memoryview)):
        plain = bytes(source)
        file = io.BytesIO(plain)
    else:
        file = source
        if not (file.seekable() if hasattr(file, "seekable") else hasattr(file, "seek")):
            file = _spool(_read_chunks(file, deadline), stack)
    file.seek(0)
    head = file.read(16)
    if not head:
        raise UnreadableError("the file is empty")
    is_motion_jpeg = isinstance(plain, str) and plain.lower().endswith((".mjpeg", ".mjpg"))
    if _IMAGE_SIGNATURE.match(head) and not is_motion_jpeg and not _is_animated(file):
        return Place(images=[file])
    if isinstance(plain, str):
        # With "file:" no other part of the name is taken for a protocol.
        return Place(opener=lambda: f"file:{plain}", plain=plain)

    def rewound() -> BinaryIO:
        file.seek(0)
        return file

    return Place(opener=rewound, plain=plain)


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
    """Copy what cannot be rewound to a temporary file on disk; an empty chunk is the end."""
    spool = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (the stack closes it)
    for chunk in chunks:
        if not chunk:
            break
        spool.write(chunk)
    return spool


def _list_images(folder: Path) -> list[Path]:
    images = [path for path in folder.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES and path.is_file()]
    if not images:
        raise UnreadableError(f"the folder has no images ({', '.join(_IMAGE_SUFFIXES)})")
    # "2.png" before "10.png": digits compare as numbers.
    return sorted(images, key=lambda p: [int(s) if s.isdigit() else s.lower() for s in re.split(r"([0-9]+)", p.name)])


def _is_animated(file: BinaryIO) -> bool:
    from PIL import Image

    try:
        with Image.open(file) as image:
            return getattr(image, "n_frames", 1) > 1  # formats without animation have no such attribute
    except Image.UnidentifiedImageError as error:
        raise UnreadableError("a damaged image") from error
    except Image.DecompressionBombError as error:
        raise UnreadableError(str(error)) from error


def open_image(image: Any) -> np.ndarray:
    """A still image as uint8 (H, W, 3), turned upright as its EXIF data says."""
    from PIL import Image, ImageOps

    try:
        with Image.open(image) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.mode.startswith("I;16"):  # Pillow would clip 16 bits instead of scaling them
                picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        which = f"{image.name}: " if isinstance(image, Path) else ""
        raise UnreadableError(f"{which}{str(error) or type(error).__name__}") from error


def image_decoder() -> tuple[str, str]:
    """Name and version of what decodes images."""
    import PIL

    return "pillow", PIL.__version__


def image_timeline(images: Sequence[Any], fps: float) -> Timeline:
    """A time line that shows images at a constant rate."""
    height, width = open_image(images[0]).shape[:2]
    return container.counted_timeline(len(images), fps, width, height)


def decode_images(
    place: Place, timeline: Timeline, ticks: Sequence[int], deadline: Deadline
) -> Iterator[tuple[int, int, np.ndarray]]:
    """As `container.decode`, for images."""
    assert place.images is not None
    for count, tick in enumerate(ticks, start=1):
        deadline.check()
        yield tick, count, open_image(place.images[tick])


def decode_container(
    place: Place, timeline: Timeline, ticks: Sequence[int], deadline: Deadline
) -> Iterator[tuple[int, int, np.ndarray]]:
    """As `container.decode`."""
    return container.decode(place.opener, timeline, ticks, deadline)
