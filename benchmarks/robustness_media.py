"""Damaged media of every kind are given to `read_video`: it must answer with frames or with its own errors.

    python benchmarks/robustness_media.py --output benchmarks/robustness.json

Small files of many containers, codecs and picture formats are written; each is damaged in a known number of ways (bytes
flipped, cut, repeated, moved, lengths in headers made absurd), and every variant is read by a process that may crash or
hang without harm to the others. A variant counts as *crash* when the process dies, as *hang* when it gives no answer
within its time limit and a grace, and as *untyped* when any exception but `VideoReadError` and `ValueError` comes out.
All three must be 0. The row is merged into the file under "media".
"""

import argparse
import io
import json
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

import av
import numpy as np
from PIL import Image

TIMEOUT, GRACE = 20.0, 20.0  # seconds that `read_video` may take, and that it is waited for beyond
REQUESTS = (
    {"num_frames": 4},
    {"num_frames": 8, "sampling": "released"},
    {"fps": 2.0},
    {"timestamps": [0.0]},
    {"sampling": "all"},
)
# Codec, pixel format and name of the videos that are written.
VIDEOS = (
    ("libx264", "yuv420p", "h264.mp4"),
    ("libx264", "yuv420p", "h264.mkv"),
    ("libx264", "yuv420p", "h264.ts"),
    ("libx264", "yuv420p", "h264.flv"),
    ("libx265", "yuv420p10le", "hevc.mp4"),
    ("mpeg4", "yuv420p", "mpeg4.avi"),
    ("mpeg2video", "yuv420p", "mpeg2.mpg"),
    ("libvpx-vp9", "yuva420p", "alpha.webm"),
    ("libvpx", "yuv420p", "vp8.webm"),
    ("libsvtav1", "yuv420p", "av1.mp4"),
    ("prores_ks", "yuva444p10le", "prores.mov"),
    ("png", "rgba", "png.mov"),
    ("mjpeg", "yuvj420p", "mjpeg.avi"),
    ("wmv2", "yuv420p", "wmv2.asf"),
    ("flv", "yuv420p", "flv1.flv"),
)
WORKER = """
import json, sys
from videopanda.video.read import VideoLimits, VideoReadError, read_video
limits = VideoLimits(source_frames=100_000, pixels=1 << 24, frames=64)
for line in sys.stdin:
    request = json.loads(line)
    try:
        video = read_video(request["path"], timeout=request["timeout"], limits=limits, **request["arguments"])
        video.frames.sum()
        answer = "frames"
    except (VideoReadError, ValueError) as error:
        answer = type(error).__name__
        if "\\n" in str(error):
            answer = "more than one line"
    except BaseException as error:
        answer = f"untyped: {type(error).__name__}: {error}"
    print(json.dumps(answer), flush=True)
"""


def write_video(path: Path, codec: str, pix_fmt: str, count: int = 24) -> None:
    """A moving gradient of 96 × 64 pixels at 12 frames per second."""
    options = {"preset": "ultrafast"} if codec == "libx264" else {"preset": "12"} if codec == "libsvtav1" else {}
    options |= {"auto-alt-ref": "0", "cpu-used": "8", "deadline": "realtime"} if "libvpx" in codec else {}
    options |= {"x265-params": "log-level=none:pools=1"} if codec == "libx265" else {}
    rows, columns = np.mgrid[0:64, 0:96]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25 if codec == "mpeg2video" else 12, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, pix_fmt
        for k in range(count):
            planes = [(columns * 2 + k * 9) % 256, (rows * 4 + k * 5) % 256, (rows + columns + k) % 256]
            picture = np.stack([*planes, np.full_like(rows, 128 + k)], axis=-1).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgba").reformat(format=pix_fmt)
            frame.pts, frame.time_base = k, Fraction(1, 12)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_sources(folder: Path) -> list[Path]:
    """The sound files."""
    for codec, pix_fmt, name in VIDEOS:
        write_video(folder / name, codec, pix_fmt)
    (folder / "joined.ts").write_bytes((folder / "h264.ts").read_bytes() * 2)
    images = [Image.fromarray(np.full((48, 64, 4), (k * 30, 200 - k * 20, 90, 40 * k), np.uint8)) for k in range(5)]
    for name in ("moving.webp", "moving.png", "moving.gif", "moving.avif", "pages.tiff"):
        images[0].save(folder / name, save_all=True, append_images=images[1:], duration=100)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.fromarray(np.arange(64 * 48 * 3, dtype=np.uint32).reshape(48, 64, 3).astype(np.uint8))
    for name in ("still.jpg", "still.png", "still.webp", "still.avif", "still.tiff"):
        photo.save(folder / name, exif=exif)
    photo.save(folder / "still.bmp")
    ramp = np.linspace(0, 0xFFFF, 64 * 48).astype(np.uint16).reshape(48, 64)
    Image.fromarray(ramp).save(folder / "gray16.png")
    data = io.BytesIO()
    photo.save(data, "jpeg", exif=exif)
    (folder / "raw.mjpeg").write_bytes(data.getvalue() * 6)
    avif = (folder / "still.avif").read_bytes()
    (folder / "like.heic").write_bytes(avif.replace(b"avif", b"heic"))
    playlist = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:4\n"
    playlist += "#EXTINF:2.0,\nh264.ts\n#EXT-X-DISCONTINUITY\n#EXTINF:2.0,\nh264.ts\n#EXT-X-ENDLIST\n"
    (folder / "list.m3u8").write_text(playlist)
    return sorted(path for path in folder.iterdir() if path.is_file())


def damaged(data: bytes, way: int, draw: random.Random) -> bytes:
    """One variant of a file."""
    broken = bytearray(data)

    def place() -> int:
        # Half of the damage goes to the first 512 bytes, where headers are.
        return draw.randrange(min(len(broken), 512) if draw.random() < 0.5 else len(broken))

    if way == 0:
        for _ in range(draw.choice((1, 4, 30))):
            broken[place()] = draw.randrange(256)
    elif way == 1:
        del broken[draw.randrange(1, len(broken)) :]
    elif way == 2:  # lengths and counts
        position = place() & ~3
        broken[position : position + 4] = draw.choice(
            (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\1")
        )
    elif way == 3:
        start = place()
        del broken[start : start + draw.randrange(1, 400)]
    elif way == 4:
        start = place()
        broken[start:start] = draw.randbytes(draw.randrange(1, 400))
    elif way == 5:
        start, size = place(), draw.randrange(1, 2000)
        broken[start:start] = broken[start : start + size] * draw.choice((1, 3))
    elif way == 6:
        start, size = place(), draw.randrange(1, 600)
        broken[start : start + size] = bytes(len(broken[start : start + size]))
    else:  # one bit
        broken[place()] ^= 1 << draw.randrange(8)
    return bytes(broken)


class Worker:
    """A process that reads variants; started again when it dies or hangs."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def ask(self, path: Path, arguments: dict) -> str:
        """What became of a variant."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-c", WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            self.answers: Queue[str] = Queue()
            Thread(target=self._listen, args=(self.process, self.answers), daemon=True).start()
        request = {"path": str(path), "timeout": TIMEOUT, "arguments": arguments}
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.answers.get(timeout=TIMEOUT + GRACE)
        except (BrokenPipeError, Empty) as error:
            self.close()
            return "hang" if isinstance(error, Empty) else "crash"
        if not line:
            self.close()
            return "crash"
        return str(json.loads(line))

    @staticmethod
    def _listen(process: "subprocess.Popen[str]", answers: "Queue[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            answers.put(line)
        answers.put("")

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def main() -> None:
    """Write the files, damage and read them, and add the row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file to add the row to")
    parser.add_argument("--variants", type=int, default=1600, metavar="N", help="number of damaged files")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    settings = parser.parse_args()
    draw = random.Random(settings.seed)
    began = time.perf_counter()
    outcomes: Counter[str] = Counter()
    slowest, failures = 0.0, []
    worker = Worker()
    with tempfile.TemporaryDirectory() as folder:
        sources = write_sources(Path(folder))
        for path in sources:  # the sound files come out as frames, but for the refused picture
            outcome = worker.ask(path, {"num_frames": 4})
            expected = "VideoReadError" if path.name == "like.heic" and outcome != "frames" else "frames"
            if outcome != expected:
                raise SystemExit(f"{path.name} is sound and gave {outcome!r}")
        for number in range(settings.variants):
            source = sources[number % len(sources)]
            variant = source.with_name(f"variant-{source.name}")
            way = number // len(sources) % 8
            variant.write_bytes(damaged(source.read_bytes(), way, draw))
            arguments = draw.choice(REQUESTS)
            asked = time.perf_counter()
            outcome = worker.ask(variant, arguments)
            slowest = max(slowest, time.perf_counter() - asked)
            kind = outcome.partition(":")[0]
            outcomes[kind] += 1
            if kind not in ("frames", "VideoReadError", "ValueError"):
                failures.append({"source": source.name, "number": number, "way": way, "outcome": outcome, **arguments})
                print(json.dumps(failures[-1]), flush=True)
    worker.close()
    row = {
        "command": f"python benchmarks/robustness_media.py --variants {settings.variants} --seed {settings.seed}",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, Python {platform.python_version()}, PyAV {av.__version__}",
        "sources": len(sources),
        "variants": settings.variants,
        "frames": outcomes["frames"],
        "typed_errors": outcomes["VideoReadError"] + outcomes["ValueError"],
        "crashes": outcomes["crash"],
        "hangs": outcomes["hang"],
        "untyped_errors": settings.variants
        - sum(outcomes[kind] for kind in ("frames", "VideoReadError", "ValueError", "crash", "hang")),
        "slowest_seconds": round(slowest, 1),
        "seconds": round(time.perf_counter() - began),
    }
    print(json.dumps(row, indent=2))
    if settings.output is not None:
        rows = json.loads(settings.output.read_text(encoding="utf-8")) if settings.output.exists() else {}
        rows["media"] = row
        settings.output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    if failures:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
