"""Protects decoded frames on disk: equal to what is decoded, decoded once, bounded, shared, whole."""

import json
import os
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest

from media import write_video
from videopanda.cli import app as cli
from videopanda.data.conversations import ConversationDataset
from videopanda.data.shards import ShardDataset, write_shards
from videopanda.video import disk_cache
from videopanda.video.disk_cache import FrameCache
from videopanda.video.read import Video, VideoReadError, read_video

GIB = 2**30


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", range(20), fps=10)


@pytest.fixture
def decoded(monkeypatch):
    """The sources that were decoded."""
    found = []

    def read(video, **choice):
        found.append(video)
        return read_video(video, **choice)

    monkeypatch.setattr(disk_cache, "read_video", read)
    return found


def same(one: Video, other: Video) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(Video)]
    return all(type(a) is type(b) and np.array_equal(a, b) for a, b in pairs)


def files(folder):
    return sorted(folder.glob("*/*.npz"))


def test_a_clip_is_decoded_once_for_each_choice_of_frames(path, tmp_path, decoded):
    cache = FrameCache(tmp_path, GIB)
    choices = [{"num_frames": 4}, {"num_frames": 5}, {"num_frames": 4, "sampling": "released"}]
    choices.append({"num_frames": 4, "start": 0.5, "end": 1.5, "image_fps": 2.0})
    for _ in range(2):
        for choice in choices:
            assert same(cache.read_video(path, **choice), read_video(path, **choice))
    assert len(decoded) == len(choices) == len(files(tmp_path))
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(path.read_bytes())
    for source in (copy, str(copy), path.read_bytes(), bytearray(path.read_bytes())):  # the content decides
        assert same(cache.read_video(source, num_frames=4), read_video(path, num_frames=4))
    assert len(decoded) == len(choices)
    copy.write_bytes(write_video(tmp_path / "other.mp4", range(5, 25), fps=10).read_bytes())
    assert same(cache.read_video(copy, num_frames=4), read_video(copy, num_frames=4))
    with path.open("rb") as stream:
        cache.read_video(stream, num_frames=4)  # is read once, so it has no name
    assert len(files(tmp_path)) == len(choices) + 1


READ_ALL = """
import json, sys
from videopanda.video.disk_cache import FrameCache

folder, offset, *paths = sys.argv[1:]
cache, found = FrameCache(folder, 2**30), {}
for number in range(len(paths)):
    path = paths[(number + int(offset)) % len(paths)]
    found[path] = cache.read_video(path, num_frames=4).frames.sum().item()
    print("one", flush=True)
print(json.dumps(found))
"""


def test_processes_share_a_cache(tmp_path):
    """Four fill it at the same time, one of them is killed: all read the same, and every entry is whole."""
    paths = [write_video(tmp_path / f"{n}.mp4", range(n, n + 8), fps=4) for n in range(6)]
    expected = {str(path): read_video(path, num_frames=4).frames.sum().item() for path in paths}
    folder = tmp_path / "cache"
    command = [sys.executable, "-c", READ_ALL, str(folder)]
    readers = [
        subprocess.Popen([*command, str(offset), *map(str, paths)], stdout=subprocess.PIPE, text=True)
        for offset in (0, 0, 3, 1)
    ]
    assert readers[-1].stdout.readline() == "one\n"
    readers[-1].kill()
    said = [reader.communicate(timeout=120)[0] for reader in readers]
    assert [json.loads(text.splitlines()[-1]) for text in said[:3]] == [expected] * 3
    assert len(files(folder)) == len(paths)
    cache = FrameCache(folder, GIB)
    assert all(same(cache.read_video(path, num_frames=4), read_video(path, num_frames=4)) for path in paths)


@pytest.mark.parametrize("spoil", ["cut", "flip", "empty", "other"])
def test_a_damaged_entry_is_decoded_again(path, tmp_path, decoded, spoil, caplog):
    cache = FrameCache(tmp_path, GIB)
    wanted = cache.read_video(path, num_frames=4)
    (file,) = files(tmp_path)
    content = bytearray(file.read_bytes())
    if spoil == "flip":
        content[len(content) // 2] ^= 16
    content = {"cut": content[:-30], "flip": content, "empty": b"", "other": b"something else " * 99}[spoil]
    file.write_bytes(content)
    assert same(cache.read_video(path, num_frames=4), wanted)
    assert "is corrupt" in caplog.text
    assert same(cache.read_video(path, num_frames=4), wanted)
    assert len(decoded) == 2


def test_what_cannot_be_read_is_told_as_always(tmp_path):
    cache = FrameCache(tmp_path / "cache", GIB)
    (tmp_path / "text.mp4").write_text("no video")
    for name in ("text.mp4", "missing.mp4"):
        with pytest.raises(VideoReadError) as error:
            cache.read_video(tmp_path / name, num_frames=4)
        with pytest.raises(VideoReadError) as plain:
            read_video(tmp_path / name, num_frames=4)
        assert str(error.value) == str(plain.value)
    assert not files(tmp_path / "cache")


def test_entries_of_this_run_stay_and_older_ones_go(path, tmp_path, decoded):
    probe = FrameCache(tmp_path / "probe", GIB)
    probe.read_video(path, num_frames=4)
    size = probe.size
    folder = tmp_path / "small"
    before = FrameCache(folder, 3 * size + 64)
    for start in (0.0, 0.1, 0.2):
        before.read_video(path, num_frames=4, start=start)
    old = files(folder)
    assert len(old) == 3
    for file in old:
        os.utime(file, (1000, 1000))
    cache = FrameCache(folder, 3 * size + 64)
    for start in (0.3, 0.4, 0.5, 0.6):  # the first three take the place of what an earlier run left
        cache.read_video(path, num_frames=4, start=start)
    assert len(files(folder)) == 3
    assert not set(old) & set(files(folder))
    assert cache.size <= cache.max_bytes
    decoded.clear()
    for start in (0.3, 0.4, 0.5, 0.6):
        cache.read_video(path, num_frames=4, start=start)
    assert len(decoded) == 1  # an epoch later the first three are still there


def test_data_sets_take_their_frames_from_it(path, tmp_path, decoded):
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "a cat"}]
    rows = [{"id": str(i), "video": str(path), "conversations": turns} for i in range(2)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    cache = FrameCache(tmp_path / "cache", GIB)
    plain = ConversationDataset(tmp_path / "rows.json", num_frames=4)
    cached = ConversationDataset(tmp_path / "rows.json", num_frames=4, cache=cache)
    write_shards(plain, tmp_path / "shards")
    sharded = ShardDataset(tmp_path / "shards", num_frames=4, cache=cache)
    for i in range(2):
        for dataset in (cached, sharded):
            assert same(dataset[i].videos[0], plain[i].videos[0])
    assert len(decoded) == 1


def test_the_command_shows_bounds_and_empties_a_cache(path, tmp_path, monkeypatch, capsys):
    cache = FrameCache(tmp_path, GIB)
    for start in (0.0, 0.1, 0.2):
        cache.read_video(path, num_frames=4, start=start)
    (tmp_path / "ab").mkdir(exist_ok=True)
    (tmp_path / "ab" / "notes.npz").write_text("not of the cache")

    def command(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["videopanda", "data", "cache", *words])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = capsys.readouterr()
        return out if not exit_.value.code else err

    size = cache.size
    assert json.loads(command(str(tmp_path), "--json")) == {"entries": 3, "bytes": size}
    assert command(str(tmp_path), "--cache-size", f"{2 * size // 3 + 9}B").startswith("2 entries, 0.0")
    assert command(str(tmp_path), "--clear").startswith("0 entries, 0.00 GB")
    assert (tmp_path / "ab" / "notes.npz").exists()
    assert "no cache at" in command(str(tmp_path / "none"))
    assert "expected a size such as 24GiB" in command(str(tmp_path), "--cache-size", "much")
