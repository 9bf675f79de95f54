"""Writes real test videos whose frames carry their own number, so that tests can tell which frame they got.

write_video(path, range(30), fps=30)         # 30 frames of 64x48 pixels, H.264
read_number(frame)                           # 17
"""

import gc
import io
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

GRID = 4  # the number is painted as GRID x GRID black or white fields, lowest bit first


def paint_number(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A picture, uint8 (H, W, 3), that shows a number below 65536."""
    bits = np.array([number >> bit & 1 for bit in range(GRID * GRID)], np.uint8).reshape(GRID, GRID)
    rows, columns = np.arange(height) * GRID // height, np.arange(width) * GRID // width
    return np.repeat(bits[rows][:, columns, None] * 200 + 25, 3, axis=2).astype(np.uint8)


def read_number(frame: np.ndarray) -> int:
    """The number that a picture of `paint_number` shows."""
    height, width = frame.shape[:2]
    rows, columns = ((2 * np.arange(GRID) + 1) * size // (2 * GRID) for size in (height, width))
    bits = frame[rows][:, columns].mean(axis=2).reshape(-1) > 127
    return int(sum(1 << bit for bit, is_white in enumerate(bits) if is_white))


def read_numbers(frames: np.ndarray) -> list[int]:
    """The numbers of several pictures (T, H, W, 3)."""
    return [read_number(frame) for frame in frames]


def write_video(
    path: Path,
    numbers: Iterable[int],
    *,
    fps: Fraction | int = 30,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    container_options: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """Write frames that show `numbers`, at a constant rate or at the stamps `pts` (in units of `time_base`)."""
    if codec == "libx264":
        options = {"preset": "ultrafast", "bf": "0", "g": "250", "crf": "18", **options}
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        clock = time_base or 1 / Fraction(fps)
        stream.codec_context.time_base = clock
        for k, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(paint_number(number, *size), format="rgb24")
            frame.pts, frame.time_base = (k if pts is None else pts[k]), clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_audio(path: Path, seconds: float = 0.5) -> Path:
    """Write a file that holds a tone and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        tone = np.sin(np.arange(int(16000 * seconds)) / 5, dtype=np.float32)[None]
        frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def set_display_matrix(path: Path, abcd: tuple[int, int, int, int]) -> None:
    """Overwrite the display matrix in the track header of an MP4: x' = a·x + c·y, y' = b·x + d·y."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44  # type, version and flags, 20 bytes of times and number, 16 of layer and volume
    a, b, c, d = (value << 16 for value in abcd)
    data[start : start + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in (a, b, 0, c, d, 0, 0, 0, 1 << 30))
    path.write_bytes(data)


def remux(source: Path, target: Path, *, skip: int = 0) -> Path:
    """Copy the packets of a video, the first `skip` left out, into another container."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        stream.time_base = old.streams.video[0].time_base  # which PyAV 17 does not take over
        for number, packet in enumerate(old.demux(video=0)):
            if packet.size and number >= skip:
                packet.stream = stream
                new.mux(packet)
    return target


def frames_alive() -> int:
    """How many decoded frames are held, except by a codec context: PyAV 17 keeps the next frame there."""
    frames = [found for found in gc.get_objects() if type(found) is av.VideoFrame]
    return sum(not any(isinstance(one, av.CodecContext) for one in gc.get_referrers(frame)) for frame in frames)


def write_jpegs(path: Path, greys: Sequence[int], *, orientation: int | None, size: tuple[int, int] = (64, 48)) -> Path:
    """A Motion JPEG of plain grey pictures, each with EXIF data where an orientation is given."""
    return write_motion_jpeg(path, [(Image.new("L", size, grey), orientation) for grey in greys])


def write_motion_jpeg(path: Path, images: Sequence[tuple[Image.Image, int | None]]) -> Path:
    """A Motion JPEG of pictures of one size, each with an orientation for its EXIF data, or None for none."""
    size, pictures = images[0][0].size, []
    for image, orientation in images:
        exif = Image.Exif()
        if orientation is not None:
            exif[0x0112] = orientation
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "jpeg", quality=95, exif=exif)
        pictures.append(buffer.getvalue())
    if path.suffix == ".mjpeg":
        path.write_bytes(b"".join(pictures))
        return path
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = *size, "yuvj420p"
        for number, data in enumerate(pictures):
            packet = av.Packet(data)
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 10), True
            packet.pts = packet.dts = number
            packet.duration = 1
            container.mux(packet)
    return path


def box(kind: bytes, *content: bytes) -> bytes:
    """A box of an ISO media file."""
    data = b"".join(content)
    return (8 + len(data)).to_bytes(4, "big") + kind + data


def write_grid(path: Path, tiles: Sequence[Image.Image], *, brand: bytes = b"avif", primary: bytes = b"grid") -> Path:
    """A HEIF picture of tiles side by side, each of one size; `primary` is the kind of item that joins them."""
    coded = []
    for tile in tiles:
        buffer = io.BytesIO()
        tile.save(buffer, "avif", quality=90)
        data = buffer.getvalue()
        start = data.index(b"mdat")
        length = int.from_bytes(data[start - 4 : start], "big")
        coded.append(data[start + 4 : start - 4 + length])
        start = data.index(b"av1C")
        configuration = data[start - 4 : start - 4 + int.from_bytes(data[start - 4 : start], "big")]

    def number(value: int, size: int = 2) -> bytes:
        return value.to_bytes(size, "big")

    none, count = bytes(4), len(tiles)
    (width, height), ids = tiles[0].size, range(2, 2 + len(tiles))
    extent = number(width * count, 4) + number(height, 4)
    ispe = [box(b"ispe", none, extent), box(b"ispe", none, number(width, 4), number(height, 4))]
    pixi = box(b"pixi", none, b"\3\x08\x08\x08")
    entries = [box(b"infe", b"\2\0\0\0", number(1), number(0), primary, b"\0")]
    entries += [box(b"infe", b"\2\0\0\1", number(i), number(0), b"av01", b"\0") for i in ids]
    associations = number(1) + b"\2\1\4" + b"".join(number(i) + b"\3\2\x83\4" for i in ids)
    grid = bytes([0, 0, 0, count - 1]) + number(width * count) + number(height)
    if primary == b"iovl":
        grid = bytes(10) + number(width * count) + number(height) + bytes(4 * count)

    def whole(start: int) -> bytes:
        places = number(1) + number(1) + number(0) + number(1) + number(0, 4) + number(len(grid), 4)
        for i, data in zip(ids, coded):
            places += number(i) + number(0) + number(0) + number(1) + number(start, 4) + number(len(data), 4)
            start += len(data)
        return box(b"ftyp", brand, none, b"mif1", brand) + box(
            b"meta",
            none,
            box(b"hdlr", none, none, b"pict", bytes(13)),
            box(b"pitm", none, number(1)),
            box(b"iloc", b"\1\0\0\0", b"\x44\0", number(count + 1), places),
            box(b"iinf", none, number(count + 1), *entries),
            box(b"iref", none, box(b"dimg", number(1), number(count), *[number(i) for i in ids])),
            box(
                b"iprp",
                box(b"ipco", *ispe, configuration, pixi),
                box(b"ipma", none, number(count + 1, 4), associations),
            ),
            box(b"idat", grid),
        )

    head = whole(0)
    path.write_bytes(whole(len(head) + 8) + box(b"mdat", *coded))
    return path
