"""Reads the time line of a container and the frames at given times with PyAV (see `videopanda.video.read`).

    timeline = scan(opener, deadline)                          # packets only, nothing is decoded
    for pts, rgb in decode(opener, timeline, [0, 512], deadline): ...

A stream's own integer clock is used throughout: one *tick* is `Timeline.time_base` seconds.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

Opener = Callable[[], str | BinaryIO]

# Above this size the packets are not all listed: reading every byte of a huge file costs more than the frames do.
SCAN_BYTES = 1 << 30
# Without a list of keyframes, targets further apart than this are reached by a seek instead of decoding on.
SEEK_SECONDS = 10.0
# Containers round presentation times, Matroska to a millisecond: a frame counts as shown this much earlier.
CLOCK_TOLERANCE = 0.0005
# A header may promise this much more than the packets hold before the file is called cut short.
SHORT_SECONDS = 0.5
# Tags that are not UTF-8 do not matter here. PyAV reads them as they are from 19 on; before, it has to be told to.
_METADATA: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}


class UnreadableError(Exception):
    """A source that cannot be read; the message is the reason. `videopanda.video.read` adds the name of the source."""


class DisorderedError(Exception):
    """Frames came out with no, or with decreasing, time stamps: the stamps of this stream cannot be used."""


class Deadline:
    """A moment after which `check` raises; `cancel` moves it to now."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._moment = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds left, at least 0."""
        return max(0.0, self._moment - time.monotonic())

    def cancel(self) -> None:
        """Make every later `check` raise."""
        self._moment = -math.inf

    def check(self) -> None:
        """Raise `UnreadableError` when the time is up."""
        if time.monotonic() > self._moment:
            raise UnreadableError(self.reason)

    @property
    def reason(self) -> str:
        """The text of the error."""
        return f"timed out after {self.seconds:g} s (pass a larger timeout for long jobs)"


@dataclass(frozen=True, eq=False)
class Timeline:
    """When the frames of a stream are shown, in ticks.

    pts: sorted presentation stamps of all frames, or None where they were not listed (sources over `SCAN_BYTES`).
    keys: sorted stamps of the keyframes; may be empty or incomplete where `pts` is None.
    end: where the last frame that is really there stops; `declared_end` is later only in a file that was cut short.
    counted: stamps are frame numbers, because the container has none that can be used; seeking is then impossible.
    """

    pts: np.ndarray | None
    keys: np.ndarray
    first: int
    end: int
    declared_end: int
    time_base: Fraction
    fps: float
    width: int
    height: int
    counted: bool = False

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end."""
        return float((self.declared_end - self.first) * self.time_base)

    def seconds(self, tick: int) -> float:
        """Time of a tick since the first frame."""
        return float((tick - self.first) * self.time_base)

    def shown(self, seconds: float) -> int:
        """The stamp of the frame shown at `seconds`; the time itself in ticks where the stamps were not listed."""
        tick = self.first + math.floor((Fraction(seconds) + Fraction(CLOCK_TOLERANCE)) / self.time_base)
        if tick >= self.end and self.declared_end > self.end:
            raise UnreadableError(
                f"cut short: the frames end at {self.seconds(self.end):.3f} s of {self.duration:.3f} s, "
                f"and {seconds:.3f} s is needed"
            )
        if self.pts is None:
            return max(tick, self.first)
        return int(self.pts[max(0, int(np.searchsorted(self.pts, tick, side="right")) - 1)])

    def index(self, tick: int) -> int:
        """Number of the frame with this stamp in order of presentation; an estimate where stamps were not listed."""
        if self.pts is None:
            return round(self.seconds(tick) * self.fps)
        return int(np.searchsorted(self.pts, tick, side="right")) - 1

    def keyframe(self, tick: int) -> int | None:
        """The last known keyframe at or before a tick."""
        position = int(np.searchsorted(self.keys, tick, side="right"))
        return int(self.keys[position - 1]) if position else None


def counted_timeline(number: int, fps: float, width: int, height: int, missing: int = 0) -> Timeline:
    """The time line of a stream without usable stamps: its frames are counted, at a constant rate.

    missing: how many frames more the header promises.
    """
    clock = 1 / Fraction(fps).limit_denominator(1_000_000)
    keys = np.zeros(1, np.int64)
    return Timeline(np.arange(number), keys, 0, number, number + missing, clock, fps, width, height, counted=True)


def _is_cover(stream: VideoStream) -> bool:
    # A plain number or a flag, depending on the release of PyAV.
    return av.stream.Disposition.attached_pic in av.stream.Disposition(stream.disposition)


def open_container(opener: Opener, deadline: Deadline) -> tuple[InputContainer, VideoStream]:
    """Open a source and find its main video stream. Raises `UnreadableError` for a source without one."""
    seconds = max(deadline.remaining(), 0.001) if math.isfinite(deadline.seconds) else None
    container = av.open(
        opener(),
        **_METADATA,
        # A play list must not reach into the network.
        container_options={"protocol_whitelist": "file"},
        buffer_size=1 << 18,
        timeout=seconds,
    )
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or _is_cover(stream):
        container.close()
        raise UnreadableError("no video stream")
    if stream.codec_context is None or stream.time_base is None:
        container.close()
        raise UnreadableError("no decoder for its video stream")
    stream.thread_type = "AUTO"
    assert isinstance(container, InputContainer)
    return container, stream


def is_shown(packet: av.Packet, codec: str) -> bool:
    """Whether a packet gives a frame: edit lists and VP8/VP9 reference frames hide some."""
    if packet.is_discard:
        return False
    if codec not in ("vp8", "vp9") or packet.size == 0:
        return True
    data = memoryview(packet)
    head = data[0]
    if codec == "vp8":
        return bool(head & 0x10)
    if data[-1] & 0xE0 == 0xC0:  # a superframe: hidden frames packed together with one that is shown
        return True
    # Uncompressed header, most significant bit first: marker (2), profile (2), one reserved bit in profile 3,
    # show_existing_frame, frame_type, show_frame.
    shift = 2 if head & 0x30 == 0x30 else 3
    return bool(head >> shift & 1) or bool(head >> (shift - 2) & 1)


def scan(opener: Opener, deadline: Deadline, full: bool = False, most: int | None = None) -> Timeline:
    """List the packets of the main video stream without decoding them; with `most`, no more than so many.

    Sources over `SCAN_BYTES` are described by their header alone unless `full` is set. Raises `UnreadableError`.
    """
    container, stream = open_container(opener, deadline)
    with container:
        if not full and container.size > SCAN_BYTES:
            timeline = _from_header(container, stream)
            if timeline is not None:
                return timeline
        return _from_packets(container, stream, deadline, most)


def _from_header(container: InputContainer, stream: VideoStream) -> Timeline | None:
    time_base, fps = Fraction(stream.time_base or 1), float(stream.average_rate or 0)
    ticks = stream.duration
    if not ticks and container.duration:
        ticks = round(Fraction(container.duration, av.time_base) / time_base)
    if not ticks or not fps:
        return None
    first = stream.start_time or 0
    keys = [entry.timestamp for entry in stream.index_entries if entry.is_keyframe]
    size = stream.codec_context.width, stream.codec_context.height
    return Timeline(None, np.array(sorted(keys), np.int64), first, first + ticks, first + ticks, time_base, fps, *size)


def _from_packets(container: InputContainer, stream: VideoStream, deadline: Deadline, most: int | None) -> Timeline:
    time_base = Fraction(stream.time_base or 1)
    codec = stream.codec_context.codec.canonical_name
    announced = len(stream.index_entries)
    avi, matroska = container.format.name == "avi", "matroska" in container.format.name
    pts: list[int] = []
    keys: list[int] = []
    packets = unstamped = last_duration = 0
    last = -(1 << 62)
    latest = 0.0  # seconds at which the last packet of any stream ends
    cut = False
    try:
        # Matroska gives one length for all streams, so that all of them have to be looked at.
        for packet in container.demux() if matroska else container.demux(stream):
            deadline.check()
            if packet.pts is not None and packet.time_base:
                latest = max(latest, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index != stream.index or packet.size == 0:
                continue
            packets += 1
            if most is not None and packets > most:
                raise UnreadableError(f"more than the {most} frames that are taken")
            cut = cut or packet.is_corrupt
            if not is_shown(packet, codec):
                continue
            if packet.pts is None:
                unstamped += 1
                continue
            if packet.pts >= last:
                last, last_duration = packet.pts, packet.duration or 0
            pts.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
    except av.FFmpegError:
        cut = True
    if not pts and not unstamped:
        promise = f" ({stream.frames} were announced)" if stream.frames else ""
        raise UnreadableError(f"no video frames{promise}")
    count = len(pts) + unstamped
    stamps = np.sort(np.array(pts or [0], np.int64))
    first = int(stamps[0])
    rate = float(stream.average_rate or 0)
    if not last_duration and len(stamps) > 1:
        last_duration = int(np.median(np.diff(stamps)))
    elif not last_duration and rate:
        last_duration = round(1 / (Fraction(rate) * time_base))
    end = int(stamps[-1]) + last_duration
    span = float((end - first) * time_base)
    measured = count / span if span else rate
    # The announced rate is kept where the frames bear it out; Matroska files may announce 1000 per second.
    fps = rate if rate and (not measured or unstamped or abs(rate / measured - 1) < 0.25) else measured
    size = stream.codec_context.width, stream.codec_context.height

    declared = end
    # The header of an AVI can be trusted; that of an MP4 may hold nonsense, so that another sign of a cut is asked for.
    if avi and stream.frames and rate:
        declared = first + round(stream.frames / (Fraction(rate) * time_base))
    elif stream.duration and (cut or packets < announced):
        declared = first + stream.duration
    elif matroska and container.duration and container.duration / av.time_base > latest + SHORT_SECONDS:
        declared = round(Fraction(container.duration, av.time_base) / time_base)
    if (declared - end) * time_base < SHORT_SECONDS:
        declared = end
    timeline = Timeline(stamps, np.sort(np.array(keys, np.int64)), first, end, declared, time_base, fps or 25.0, *size)
    # AVI stores an order of decoding and no presentation times, which differ where there are B-frames.
    if unstamped or (avi and stream.codec_context.has_b_frames):
        missing = float((declared - end) * time_base) * timeline.fps
        return counted_timeline(count, timeline.fps, *size, missing=round(missing))
    return timeline


class Reader:
    """Moves forward through a stream, seeking where that is shorter, and knows which packets never became frames."""

    def __init__(self, opener: Opener, timeline: Timeline, deadline: Deadline):
        self.opener, self.timeline, self.deadline = opener, timeline, deadline
        self.decoded = 0
        self.may_seek = not timeline.counted
        self._restart()

    def _restart(self) -> None:
        self.container, self.stream = open_container(self.opener, self.deadline)
        self._begin(sought=False)

    def _begin(self, sought: bool) -> None:
        self.current: av.VideoFrame | None = None
        self.ahead: av.VideoFrame | None = None
        self.failed = False
        self.waiting: set[int] = set()  # stamps of packets that were fed and did not come out as frames
        self.keys: list[int] = []
        self.frames = self._decode(sought)

    def close(self) -> None:
        """Close the container."""
        self.container.close()

    def _packets(self) -> Iterator[av.Packet | None]:
        try:
            yield from self.container.demux(self.stream)
        except av.FFmpegError:  # the file stops here; what the decoder still holds is good
            yield None

    def _decode(self, sought: bool) -> Iterator[av.VideoFrame]:
        codec = self.stream.codec_context.codec.canonical_name
        counted = self.timeline.counted
        entry: int | None = None  # stamp of the keyframe that a seek led to
        number, previous = 0, None
        for packet in self._packets():
            self.deadline.check()
            if packet is not None and packet.size:
                if sought and entry is None:
                    # Decoders differ in what they make of frames whose reference is missing: feed none.
                    if not packet.is_keyframe or packet.pts is None:
                        continue
                    entry = packet.pts
                if packet.pts is not None and is_shown(packet, codec) and not counted:
                    self.waiting.add(packet.pts)
                    if packet.is_keyframe:
                        self.keys.append(packet.pts)
                self.failed = self.failed or packet.is_corrupt
            try:
                frames = self.stream.codec_context.decode(packet)
            except av.FFmpegError:
                self.failed = True
                if counted:
                    self.waiting.add(number)
                continue
            for frame in frames:
                self.decoded += 1
                if counted:
                    frame.pts = number
                    number += 1
                if frame.pts is None or (previous is not None and frame.pts < previous):
                    raise DisorderedError
                if entry is not None and frame.pts < entry:
                    continue  # leading pictures refer to frames before the keyframe
                # Some containers call every frame a keyframe, and some H.264 keyframes (recovery points) still lean on
                # frames before them: the decoder knows, and whatever it gives from there would be wrong.
                clean = frame.pts == entry and frame.key_frame and not frame.is_corrupt
                if entry is not None and previous is None and not clean:
                    return
                previous = frame.pts
                if frame.is_corrupt:
                    self.failed = True
                elif not packet or not packet.is_corrupt or frame.pts != packet.pts:
                    self.waiting.discard(frame.pts)
                yield frame

    def go_to(self, tick: int) -> None:
        """Seek so that the next frame decoded is at or before `tick`; in the last resort start again."""
        key = self.timeline.keyframe(tick)
        for back in (0.0, 1.0, 4.0, 16.0):
            offset = (tick if key is None else key) - round(back / self.timeline.time_base)
            if offset <= self.timeline.first:
                break
            try:
                self.container.seek(offset, stream=self.stream)
            except av.FFmpegError:
                break
            self._begin(sought=True)
            self.ahead = next(self.frames, None)
            if self.ahead is not None and self.ahead.pts is not None and self.ahead.pts <= tick:
                return
        self.may_seek = False  # what failed here would fail again
        self.close()
        self._restart()

    def _is_far(self, tick: int) -> bool:
        """Whether a seek leads to `tick` with less decoding than going on."""
        if not self.may_seek:
            return False
        frame = self.ahead or self.current
        position = self.timeline.first if frame is None or frame.pts is None else frame.pts
        key = self.timeline.keyframe(tick)
        if key is not None and self.timeline.pts is not None:
            return key > position
        far = tick - position > SEEK_SECONDS / self.timeline.time_base
        return far or (key is not None and key > position)

    def read(self, tick: int) -> av.VideoFrame:
        """The frame shown at `tick`; ticks must not decrease from call to call."""
        if self._is_far(tick):
            self.go_to(tick)
        while self.ahead is None or (self.ahead.pts or 0) <= tick:
            following = next(self.frames, None)
            if self.ahead is not None:
                self.current = self.ahead
            self.ahead = following
            if following is None:
                break
        frame = self.current or self.ahead
        timeline = self.timeline
        if frame is None:
            raise UnreadableError("no frame can be decoded")
        assert frame.pts is not None
        if self.failed:
            # Everything from a damaged packet to the next good keyframe may show the damage.
            clean = max((key for key in self.keys if key <= tick and key not in self.waiting), default=-(1 << 62))
            damaged = min((pts for pts in self.waiting if clean <= pts <= tick), default=None)
            if damaged is not None:
                raise UnreadableError(
                    f"damaged at {timeline.seconds(damaged):.3f} s, "
                    f"so that the frame at {timeline.seconds(tick):.3f} s is not sound"
                )
        if timeline.pts is not None and frame.pts != tick:
            raise UnreadableError(f"the frame at {timeline.seconds(tick):.3f} s cannot be decoded")
        if self.ahead is None and (tick - frame.pts) * timeline.time_base > max(SHORT_SECONDS, 3 / timeline.fps):
            raise UnreadableError(f"the frames end at {timeline.seconds(frame.pts):.3f} s of {timeline.duration:.3f} s")
        return frame


def decode(
    opener: Opener, timeline: Timeline, ticks: Sequence[int], deadline: Deadline
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Decode the frames shown at sorted distinct ticks.

    Yields (stamp of the frame, number of frames decoded so far, upright RGB picture uint8 (H, W, 3)).
    Raises `UnreadableError`, or `DisorderedError` when the stream has to be timed by counting instead.
    """
    reader = Reader(opener, timeline, deadline)
    try:
        for tick in ticks:
            frame = reader.read(tick)
            assert frame.pts is not None
            yield frame.pts, reader.decoded, upright(frame.to_ndarray(format="rgb24"), display_matrix(frame))
    finally:
        reader.close()


def display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int] | None:
    """(a, b, c, d) of x' = a·x + c·y, y' = b·x + d·y, which turns stored into upright pictures; None for as stored."""
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return None
    matrix = np.frombuffer(side_data, np.int32)  # type: ignore[call-overload]
    return int(matrix[0]), int(matrix[1]), int(matrix[3]), int(matrix[4])


def upright(picture: np.ndarray, matrix: tuple[int, int, int, int] | None) -> np.ndarray:
    """Turn or mirror a picture (H, W, 3) in steps of 90 degrees as its display matrix says; a view, no copy."""
    if matrix is None:
        return picture
    a, b, c, d = matrix
    if abs(a) + abs(d) >= abs(b) + abs(c):
        flip_x, flip_y = a < 0, d < 0
    else:
        picture = picture.transpose(1, 0, 2)  # (W, H, 3)
        flip_x, flip_y = c < 0, b < 0
    return picture[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
