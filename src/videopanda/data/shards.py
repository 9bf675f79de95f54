"""WebDataset shards: tar files with annotations and clips together, for clusters that handle small files badly.

    write_shards(dataset, Path("shards"))       # shards/000000.tar, shards/000000.jsonl, ..., shards/shards.json
    ShardDataset("shards", num_frames=8, seed=0)[0]

A sample is one clip (or none, or several) with all conversations about it:

    000017.json          {"ids": [...], "source": ..., "system": ..., "conversations": [...], "media": [...]}
    000017.0.mp4         the first clip, byte for byte; frames of a folder are 000017.0.<name of the frame>

These are plain tar files in WebDataset's convention, which its library reads, too. The .jsonl next to a shard says
where each sample is in it, so any sample can be read with a single read.
"""

import copy
import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from videopanda.data import shuffling
from videopanda.data.conversations import VISUAL_TOKENS, ConversationDataset, length_of, media_keys, read_clip
from videopanda.data.formats.record import Medium
from videopanda.data.manifest import file_sha256
from videopanda.data.sample import Sample, Turn
from videopanda.video.disk_cache import FrameCache
from videopanda.video.read import Sampling, Video, VideoReadError

_TABLE = "shards.json"


def write_shards(dataset: ConversationDataset, out: Path, samples_per_shard: int = 1000) -> dict[str, Any]:
    """Write the samples of a data set, in its order. An interrupted call resumes after its last shard. Returns the
    content of `shards.json`.

    Raises:
        ValueError: the folder contains shards of other samples.
        OSError: a clip is missing (run `videopanda data check` and pass its manifest to the data set).
    """
    out.mkdir(parents=True, exist_ok=True)
    count = -(-len(dataset) // samples_per_shard)
    sizes = {"samples": len(dataset), "samples_per_shard": samples_per_shard, "shards": count}
    plan = {**sizes, "order": dataset.fingerprint}
    table = out / _TABLE
    if table.exists():
        if json.loads(table.read_text(encoding="utf-8")) != plan:
            raise ValueError(f"{out} contains shards of other samples: choose another folder")
    else:
        _replace(table, json.dumps(plan) + "\n")
    for shard in range(count):
        if not (out / f"{shard:06d}.jsonl").exists():
            chosen = range(shard * samples_per_shard, min(len(dataset), (shard + 1) * samples_per_shard))
            _write_shard(dataset, chosen, out / f"{shard:06d}.tar")
    return plan


def _write_shard(dataset: ConversationDataset, chosen: range, path: Path) -> None:
    part = path.with_suffix(".part")
    lines = []
    with tarfile.open(part, "w") as tar:
        for index in chosen:
            rows = dataset.records(index)
            start = tar.offset
            _, source, first = rows[0]
            content = {
                "ids": [name for name, _, _ in rows],
                "source": first.source,
                "system": first.system,
                "conversations": [record.turns for _, _, record in rows],
                "media": [asdict(medium) for medium in first.media],
            }
            _add(tar, f"{index:09d}.json", json.dumps(content, ensure_ascii=False).encode())
            for k, medium in enumerate(first.media):
                place = source.locate(medium)
                if place.is_dir():
                    for frame in sorted(file for file in place.iterdir() if file.is_file()):
                        _add(tar, f"{index:09d}.{k}.{frame.name}", frame.read_bytes())
                else:
                    _add(tar, f"{index:09d}.{k}{place.suffix}", place.read_bytes())
            lengths = [length_of(record) for _, _, record in rows]
            images = sum(medium.kind == "image" for medium in first.media)
            line = {"ids": content["ids"], "source": first.source, "lengths": lengths, "media": media_keys(first)}
            lines.append(json.dumps({**line, "images": images, "start": start, "stop": tar.offset}))
    os.replace(part, path)
    _replace(path.with_suffix(".jsonl"), "\n".join(lines) + "\n")  # only now is the shard complete


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # of fixed time and owner: equal samples make equal files
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


class ShardDataset:
    """Samples of a folder of shards: shard after shard, shuffled among and within them by (seed, epoch).

    Args:
        folder: what `write_shards` wrote, complete.
        num_frames, seed, share, sampling, cache: as of `ConversationDataset`.
        group_by_clip: return all conversations about a clip together; otherwise each is a separate sample.
        held_out: as of `ConversationDataset`. Shards that do not list their clips hold none out.

    Raises:
        ValueError: no such folder, or a missing shard.
        VideoReadError: on access, when a clip cannot be read.
    """

    def __init__(
        self,
        folder: str | Path,
        num_frames: int = 8,
        seed: int = 0,
        *,
        share: float = 1.0,
        group_by_clip: bool = False,
        held_out: int = 0,
        sampling: Sampling = "uniform",
        cache: FrameCache | None = None,
    ):
        self.folder, self.num_frames, self.seed, self.sampling = Path(folder), num_frames, seed, sampling
        self.cache = cache
        units = list(_units(self.folder, group_by_clip))
        keys, _ = shuffling.disambiguate_keys(np.array([unit[0] for unit in units], np.uint64))
        # Each row: shard, start, stop, number of the conversation or -1, tokens of the text, videos, images.
        places = np.array([unit[1:8] for unit in units], np.int64).reshape(-1, 7)
        media = np.array([key for unit in units for key in unit[8]], np.uint64)
        self.visual_tokens = dict(VISUAL_TOKENS)
        trained, held = shuffling.hold_out(media, np.array([len(unit[8]) for unit in units], np.int64), held_out)
        self._held = keys[held], places[held]
        kept = np.flatnonzero(trained)
        kept = kept[shuffling.subset(keys[kept], seed, share)]
        self._take(keys[kept], places[kept])

    def _take(self, keys: np.ndarray, places: np.ndarray) -> None:
        self._keys, self._places = keys, places
        self.set_epoch(0)

    def validation(self) -> "ShardDataset | None":
        """As of `ConversationDataset`."""
        if not len(self._held[0]):
            return None
        other = copy.copy(self)
        other._take(*self._held)
        return other

    def set_epoch(self, epoch: int) -> None:
        """Switch to the order of another epoch."""
        within = shuffling.hash_keys(self._keys, self.seed, epoch)
        shards = shuffling.hash_keys(self._places[:, 0].astype(np.uint64), self.seed, epoch)
        self._order = np.lexsort((within, shards))

    def content(self) -> str:
        """A hash of all indices and of the number of samples used."""
        files = [file_sha256(path) for path in sorted(self.folder.glob("*.jsonl"))]
        return hashlib.sha256(f"{len(self)} {files}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._order)

    def lengths(self) -> np.ndarray:
        """As of `ConversationDataset`."""
        text, videos, images = self._places[self._order, 4:].T
        return text + videos * self.visual_tokens["video"] + images * self.visual_tokens["image"]

    def files(self, index: int) -> list[str]:
        """The shard of a sample, and where it begins in it."""
        shard, start, *_ = map(int, self._places[self._order[index]])
        return [f"{self.folder / f'{shard:06d}.tar'} at byte {start}"]

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard, start, stop, k, *_ = map(int, self._places[self._order[index]])
        path = self.folder / f"{shard:06d}.tar"
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(stop - start)
        members = {}
        try:
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                for info in tar:
                    member = tar.extractfile(info) if info.isfile() else None
                    if member is None:
                        raise VideoReadError(str(path), f"its entry {info.name!r} is not a plain file")
                    members[info.name.partition(".")[2]] = member.read()
            content = json.loads(members.pop("json"))
        except (tarfile.TarError, KeyError, ValueError) as error:
            raise VideoReadError(str(path), f"the sample at byte {start} is damaged: {error}") from error
        media = [Medium(**values) for values in content["media"]]
        name = f"{path}: {content['ids'][0]}"
        videos, images = (
            tuple(self._clip(name, n, medium, members) for n, medium in enumerate(media) if medium.kind == kind)
            for kind in ("video", "image")
        )
        said = [tuple(Turn(*turn) for turn in turns) for turns in content["conversations"]]
        chosen = said if k < 0 else [said[k]]
        return Sample(content["ids"][max(k, 0)], videos, tuple(chosen), content["system"], images)

    def _clip(self, name: str, number: int, medium: Medium, members: dict[str, bytes]) -> Video:
        files = {key.partition(".")[2]: data for key, data in members.items() if key.partition(".")[0] == str(number)}
        try:
            if len(files) == 1:
                return read_clip(next(iter(files.values())), medium, self.num_frames, self.sampling, self.cache)
            with tempfile.TemporaryDirectory() as folder:
                for frame, data in files.items():
                    if frame in ("", ".", "..") or set(frame) & set("/\\\0"):
                        raise VideoReadError(name, f"a frame is named {frame!r}, which is a path and not a name")
                    (Path(folder) / frame).write_bytes(data)
                return read_clip(folder, medium, self.num_frames, self.sampling, self.cache)
        except VideoReadError as error:
            raise VideoReadError(name, error.reason) from error


def _units(folder: Path, group_by_clip: bool) -> Iterator[tuple[int, int, int, int, int, int, int, int, list[int]]]:
    """(key, shard, start, stop, conversation or -1 for all, tokens of the text, videos, images, keys of its files) of
    every possible sample.
    """
    table = folder / _TABLE
    if not table.is_file():
        raise ValueError(f"{folder} has no {_TABLE}: write shards with `videopanda data shard`")
    for shard in range(json.loads(table.read_text(encoding="utf-8"))["shards"]):
        index = folder / f"{shard:06d}.jsonl"
        if not index.is_file() or not index.with_suffix(".tar").is_file():
            raise ValueError(f"{folder} is not complete, shard {shard} is missing: run `videopanda data shard` again")
        with index.open(encoding="utf-8") as lines:
            for line in lines:
                values = json.loads(line)
                names, lengths, images = values["ids"], values["lengths"], values.get("images", 0)
                files = values.get("media", [])
                if group_by_clip:
                    names, lengths = names[:1], [sum(lengths)]
                for k, (name, length) in enumerate(zip(names, lengths)):
                    key = shuffling.key_of(values["source"], name)
                    conversation = -1 if group_by_clip else k
                    place = shard, values["start"], values["stop"], conversation
                    yield key, *place, length, len(files) - images, images, files
