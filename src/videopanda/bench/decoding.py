"""The cost of reading 8 frames from a short and a long clip with each decoder. The bench writes its own clips."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np

from videopanda.bench.timing import in_turns, interval, machine, ratios, seconds
from videopanda.video.read import Decoder, VideoReadError, read_video

FRAMES, FPS, SIDE = 8, 24, (640, 360)
KEYFRAME_SECONDS = 4  # between keyframes, about what video platforms write
DECODERS: tuple[Decoder, ...] = ("pyav", "torchcodec")


def measure(rounds: int, minutes: int = 60) -> dict[str, Any]:
    """Median times, and ratios within a round, of reading 8 frames of a minute and of `minutes` minutes.

    Returns {"machine", "settings", "rows", "long_over_short", "missing"}: rows have decoder, clip, seconds, times_pyav
    and decoded_frames; `missing` says which decoder does not work here, and why.
    """
    with TemporaryDirectory() as folder:
        clips = {"1 min": Path(folder, "minute.mp4"), f"{minutes} min": Path(folder, "long.mp4")}
        write(clips["1 min"], 1)
        write(clips[f"{minutes} min"], minutes)
        decoded: dict[tuple[str, Decoder], int | None] = {}
        missing: dict[str, str] = {}
        for decoder in DECODERS:
            try:
                for clip, path in clips.items():
                    decoded[clip, decoder] = read_video(path, num_frames=FRAMES, decoder=decoder).decoded_frames or None
            except VideoReadError as error:
                if decoder == "pyav":
                    raise
                missing[decoder] = error.reason
        calls = {
            f"{clip}, {decoder}": lambda clip=clip, decoder=decoder: seconds(
                lambda: read_video(clips[clip], num_frames=FRAMES, decoder=decoder)
            )
            for clip, decoder in decoded
        }
        taken = in_turns(calls, rounds)
    rows = [
        {
            "clip": clip,
            "decoder": decoder,
            "seconds": interval(taken[f"{clip}, {decoder}"]),
            "times_pyav": ratios(taken[f"{clip}, {decoder}"], taken[f"{clip}, pyav"]),
            "decoded_frames": count,
        }
        for (clip, decoder), count in decoded.items()
    ]
    short, long = clips
    growth = {d: ratios(taken[f"{long}, {d}"], taken[f"{short}, {d}"]) for d in DECODERS if d not in missing}
    settings = {"frames": FRAMES, "size": "x".join(map(str, SIDE)), "fps": FPS, "rounds": rounds}
    return {
        "machine": machine(),
        "settings": {**settings, "keyframe_seconds": KEYFRAME_SECONDS},
        "rows": rows,
        "long_over_short": growth,
        "missing": missing,
    }


def write(path: Path, minutes: int) -> None:
    """A clip of H.264: moving stripes over noise, encoded once from keyframe to keyframe, and repeated."""
    with TemporaryDirectory() as folder:
        piece = Path(folder, "piece.mp4")
        with av.open(str(piece), "w") as container:
            stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "threads": "2"})
            stream.width, stream.height = SIDE
            stream.pix_fmt, stream.gop_size = "yuv420p", KEYFRAME_SECONDS * FPS
            for picture in _pictures():
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        with av.open(str(piece)) as source, av.open(str(path), "w") as target:
            video = source.streams.video[0]
            stream = target.add_stream_from_template(video)
            assert video.time_base is not None
            packets = [packet for packet in source.demux(video) if packet.dts is not None]
            for number in range(60 * minutes // KEYFRAME_SECONDS):
                shift = round(number * KEYFRAME_SECONDS / video.time_base)
                for packet in packets:
                    copy = av.Packet(bytes(packet))
                    copy.pts, copy.dts = (packet.pts or 0) + shift, (packet.dts or 0) + shift
                    copy.time_base, copy.is_keyframe, copy.stream = video.time_base, packet.is_keyframe, stream
                    target.mux(copy)


def _pictures() -> Iterator[np.ndarray]:
    width, height = SIDE
    noise = np.random.default_rng(0).integers(0, 40, (height, width, 3), dtype=np.uint8)
    stripes = (np.arange(2 * width) // 40 % 2 * 180).astype(np.uint8)
    for number in range(KEYFRAME_SECONDS * FPS):
        yield noise + stripes[number:][:width, None]
