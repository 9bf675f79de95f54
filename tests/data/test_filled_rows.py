"""Protects rows that hold several samples: every sample once, no row too long, as much for every rank, and a stream
that resumes at the exact row."""

import json

import numpy as np
import pytest

from videopanda.data.collate import Packed, filled
from videopanda.data.conversations import ConversationDataset
from videopanda.data.loader import BatchStream, Loader, make_loader
from videopanda.data.rows import filled_rows
from videopanda.data.shards import ShardDataset, write_shards

ROOM = 1024
LENGTHS = np.clip(np.random.default_rng(0).lognormal(5, 1, 2000), 4, 1500).astype(int)  # captions, chats, long clips


def test_every_sample_is_in_one_row_and_no_row_is_too_long():
    rows = filled_rows(LENGTHS, ROOM)
    held = [rows[i] for i in range(len(rows))]
    assert sorted(sample for row in held for sample in row) == list(range(len(LENGTHS)))
    tokens = [np.minimum(LENGTHS[row], ROOM).sum() for row in held]
    assert max(tokens) <= ROOM
    fewest = np.minimum(LENGTHS, ROOM).sum() / ROOM
    assert len(rows) <= 1.01 * fewest + 1  # measured: 1.001
    assert [filled_rows(np.array(lengths), 10)[0] for lengths in ([3], [10, 4], [99])] == [[0], [0], [0]]
    assert len(filled_rows(np.empty(0, int), 10)) == 0


def test_their_number_does_not_depend_on_the_order():
    counts = {len(filled_rows(np.random.default_rng(i).permutation(LENGTHS), ROOM)) for i in range(5)}
    assert len(counts) == 1


class Lengths:
    """Samples that are known by their number, in another order every epoch."""

    def set_epoch(self, epoch: int) -> None:
        self.order = np.random.default_rng(epoch).permutation(len(LENGTHS))

    def __len__(self) -> int:
        return len(LENGTHS)

    def __getitem__(self, index: int) -> int:
        return int(self.order[index])

    def lengths(self) -> np.ndarray:
        return LENGTHS[self.order]


def loader(rank: int = 0, world_size: int = 1, workers: int = 0) -> Loader:
    return make_loader(BatchStream(Lengths(), 2, rank, world_size, row_tokens=ROOM), tuple, workers)


@pytest.mark.parametrize("world_size", [1, 4])
def test_ranks_get_other_samples_and_as_many_tokens(world_size):
    ranks = [list(loader(rank, world_size)) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    numbers = [number for step in zip(*ranks) for number, _ in step]
    assert numbers == list(range(len(numbers)))
    samples = [sample for batches in ranks for _, batch in batches for sample in batch]
    assert len(set(samples)) == len(samples)
    dropped = len(LENGTHS) - len(samples)
    assert dropped <= 0.05 * len(LENGTHS)  # rows that not every rank would get
    tokens = np.array([[np.minimum(LENGTHS[batch], ROOM).sum() for _, batch in batches] for batches in ranks])
    assert tokens.max() <= 2 * ROOM
    assert np.median(tokens) >= 0.99 * 2 * ROOM
    assert tokens.sum(1).min() >= 0.98 * tokens.sum(1).max()  # measured with four ranks: 0.996


@pytest.mark.parametrize("row_tokens", [0, ROOM])
def test_sixty_four_ranks_see_each_sample_once_and_resume(row_tokens):
    """Rows of one sample, and of several; what `benchmarks/rows_6m.py` does with six million."""

    def stream(rank: int) -> BatchStream:
        return BatchStream(Lengths(), 2, rank, 64, row_tokens=row_tokens)

    ranks = [list(stream(rank)) for rank in range(64)]
    steps = len(ranks[0])
    assert {len(batches) for batches in ranks} == {steps}
    assert steps >= 2
    numbers = [batch.number for step in zip(*ranks) for batch in step]
    assert numbers == list(range(64 * steps))
    samples = [sample for batches in ranks for batch in batches for sample in batch.samples]
    assert len(samples) == len(set(samples))
    left_out = len(LENGTHS) - len(samples)
    assert left_out < (2 * 64 if not row_tokens else 2 * 64 * ROOM // LENGTHS.min())
    for rank in (0, 37, 63):
        stopped, resumed = stream(rank), stream(rank)
        begun = iter(stopped)
        assert next(begun) == ranks[rank][0]
        resumed.load_state_dict(stopped.state_dict())
        assert list(resumed) == ranks[rank][1:]


def test_epochs_have_other_rows_and_as_many_steps():
    batches = loader()
    first = list(batches)
    batches.set_epoch(1)
    second = list(batches)
    assert len(second) == len(first)
    assert not {tuple(samples) for _, samples in first} & {tuple(samples) for _, samples in second}
    assert {number for number, _ in second} == {number + len(first) for number, _ in first}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_position_is_exact(workers):
    whole, first = list(loader()), loader(workers=workers)
    batches = iter(first)
    assert [next(batches) for _ in range(7)] == whole[:7]
    again = loader(workers=workers)
    again.load_state_dict(first.state_dict())
    assert list(again) == whole[7:]


def test_a_batch_fills_its_rows_in_order():
    packed = [Packed([i] * n, [0] * n, [0] * n, [1] * n) for i, n in enumerate((5, 3, 4, 9, 1))]
    assert [[one.ids[0] for one in row] for row in filled(packed, 8)] == [[0, 1], [2], [3], [4]]
    assert [len(row) for row in filled(packed, 0)] == [1] * 5


# -- lengths -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("grouped", "expected"), [(False, [50, 151, 1051, 1091]), (True, [50, 151, 1142])])
def test_a_clip_counts_once_in_the_length_of_its_conversations(tmp_path, grouped, expected):
    rows = []
    for name, words, media in (("a", 29, "video"), ("b", 59, "video"), ("c", 29, "image"), ("d", 29, "")):
        marker = f"<{media}>\n" if media else ""
        turns = [{"from": "human", "value": f"{marker}{'why ' * words}"}, {"from": "gpt", "value": "so"}]
        rows.append({"id": name, **({media: f"1.{media}"} if media else {}), "conversations": turns})
        (tmp_path / f"1.{media}").write_bytes(b"not decoded here")
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    write_shards(ConversationDataset(tmp_path / "rows.json", group_by_clip=True), tmp_path / "shards", 10)
    for dataset in (
        ConversationDataset(tmp_path / "rows.json", group_by_clip=grouped),
        ShardDataset(tmp_path / "shards", group_by_clip=grouped),
    ):
        dataset.visual_tokens = {"video": 1000, "image": 100}
        assert sorted(dataset.lengths().tolist()) == expected  # ten for a turn, four for every three words
