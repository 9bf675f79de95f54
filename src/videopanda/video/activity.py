"""Where a video changes, from the sizes of its packets: nothing is decoded.

    times, reasons = chosen_times("lecture.mp4", num_frames=8, rule="motion")
    video = read_video("lecture.mp4", timestamps=times)

An encoder spends bytes on what it cannot predict, so the size of a packet between keyframes measures motion, and one
that is many times larger than its neighbors is a new scene. Keyframes are large by nature; they count as their
neighbors do, unless an encoder put one where none was due.
"""

import math
import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import av
import numpy as np

from videopanda.video.container import Deadline, UnreadableError, open_container
from videopanda.video.read import VideoReadError
from videopanda.video.source import open_source

Rule = Literal["motion", "scenes"]
RULES = ("motion", "scenes")
UNIFORM_SHARE = 0.25  # of the frames that "motion" spreads evenly, so that still stretches are looked at, too
SCENE_TIMES = 4.0  # a packet this many times the median size starts a new scene


@dataclass(frozen=True, eq=False)
class Activity:
    """The frames of a video in order of presentation: start in seconds, bytes of the packet, and keyframes; (T,)."""

    times: np.ndarray
    sizes: np.ndarray
    is_key: np.ndarray


def activity_of(source: str | os.PathLike[str], timeout: float = math.inf) -> Activity:
    """Read the packets of a file.

    Raises:
        VideoReadError: it cannot be read, is a picture, or has no timestamps.
    """
    name, rows = os.fspath(source), []
    with ExitStack() as stack:
        try:
            deadline = Deadline(timeout)
            opened = open_source(source, deadline, stack)
            if opened.pictures is not None:
                raise UnreadableError("pictures have no packets to choose frames by: use num_frames or fps")
            container, stream = open_container(opened.opener, deadline)
            stack.callback(container.close)
            tick = float(stream.time_base or 1)  # a closed container has none
            for packet in container.demux(stream):
                if packet.size and not packet.is_discard:
                    if packet.pts is None:
                        raise UnreadableError("its packets have no timestamps: use num_frames or fps")
                    rows.append((packet.pts, packet.size, packet.is_keyframe))
        except (UnreadableError, OSError, av.FFmpegError) as error:
            raise VideoReadError(name, str(error)) from error
    if not rows:
        raise VideoReadError(name, "no video frames")
    rows.sort()
    stamps, sizes, is_key = (np.array(column) for column in zip(*rows))
    return Activity((stamps - stamps[0]) * tick, sizes.astype(float), is_key.astype(bool))


def chosen_times(source: str | os.PathLike[str], num_frames: int, rule: Rule) -> tuple[list[float], list[str]]:
    """The seconds of `num_frames` frames and why each was taken, in order; fewer if the video has fewer.

    Raises:
        VideoReadError: see `activity_of`.
        ValueError: an unknown rule, or no frames.
    """
    if rule not in RULES:
        raise ValueError(f"frames are chosen by {' or '.join(RULES)}, not {rule!r}")
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, not {num_frames}")
    activity = activity_of(source)
    places, reasons = (_by_motion if rule == "motion" else _by_scenes)(activity, num_frames)
    return [float(activity.times[place]) for place in places], reasons


def _even_sizes(activity: Activity) -> np.ndarray:
    """Bytes of every frame; keyframes count as the median of the others."""
    inter = activity.sizes[~activity.is_key]
    usual = float(np.median(inter)) if len(inter) else float(np.median(activity.sizes))
    return np.where(activity.is_key & (len(inter) > 0), usual, activity.sizes)


def _by_motion(activity: Activity, num_frames: int) -> tuple[list[int], list[str]]:
    """Middles of parts with equal shares of the bytes, a quarter of which are spread evenly."""
    sizes = _even_sizes(activity)
    count = len(sizes)
    weight = (1 - UNIFORM_SHARE) * sizes / max(sizes.sum(), 1.0) + UNIFORM_SHARE / count
    total = weight.cumsum()
    wanted = (np.arange(num_frames) + 0.5) / num_frames * total[-1]
    places = np.unique(np.searchsorted(total, wanted).clip(max=count - 1))
    text = f"in the middle of one of {num_frames} parts with equal shares of motion (bytes of packets)"
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


__all__ = ["RULES", "Activity", "activity_of", "chosen_times"]
