"""Frames of a source of any length, one after another, in constant memory: files, folders, pipes, networks, cameras.

    with stream_video("lobby.mp4", fps=1) as stream:
        for frame in stream:                       # frame.image uint8 (H, W, 3), frame.time in seconds
            ...
        print(stream.notes)                        # gaps, jumps, stalls, reconnects, changes of size

The frames of a file are those of `read_video(source, fps=fps)`. Nothing is read ahead: a slow consumer makes the source
wait. Times never decrease: where the clock of a source starts again, they continue from the last frame; where a
connection was lost, the time that passed counts.
"""

import math
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal
from urllib.parse import urlsplit

import av
import numpy as np

from videopanda.video.container import (
    SHORT_SECONDS,
    Deadline,
    Matrix,
    UnreadableError,
    display_matrix,
    to_rgb,
    upright,
    upright_size,
)
from videopanda.video.pictures import Pictures
from videopanda.video.read import VideoReadError, reported
from videopanda.video.source import open_source
from videopanda.video.stream_input import FIRST_PAUSE, LONGEST_PAUSE, BrokenOffError, Download, Growing
from videopanda.video.timeline import may_leap

KEPT_NOTES = 1000
_KEPT_STEPS = 1000  # times between frames, whose median is how long a last frame of unknown length lasts
_SLACK_SECONDS = 0.001  # of stamps that were rounded to milliseconds, as in `read_video`
_BACK_SECONDS, _AHEAD_SECONDS = 0.1, 10.0  # a clock that moves further between two frames has been started again

NoteKind = Literal["stall", "reconnect", "jump", "size", "damage", "end"]


@dataclass(frozen=True)
class Note:
    """Something that a stream survived. time: seconds of the stream at which it happened."""

    time: float
    kind: NoteKind
    text: str


@dataclass(frozen=True, eq=False)
class StreamFrame:
    """One frame. time: seconds since the first frame; index: number of frames of the source before it.

    A frame that is shown several times has the same array each time.
    """

    image: np.ndarray
    time: float
    index: int


class VideoStream(Iterator[StreamFrame]):
    """What `stream_video` returns: an iterator of frames. notes: the last `KEPT_NOTES` notes."""

    def __init__(self, frames: Iterator[StreamFrame], notes: deque[Note], stack: ExitStack):
        self._frames, self.notes, self._stack = frames, notes, stack

    def __next__(self) -> StreamFrame:
        return next(self._frames)

    def __enter__(self) -> "VideoStream":
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the source."""
        self._frames.close()  # type: ignore[attr-defined]
        self._stack.close()


def stream_video(
    source: str | os.PathLike[str],
    *,
    fps: float | None = 1.0,
    start: float = 0.0,
    follow: bool = False,
    hosts: Sequence[str] = (),
    stall_seconds: float = 5.0,
    give_up_seconds: float = 60.0,
    background: Sequence[int] = (255, 255, 255),
    image_fps: float = 1.0,
    on_note: Callable[[Note], None] | None = None,
) -> VideoStream:
    """Open a source and return its frames.

    Args:
        source: a file; a folder of images; "-" or a FIFO, for a format that needs no seeking (MPEG-TS, Matroska, FLV,
            fragmented MP4); an http(s) URL of a file or an HLS playlist; rtsp://…; a camera such as /dev/video0
            (v4l2; not tested, as is rtsp).
        fps: the frames shown at start, start + 1/fps, … ; None: every frame from there on.
        start: seconds.
        follow: wait for more at the end of a file that is still being written.
        hosts: names of the hosts that http, https and rtsp may connect to, also through playlists and redirects.
        stall_seconds: a note is added after this time without data.
        give_up_seconds: without data for this time, a growing file or pipe ends, and a network source or camera is an
            error.
        background: RGB color under transparent pixels.
        image_fps: rate of a folder of images.
        on_note: called with every note, in addition to `notes`.

    Raises:
        ValueError: a rate that is not positive, or a host that is not allowed.
        VideoReadError: the source cannot be opened or is not a video; while reading, no data came for too long.
    """
    if fps is not None and not 0 < fps < math.inf:
        raise ValueError(f"fps must be a positive number of frames per second, got {fps}")
    if not 0 <= start < math.inf:
        raise ValueError(f"start must be a time in seconds, at least 0, got {start}")
    name, notes, stack = os.fspath(source), deque[Note](maxlen=KEPT_NOTES), ExitStack()
    color = (int(background[0]), int(background[1]), int(background[2]))
    reader = _Source(name, follow, tuple(hosts), stall_seconds, give_up_seconds, stack)
    reader.check()
    clock = _Clock(notes, on_note)
    reader.tell = clock.tell
    pictures = reader.pictures()
    frames = reader.frames(clock, color) if pictures is None else reader.shown(pictures, image_fps, color)
    return VideoStream(_at_rate(frames, fps, start), notes, stack)


@dataclass(frozen=True)
class _Frame:
    """A frame whose pixels are converted only if it is shown: at 1 fps that is one of 25 or more.

    lasts: seconds that it is shown if none follows; 0 if unknown.
    is_resumed: it is the first one after a lost connection.
    """

    convert: Callable[[], np.ndarray]
    time: float
    index: int
    lasts: float
    is_resumed: bool = False

    @cached_property
    def picture(self) -> np.ndarray:
        """The pixels, converted once however often the frame is shown."""
        return self.convert()


def _at_rate(frames: Iterator[_Frame], fps: float | None, start: float) -> Iterator[StreamFrame]:
    """The frames shown every 1/fps seconds: the last one that starts at or before each moment."""
    if fps is None:
        for frame in frames:
            if frame.time >= start - _SLACK_SECONDS:
                yield StreamFrame(frame.picture, frame.time, frame.index)
        return
    number, current, steps = 0, None, deque[float](maxlen=_KEPT_STEPS)
    for frame in frames:
        if current is not None:
            # A picture lasts until the next one, but nobody saw what happened while a connection was lost.
            end = current.time + _lasting(current, steps) if frame.is_resumed else math.inf
            while frame.time > (moment := start + number / fps) + _SLACK_SECONDS:
                if moment < end:
                    yield StreamFrame(current.picture, moment, current.index)
                number += 1
            if not frame.is_resumed:
                steps.append(frame.time - current.time)
        current = frame
    while (
        current is not None and (moment := start + number / fps) < current.time + _lasting(current, steps) - 1e-6 / fps
    ):
        yield StreamFrame(current.picture, moment, current.index)
        number += 1


def _lasting(frame: _Frame, steps: Sequence[float]) -> float:
    """Seconds that a frame is shown if none follows it: its own length, or as long as most."""
    return frame.lasts or max(float(np.median(steps)) if steps else 0.0, _SLACK_SECONDS)


class _Clock:
    """Seconds of the stream from the stamps of its frames, and the notes."""

    def __init__(self, notes: deque[Note], on_note: Callable[[Note], None] | None):
        self.notes, self.on_note = notes, on_note
        self.last: float | None = None  # seconds of the last frame
        self.shift, self.step = 0.0, 0.04
        self.may_leap = True  # a gap between frames is a leap of the clock, not a picture that lasts
        self.restarted: float | None = None  # moment of the wall clock of the last frame before a reconnect
        self.size: tuple[int, int] | None = None

    def tell(self, kind: NoteKind, text: str) -> None:
        note = Note(self.last or 0.0, kind, text)
        self.notes.append(note)
        if self.on_note is not None:
            self.on_note(note)

    def time_of(self, stamp: float | None) -> float:
        """Seconds of a frame with this stamp."""
        if self.last is None:
            self.shift = -(stamp or 0.0)
            self.last = 0.0
            return 0.0
        moment = self.last + self.step if stamp is None else stamp + self.shift
        if self.restarted is not None:
            moment, self.restarted = self.last + max(self.step, time.monotonic() - self.restarted), None
        elif moment < self.last - _BACK_SECONDS or (self.may_leap and moment > self.last + _AHEAD_SECONDS):
            self.tell("jump", f"the clock jumped by {moment - self.last:+.1f} s; times continue from the last frame")
            moment = self.last + self.step
        else:
            moment = max(moment, self.last)
            self.step = moment - self.last or self.step
        if stamp is not None:
            self.shift = moment - stamp
        self.last = moment
        return moment

    def sized(self, size: tuple[int, int]) -> None:
        """Note a change of width and height."""
        if self.size is not None and size != self.size:
            self.tell("size", f"frames changed from {self.size[0]}x{self.size[1]} to {size[0]}x{size[1]}")
        self.size = size


class _Source:
    """Opens a source, again after errors where that may help, and decodes it."""

    def __init__(self, name: str, follow: bool, hosts: tuple[str, ...], stall: float, give_up: float, stack: ExitStack):
        self.name, self.follow, self.hosts, self.stall, self.give_up = name, follow, hosts, stall, give_up
        self.stack, self.tell, self.interrupted = stack, lambda kind, text: None, False
        self.opened: Download | None = None  # the last one
        self.scheme = urlsplit(name).scheme.lower() if "://" in name else ""
        self.is_camera = name.startswith("/dev/video")
        self.is_live = self.scheme != "" or self.is_camera
        is_fifo = not self.is_live and os.path.exists(name) and stat.S_ISFIFO(os.stat(name).st_mode)
        self.is_pipe = name == "-" or is_fifo

    def check(self) -> None:
        """Refuse what cannot work before anything is opened."""
        if self.scheme and self.scheme not in ("http", "https", "rtsp"):
            raise ValueError(f"{self.name}: only http, https and rtsp URLs are streamed")
        if self.scheme:
            self.allow(self.name)
        elif not self.is_camera and self.name != "-" and not os.path.exists(self.name):
            raise VideoReadError(self.name, "No such file or directory")

    def allow(self, url: str) -> None:
        """Raise ValueError for a URL whose host is not allowed."""
        if any(not "!" <= letter <= "~" for letter in url):
            raise ValueError(f"{url!r}: the URL must be percent-encoded")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https", "rtsp") or parts.hostname not in self.hosts:
            raise ValueError(f"{url} is not allowed: name its host in `hosts`")

    def pictures(self) -> Pictures | None:
        """A folder of pictures, a picture or an animation, which Pillow decodes; None for any other source."""
        if self.is_live or self.is_pipe or (self.follow and not os.path.isdir(self.name)):
            return None
        with reported(self.name):
            return open_source(self.name, Deadline(math.inf), self.stack).pictures

    def shown(self, pictures: Pictures, fps: float, background: tuple[int, int, int]) -> Iterator[_Frame]:
        """Every picture, at the times of its file or at a constant rate."""
        deadline = Deadline(math.inf)
        with reported(self.name):
            timeline = pictures.timeline(fps, None, deadline)
            assert timeline.pts is not None
            for tick, count, image in pictures.decode(timeline, timeline.pts.tolist(), deadline, background):
                moment = timeline.seconds(tick)
                yield _Frame(partial(np.asarray, image), moment, count - 1, timeline.duration - moment)

    def frames(self, clock: _Clock, background: tuple[int, int, int]) -> Iterator[_Frame]:
        """Every frame of the source. A live source that fails is opened again until it was silent for too long."""
        number, pause, silent_since = 0, FIRST_PAUSE, time.monotonic()
        while True:
            reason = "the stream ended"
            try:
                for frame, matrix, stamp in self._decoded(clock):
                    clock.sized(upright_size(frame, matrix))
                    convert, is_resumed = partial(self._picture, frame, matrix, background), clock.restarted is not None
                    lasts = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
                    yield _Frame(convert, clock.time_of(stamp), number, lasts, is_resumed)
                    number, pause, silent_since = number + 1, FIRST_PAUSE, time.monotonic()
            except (av.FFmpegError, OSError, UnreadableError) as error:
                self._pass_interrupt()
                reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
                # What is no video at a URL is none the next time.
                is_wrong = not number and self.scheme in ("http", "https") and isinstance(error, av.InvalidDataError)
                if not self.is_live or is_wrong or isinstance(error, BrokenOffError):
                    if is_wrong and self.opened is not None and self.opened.is_mp4 and not self.opened.seekable():
                        reason = (
                            "an MP4 whose index may be at its end, which this server gives no way to read first: "
                            "download the file, or write it with -movflags +faststart"
                        )
                    if number:
                        clock.tell("end", f"the stream broke off: {reason}")
                        return
                    raise VideoReadError(self.name, reason) from error
            else:
                if not self.is_live or self.scheme in ("http", "https"):
                    if not number:
                        raise VideoReadError(self.name, "no video frames")
                    return
            if time.monotonic() - silent_since > self.give_up:
                raise VideoReadError(self.name, f"no frame for {self.give_up:g} s: {reason}")
            clock.tell("reconnect", f"{reason}; connecting again in {pause:g} s")
            clock.restarted = silent_since if number else None
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _picture(self, frame: av.VideoFrame, matrix: Matrix | None, background: tuple[int, int, int]) -> np.ndarray:
        with reported(self.name):
            return upright(to_rgb(frame, background), matrix)

    def _decoded(self, clock: _Clock) -> Iterator[tuple[av.VideoFrame, Matrix | None, float | None]]:
        """Frames, their display matrices and their stamps in seconds, of one connection. The clock learns what stamps
        mean in this container.
        """
        with ExitStack() as opened:
            container = opened.enter_context(self._open(opened))
            stream = container.streams.best("video")
            if stream is None:
                raise UnreadableError("no video stream")
            stream.thread_type = "AUTO"
            clock.may_leap = self.is_live or may_leap(container)
            clock.step = 1 / float(stream.average_rate) if stream.average_rate else clock.step
            # AVI stores an order of decoding and no presentation times, which differ where there are B-frames.
            is_unstamped = container.format.name == "avi" and stream.codec_context.has_b_frames
            damaged, broken, latest, count = 0, 0, 0.0, 0
            packets = container.demux()
            while True:
                packet = next(packets, None)
                self._pass_interrupt()
                if packet is None:
                    if not (self.is_live or self.is_pipe or self.follow):
                        self._check_whole(container, stream, count, latest + clock.step)
                    return
                if packet.pts is not None:
                    latest = max(latest, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if packet.stream is not stream:
                    continue
                count += packet.size > 0
                try:
                    for frame in packet.decode():
                        broken += frame.is_corrupt
                        if frame.is_corrupt and broken & (broken - 1) == 0:
                            self.tell("damage", f"{broken} damaged frames so far")
                        is_timed = frame.pts is not None and not is_unstamped
                        seconds = float(frame.pts * frame.time_base) if is_timed else None
                        yield frame, display_matrix(frame), seconds
                except av.InvalidDataError:
                    damaged += 1
                    if damaged & (damaged - 1) == 0:  # at 1, 2, 4, 8, …: a broken stream must not flood the notes
                        self.tell("damage", f"{damaged} damaged packets so far, which give no frames")

    def _pass_interrupt(self) -> None:
        """Raise the KeyboardInterrupt that came while FFmpeg was reading, through which no such exception passes."""
        if self.interrupted:
            raise KeyboardInterrupt

    def _check_whole(self, container: Any, stream: Any, packets: int, latest: float) -> None:
        """Note that a file ends before its header says; one that FFmpeg itself finds broken is an error of it."""
        rate, missing = float(stream.average_rate or 0), 0.0
        if container.format.name == "avi" and rate:
            missing = (stream.frames - packets) / rate
        elif "matroska" in container.format.name and container.duration:
            missing = container.duration / av.time_base - latest
        elif stream.duration and packets < len(stream.index_entries):
            missing = float(((stream.start_time or 0) + stream.duration) * stream.time_base) - latest
        if missing > SHORT_SECONDS:
            self.tell("end", f"the file is cut short: {missing:.1f} s are missing at its end")

    def _open(self, stack: ExitStack) -> Any:
        timeout = (self.give_up, self.stall) if self.is_live else None
        if self.is_camera:
            return av.open(self.name, format="v4l2", timeout=timeout)
        if self.scheme == "rtsp":
            # Over TCP nothing is lost silently.
            options = {"rtsp_transport": "tcp", "protocol_whitelist": "rtsp,rtp,tcp"}
            return av.open(self.name, options=options, timeout=timeout)
        if self.scheme:
            # A connection of our own cannot be kept for the next segment: FFmpeg would abort the process.
            options = {"http_persistent": "0", "http_multiple": "0"}
            return av.open(self.name, options=options, io_open=lambda url, *_: self._fetch(url), timeout=timeout)
        if self.is_pipe or self.follow:
            return av.open(Growing(self, stack, self.is_pipe and self.name != "-"))
        return av.open(**open_source(self.name, Deadline(math.inf), stack).opener())

    def _fetch(self, url: str) -> Any:
        """Open a URL of an allowed host; playlists name others. FFmpeg closes it."""
        self.allow(url)
        last = self.opened if url == self.name else None
        self.opened = Download(self, url, last.beginning if last is not None and last.identifies else b"")
        return self.opened
