"""Reads frames from a video: the only place in the package that decodes one.

    from videopanda.video.read import read_video
    video = read_video("clip.mp4", num_frames=8)     # 8 frames, evenly spread in time
    video.frames.shape, video.timestamps             # (8, H, W, 3) uint8 RGB, seconds

Frames are chosen by presentation time: the frame *shown* at time t is the last one whose timestamp is at most t (with a
tolerance of 1 ms for containers that round timestamps to milliseconds, else 0.5 ms). Time 0 is the first frame that can
be shown. Only the stretches from a keyframe to a needed frame are decoded. What cannot be read raises `VideoReadError`:
unreadable frames are never replaced by others.
"""

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np

if TYPE_CHECKING:
    from videopanda.video.container import Deadline
    from videopanda.video.source import OpenSource
    from videopanda.video.timeline import Timeline

VideoSource = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO
Sampling = Literal["uniform", "released", "all"]
Decoder = Literal["auto", "pyav", "torchcodec"]
_GRACE_SECONDS = 0.25
_Frames = Iterator[tuple[int, int, np.ndarray]]  # stamp, number of frames decoded so far, picture (H, W, 3)


class VideoReadError(Exception):
    """A source that cannot be read. `path` names the source, `reason` says what is wrong with it."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)  # both, so that the error can be pickled
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"cannot read video '{self.path}': {self.reason}"


@dataclass(frozen=True, eq=False, repr=False)
class Video:
    """Frames of a video and where they come from.

    frames: uint8 (T, H, W, 3), RGB, upright (rotation and mirroring of the file applied), over the background where
        they are transparent. Otherwise pixels are as coded: a pixel aspect ratio other than 1 is not undone, high
        dynamic range is not tone-mapped. Of a still picture it is one picture, shown T times: a read-only view.
    timestamps: float64 (T,), when each frame is first shown, in seconds since the first frame of the source.
    times: float64 (T,), the requested times; the frame shown then may have started earlier.
    indices: int64 (T,), number of each frame in order of presentation. Counted from the list of packets, which is read
        without decoding; estimated from time and frame rate where `indices_exact` is False (files over 1 GiB).
    source_fps: average frame rate of the source.
    duration: seconds from the first frame to the end of the last one, of the whole source.
    width, height: size of the upright source, before `max_side`.
    start, end: the range, in seconds, from which frames were chosen.
    decoder, decoder_version: what decoded the frames: "pyav", "torchcodec" or "pillow" (still images).
    decoded_frames: number of frames that were decoded to get these (0 if the decoder does not report it).
    is_still: the source is a single picture, not a video (nor a folder of pictures).
    """

    frames: np.ndarray
    timestamps: np.ndarray
    times: np.ndarray
    indices: np.ndarray
    indices_exact: bool
    source_fps: float
    duration: float
    width: int
    height: int
    start: float
    end: float
    decoder: str
    decoder_version: str
    decoded_frames: int
    is_still: bool = False

    def __len__(self) -> int:
        return len(self.frames)

    def __repr__(self) -> str:
        height, width = self.frames.shape[1:3]
        shown = f"{self.start:.2f} to {self.end:.2f} s of {self.duration:.2f} s at {self.source_fps:.4g} fps"
        return f"Video({len(self)} frames of {width}x{height}, {shown}, by {self.decoder})"


@dataclass(frozen=True)
class VideoLimits:
    """Limits of `read_video` for untrusted files.

    source_frames: frames in the source, needed or not; they are counted before any is decoded.
    pixels: of one picture of the source.
    frames: frames that are read.
    """

    source_frames: int
    pixels: int
    frames: int

    def check(self, count: float, width: int, height: int) -> None:
        """Raises `UnreadableError` for a source with too many frames or too large frames."""
        from videopanda.video.container import UnreadableError

        if count > self.source_frames:
            raise UnreadableError(f"it has {count:.0f} frames, more than the limit of {self.source_frames}")
        if width * height > self.pixels:
            raise UnreadableError(f"its frames of {width}x{height} exceed the limit of {self.pixels} pixels")


def uniform_times(start: float, end: float, num_frames: int) -> list[float]:
    """Middles of `num_frames` equal parts of [start, end), in seconds."""
    return [start + (i + 0.5) * (end - start) / num_frames for i in range(num_frames)]


def released_frame_indices(num_source_frames: int, fps: float, max_frames: int = 8, min_frames: int = 8) -> list[int]:
    """Frame numbers that the released Video-Panda code takes from a clip of `num_source_frames` frames at `fps`.

    One candidate per second; fewer than `min_frames` are replaced by a denser grid, with at most `num_source_frames`
    entries. More than `max_frames` are thinned at truncated, evenly spaced positions. The released code fails for a
    single frame and for fps <= 0.5; here the single frame is taken and the stride is at least one frame.
    """
    if num_source_frames < 1 or max_frames < 1 or min_frames < 1 or not fps > 0:
        raise ValueError("released_frame_indices needs at least one frame, max_frames, min_frames >= 1 and fps > 0")
    candidates = list(range(0, num_source_frames, max(1, round(fps))))
    if len(candidates) < min(min_frames, max_frames + 1):
        count = min(min_frames, num_source_frames)
        stride = max(1, (num_source_frames - 1) // max(1, count - 1))
        candidates = [i * stride for i in range(count)]
    if len(candidates) > max_frames:
        positions = np.linspace(0, len(candidates) - 1, max_frames).astype(int)
        return [candidates[position] for position in positions]
    return candidates


@dataclass(frozen=True)
class _Request:
    """The arguments of `read_video` that choose frames."""

    num_frames: int | None
    fps: float | None
    timestamps: Sequence[float] | None
    sampling: Sampling
    start: float | None
    end: float | None
    max_side: int | None
    image_fps: float
    background: tuple[int, int, int]
    limits: VideoLimits | None = None

    def __post_init__(self) -> None:
        given = sum(value is not None for value in (self.num_frames, self.fps, self.timestamps))
        if self.sampling == "all" and given:
            raise ValueError("sampling='all' reads every frame: omit num_frames=, fps= and timestamps=")
        if self.sampling != "all" and given != 1:
            raise ValueError("give exactly one of num_frames=, fps= or timestamps=")
        if self.num_frames is not None and not (isinstance(self.num_frames, int | np.integer) and self.num_frames >= 1):
            raise ValueError(f"num_frames must be a whole number of at least 1, got {self.num_frames}")
        for name, rate in (("fps", self.fps), ("image_fps", self.image_fps)):
            if rate is not None and (isinstance(rate, str) or not 0 < rate < math.inf):
                raise ValueError(f"{name} must be a positive number of frames per second, got {rate!r}")
        if self.timestamps is not None:
            if self.start is not None or self.end is not None:
                raise ValueError(
                    "start= and end= cannot be combined with timestamps=: remove the times you do not want"
                )
            if not len(self.timestamps) or not all(math.isfinite(moment) for moment in self.timestamps):
                raise ValueError("timestamps must be one or more finite numbers of seconds")
        if self.sampling not in ("uniform", "released", "all"):
            raise ValueError(f"sampling must be 'uniform', 'released' or 'all', got {self.sampling!r}")
        if self.sampling == "released" and self.num_frames is None:
            raise ValueError("sampling='released' needs num_frames=, its maximum number of frames")
        for name, moment in (("start", self.start), ("end", self.end)):
            if moment is not None and (isinstance(moment, str) or not 0 <= moment < math.inf):
                raise ValueError(f"{name} must be a time in seconds, at least 0, got {moment!r}")
        if self.end is not None and self.end <= (self.start or 0.0):
            raise ValueError(f"end ({self.end} s) must be later than start ({self.start or 0.0} s)")
        if self.max_side is not None and self.max_side < 1:
            raise ValueError(f"max_side must be at least 1 pixel, got {self.max_side}")
        if len(self.background) != 3 or not all(0 <= value <= 255 for value in self.background):
            raise ValueError(f"background must be three numbers from 0 to 255, got {self.background}")


def read_video(
    source: VideoSource,
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    timestamps: Sequence[float] | None = None,
    sampling: Sampling = "uniform",
    start: float | None = None,
    end: float | None = None,
    max_side: int | None = None,
    image_fps: float = 1.0,
    background: Sequence[int] = (255, 255, 255),
    decoder: Decoder = "auto",
    timeout: float = 60.0,
    limits: VideoLimits | None = None,
) -> Video:
    """Read chosen frames of a video. Give exactly one of `num_frames`, `fps` and `timestamps`.

    source: a video, GIF or image file; a folder of images (sorted naturally, all of one size); the bytes of a file; or
        a file object opened in binary mode, read from its beginning. URLs are not read.
    num_frames: with sampling="uniform" exactly this many frames, shown in the middle of equal parts of the range; a
        clip with fewer frames repeats some of them. With sampling="released" at most this many, chosen by
        `released_frame_indices` among the frames that start in the range. sampling="all" takes none of the three and
        reads every frame that starts in the range, once.
    fps: the frames shown at start, start + 1/fps, start + 2/fps, ... before the end.
    timestamps: the frames shown at these seconds, in this order.
    start, end: the range in seconds; an end beyond the last frame is cut (`Video.end` has the range used).
    max_side: frames whose longer side is larger are scaled down, keeping the aspect ratio.
    image_fps: rate of a folder of images (a single image is shown for 1 / image_fps seconds).
    background: RGB color, 0 to 255, under transparent pixels.
    decoder: "auto" uses torchcodec if it is installed and can read the source, else PyAV; both return the same frames.
    timeout: seconds after which reading is abandoned (math.inf for never).
    limits: refuse sources and requests that are larger.

    Raises ValueError for a request that is invalid or outside the duration, and `VideoReadError` for a source
    that is missing, not a video, cut short before a needed frame, damaged between the keyframe before a needed frame
    and that frame, of changing picture size, or too slow. Damage that the codec itself conceals cannot be detected.
    """
    color = (int(background[0]), int(background[1]), int(background[2])) if len(background) == 3 else (-1, -1, -1)
    request = _Request(num_frames, fps, timestamps, sampling, start, end, max_side, image_fps, color, limits)
    if decoder not in ("auto", "pyav", "torchcodec"):
        raise ValueError(f"decoder must be 'auto', 'pyav' or 'torchcodec', got {decoder!r}")
    if not timeout > 0:
        raise ValueError(f"timeout must be a positive number of seconds, got {timeout}")
    from videopanda.video.container import Deadline
    from videopanda.video.source import name_of

    name = name_of(source)
    if decoder != "pyav":
        from videopanda.video.torchcodec import load

        load()  # imports torch, which should not count as reading
    deadline, outcome = Deadline(timeout), list[Video | BaseException]()

    def work() -> None:
        try:
            outcome.append(_read(source, name, request, decoder, deadline))
        except BaseException as error:  # noqa: BLE001  (raised by the caller's thread)
            outcome.append(error)

    # A thread of its own, because a read from a hanging file cannot be interrupted, only abandoned.
    thread = threading.Thread(target=work, name="read_video", daemon=True)
    thread.start()
    try:
        thread.join(None if math.isinf(timeout) else timeout)
    finally:
        deadline.cancel()
        thread.join(_GRACE_SECONDS)  # all but a hanging read ends by itself now
    if not outcome:
        raise VideoReadError(name, deadline.reason)
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


@contextmanager
def reported(name: str) -> Iterator[None]:
    """Turn every error of decoders and files into a `VideoReadError`."""
    import av

    from videopanda.video.container import UnreadableError

    try:
        yield
    except UnreadableError as error:
        raise VideoReadError(name, str(error)) from error.__cause__
    except av.FFmpegError as error:
        raise VideoReadError(name, (error.strerror or str(error)).lower()) from error
    except OSError as error:
        raise VideoReadError(name, error.strerror or str(error)) from error
    except (EOFError, ValueError, SyntaxError) as error:  # closed files, broken PNG chunks
        raise VideoReadError(name, str(error) or type(error).__name__) from error


def _moments(timeline: "Timeline", request: _Request) -> tuple[list[float], float, float]:
    """The times to show, in seconds, and the range they were chosen from."""
    duration = timeline.duration
    if request.timestamps is not None:
        for moment in request.timestamps:
            if not 0 <= moment <= duration + 1e-6:
                raise ValueError(f"timestamp {moment} s is outside the video, which lasts {duration:.3f} s")
        return [float(moment) for moment in request.timestamps], 0.0, duration
    start, end = float(request.start or 0.0), min(duration, duration if request.end is None else float(request.end))
    if start > 0 and start >= duration:
        raise ValueError(f"start is {start} s, and the video lasts only {duration:.3f} s")
    if request.limits is not None and max(request.num_frames or 0, (end - start) * (request.fps or 0)) > (
        request.limits.frames
    ):
        raise _too_many(request.limits)
    if request.fps is not None:
        count = max(1, math.ceil((end - start) * request.fps - 1e-6))
        return [start + k / request.fps for k in range(count)], start, end
    if request.sampling == "uniform":
        assert request.num_frames is not None
        return uniform_times(start, end, request.num_frames), start, end
    assert timeline.pts is not None
    ticks = [math.ceil((Fraction(t) - Fraction(1, 1_000_000)) / timeline.time_base) for t in (start, end)]
    low, high = np.searchsorted(timeline.pts, [timeline.first + tick for tick in ticks])
    high = len(timeline.pts) if end >= duration else high
    if low == high:
        raise ValueError(f"no frame starts between {start} s and {end} s")
    if request.sampling == "all":
        chosen = list(range(int(high - low)))
    else:
        assert request.num_frames is not None
        chosen = released_frame_indices(int(high - low), timeline.fps, max_frames=request.num_frames)
    if request.limits is not None and len(chosen) > request.limits.frames:
        raise _too_many(request.limits)
    return [timeline.seconds(int(timeline.pts[low + i])) for i in chosen], start, end


def _too_many(limits: VideoLimits) -> ValueError:
    return ValueError(f"more than {limits.frames} frames: ask for fewer frames, a lower fps or a shorter range")


def _shrink(picture: np.ndarray, max_side: int | None) -> np.ndarray:
    height, width = picture.shape[:2]
    if max_side is None or max(height, width) <= max_side:
        return picture
    from PIL import Image

    scale = max_side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.BICUBIC))


def _read(source: VideoSource, name: str, request: _Request, decoder: Decoder, deadline: "Deadline") -> Video:
    import av
    import PIL

    from videopanda.video import container, timeline, torchcodec
    from videopanda.video.source import open_source

    with ExitStack() as stack:
        with reported(name):
            opened = open_source(source, deadline, stack)
            line = _scan(opened, request, deadline)
        background = request.background
        if opened.pictures is not None:
            still = opened.pictures
            return _collect(
                lambda ticks: still.decode(line, ticks, deadline, background),
                line,
                request,
                name,
                ("pillow", PIL.__version__),
            )
        if decoder != "pyav":
            try:
                return _collect(
                    lambda ticks: torchcodec.decode(opened, line, ticks, deadline),
                    line,
                    request,
                    name,
                    ("torchcodec", torchcodec.load()[1]),
                )
            except VideoReadError:  # in the automatic choice PyAV has the last word on what can be read
                if decoder == "torchcodec":
                    raise
        pyav = ("pyav", av.__version__)

        def decode(line: "Timeline") -> Callable[[Sequence[int]], _Frames]:
            return lambda ticks: container.decode(opened.opener, line, ticks, deadline, background)

        try:
            return _collect(decode(line), line, request, name, pyav)
        except container.DisorderedError:
            with reported(name):
                line = timeline.scan(opened.opener, deadline, full=True)
            assert line.pts is not None
            line = timeline.counted_timeline(len(line.pts), line.fps, line.width, line.height)
            return _collect(decode(line), line, request, name, pyav)


def _scan(opened: "OpenSource", request: _Request, deadline: "Deadline") -> "Timeline":
    """When the frames of a source are shown. Raises `UnreadableError`, also for a source that is too large."""
    from videopanda.video import timeline
    from videopanda.video.container import UnreadableError

    limits = request.limits
    if opened.pictures is not None:
        return opened.pictures.timeline(request.image_fps, limits, deadline)
    most = None if limits is None else limits.source_frames
    line = timeline.scan(opened.opener, deadline, full=request.sampling != "uniform", most=most)
    if opened.refused:
        raise UnreadableError(opened.refused[0])
    if limits is not None:
        limits.check(line.duration * line.fps if line.pts is None else len(line.pts), line.width, line.height)
    return replace(line, is_still=True) if opened.is_still else line


def _collect(
    decode: Callable[[Sequence[int]], _Frames],
    timeline: "Timeline",
    request: _Request,
    name: str,
    decoder: tuple[str, str],
) -> Video:
    """Decode the frames of a request, each once, and put them into one array."""
    from videopanda.video.container import UnreadableError

    times, start, end = _moments(timeline, request)
    with reported(name):
        if request.sampling != "uniform":
            timeline.shown(end)  # frames that are not there must not be left out of the count
        wanted = [timeline.shown(moment) for moment in times]
        places: dict[int, list[int]] = {}
        for place, tick in enumerate(wanted):
            places.setdefault(tick, []).append(place)
        frames: np.ndarray | None = None
        stamps = np.zeros(len(times), np.int64)
        size, decoded = (0, 0), 0
        ticks = sorted(places)
        for tick, (stamp, decoded, picture) in zip(ticks, decode(ticks)):  # noqa: B007
            if frames is None:
                size = picture.shape[:2]
            elif picture.shape[:2] != size:
                height, width = picture.shape[:2]
                raise UnreadableError(
                    f"the picture size changes from {size[1]}x{size[0]} to {width}x{height} "
                    f"at {timeline.seconds(tick):.3f} s"
                )
            picture = _shrink(picture, request.max_side)
            if timeline.is_still:
                frames = np.broadcast_to(picture, (len(times), *picture.shape))
            elif frames is None:
                frames = np.empty((len(times), *picture.shape), np.uint8)  # (T, H, W, 3)
            if not timeline.is_still:
                frames[places[tick]] = picture
            stamps[places[tick]] = stamp
    assert frames is not None
    return Video(
        frames=frames,
        timestamps=np.array([timeline.seconds(int(stamp)) for stamp in stamps]),
        times=np.array(times),
        indices=np.array([timeline.index(int(stamp)) for stamp in stamps]),
        indices_exact=timeline.pts is not None,
        source_fps=timeline.fps,
        duration=timeline.duration,
        width=size[1],
        height=size[0],
        start=start,
        end=end,
        decoder=decoder[0],
        decoder_version=decoder[1],
        decoded_frames=decoded,
        is_still=timeline.is_still,
    )
