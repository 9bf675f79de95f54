"""Protects conversations about files: what a sample holds, an order that every rank shares, and what is left out."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from media import read_numbers, write_video
from videopanda.data import shuffling
from videopanda.data.conversations import ConversationDataset
from videopanda.data.doctor import check
from videopanda.data.sample import Turn
from videopanda.data.shards import ShardDataset, write_shards
from videopanda.video.read import VideoReadError


def row(name: str | int, clip: str | None = "a.mp4", answer: str = "A cat.", **more) -> dict:
    marker = "" if clip is None else "<video>\n"
    media = {} if clip is None else {"video": clip}
    turns = [{"from": "human", "value": f"{marker}What?"}, {"from": "gpt", "value": answer}]
    return {"id": name, **media, "conversations": turns, **more}


def write(folder: Path, rows: list[dict]) -> Path:
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    return path


def ids(dataset: ConversationDataset) -> list[str]:
    return [dataset.records(i)[0][0] for i in range(len(dataset))]


# -- samples -----------------------------------------------------------------------------------------------------------
def test_a_sample_holds_its_clip_and_its_conversation(tmp_path):
    write_video(tmp_path / "a.mp4", range(20), fps=10)
    dataset = ConversationDataset(write(tmp_path, [row("x")]), num_frames=4)
    sample = dataset[0]
    assert (sample.id, sample.conversations) == ("x", ((Turn("<video>\nWhat?", "A cat."),),))
    (video,) = sample.videos
    assert read_numbers(video.frames) == [2, 7, 12, 17]  # the middle of each quarter
    with pytest.raises(IndexError):
        dataset[1]


def test_start_and_end_are_seconds_of_the_clip(tmp_path):
    write_video(tmp_path / "a.mp4", range(20), fps=10)
    dataset = ConversationDataset(write(tmp_path, [row("x", start=1.0, end=1.8)]), num_frames=4)
    assert read_numbers(dataset[0].videos[0].frames) == [11, 13, 15, 17]


def test_rows_about_the_same_clip_can_be_one_sample(tmp_path):
    rows = [row("x", "a.mp4"), row("y", "b.mp4"), row("z", "a.mp4", "A dog."), row("part", "a.mp4", start=1, end=2)]
    dataset = ConversationDataset(write(tmp_path, rows), group_by_clip=True)
    found = {tuple(name for name, _, _ in dataset.records(i)) for i in range(len(dataset))}
    assert found == {("x", "z"), ("y",), ("part",)}


def test_rows_without_a_clip_stay_apart_when_grouped(tmp_path):
    dataset = ConversationDataset(write(tmp_path, [row("x", None), row("y", None)]), group_by_clip=True)
    assert sorted(ids(dataset)) == ["x", "y"]
    assert dataset[0].videos == ()


def test_rows_that_share_an_id_keep_names_of_their_own(tmp_path):
    dataset = ConversationDataset(write(tmp_path, [row("v_1"), row("v_1"), row("v_1")]))
    assert sorted(ids(dataset)) == ["v_1", "v_1#2", "v_1#3"]


# -- order and subset --------------------------------------------------------------------------------------------------
NAMES = [f"n{i}" for i in range(200)]


def test_the_order_depends_on_id_and_seed_alone(tmp_path):
    """Not on the order of the file, nor on what else the file holds."""
    rows = [row(name) for name in NAMES]
    (tmp_path / "reversed").mkdir()
    (tmp_path / "fewer").mkdir()
    dataset = ConversationDataset(write(tmp_path, rows), seed=3)
    assert sorted(ids(dataset)) == sorted(NAMES)
    assert ids(dataset) != NAMES
    assert ids(ConversationDataset(write(tmp_path / "reversed", rows[::-1]), seed=3)) == ids(dataset)
    assert ids(ConversationDataset(tmp_path / "rows.json", seed=4)) != ids(dataset)
    fewer = ids(ConversationDataset(write(tmp_path / "fewer", rows[:100]), seed=3))
    assert fewer == [name for name in ids(dataset) if name in NAMES[:100]]


def test_an_epoch_has_an_order_of_its_own(tmp_path):
    dataset = ConversationDataset(write(tmp_path, [row(name) for name in NAMES]))
    first = ids(dataset)
    dataset.set_epoch(1)
    assert ids(dataset) != first
    assert sorted(ids(dataset)) == sorted(first)
    dataset.set_epoch(0)
    assert ids(dataset) == first


def test_a_share_is_the_beginning_of_the_first_epoch(tmp_path):
    """The first half after the shuffle, as the official stage 1 means it, but the same in every process."""
    path = write(tmp_path, [row(name) for name in NAMES])
    half, whole = ids(ConversationDataset(path, share=0.5)), ids(ConversationDataset(path))
    assert half == whole[: len(half)]
    assert len(half) == len(NAMES) / 2
    assert ids(ConversationDataset(path, share=1.0)) == whole


@pytest.mark.parametrize("count", [1, 2, 9, 100, 1001])
def test_a_half_is_exactly_half(count):
    """Of samples, however many rows each has; that of another seed is another half."""
    keys = np.array([shuffling.key_of(str(i)) for i in range(count)], np.uint64)
    halves = [shuffling.subset(np.repeat(keys, 3), seed, 0.5) for seed in (0, 1)]
    for half in halves:
        assert half.sum() == 3 * round(count / 2)
        assert np.array_equal(half, np.repeat(half[::3], 3))
    assert count < 9 or not np.array_equal(*halves)
    assert shuffling.subset(keys, 0, 1.0).all()


def test_the_order_of_a_known_data_set_never_changes():
    """Written down, because a run that goes on after an update must see what it would have seen."""
    keys = np.array([shuffling.key_of("rows", name) for name in "abcdefgh"], np.uint64)
    assert shuffling.shuffled(keys, 42).tolist() == ORDER[0]
    assert shuffling.shuffled(keys, 42, 1).tolist() == ORDER[1]


ORDER = ([6, 4, 1, 3, 2, 5, 0, 7], [4, 3, 6, 5, 0, 7, 2, 1])


# -- what is left out --------------------------------------------------------------------------------------------------
BAD = {"id": "bad", "video": "a.mp4", "conversations": []}


def test_a_bad_row_that_nobody_has_listed_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"1 of 3 rows cannot be used \(1 empty; rows\.json row 1: .*data check"):
        ConversationDataset(write(tmp_path, [row("x"), BAD, row("y")]))


def test_listed_rows_are_left_out_and_counted(tmp_path, caplog):
    write_video(tmp_path / "a.mp4", range(4))
    path = write(tmp_path, [row("x"), BAD, row("gone", "gone.mp4"), row("y")])
    check([path], tmp_path / "manifest.jsonl")
    with caplog.at_level(logging.INFO):
        dataset = ConversationDataset(path, manifest=tmp_path / "manifest.jsonl", max_bad_share=0.5)
    assert sorted(ids(dataset)) == ["x", "y"]
    assert "2 of 4 rows are skipped (1 empty, 1 missing_file)" in caplog.text


def test_too_many_bad_rows_are_an_error(tmp_path):
    write_video(tmp_path / "a.mp4", range(4))
    rows = [*(row(i) for i in range(98)), BAD, row("gone", "gone.mp4")]
    path = write(tmp_path, rows)
    check([path], tmp_path / "manifest.jsonl")
    with pytest.raises(ValueError, match=r"2 of 100 rows cannot be used .*more than max_bad_share = 0.01 allows"):
        ConversationDataset(path, manifest=tmp_path / "manifest.jsonl")
    path = write(tmp_path, [*rows[:-1], row("there")])
    check([path], tmp_path / "manifest.jsonl")
    assert len(ConversationDataset(path, manifest=tmp_path / "manifest.jsonl")) == 99


def test_an_image_is_one_frame(tmp_path):
    """In a file and in shards; a video beside it keeps its frames."""
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    write_video(tmp_path / "a.mp4", range(4))
    talk = row("x")["conversations"]
    path = write(tmp_path, [{"id": "image", "image": "red.png", "conversations": talk}, row("x", "a.mp4")])
    dataset = ConversationDataset(path, num_frames=4)
    write_shards(dataset, tmp_path / "shards")
    for data in (dataset, ShardDataset(tmp_path / "shards", num_frames=4)):
        image, video = sorted((data[i] for i in range(2)), key=lambda sample: sample.id)
        assert [(len(sample.videos), len(sample.images)) for sample in (image, video)] == [(0, 1), (1, 0)]
        assert image.images[0].frames.shape == (1, 30, 40, 3)
        assert (image.images[0].frames == [255, 0, 0]).all()
        assert len(video.videos[0].frames) == 4
        assert "<image>" in image.conversations[0][0][0]


def test_a_manifest_of_other_data_is_refused(tmp_path):
    write_video(tmp_path / "a.mp4", range(4))
    path = write(tmp_path, [row("x")])
    check([path], tmp_path / "manifest.jsonl")
    write(tmp_path, [row("x"), row("y")])
    with pytest.raises(ValueError, match=r"does not cover .*rows\.json as it is now: run `videopanda data check"):
        ConversationDataset(path, manifest=tmp_path / "manifest.jsonl")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "contains no rows|has no readable rows"),
        ([BAD], "1 of 1 rows cannot be used"),
    ],
)
def test_data_without_a_usable_row_is_refused(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        ConversationDataset(write(tmp_path, rows))


def test_a_clip_that_breaks_during_training_stops_it(tmp_path):
    path = write(tmp_path, [row("x", "gone.mp4")])
    with pytest.raises(VideoReadError, match=r"gone\.mp4"):
        ConversationDataset(path)[0]
