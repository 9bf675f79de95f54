"""Still pictures and animations that Pillow decodes: PNG, JPEG, WebP, AVIF, BMP, TIFF and folders of them.

GIFs are read as videos: FFmpeg does not keep the frames of a long one in memory.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from videopanda.models.pictures import to_pixels
from videopanda.video.container import Color, Deadline, UnreadableError
from videopanda.video.timeline import Timeline, counted_timeline

if TYPE_CHECKING:
    from PIL import Image

    from videopanda.video.read import VideoLimits

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_SIGNATURE = re.compile(rb"\x89PNG\r\n|\xff\xd8\xff|RIFF....WEBP|BM.{4}\0{4}|II\*\0|MM\0\*", re.DOTALL)
_EXIF_ORIENTATION = 0x0112
# Formats whose further pictures are shown one after the other; those of others (MPO) are views of the first.
_ANIMATED = ("PNG", "WEBP", "AVIF", "TIFF")
_SIMPLE_ITEMS = (b"hvc1", b"av01", b"avc1", b"jpeg")  # kinds of HEIF items that are a picture of their own
_WEBP_ANIMATION, _WEBP_ALPHA = 0x02, 0x10
_PROPERTY_BYTES = 1 << 20
_BROWSER_DURATION = 100.0  # milliseconds that browsers show a frame for which the file says 0


@dataclass(frozen=True)
class Pictures:
    """Files of one picture each, or one file of several."""

    files: Sequence[Any]
    animated: bool = False

    def _where(self, file: Any) -> str:
        return f"{file.name}: " if isinstance(file, Path) else ""

    @contextmanager
    def _opened(self, file: Any) -> Iterator["Image.Image"]:
        """Open a file; whatever Pillow raises becomes an `UnreadableError`."""
        from PIL import Image

        try:
            with Image.open(file) as image:
                yield image
        except Image.UnidentifiedImageError as error:
            raise UnreadableError(f"{self._where(file)}a damaged image") from error
        except UnreadableError:
            raise
        except MemoryError as error:
            raise UnreadableError(f"{self._where(file)}decoding needs more memory than is available") from error
        # Pillow's plug-ins raise these, depending on format and damage.
        except (
            *(OSError, EOFError, ArithmeticError, AttributeError, LookupError, RuntimeError, SyntaxError),
            *(TypeError, ValueError, Image.DecompressionBombError),
        ) as error:
            raise UnreadableError(f"{self._where(file)}{str(error) or type(error).__name__}") from error

    def timeline(self, fps: float, limits: "VideoLimits | None", deadline: Deadline) -> Timeline:
        """When the pictures are shown: at the file's own times, or at a constant rate."""
        with self._opened(self.files[0]) as image:
            before = _before_animation(image) if self.animated else 0
            count = getattr(image, "n_frames", 1) - before if self.animated else len(self.files)
            width, height = image.size
            if image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8):
                width, height = height, width
            if limits is not None:
                limits.check(count, width, height)
            if not self.animated or image.format == "TIFF":
                timeline = counted_timeline(count, fps, width, height)
                is_one = not self.animated and len(self.files) == 1 and not isinstance(self.files[0], Path)
                return replace(timeline, is_still=is_one)
            durations = []
            for number in range(count):
                deadline.check()
                image.seek(before + number)
                image.load()  # WebP and AVIF tell the time of a frame when it is decoded
                durations.append(float(image.info.get("duration") or 0) or _BROWSER_DURATION)
        ends = np.rint(np.cumsum(durations)).astype(np.int64)
        pts, end = np.concatenate([[0], ends[:-1]]), int(ends[-1])
        keys = np.zeros(1, np.int64)
        return Timeline(pts, keys, 0, end, end, Fraction(1, 1000), 1000 * count / end, width, height)

    def decode(
        self, timeline: Timeline, ticks: Sequence[int], deadline: Deadline, background: Color
    ) -> Iterator[tuple[int, int, np.ndarray]]:
        """As `container.decode`."""
        if self.animated:
            with self._opened(self.files[0]) as image:
                for count, tick in enumerate(ticks, start=1):
                    deadline.check()
                    image.seek(_before_animation(image) + timeline.index(tick))
                    yield tick, count, to_pixels(image, background)
            return
        for count, tick in enumerate(ticks, start=1):
            deadline.check()
            with self._opened(self.files[timeline.index(tick)]) as image:
                yield tick, count, to_pixels(image, background)


def _before_animation(image: "Image.Image") -> int:
    """Number of pictures that only viewers without animation show: 1 for a PNG with a default image."""
    return int(getattr(image, "default_image", False))


def open_pictures(file: BinaryIO) -> Pictures | None:
    """A file that Pillow reads; None for a video, a GIF, or a picture format that this Pillow does not support."""
    from PIL import Image

    file.seek(0)
    head = file.read(64)
    brands = head[8 : int.from_bytes(head[:4], "big")] if head[4:8] == b"ftyp" else b""
    may_be_unknown = b"avif" in brands or b"avis" in brands
    if not may_be_unknown and not _SIGNATURE.match(head):
        return None
    file.seek(0)
    if head[12:16] == b"VP8X" and head[20] & _WEBP_ANIMATION:
        # Without this mark Pillow drops the transparency of what the frames leave uncovered.
        data = bytearray(file.read())
        data[20] |= _WEBP_ALPHA
        file = io.BytesIO(data)
    pictures = Pictures([file])
    try:
        with pictures._opened(file) as image:
            return replace(pictures, animated=image.format in _ANIMATED and getattr(image, "n_frames", 1) > 1)
    except UnreadableError as error:
        if may_be_unknown and isinstance(error.__cause__, Image.UnidentifiedImageError):
            return None
        raise


def is_heif(file: BinaryIO) -> bool:
    """Whether a file that Pillow does not support is a HEIF picture of the simple kind that FFmpeg reads completely.

    Raises:
        UnreadableError: it is composed of several pictures, cropped or transparent: FFmpeg would return only part of
            it.
    """
    file.seek(0)
    if file.read(8)[4:] != b"ftyp":
        return False
    file.seek(0, 2)
    outer = _boxes(file, 0, file.tell())
    if b"meta" not in outer or b"moov" in outer:
        return False
    start, end = outer[b"meta"]
    inner = _boxes(file, start + 4, end)  # after version and flags
    if not {b"pitm", b"iinf", b"iprp"} <= set(inner):
        return False
    pitm, iinf, properties = (_content(file, *inner[kind]) for kind in (b"pitm", b"iinf", b"iprp"))
    primary = int.from_bytes(pitm[4 : 8 if pitm[0] else 6], "big")
    kind = _item_kinds(iinf).get(primary, b"????")
    reason = None
    if kind not in _SIMPLE_ITEMS:
        reason = f"a picture composed of others ({kind.decode('latin-1')})"
    elif b"clap" in properties:
        reason = "a cropped picture"
    elif b"auxid:1\0" in properties or b"auxiliary:alpha" in properties:
        reason = "a picture with transparency"
    if reason is not None:
        raise UnreadableError(f"{reason}, which is not supported in HEIF: convert it to PNG or JPEG")
    return True


def _boxes(file: BinaryIO, start: int, end: int) -> dict[bytes, tuple[int, int]]:
    """Content of the boxes between two positions, as start and end, by kind (the last of each kind)."""
    found = {}
    while start + 8 <= end:
        file.seek(start)
        head = file.read(16)
        size, content = int.from_bytes(head[:4], "big"), start + 8
        if size == 1:
            size, content = int.from_bytes(head[8:16], "big"), start + 16
        stop = end if size == 0 else start + size
        if not content <= stop <= end:
            break
        found[head[4:8]] = (content, stop)
        start = stop
    return found


def _content(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(min(end - start, _PROPERTY_BYTES))


def _item_kinds(iinf: bytes) -> dict[int, bytes]:
    kinds, start = {}, 8 if iinf[:1] > b"\0" else 6
    while start + 8 <= len(iinf):
        size = int.from_bytes(iinf[start : start + 4], "big")
        entry = iinf[start + 8 : start + size]
        wide = entry[:1] > b"\2"
        kinds[int.from_bytes(entry[4 : 8 if wide else 6], "big")] = entry[10:14] if wide else entry[8:12]
        start += max(size, 8)
    return kinds


def list_pictures(folder: Path) -> Pictures:
    """The images of a folder in natural order."""
    # Hidden files are no frames: macOS adds "._1.png" to every "1.png" on foreign disks and in archives.
    found = (path for path in folder.iterdir() if not path.name.startswith("."))
    images = [path for path in found if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not images:
        raise UnreadableError(f"the folder has no images ({', '.join(SUFFIXES)})")
    # "2.png" before "10.png": digits compare as numbers.
    natural = [[int(s) if k % 2 else s.lower() for k, s in enumerate(re.split("([0-9]+)", p.name))] for p in images]
    return Pictures([path for _, path in sorted(zip(natural, images))])
