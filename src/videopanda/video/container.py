"""Opens containers with PyAV and decodes the frames at given times, which `timeline.scan` has listed.

for pts, _, rgb in decode(opener, timeline, [0, 512], deadline, background=(255, 255, 255)): ...
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from videopanda.models.pictures import flatten_alpha

if TYPE_CHECKING:
    from videopanda.video.timeline import Timeline

# A header may promise this much more than the packets hold before the file is called cut short.
SHORT_SECONDS = 0.5
# Decoders that give no picture until they have what it refers to; others make one up.
_WITHHOLDING = ("h264", "hevc", "mpeg1video", "mpeg2video", "vp8", "vp9", "av1")
# Gives the arguments of `av.open` that say what to open; called again to start from the beginning.
Opener = Callable[[], dict[str, Any]]
Color = tuple[int, int, int]
Matrix = tuple[int, int, int, int]

# Without a list of keyframes, targets further apart than this are reached by a seek instead of decoding on.
SEEK_SECONDS = 10.0
# Tags that are not UTF-8 do not matter here. PyAV accepts them from 19 on; older releases need this.
_METADATA: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
# FFmpeg's own decoders of these drop the transparency that Matroska stores next to the pictures.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


class UnreadableError(Exception):
    """A source that cannot be read; the message is the reason. `videopanda.video.read` adds the name of the source."""


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


def can_begin(frame: av.VideoFrame, codec: str) -> bool:
    """Whether a decoded frame does not depend on missing earlier frames."""
    return bool(frame.key_frame) or (codec in _WITHHOLDING and not frame.is_corrupt)


class DisorderedError(Exception):
    """Frames came out without timestamps or out of order: the timestamps of this stream cannot be used."""


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
        """Raise `UnreadableError` once the time limit is exceeded."""
        if time.monotonic() > self._moment:
            raise UnreadableError(self.reason)

    @property
    def reason(self) -> str:
        """The text of the error."""
        return f"timed out after {self.seconds:g} s (pass a larger timeout for long jobs)"


def _nameless(cls: type, value: object) -> object:
    """An enum member for a number that PyAV has no name for."""
    member: Any = object.__new__(cls)
    member._name_, member._value_ = f"UNKNOWN_{value}", value
    return member


# PyAV cannot list the side data of a frame if one is of a kind that it has no name for (EXIF, the eye of a spatial
# video, whatever FFmpeg adds next), and so hides the display matrix.
SideDataType._missing_ = classmethod(_nameless)  # type: ignore[method-assign, assignment]


def open_container(opener: Opener, deadline: Deadline) -> tuple[InputContainer, VideoStream]:
    """Open a source and find its main video stream. Raises `UnreadableError` for a source without one."""
    seconds = max(deadline.remaining(), 0.001) if math.isfinite(deadline.seconds) else None
    container = av.open(
        **opener(),
        **_METADATA,
        # A playlist must not reach into the network.
        container_options={"protocol_whitelist": "file"},
        buffer_size=1 << 18,
        timeout=seconds,
    )
    assert isinstance(container, InputContainer)
    stream = container.streams.best("video")
    reason = None
    # A plain number or a flag, depending on the release of PyAV.
    flags = av.stream.Disposition(stream.disposition) if stream is not None else av.stream.Disposition(0)
    if not isinstance(stream, VideoStream) or av.stream.Disposition.attached_pic in flags:
        reason = "no video stream"
    elif av.stream.Disposition.dependent in flags:
        reason = "a picture made of tiles, which is not supported: convert it to PNG or JPEG"
    elif stream.codec_context is None or stream.time_base is None:
        reason = "no decoder for its video stream"
    if reason is not None:
        container.close()
        raise UnreadableError(reason)
    assert isinstance(stream, VideoStream)
    stream.thread_type = "AUTO"
    return container, stream


def video_decoder(stream: VideoStream) -> VideoCodecContext:
    """The decoder of a stream: its own, or one that keeps its transparency. Raises `UnreadableError`."""
    name = stream.codec_context.codec.canonical_name
    if stream.metadata.get("alpha_mode") != "1" or name not in _ALPHA_DECODERS:
        return stream.codec_context
    try:
        decoder = av.CodecContext.create(_ALPHA_DECODERS[name], "r")
    except av.codec.codec.UnknownCodecError as error:
        raise UnreadableError(f"no decoder for {name.upper()} with transparency in this PyAV") from error
    assert isinstance(decoder, VideoCodecContext)
    decoder.extradata = stream.codec_context.extradata
    return decoder


class Reader:
    """Moves forward through a stream, seeking if that is faster; keeps track of packets that never became frames."""

    def __init__(self, opener: Opener, timeline: "Timeline", deadline: Deadline):
        self.opener, self.timeline, self.deadline = opener, timeline, deadline
        self.decoded = 0
        self.may_seek = not timeline.counted and len(timeline.parts) == 1
        self._restart()

    def _restart(self) -> None:
        self.container, self.stream = open_container(self.opener, self.deadline)
        self.decoder = video_decoder(self.stream)
        self.packets = self._packets()
        self._begin()

    def _begin(self, sought: bool = False, skip_to: int | None = None) -> None:
        self.current: av.VideoFrame | None = None
        self.ahead: av.VideoFrame | None = None
        self.failed = False
        self.waiting: set[int] = set()  # stamps of packets that were fed and did not come out as frames
        self.keys: list[int] = []
        self.fed = -(1 << 62)  # latest stamp that was fed
        self.frames = self._decode(sought, skip_to)

    def close(self) -> None:
        """Close the container."""
        self.container.close()

    def _packets(self) -> Iterator[av.Packet | None]:
        """The packets with stamps of one continuous clock; None where a part ends, after which the decoder is new."""
        joints = iter(self.timeline.parts)
        part, following = next(joints), next(joints, None)
        number = 0
        try:
            for packet in self.container.demux(self.stream):
                if packet.size:
                    if following is not None and number == following.packet:
                        yield None
                        part, following = following, next(joints, None)
                    number += 1
                    if part.shift and packet.pts is not None:
                        packet.pts += part.shift
                    yield packet
        except av.FFmpegError:  # the file stops here; what the decoder still holds is good
            pass
        yield None

    def _decode(self, sought: bool, skip_to: int | None) -> Iterator[av.VideoFrame]:
        codec = self.stream.codec_context.codec.canonical_name
        counted, hidden = self.timeline.counted, self.timeline.hidden
        entry: int | None = None  # stamp of the keyframe that a seek led to
        number, previous = 0, None
        for packet in self.packets:
            self.deadline.check()
            if packet is not None:
                if (sought or skip_to is not None) and entry is None:
                    # Decoders differ in what they make of frames whose reference is missing: feed none.
                    if not packet.is_keyframe or packet.pts is None or packet.pts < (skip_to or packet.pts):
                        continue
                    entry = packet.pts
                if packet.pts is not None and is_shown(packet, codec) and not counted:
                    self.fed = max(self.fed, packet.pts)
                    if packet.pts not in hidden:
                        self.waiting.add(packet.pts)
                    if packet.is_keyframe:
                        self.keys.append(packet.pts)
                self.failed = self.failed or packet.is_corrupt
            try:
                frames = self.decoder.decode(packet)
                if packet is None:
                    self.decoder.flush_buffers()
            except av.FFmpegError:
                self.failed = True
                if counted:
                    self.waiting.add(number)
                continue
            for frame in frames:
                self.decoded += 1
                if counted:
                    if not number and not can_begin(frame, codec):
                        continue
                    frame.pts = number
                    number += 1
                if frame.pts is None or (previous is not None and frame.pts < previous):
                    raise DisorderedError
                if (entry is not None and frame.pts < entry) or frame.pts in hidden:
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
        """Seek so that the next frame decoded is at or before `tick`; as a last resort, start over."""
        key = self.timeline.keyframe(tick)
        for back in (0.0, 1.0, 4.0, 16.0):
            offset = (tick if key is None else key) - round(back / self.timeline.time_base)
            if offset <= self.timeline.first:
                break
            try:
                self.container.seek(offset, stream=self.stream)
            except av.FFmpegError:
                break
            self.decoder.flush_buffers()
            self.packets = self._packets()
            self._begin(sought=True)
            self.ahead = next(self.frames, None)
            if self.ahead is not None and self.ahead.pts is not None and self.ahead.pts <= tick:
                return
        self.may_seek = False  # what failed here would fail again
        self.close()
        self._restart()

    def _skip(self, tick: int) -> None:
        """In a stream of several parts, which cannot seek: skip everything before the needed keyframe."""
        key = self.timeline.keyframe(tick)
        if key is not None and key > self.fed:
            self.decoder.flush_buffers()
            self._begin(skip_to=key)

    def _is_far(self, tick: int) -> bool:
        """Whether seeking to `tick` needs less decoding than reading on."""
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
        elif len(self.timeline.parts) > 1:
            self._skip(tick)
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
                    f"so the frame at {timeline.seconds(tick):.3f} s is not reliable"
                )
        if timeline.pts is not None and frame.pts != tick:
            raise UnreadableError(f"the frame at {timeline.seconds(tick):.3f} s cannot be decoded")
        if self.ahead is None and (tick - frame.pts) * timeline.time_base > max(SHORT_SECONDS, 3 / timeline.fps):
            raise UnreadableError(f"the frames end at {timeline.seconds(frame.pts):.3f} s of {timeline.duration:.3f} s")
        return frame


def decode(
    opener: Opener, timeline: "Timeline", ticks: Sequence[int], deadline: Deadline, background: Color
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
            yield frame.pts, reader.decoded, upright(to_rgb(frame, background), display_matrix(frame))
    finally:
        reader.close()


def has_alpha(frame: av.VideoFrame) -> bool:
    """Whether the pixels of a frame may be transparent; those of palettes may."""
    return frame.format.has_palette or any(component.is_alpha for component in frame.format.components)


def to_rgb(frame: av.VideoFrame, background: Color) -> np.ndarray:
    """The pixels of a frame as stored, uint8 (H, W, 3), over a background where they are transparent."""
    if not has_alpha(frame):
        return frame.to_ndarray(format="rgb24")
    return flatten_alpha(frame.to_ndarray(format="rgba"), background)


def side_data_of(frame: av.VideoFrame, kind: SideDataType) -> Any:
    """The side data of a frame that are of this kind, or None.

    `frame.side_data` is kept by the frame and refers to it: pixels would stay in memory until the next garbage
    collection.
    """
    make: Any = SideDataContainer  # its annotations leave out the argument
    return make(frame).get(kind)


def display_matrix(frame: av.VideoFrame) -> Matrix | None:
    """(a, b, c, d) of x' = a·x + c·y, y' = b·x + d·y, which turns stored into upright pictures; None for as stored."""
    side_data = side_data_of(frame, SideDataType.DISPLAYMATRIX)
    if side_data is None:
        return None
    matrix = np.frombuffer(side_data, np.int32)
    return int(matrix[0]), int(matrix[1]), int(matrix[3]), int(matrix[4])


def _is_turned(matrix: Matrix) -> bool:
    a, b, c, d = matrix
    return abs(a) + abs(d) < abs(b) + abs(c)


def upright_size(frame: av.VideoFrame, matrix: Matrix | None) -> tuple[int, int]:
    """Width and height of a frame as it is shown."""
    is_turned = matrix is not None and _is_turned(matrix)
    return (frame.height, frame.width) if is_turned else (frame.width, frame.height)


def upright(picture: np.ndarray, matrix: Matrix | None) -> np.ndarray:
    """Turn or mirror a picture (H, W, 3) in steps of 90 degrees as its display matrix says; a view, no copy."""
    if matrix is None:
        return picture
    a, b, c, d = matrix
    if _is_turned(matrix):
        picture = picture.transpose(1, 0, 2)  # (W, H, 3)
        flip_x, flip_y = c < 0, b < 0
    else:
        flip_x, flip_y = a < 0, d < 0
    return picture[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
