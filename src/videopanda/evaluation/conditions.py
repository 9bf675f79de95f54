"""What a model is shown: the clip, or for a baseline something else. A model that uses the video loses points without
it.

full          the clip
no_video      nothing: what can be guessed from the question and, where the prompt states it, the length of the clip
one_frame     its middle frame in every place
shuffled      its frames in a random order that is not the right one
reversed      its frames from the last to the first
wrong_video   the next other clip of the benchmark, with the subtitles of that clip where the prompt has some
"""

import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from videopanda.data.worlds.scenes.dataset import Clip
from videopanda.evaluation.benchmarks.item import Item
from videopanda.evaluation.benchmarks.videos import Videos
from videopanda.evaluation.predictions import CONDITIONS
from videopanda.inference.clip import EncodedClip
from videopanda.inference.look_twice import FirstLook
from videopanda.video.order import one_frame_order, shuffled_order
from videopanda.video.read import Video, read_video


@dataclass(frozen=True)
class ClipRef:
    """The part of a file that is shown; `path` is None where the file is missing."""

    name: str  # below the folder of videos; of a missing file as the annotations say
    path: Path | None
    start: float | None = None
    end: float | None = None
    image_fps: float = 1.0  # of a folder of frames
    shuffle_key: tuple[int, ...] = ()  # draws the shuffled order; default its name and range


@dataclass(frozen=True)
class Asked:
    """A question and what is shown with it; for the condition no_video the clip that is left out."""

    item: Item
    source: ClipRef
    subtitles: Item  # a question about the clip that is shown, which names its subtitles


@dataclass(frozen=True)
class Shown:
    """Frames as they are shown, and where they come from."""

    clip: Video | Clip | EncodedClip | FirstLook  # the last two where it is encoded as it is read
    indices: tuple[int, ...]  # in the file, in the order shown
    times: tuple[float, ...]  # seconds
    decoder: str


def asked(items: tuple[Item, ...], videos: Videos, condition: str) -> list[Asked]:
    """Every question with its source, questions about the same clip next to each other.

    Raises:
        ValueError: no such condition, or one that needs another video where there is none.
    """
    if condition not in CONDITIONS:
        raise ValueError(f"unknown condition {condition!r}; choose from {', '.join(CONDITIONS)}")
    groups: dict[ClipRef, list[Item]] = {}
    for item in items:
        groups.setdefault(_source(item, videos), []).append(item)
    shown = dict(zip(groups, groups))
    if condition == "wrong_video":
        shown = _others([source for source in groups if source.path])
        shown |= {source: source for source in groups if not source.path}

    def subtitles(item: Item, source: ClipRef) -> Item:
        return item if shown[source] == source else groups[shown[source]][0]

    return [Asked(item, shown[source], subtitles(item, source)) for source, group in groups.items() for item in group]


def _source(item: Item, videos: Videos) -> ClipRef:
    path = videos.find(item.video)
    name = path.relative_to(videos.folder).as_posix() if path else item.video
    key = tuple(item.extra.get("shuffle_key", ()))
    return ClipRef(name, path, item.start, item.end, float(item.extra.get("fps", 1.0)), key)


def _others(sources: list[ClipRef]) -> dict[ClipRef, ClipRef]:
    """For each source the next one that is another file, wrapping around."""
    found = {}
    for i, source in enumerate(sources):
        later = (other for other in (*sources[i + 1 :], *sources[:i]) if other.path != source.path)
        other = next(later, None)
        if other is None:
            raise ValueError("the condition 'wrong_video' needs at least two videos")
        found[source] = other
    return found


def show(source: ClipRef, condition: str, num_frames: int, sampling: Any, seed: int) -> Shown:
    """Read the frames of a source and put them into the order of the condition.

    Raises:
        VideoReadError: the file cannot be read.
        ValueError: the part lies outside the video, or has too few frames to be shuffled.
    """
    assert source.path is not None
    video = read_video(
        source.path,
        num_frames=num_frames,
        sampling=sampling,
        start=source.start,
        end=source.end,
        image_fps=source.image_fps,
    )
    order = np.arange(len(video))
    if condition == "one_frame":
        order = one_frame_order(len(video))
    elif condition == "shuffled":
        key = source.shuffle_key or (zlib.crc32(f"{source.name} {source.start} {source.end}".encode()),)
        order = shuffled_order(len(video), np.random.default_rng([seed, *key]))
    elif condition == "reversed":
        order = order[::-1].copy()
    part = replace(video, duration=video.end - video.start)  # a part is a clip of its own length
    return Shown(
        part if (order == np.arange(len(video))).all() else rearrange(part, order),
        tuple(int(i) for i in video.indices[order]),
        tuple(round(float(t), 4) for t in video.timestamps[order]),
        f"{video.decoder} {video.decoder_version}",
    )


def rearrange(video: Video | Clip, order: np.ndarray) -> Clip:
    """Other frames of a clip in the same places: timestamps and duration are unchanged."""
    return Clip(video.frames[order], tuple(float(t) for t in video.timestamps), video.duration)


def told_length(processor: Any, clip: Video | Clip) -> str:
    """What the prompt says about a clip in addition to its tokens: "12.5 seconds: ", frame times, or nothing."""
    inputs = processor.video_processor(videos=[clip], return_tensors="pt", return_metadata=True)
    return str(processor.placeholder_text(inputs, 0)).replace(processor.video_token, "")
