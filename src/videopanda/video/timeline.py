"""When the frames of a stream are shown: listed from its packets, without decoding them.

A stream's own integer clock is used throughout: one *tick* is `Timeline.time_base` seconds.
"""

import math
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from videopanda.video.container import (
    SHORT_SECONDS,
    Deadline,
    Opener,
    UnreadableError,
    can_begin,
    is_shown,
    open_container,
    video_decoder,
)

# Above this size the packets are not all listed: reading every byte of a huge file costs more than the frames do.
SCAN_BYTES = 1 << 30
# Containers with a clock of milliseconds round twice, the first frame's stamp and this one's: less than 1 ms together.
_MILLISECOND_SLACK = Fraction(999, 1_000_000)
_SLACK = Fraction(1, 2000)
# As the ffmpeg command does: a clock that falls back by this much, or leaps ahead, has been started again.
_BACKWARD_SECONDS, _FORWARD_SECONDS = 0.1, 10.0
_TS_DISCONT = 0x0200  # FFmpeg's mark of formats whose clock may leap, as those of broadcasts do
_CHECK_EVERY = 256  # packets between looks at the clock


@dataclass(frozen=True)
class Part:
    """A stretch of a stream whose clock was started again: its first packet, and the offset added to its timestamps."""

    packet: int
    shift: int


@dataclass(frozen=True, eq=False)
class Timeline:
    """When the frames of a stream are shown, in ticks.

    pts: sorted presentation stamps of all frames, or None if they were not listed (sources over `SCAN_BYTES`).
    keys: sorted stamps of the keyframes; may be empty or incomplete where `pts` is None.
    end: the end of the last frame that is really present; `declared_end` is later only in a file that was cut short.
    counted: stamps are frame numbers, because the container has no usable timestamps; seeking is then impossible.
    parts: several where the stream's clock starts again; all stamps here are those of one continuous clock.
    hidden: stamps of leading pictures of a part that cannot be decoded: they do not count as frames.
    is_still: the source is a single picture, not a video.
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
    parts: tuple[Part, ...] = (Part(0, 0),)
    hidden: frozenset[int] = field(default=frozenset(), repr=False)
    is_still: bool = False

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end."""
        return float((self.declared_end - self.first) * self.time_base)

    def seconds(self, tick: int) -> float:
        """Time of a tick since the first frame."""
        return float((tick - self.first) * self.time_base)

    @cached_property
    def _slack(self) -> Fraction:
        """Tolerance, in ticks: a frame counts as shown this much earlier than its stamp."""
        thousandths = self.time_base * 1000
        in_milliseconds = thousandths >= 1 or (
            self.pts is not None and not (self.pts * thousandths.numerator % thousandths.denominator).any()
        )
        return (_MILLISECOND_SLACK if in_milliseconds else _SLACK) / self.time_base

    def shown(self, seconds: float) -> int:
        """The stamp of the frame shown at `seconds`; the time itself in ticks where the stamps were not listed."""
        exact = self.first + Fraction(seconds) / self.time_base
        tick = math.floor(exact + self._slack)
        if tick >= self.end and self.declared_end > self.end:
            raise UnreadableError(
                f"cut short: the frames end at {self.seconds(self.end):.3f} s of {self.duration:.3f} s, "
                f"and {seconds:.3f} s was requested"
            )
        if self.pts is None:
            return max(tick, self.first)
        position = max(0, int(np.searchsorted(self.pts, tick, side="right")) - 1)
        if position and self.pts[position] > exact:
            before, stamp = int(self.pts[position - 1]), int(self.pts[position])
            if 2 * (stamp - exact) >= stamp - before:  # nearer to the frame before: of a very high frame rate
                position -= 1
        return int(self.pts[position])

    def index(self, tick: int) -> int:
        """Number of the frame with this stamp in order of presentation; an estimate if stamps were not listed."""
        if self.pts is None:
            return round(self.seconds(tick) * self.fps)
        return int(np.searchsorted(self.pts, tick, side="right")) - 1

    def keyframe(self, tick: int) -> int | None:
        """The last known keyframe at or before a tick."""
        position = int(np.searchsorted(self.keys, tick, side="right"))
        return int(self.keys[position - 1]) if position else None


def counted_timeline(number: int, fps: float, width: int, height: int, missing: int = 0) -> Timeline:
    """The timeline of a stream without usable timestamps: its frames are counted, at a constant rate.

    missing: number of further frames that the header declares.
    """
    clock = 1 / Fraction(fps).limit_denominator(1_000_000)
    keys = np.zeros(1, np.int64)
    return Timeline(np.arange(number), keys, 0, number, number + missing, clock, fps, width, height, counted=True)


def scan(opener: Opener, deadline: Deadline, full: bool = False, most: int | None = None) -> Timeline:
    """List the packets of the main video stream without decoding them; at most `most` of them.

    Sources over `SCAN_BYTES` are described by their header alone unless `full` is set. Raises `UnreadableError`.
    """
    container, stream = open_container(opener, deadline)
    with container:
        # The header of a stream does not show whether its clock starts again.
        if not full and container.size > SCAN_BYTES and not may_leap(container) and container.format.name != "flv":
            timeline = _from_header(container, stream)
            if timeline is not None:
                return timeline
        listed = _Packets(container, stream)
        listed.read(deadline, most)
        return listed.timeline(opener, deadline)


def may_leap(container: InputContainer) -> bool:
    """Whether the clock of this container may start again or leap ahead, as that of broadcast formats."""
    return bool(int(container.format.flags) & _TS_DISCONT)


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


@dataclass
class _Stretch:
    """The packets of one part: numbers of its first packet, of its first stamp and of its first keyframe in lists."""

    packet: int
    pts: int
    keys: int
    first_key: int | None = None


class _Packets:
    """What the packets of a stream contain."""

    def __init__(self, container: InputContainer, stream: VideoStream):
        self.container, self.stream = container, stream
        self.time_base = Fraction(stream.time_base or 1)
        self.pts: list[int] = []
        self.keys: list[int] = []
        self.durations: list[int] = []  # of the last frame of each part
        self.stretches = [_Stretch(0, 0, 0)]
        self.packets = self.unstamped = 0
        self.latest = 0.0  # seconds at which the packets of all streams that were looked at end
        self.cut = False
        self.begins_with_key = True

    def read(self, deadline: Deadline, most: int | None) -> None:
        """Go through all packets. Raises `UnreadableError` for more than `most`."""
        stream, container, time_base = self.stream, self.container, self.time_base
        codec = stream.codec_context.codec.canonical_name
        always_shown = codec not in ("vp8", "vp9")
        pts_append, keys_append, number = self.pts.append, self.keys.append, stream.index
        tick = float(time_base)
        ticks = {other.index: float(other.time_base or 0) for other in container.streams}
        backward, forward = (round(seconds / time_base) for seconds in (_BACKWARD_SECONDS, _FORWARD_SECONDS))
        # Matroska gives one length for all streams. Where clocks may leap, a gap in one stream is no leap if another
        # stream goes on through it. Only then are all streams looked at.
        leaps = may_leap(container)
        everything = leaps or "matroska" in container.format.name
        stretch = self.stretches[0]
        last_dts: int | None = None
        last = due = -(1 << 62)  # the latest stamp; where the packet before ends
        latest, leapt = -math.inf, False  # seconds at which the packets of all streams end; one of them has leapt ahead
        duration = seen = 0
        try:
            for packet in container.demux() if everything else container.demux(stream):
                seen += 1
                if not seen % _CHECK_EVERY:
                    deadline.check()
                dts = packet.dts
                if packet.stream_index != number:
                    if dts is not None:
                        moment = (dts + (packet.duration or 0)) * ticks.get(packet.stream_index, 0.0)
                        leapt = leapt or moment > latest + _FORWARD_SECONDS > -math.inf
                        latest = max(latest, moment)
                    continue
                if not packet.size:
                    continue
                pts, length = packet.pts, packet.duration or 0
                if dts is not None:
                    moment = (dts + length) * tick
                    leapt = leapt or moment > latest + _FORWARD_SECONDS > -math.inf
                    latest = max(latest, moment)
                    if last_dts is not None and (
                        dts < last_dts - backward or (leaps and leapt and dts > due + forward)
                    ):
                        self.durations.append(duration)
                        stretch = _Stretch(self.packets, len(self.pts), len(self.keys))
                        self.stretches.append(stretch)
                        last, latest, leapt = -(1 << 62), moment, False
                    last_dts, due = dts, dts + length
                is_key = packet.is_keyframe
                if not self.packets:
                    self.begins_with_key = is_key
                    if packet.has_sidedata("encryption_info"):
                        raise UnreadableError("it is encrypted")
                self.packets += 1
                if most is not None and self.packets > most:
                    raise UnreadableError(f"it has more than {most} frames, the limit")
                if packet.is_corrupt:
                    self.cut = True
                if is_key and stretch.first_key is None and pts is not None:
                    stretch.first_key = pts
                if packet.is_discard or not (always_shown or is_shown(packet, codec)):
                    continue
                if pts is None:
                    self.unstamped += 1
                    continue
                if pts >= last:
                    last, duration = pts, length
                pts_append(pts)
                if is_key:
                    keys_append(pts)
        except av.FFmpegError:
            self.cut = True
        self.durations.append(duration)
        self.latest = latest

    def timeline(self, opener: Opener, deadline: Deadline) -> Timeline:
        """Join the parts; where one begins with a fragment, its first picture is found by decoding."""
        container, stream, time_base = self.container, self.stream, self.time_base
        if not self.pts and not self.unstamped:
            promise = f" ({stream.frames} were declared)" if stream.frames else ""
            raise UnreadableError(f"no video frames{promise}")
        rate = float(stream.average_rate or 0)
        parts = self._split()
        # Pictures shown before the first keyframe may refer to pictures that are not there.
        suspects = {
            stretch.packet: next((later.packet for later in self.stretches[k + 1 :]), self.packets)
            for k, (stretch, pts, _) in enumerate(parts)
            if len(pts) and (stretch.first_key is None or pts[0] < stretch.first_key)
        }
        shown = _first_shown(opener, deadline, suspects) if suspects and not self.unstamped else {}
        stamps, keys, joints, hidden = [], [], [], set[int]()
        end: int | None = None
        for k, (stretch, pts, part_keys) in enumerate(parts):
            begin = shown.get(stretch.packet)
            gone = 0 if begin is None else int(np.searchsorted(pts, begin))
            shift = 0 if end is None or not len(pts) else end - int(pts[gone])
            hidden |= {int(stamp) + shift for stamp in pts[:gone]}
            stamps.append(pts[gone:] + shift)
            keys.append(part_keys[np.searchsorted(part_keys, pts[gone]) :] + shift if gone else part_keys + shift)
            joints.append(Part(stretch.packet, shift))
            if len(pts):
                end = int(pts[-1]) + shift + self._last_duration(self.durations[k], pts, rate)
        all_pts, all_keys = np.concatenate(stamps), np.concatenate(keys)
        if not len(all_pts):
            all_pts = np.zeros(1, np.int64)
        first = int(all_pts[0])
        if end is None:
            end = first + self._last_duration(0, all_pts, rate)
        count = len(self.pts) - len(hidden) + self.unstamped
        span = float((end - first) * time_base)
        measured = count / span if span else rate
        # The announced rate is kept where the frames bear it out; Matroska files may announce 1000 per second.
        fps = rate if rate and (not measured or self.unstamped or abs(rate / measured - 1) < 0.25) else measured
        size = stream.codec_context.width, stream.codec_context.height
        declared = self._declared_end(int(parts[0][1][0]) if len(parts[0][1]) else first, end, rate)
        still = self.packets == 1 and (container.format.name.endswith("_pipe") or container.format.name == "gif")
        # AVI stores an order of decoding and no presentation times, which differ where there are B-frames.
        if self.unstamped or (container.format.name == "avi" and stream.codec_context.has_b_frames):
            missing = float((declared - end) * time_base) * (fps or 25.0)
            if not self.begins_with_key:
                count = _count_frames(opener, deadline)
            return counted_timeline(count, fps or 25.0, *size, missing=round(missing))
        return Timeline(
            all_pts,
            all_keys,
            first,
            end,
            declared,
            time_base,
            fps or 25.0,
            *size,
            parts=tuple(joints),
            hidden=frozenset(hidden),
            is_still=still,
        )

    def _split(self) -> list[tuple[_Stretch, np.ndarray, np.ndarray]]:
        """The parts with their sorted stamps and keyframes."""
        pts, keys = np.array(self.pts, np.int64), np.array(self.keys, np.int64)
        ends = [*self.stretches[1:], _Stretch(self.packets, len(pts), len(keys))]
        return [
            (part, np.sort(pts[part.pts : stop.pts]), np.sort(keys[part.keys : stop.keys]))
            for part, stop in zip(self.stretches, ends)
        ]

    def _last_duration(self, known: int, pts: np.ndarray, rate: float) -> int:
        if known:
            return known
        if len(pts) > 1:
            return int(np.median(np.diff(pts)))
        return round(1 / (Fraction(rate) * self.time_base)) if rate else 0

    def _declared_end(self, first: int, end: int, rate: float) -> int:
        """Where the header says that the stream ends, if that is plausible; else `end`."""
        container, stream, time_base = self.container, self.stream, self.time_base
        declared = end
        if len(self.stretches) > 1:
            return end
        # The header of an AVI can be trusted; that of an MP4 may hold nonsense: another sign of a cut is asked for.
        if container.format.name == "avi" and stream.frames and rate:
            declared = first + round(stream.frames / (Fraction(rate) * time_base))
        elif stream.duration and (self.cut or self.packets < len(stream.index_entries)):
            declared = first + stream.duration
        elif "matroska" in container.format.name and container.duration:
            latest = max(self.latest, float(end * time_base))
            if container.duration / av.time_base > latest + SHORT_SECONDS:
                declared = round(Fraction(container.duration, av.time_base) / time_base)
        return end if (declared - end) * time_base < SHORT_SECONDS else declared


def _count_frames(opener: Opener, deadline: Deadline) -> int:
    """How many frames come out of a stream from the first that can begin it."""
    container, stream = open_container(opener, deadline)
    count = 0
    with container:
        codec = stream.codec_context.codec.canonical_name
        try:
            for packet in container.demux(stream):
                deadline.check()
                try:
                    for frame in stream.codec_context.decode(packet):
                        count += bool(count or can_begin(frame, codec))
                except av.FFmpegError:
                    continue
        except av.FFmpegError:
            pass
    return count


def _first_shown(opener: Opener, deadline: Deadline, suspects: dict[int, int]) -> dict[int, int]:
    """The stamp of the first picture that can be decoded of each part; parts are given as first packet: end."""
    found: dict[int, int] = {}
    container, stream = open_container(opener, deadline)
    with container:
        decoder = video_decoder(stream)
        codec = decoder.codec.canonical_name
        part, stop, number = -1, -1, 0

        def feed(packet: av.Packet | None) -> None:
            try:
                frames = decoder.decode(packet)
            except av.FFmpegError:
                return
            for frame in frames:
                if frame.pts is not None and can_begin(frame, codec):
                    found.setdefault(part, frame.pts)

        try:
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                deadline.check()
                if number == stop:
                    feed(None)
                if number in suspects:
                    part, stop = number, suspects[number]
                    decoder.flush_buffers()
                if number < stop and part not in found:
                    feed(packet)
                number += 1
                if number >= stop and number > max(suspects):
                    break
                if len(found) == len(suspects):
                    break
        except av.FFmpegError:
            pass
        if number <= stop or part not in found:
            feed(None)
    return found
