"""Where a video changes, from the sizes of its packets, without decoding, or from the motion vectors of its codec.

    times, reasons = chosen_times("lecture.mp4", num_frames=8, rule="motion")
    video = read_video("lecture.mp4", timestamps=times)

An encoder spends bytes on what it cannot predict, so the size of a packet between keyframes measures motion, and one
that is many times larger than its neighbors is a new scene. Keyframes are large by nature; they count as their
neighbors do, unless an encoder put one where none was due. Motion vectors tell motion apart from flicker and new
scenes, but exist only while a frame is decoded (PyAV, side data `MOTION_VECTORS`); no picture is converted for them.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from av.container import InputContainer
from av.sidedata.motionvectors import MotionVectors
from av.sidedata.sidedata import Type as SideDataType
from av.video.stream import VideoStream

from videopanda.video.container import Deadline, UnreadableError, open_container, side_data_of
from videopanda.video.read import VideoReadError, reported
from videopanda.video.source import name_of, open_source
from videopanda.video.timeline import Timeline, scan

Rule = Literal["motion", "scenes", "vectors"]
RULES = ("motion", "scenes", "vectors")
UNIFORM_SHARE = 0.25  # of the frames by motion are spread evenly, so that still stretches are looked at, too
SCENE_TIMES = 4.0  # a packet this many times the median size starts a new scene,
SCENE_SHARE = 0.1  # if it also has this share of a keyframe's bytes: packets of a still picture are tiny


@dataclass(frozen=True, eq=False)
class Activity:
    """The frames of a video in order of presentation: start in seconds, bytes of the packet, and keyframes; (T,)."""

    times: np.ndarray
    sizes: np.ndarray
    is_key: np.ndarray


@contextmanager
def _opened(source: Any) -> Iterator[tuple[InputContainer, VideoStream, Timeline]]:
    """The container, its video, and when its frames are shown. Errors inside become VideoReadError, too."""
    with ExitStack() as stack, reported(name_of(source)):
        deadline = Deadline(math.inf)
        opened = open_source(source, deadline, stack)
        if opened.is_copy:
            raise UnreadableError("a pipe can be read only once: write a file to choose its frames")
        if opened.pictures is not None:
            raise UnreadableError("images have no packets to choose frames by: use num_frames or fps")
        line = scan(opened.opener, deadline, full=True)
        if len(line.parts) > 1:
            raise UnreadableError("its clock starts again in the middle: use num_frames or fps")
        container, stream = open_container(opened.opener, deadline)
        stack.callback(container.close)
        yield container, stream, line


def activity_of(source: Any) -> Activity:
    """Read the packets of a file.

    Raises:
        VideoReadError: it cannot be read, is a picture, or has no timestamps.
    """
    rows = []
    with _opened(source) as (container, stream, line):
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                if packet.pts is None:
                    raise UnreadableError("its packets have no timestamps: use num_frames or fps")
                if packet.pts >= line.first:  # earlier ones cannot be shown
                    rows.append((packet.pts, packet.size, packet.is_keyframe))
    if not rows:
        raise VideoReadError(name_of(source), "no video frames")
    rows.sort()
    stamps, sizes, is_key = (np.array(column) for column in zip(*rows))
    return Activity((stamps - line.first) * float(line.time_base), sizes.astype(float), is_key.astype(bool))


def vectors_of(source: Any) -> tuple[np.ndarray, np.ndarray]:
    """Start in seconds of every frame, and how many pixels its parts moved on average; (T,).

    That is since the frames from which they are predicted, one to a few frames away. Frames and parts that are coded
    without reference to others count as still.

    Raises:
        VideoReadError: it cannot be read, has no timestamps, or its codec reports no motion vectors.
    """
    times, motion, has_vectors = [], [], False
    with _opened(source) as (container, stream, _):
        stream.codec_context.options = {"flags2": "+export_mvs"}
        for frame in container.decode(stream):
            if frame.time is None:
                raise UnreadableError("its frames have no timestamps: use num_frames or fps")
            vectors, moved = side_data_of(frame, SideDataType.MOTION_VECTORS), 0.0
            if isinstance(vectors, MotionVectors):
                has_vectors, parts = True, vectors.to_ndarray()
                length = np.hypot(parts["motion_x"], parts["motion_y"]) / np.maximum(parts["motion_scale"], 1)
                area = parts["w"].astype(float) * parts["h"]
                moved = float((length * area).sum() / max(area.sum(), frame.width * frame.height))
            times.append(frame.time)
            motion.append(moved)
        if times and not has_vectors:
            raise UnreadableError("its codec reports no motion vectors: choose frames by motion instead")
    if not times:
        raise VideoReadError(name_of(source), "no video frames")
    order = np.argsort(times, kind="stable")
    return np.array(times)[order] - min(times), np.array(motion)[order]


def chosen_times(source: Any, num_frames: int, rule: Rule) -> tuple[list[float], list[str]]:
    """The seconds of `num_frames` frames and why each was taken, in order; fewer if the video has fewer.

    Raises:
        VideoReadError: see `activity_of`.
        ValueError: an unknown rule, or no frames.
    """
    if rule not in RULES:
        raise ValueError(f"frames are chosen by {', '.join(RULES[:-1])} or {RULES[-1]}, got {rule!r}")
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    if rule == "vectors":
        times, motion = vectors_of(source)
        places, reasons = _by_motion(motion, num_frames, "lengths of motion vectors")
        return [float(times[place]) for place in places], reasons
    activity = activity_of(source)
    if rule == "motion":
        places, reasons = _by_motion(_even_sizes(activity), num_frames, "bytes of packets")
    else:
        places, reasons = _by_scenes(activity, num_frames)
    return [float(activity.times[place]) for place in places], reasons


def _even_sizes(activity: Activity) -> np.ndarray:
    """Bytes of every frame; keyframes count as the median of the others."""
    inter = activity.sizes[~activity.is_key]
    usual = float(np.median(inter)) if len(inter) else float(np.median(activity.sizes))
    return np.where(activity.is_key & (len(inter) > 0), usual, activity.sizes)


def _by_motion(sizes: np.ndarray, num_frames: int, unit: str) -> tuple[list[int], list[str]]:
    """Middles of parts with equal shares of the sum of `sizes`, a quarter of which are spread evenly."""
    count, total_size = len(sizes), sizes.sum()
    moving = sizes / total_size if total_size else np.full(count, 1 / count)
    weight = (1 - UNIFORM_SHARE) * moving + UNIFORM_SHARE / count
    total = weight.cumsum()
    wanted = (np.arange(num_frames) + 0.5) / num_frames * total[-1]
    places = np.unique(np.searchsorted(total, wanted).clip(max=count - 1))
    text = f"in the middle of one of {num_frames} parts with equal shares of motion ({unit})"
    return places.tolist(), [text] * len(places)


def _by_scenes(activity: Activity, num_frames: int) -> tuple[list[int], list[str]]:
    """The first frame, the most sudden changes, then frames in the longest gaps between those."""
    sizes, count = _even_sizes(activity), len(activity.sizes)
    keys = np.flatnonzero(activity.is_key)
    usual = max(1.0, float(np.median(sizes)))
    gaps = np.diff(keys)
    # The longest gap is that of keyframes that were due, if it occurs again.
    due = gaps.max() if len(gaps) and (gaps == gaps.max()).sum() > 1 else np.inf
    sudden = keys[1:][gaps < due]
    score = sizes / usual
    score[sudden] = np.maximum(score[sudden], activity.sizes[sudden] / usual)
    score[0] = 0.0
    enough = SCENE_SHARE * float(np.median(activity.sizes[keys])) if len(keys) else 0.0
    score[activity.sizes < enough] = 0.0
    order = np.argsort(-score, kind="stable")
    chosen = {0: "the first frame"}
    for place in order[: max(0, num_frames - 1)]:
        if score[place] >= SCENE_TIMES:
            chosen[int(place)] = f"a new scene: its packet is {score[place]:.0f} times as large as usual"
    while len(chosen) < min(num_frames, count):
        edges = np.array([*sorted(chosen), count])
        gap = int(np.diff(edges).argmax())
        middle = int((edges[gap] + edges[gap + 1]) // 2)
        if middle in chosen:
            break
        chosen[middle] = "in the middle of the longest stretch without a new scene"
    places = sorted(chosen)
    return places, [chosen[place] for place in places]
