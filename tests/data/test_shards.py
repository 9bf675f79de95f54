"""Protects shards and streams: the same samples as from files, one order for all ranks and workers, exact positions."""

import gc
import json
import tarfile
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from media import paint_number, read_numbers, write_video
from videopanda.cli.app import app
from videopanda.data.conversations import ConversationDataset
from videopanda.data.loader import BatchStream, Loader, batch_order, make_loader, note_of
from videopanda.data.shards import ShardDataset, write_shards
from videopanda.video.read import VideoReadError


def row(name: str, clip: str | None, **more) -> dict:
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": f"Füße of {name}."}]
    return {"id": name, "conversations": turns, **more, **({} if clip is None else {"video": clip})}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Seven rows: two about one clip, one about a part of it, two clips, a folder of frames, no clip."""
    folder = tmp_path_factory.mktemp("files")
    for name, first in (("a", 0), ("b", 100), ("c", 200)):
        write_video(folder / f"{name}.mp4", range(first, first + 20), fps=10)
    (folder / "frames").mkdir()
    for i in range(6):
        Image.fromarray(paint_number(300 + i)).save(folder / "frames" / f"{i:03d}.png")
    rows = [row("a0", "a.mp4"), row("a1", "a.mp4"), row("a2", "a.mp4", start=1.0, end=1.8), row("b0", "b.mp4")]
    rows += [row("c0", "c.mp4"), row("f0", "frames"), row("talk", None)]
    for line in rows:
        if "video" in line:
            line["conversations"][0]["value"] = "<video>\nWhat?"
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder / "rows.json"


def dataset(files: Path, **settings) -> ConversationDataset:
    return ConversationDataset(files, num_frames=4, format="llava", **settings)


@pytest.fixture(scope="module")
def shards(files, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    written = write_shards(dataset(files, group_by_clip=True), folder, samples_per_shard=2)
    assert {key: written[key] for key in ("samples", "samples_per_shard", "shards")} == {
        "samples": 6,
        "samples_per_shard": 2,
        "shards": 3,
    }
    return folder


def contents(samples) -> dict[str, tuple]:
    return {
        sample.id: (sample.conversations, [read_numbers(video.frames) for video in sample.videos])
        for sample in (samples[i] for i in range(len(samples)))
    }


@pytest.mark.parametrize("grouped", [True, False])
def test_shards_hold_the_samples_of_the_files(files, shards, grouped):
    from_files = contents(dataset(files, group_by_clip=grouped))
    assert contents(ShardDataset(shards, num_frames=4, group_by_clip=grouped)) == from_files
    assert len(from_files) == (6 if grouped else 7)
    assert from_files["a2"][1] == [[11, 13, 15, 17]]
    assert from_files["f0"][1] == [[300, 302, 303, 305]]


def test_shards_are_plain_tar_files(files, shards):
    names = []
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            names += tar.getnames()
    assert len([name for name in names if name.endswith(".json")]) == 6
    assert sorted(name.partition(".")[2] for name in names if name.endswith(".png"))[0] == "0.000.png"


def test_the_library_webdataset_reads_them(files, shards):
    webdataset = pytest.importorskip("webdataset")
    urls = [str(path) for path in sorted(shards.glob("*.tar"))]
    found = {}
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        content = json.loads(sample["json"])
        found[content["ids"][0]] = sample.get("0.mp4")
    assert found["b0"] == (files.parent / "b.mp4").read_bytes()
    assert set(found) == {"a0", "a2", "b0", "c0", "f0", "talk"}


def test_writing_that_was_interrupted_goes_on(files, shards, tmp_path):
    samples = dataset(files, group_by_clip=True)
    write_shards(samples, tmp_path, samples_per_shard=2)
    (tmp_path / "000001.jsonl").unlink()  # as if the writer had been killed inside the second shard
    (tmp_path / "000001.tar").write_bytes(b"half")
    with pytest.raises(ValueError, match="not complete, shard 1 is missing"):
        ShardDataset(tmp_path)
    first = (tmp_path / "000000.tar").stat().st_mtime_ns
    write_shards(samples, tmp_path, samples_per_shard=2)
    assert (tmp_path / "000000.tar").stat().st_mtime_ns == first
    for name in ("000000.tar", "000001.tar", "000002.tar", "000001.jsonl"):
        assert (tmp_path / name).read_bytes() == (shards / name).read_bytes()


def test_a_folder_with_other_samples_is_refused(files, shards):
    with pytest.raises(ValueError, match="contains shards of other samples"):
        write_shards(dataset(files), shards, samples_per_shard=2)


def test_what_holds_no_shards_is_refused(tmp_path):
    with pytest.raises(ValueError, match="write shards with `videopanda data shard`"):
        ShardDataset(tmp_path)


def test_a_clip_that_cannot_be_read_is_named(files, tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "x.mp4").write_bytes(b"hello")
    lines = [row("x", "x.mp4")]
    lines[0]["conversations"][0]["value"] = "<video>\nWhat?"
    (bad / "rows.json").write_text(json.dumps(lines))
    write_shards(ConversationDataset(bad / "rows.json"), tmp_path / "shards")
    with pytest.raises(VideoReadError, match="x"):
        ShardDataset(tmp_path / "shards")[0]


def test_an_epoch_keeps_the_samples_of_a_shard_together(shards):
    samples = ShardDataset(shards, seed=1)
    orders = []
    for epoch in range(4):
        samples.set_epoch(epoch)
        shard_of = [int(samples._places[i][0]) for i in samples._order]
        assert sum(one != other for one, other in pairwise(shard_of)) == 2
        orders.append(samples._order.tolist())
    assert len({tuple(order) for order in orders}) > 1


def test_the_command_writes_what_training_reads(files, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        app(["data", "shard", str(files), str(tmp_path), "--format", "llava", "--shard-size", "4"])
    assert caught.value.code == 0
    assert "6 clips with their conversations in 2 shards" in capsys.readouterr().out
    assert len(ShardDataset(tmp_path)) == 7


# -- streams -----------------------------------------------------------------------------------------------------------
class Numbers:
    """Sample i of an epoch is the number that a shuffle of that epoch puts there."""

    def __init__(self, size: int):
        self.size = size
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.order = np.random.default_rng(epoch).permutation(self.size)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        return int(self.order[index])

    def lengths(self) -> np.ndarray:
        return self.order

    def files(self, index: int) -> list[str]:
        return [f"file {self.order[index]}"]


def loader(workers: int, rank: int = 0, world_size: int = 1, **fields) -> Loader:
    return make_loader(BatchStream(Numbers(23), 2, rank, world_size, **fields), tuple, workers)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_the_samples_of_an_epoch(world_size):
    given = [list(loader(0, rank, world_size)) for rank in range(world_size)]
    assert {len(batches) for batches in given} == {23 // (2 * world_size)}
    in_turns = [batch for step in zip(*given) for batch in step]
    assert [number for number, _ in in_turns] == list(range(len(in_turns)))
    flat = [sample for _, samples in in_turns for sample in samples]
    assert flat == Numbers(23).order[: len(flat)].tolist()


def test_the_number_of_batches_is_a_multiple_of_the_accumulation():
    assert len(loader(0, accumulation=4)) == 8


def test_batches_of_another_epoch_have_other_numbers():
    batches = loader(0)
    first = {number for number, _ in batches}
    batches.set_epoch(1)
    assert {number for number, _ in batches} == {number + 11 for number in first}


def test_batches_of_similar_length_give_every_rank_as_much():
    lengths = np.random.default_rng(0).lognormal(5, 1, 512)
    plan = batch_order(512, 4, 2, lengths=lengths)
    assert plan.shape == (64, 2, 4)
    assert sorted(plan.flatten()) == list(range(512))
    assert np.array_equal(plan, batch_order(512, 4, 2, lengths=lengths))
    waste = {}
    for name, steps in {"grouped": plan, "in order": batch_order(512, 4, 2)}.items():
        tokens = lengths[steps].sum(2)  # (steps, ranks)
        padded = lengths[steps].max(2) * 4
        waste[name] = (1 - tokens.sum() / padded.sum(), np.abs(tokens[:, 0] / tokens[:, 1] - 1).mean())
    assert waste["grouped"][0] < 0.5 * waste["in order"][0]  # padding
    assert waste["grouped"][1] < 0.2 * waste["in order"][1]  # one rank waiting for the other


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_samples_are_dealt_to_ranks_in_snake_order(world_size):
    """With lengths 1, 2, 3, … and an even batch every rank of a step gets exactly as many tokens as the others."""
    lengths = np.arange(1, 1 + 2 * 4 * world_size * 16)
    tokens = lengths[batch_order(len(lengths), 4, world_size, lengths=lengths)].sum(2)
    assert tokens.shape == (32, world_size)
    assert (tokens == tokens[:, :1]).all()


def test_steps_with_long_samples_are_spread():
    lengths = np.arange(64)
    longest = batch_order(64, 2, 2, lengths=lengths).max((1, 2))
    assert sorted(longest, reverse=True) != longest.tolist()


def test_a_worker_notes_what_it_reads(tmp_path):
    class Watched(Numbers):
        def __getitem__(self, index):
            assert note_of(tmp_path, 1, 0).read_text() == f"file {self.order[index]}"
            return super().__getitem__(index)

    batches = make_loader(BatchStream(Watched(8), 2, 1, 2, reading=tmp_path), tuple)
    assert len(list(batches)) == 2
    assert note_of(tmp_path, 1, 0).read_text() == ""


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 6, 11])
def test_a_position_is_exact(workers, stop):
    whole = list(loader(0))
    first = loader(workers)
    batches = iter(first)
    assert [next(batches) for _ in range(stop)] == whole[:stop]
    again = loader(workers)
    again.load_state_dict(first.state_dict())
    assert list(again) == whole[stop:]
    assert list(again) == whole  # the next iteration begins at the beginning


@pytest.fixture
def nothing_collected():
    """No garbage is collected unless somebody asks for it."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.timeout(60)
def test_workers_inherit_no_decoder_to_free(nothing_collected, tmp_path):
    class Collecting(Numbers):
        def __getitem__(self, index):
            gc.collect()
            return super().__getitem__(index)

    write_video(tmp_path / "clip.mp4", range(40), fps=10)
    container = av.open(tmp_path / "clip.mp4")
    circle = [container, next(container.decode(video=0))]  # a decoder with running threads
    circle.append(circle)
    del container, circle
    assert len(list(make_loader(BatchStream(Collecting(8), 2, 0, 1), tuple, num_workers=2))) == 4


@pytest.mark.parametrize(("rank", "world_size", "size"), [(1, 1, 2), (-1, 2, 2), (0, 1, 0)])
def test_a_stream_needs_a_rank_and_a_batch(rank, world_size, size):
    with pytest.raises(ValueError, match="batch_size must be at least 1 and rank between 0"):
        BatchStream(Numbers(4), size, rank, world_size)
