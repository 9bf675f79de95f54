"""Conversations about video files, from any format of `formats/`, in a fixed order.

    dataset = ConversationDataset("annotations.json", num_frames=8, seed=0)
    dataset[0].conversations        # ((("<video>\nWhat colour is the circle?", "red"), ...),)

Opening reads and checks every row, and keeps ten numbers about each; a row is read again, and its clip decoded, on
access. So files of any size work, and access from many processes is safe.
"""

import copy
import hashlib
import logging
from array import array
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from videopanda.data import manifest as manifests
from videopanda.data import shuffling
from videopanda.data.formats.opening import open_sources
from videopanda.data.formats.record import Medium, Record, RowError
from videopanda.data.formats.sources import Source
from videopanda.data.sample import Sample
from videopanda.video.disk_cache import FrameCache
from videopanda.video.read import Sampling, Video, VideoSource, read_video

logger = logging.getLogger(__name__)

# Visual tokens of a medium if its size is unknown: eight frames of 16:9 in the released model, and one.
VISUAL_TOKENS = {"video": 1232, "image": 154}


class ConversationDataset:
    """Rows of one or more files of annotations as `Sample`s. Their order depends on (id, seed, epoch) only.

    Args:
        path: what `open_sources` takes; `format` and `media_root` as there.
        num_frames, sampling: frames read from every clip, or from the row's part of it, as in `read_video`.
        share: part of the samples that is used, chosen by (id, seed).
        group_by_clip: make one sample of all conversations about the same part of the same clip.
        manifest: what `videopanda data check` wrote. Bad rows that it lists are skipped. Without it, a bad row is an
            error: no row is skipped unless it is listed.
        max_bad_share: the largest share of all rows that may be skipped.
        held_out: number of clips (files, at most a tenth of all) whose rows are kept for `validation()` instead of
            training.
        cache: keeps decoded frames; None decodes a clip whenever it is read.

    `visual_tokens` says how long a video and an image are, for `lengths`; set it to what the model's processor counts.

    Raises:
        ValueError: bad rows that no manifest lists, or too many of them; no rows.
        VideoReadError: on access, when a clip cannot be read. It is never replaced by another.
    """

    def __init__(
        self,
        path: str | Path,
        media_root: str | Path | None = None,
        num_frames: int = 8,
        seed: int = 0,
        *,
        format: str = "auto",
        share: float = 1.0,
        group_by_clip: bool = False,
        manifest: str | Path | None = None,
        max_bad_share: float = 0.01,
        held_out: int = 0,
        sampling: Sampling = "uniform",
        cache: FrameCache | None = None,
    ):
        self.num_frames, self.seed, self.sampling, self.cache = num_frames, seed, sampling, cache
        self.sources = open_sources(path, format, media_root)
        listed = manifests.bad_rows(manifest, self.sources) if manifest else None
        rows = _Rows(self.sources, listed)
        rows.report(str(path), max_bad_share)
        ids, before = shuffling.disambiguate_keys(np.frombuffer(rows.ids, np.uint64))
        self._places = np.array([rows.source, rows.number, rows.start, rows.stop, before], np.int64).T  # (R, 5)
        self._lengths = np.frombuffer(rows.lengths, np.int64)  # of the text
        self._media = np.array([rows.videos, rows.images], np.int64)  # (2, R)
        self.visual_tokens = dict(VISUAL_TOKENS)
        keys = np.frombuffer(rows.clips, np.uint64) if group_by_clip else ids
        files, counts = np.frombuffer(rows.media, np.uint64), np.frombuffer(rows.media_counts, np.int64)
        del rows  # gigabytes, of millions of rows
        trained, held = shuffling.hold_out(files, counts, held_out)
        self._held = keys, np.flatnonzero(held)
        kept = np.flatnonzero(trained)
        self._take(keys, kept[shuffling.subset(keys[kept], seed, share)])

    def _take(self, keys: np.ndarray, kept: np.ndarray) -> None:
        by_key = kept[np.argsort(keys[kept], kind="stable")]
        self._keys, first = np.unique(keys[by_key], return_index=True)  # (N,) one key per sample
        self._rows, self._bounds = by_key, np.append(first, len(by_key))  # rows of sample i: bounds[i] to bounds[i + 1]
        self.set_epoch(0)

    def validation(self) -> "ConversationDataset | None":
        """The samples about held-out clips, in their own order; None if there are none."""
        keys, rows = self._held
        if not len(rows):
            return None
        other = copy.copy(self)
        other._take(keys, rows)
        return other

    def set_epoch(self, epoch: int) -> None:
        """Switch to the order of another epoch."""
        self._order = shuffling.shuffled(self._keys, self.seed, epoch)

    @property
    def fingerprint(self) -> str:
        """A hash of the samples and their order."""
        return hashlib.sha256(self._keys[self._order].tobytes()).hexdigest()

    def content(self) -> str:
        """A hash of all annotations and of the number of samples used. The content of the clips is not included."""
        files = [manifests.file_sha256(source.path) for source in self.sources]
        return hashlib.sha256(f"{len(self)} {files}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._keys)

    def lengths(self) -> np.ndarray:
        """Approximate number of tokens of each sample, (N,), in the order of the epoch; its clips count once."""
        if not len(self):
            return np.empty(0, np.int64)
        text = np.add.reduceat(self._lengths[self._rows], self._bounds[:-1])
        videos, images = self._media[:, self._rows[self._bounds[:-1]]]
        totals = text + videos * self.visual_tokens["video"] + images * self.visual_tokens["image"]
        return totals[self._order]

    def files(self, index: int) -> list[str]:
        """The clips of a sample."""
        _, source, record = self.records(index)[0]
        return [str(source.locate(medium)) for medium in record.media]

    def records(self, index: int) -> list[tuple[str, Source, Record]]:
        """The rows of a sample: an id that is unique in the file, the source, and the record."""
        place = self._order[index]
        found = []
        for row in sorted(self._rows[self._bounds[place] : self._bounds[place + 1]]):
            source, number, start, stop, before = map(int, self._places[row])
            record = self.sources[source].record(number, start, stop)
            # The same id may stand in many rows, for one that names a clip.
            name = f"{record.id}#{before + 1}" if before else record.id
            found.append((name, self.sources[source], record))
        return found

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        rows = self.records(index)
        name, source, record = rows[0]
        videos, images = (
            tuple(
                read_clip(source.locate(medium), medium, self.num_frames, self.sampling, self.cache)
                for medium in record.media
                if medium.kind == kind
            )
            for kind in ("video", "image")
        )
        return Sample(name, videos, tuple(record.turns for _, _, record in rows), record.system, images)


def read_clip(
    file: VideoSource, medium: Medium, num_frames: int, sampling: Sampling, cache: FrameCache | None = None
) -> Video:
    """Frames of a clip, or of the row's part of it, with the duration of that part: as for an answer.

    An image is one frame.

    Raises:
        VideoReadError: it cannot be read.
        ValueError: the clip ends before the part begins.
    """
    if medium.kind == "image":
        return read_video(file, num_frames=1)
    part = (cache.read_video if cache else read_video)(
        file, num_frames=num_frames, sampling=sampling, start=medium.start, end=medium.end, image_fps=medium.fps
    )
    return replace(part, duration=part.end - part.start)


def clip_key(record: Record, source: Source) -> int:
    """A 64-bit key of the clips, and parts of clips, that a record is about; without clips, of the record itself."""
    if not record.media:
        return shuffling.key_of(str(source.root), record.source, record.id, str(record.turns))
    return shuffling.key_of(str(source.root), record.system, *map(str, record.media))


def media_keys(record: Record) -> list[int]:
    """A 64-bit key for each file that a record is about, regardless of the part, or of its recording."""
    return [shuffling.key_of(record.recording or medium.path) for medium in record.media]


def length_of(record: Record) -> int:
    """Approximate number of tokens of the text of a record, with about ten of a chat template for every turn."""
    return sum(len(text.split()) for turn in record.turns for text in turn[:2]) * 4 // 3 + 10 * len(record.turns)


class _Rows:
    """Numbers about every row that can be trained on, and what is wrong with the others."""

    def __init__(self, sources: list[Source], listed: list[dict[int, RowError]] | None):
        self.is_listed = listed is not None
        self.source, self.number, self.start, self.stop = array("q"), array("q"), array("q"), array("q")
        self.ids, self.clips, self.lengths = array("Q"), array("Q"), array("q")
        self.media, self.media_counts = array("Q"), array("q")  # keys of the files of all rows, and how many a row has
        self.videos, self.images = array("q"), array("q")  # how many of either kind
        self.total = 0
        self.bad: Counter[str] = Counter()
        self.first: list[str] = []
        for place, source in enumerate(sources):
            skipped = listed[place] if listed is not None else {}
            for row, record in source.records():
                self.total += 1
                error = record if isinstance(record, RowError) else skipped.get(row.number)
                if error is not None:
                    self.bad[error.kind] += 1
                    if len(self.first) < 3:
                        self.first.append(f"{source.name} row {row.number}: {error}")
                    continue
                assert isinstance(record, Record)
                self.media.extend(media_keys(record))
                images = sum(medium.kind == "image" for medium in record.media)
                for column, value in (
                    (self.source, place),
                    (self.number, row.number),
                    (self.start, row.start),
                    (self.stop, row.stop),
                    (self.ids, shuffling.key_of(record.source, record.id)),
                    (self.clips, clip_key(record, source)),
                    (self.lengths, length_of(record)),
                    (self.media_counts, len(record.media)),
                    (self.videos, len(record.media) - images),
                    (self.images, images),
                ):
                    column.append(value)

    def report(self, path: str, max_bad_share: float) -> None:
        """Log the rows that are skipped; refuse if they may not be."""
        bad = sum(self.bad.values())
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(self.bad.items()))
        if not self.total:
            raise ValueError(f"{path} contains no rows")
        if bad and not self.is_listed:
            raise ValueError(
                f"{path}: {bad} of {self.total} rows cannot be used ({counts}; {self.first[0]}): run `videopanda data "
                "check` and pass its manifest with --set manifest=FILE to skip them"
            )
        if bad == self.total or bad > max_bad_share * self.total:
            raise ValueError(
                f"{path}: {bad} of {self.total} rows cannot be used ({counts}), more than max_bad_share = "
                f"{max_bad_share:g} allows; the first: {self.first[0]}"
            )
        if bad:
            logger.info("%s: %d of %d rows are skipped (%s)", path, bad, self.total, counts)
            for line in self.first:
                logger.info("  %s", line)
