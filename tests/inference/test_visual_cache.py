"""Protects the cache of visual tokens: equal answers, keys of everything that matters, room, and sudden death."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compressed import compressed
from tiny import clip, tiny_model, tiny_processor
from videopanda.cli import app as cli
from videopanda.data.worlds.scenes.dataset import Clip
from videopanda.data.worlds.scenes.make import ensure_clip
from videopanda.inference import clip as clip_module
from videopanda.inference.answer import Chat, ask
from videopanda.inference.clip import encode_clips
from videopanda.inference.visual_cache import TokenDiskCache, clip_key, vision_key

QUESTIONS = ["What colour is the circle?", "How many?"]
GIB = 2**30


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return ensure_clip(tmp_path_factory.mktemp("clips"), 0, "test", 0)


@pytest.fixture(scope="module")
def loaded():
    return tiny_model(), tiny_processor(time_prompt=True)


@pytest.fixture
def cache(tmp_path):
    return TokenDiskCache(tmp_path / "tokens", GIB)


def entries(cache):
    return sorted(cache.folder.glob("*/*.safetensors"))


# -- answers -----------------------------------------------------------------------------------------------------------
def test_answers_are_the_same_and_nothing_is_done_twice(loaded, path, cache, monkeypatch):
    plain = ask(*loaded, path, QUESTIONS, max_new_tokens=6)
    first = ask(*loaded, path, QUESTIONS, max_new_tokens=6, cache=cache)
    assert len(entries(cache)) == 1

    def never(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(clip_module, "read_video", never)
    monkeypatch.setattr(clip_module, "encode_prepared", never)
    second = ask(*loaded, path, QUESTIONS, max_new_tokens=6, cache=cache)
    chat = Chat(*loaded, str(path), max_new_tokens=6, cache=cache)
    asked = [chat.ask_each([question])[0] for question in QUESTIONS]
    untimed = [[replace(answer, timings={}) for answer in answers] for answers in (plain, first, second, asked)]
    assert untimed[0] == untimed[1] == untimed[2] == untimed[3]
    assert set(second[0].timings) == set(plain[0].timings)
    with pytest.raises(AssertionError):
        ask(*loaded, path, QUESTIONS, max_new_tokens=6)


def test_bytes_and_pictures_of_a_folder_are_kept_too(loaded, path, cache, tmp_path):
    content = path.read_bytes()
    answers = [ask(*loaded, content, ["What?"], max_new_tokens=2, cache=cache)[0] for _ in range(2)]
    assert replace(answers[0], timings={}) == replace(answers[1], timings={})
    assert len(entries(cache)) == 1
    ask(*loaded, path, ["What?"], max_new_tokens=2, cache=cache)
    assert len(entries(cache)) == 1  # the same content under another name
    with path.open("rb") as stream:
        ask(*loaded, stream, ["What?"], max_new_tokens=2, cache=cache)
    assert len(entries(cache)) == 1  # streams are read once


def test_decoded_clips_are_kept_alone(loaded, cache):
    model, processor = loaded
    videos = [Clip(clip(8, 30, 40, seed), tuple(range(8)), 8.0) for seed in range(2)]
    alone = [encode_clips(model, processor, [video])[0] for video in videos]
    for _ in range(2):
        kept = encode_clips(model, processor, videos, cache)
        for found, wanted in zip(kept, alone):
            assert torch.equal(found.tokens, wanted.tokens)
            assert found.placeholder_text == wanted.placeholder_text
    assert len(entries(cache)) == 2


def test_the_command_keeps_tokens(loaded, path, tmp_path, monkeypatch, capsys):
    for part in loaded:
        part.save_pretrained(tmp_path / "model")
    command = [
        "videopanda",
        "answer",
        str(path),
        "What?",
        "--model",
        str(tmp_path / "model"),
        "--num-frames",
        "4",
        "--json",
    ]
    said = []
    for extra in ([], ["--cache", str(tmp_path / "t")], ["--cache", str(tmp_path / "t"), "--cache-size", "5MiB"]):
        monkeypatch.setattr(sys, "argv", [*command, *extra])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert not exit_.value.code
        said.append(json.loads(capsys.readouterr().out.splitlines()[-1])["answer"])
    assert said[0] == said[1] == said[2]
    assert len(list((tmp_path / "t").glob("*/*.safetensors"))) == 1


# -- keys --------------------------------------------------------------------------------------------------------------
def test_a_key_changes_with_everything_that_decides_the_tokens(loaded, path, tmp_path, monkeypatch):
    model, processor = loaded
    choice = {"num_frames": 8, "sampling": "uniform", "start": None, "end": None}

    def key(model=model, processor=processor, video=path, **changes):
        made = TokenDiskCache.key(vision_key(model, processor), clip_key(video, **{**choice, **changes}))
        keys.append(made)
        return made

    keys: list[str] = []
    key()
    other = tmp_path / "other.mp4"
    other.write_bytes(path.read_bytes() + b"\0")
    key(video=other)
    for change in ({"num_frames": 9}, {"sampling": "released"}, {"start": 0.5}, {"end": 1.5}):
        key(**change)
    key(processor=tiny_processor())  # tells no time
    for fields in ({"image_mean": [0.5] * 3}, {"pad_frames": False}):
        key(processor=tiny_processor(time_prompt=True, **fields))
    key(model=tiny_model(seed=1))
    key(model=tiny_model(attention_scale="head"))
    key(model=tiny_model().to(torch.bfloat16))
    weights = tiny_model()
    with torch.no_grad():
        weights.model.projector.down.bias[0] += 1e-3
    key(model=weights)
    frames = [Clip(clip(8, seed=seed), tuple(range(8)), seconds) for seed, seconds in ((0, 8.0), (1, 8.0), (0, 9.0))]
    frames.append(Clip(clip(8, seed=0), tuple(range(1, 9)), 8.0))  # which are told to some models, and reported
    for video in frames:
        key(video=video)
    monkeypatch.setattr("videopanda.video.disk_cache.metadata.version", lambda name: "999")
    key()
    assert len(set(keys)) == len(keys)


def test_a_key_does_not_change_with_what_does_not_matter(loaded, path, tmp_path):
    model, processor = loaded
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(path.read_bytes())
    choice = {"num_frames": 8, "sampling": "uniform"}
    assert clip_key(path, **choice) == clip_key(str(copy), **choice) == clip_key(copy.read_bytes(), **choice)
    assert vision_key(model, processor) == vision_key(tiny_model(), tiny_processor(time_prompt=True))
    assert clip_key("missing.mp4", **choice) is None


# -- the folder --------------------------------------------------------------------------------------------------------
def test_what_was_not_used_for_longest_goes_first(tmp_path):
    one = torch.zeros(64, 16)
    probe = TokenDiskCache(tmp_path / "probe", GIB)
    probe.put(probe.key("x"), one, {"n": 0})
    cache = TokenDiskCache(tmp_path / "small", 3 * probe.size + 10)
    keys = [cache.key(str(number)) for number in range(5)]
    for age, key in enumerate(keys[:3]):
        cache.put(key, one, {"n": 0})
        os.utime(cache._file(key), (1000 + age, 1000 + age))
    assert cache.get(keys[0]) is not None  # used now
    cache.put(keys[3], one, {"n": 0})
    cache.put(keys[4], one, {"n": 0})
    assert [cache.get(key) is not None for key in keys] == [True, False, False, True, True]
    assert cache.size <= cache.max_bytes
    cache.put(cache.key("large"), torch.zeros(9999, 16), {})
    assert len(entries(cache)) == 3  # too large for all of the room: it is not kept, and nothing goes for it


@pytest.mark.parametrize("spoil", ["cut", "flip", "facts", "empty", "other"])
def test_a_damaged_entry_is_made_anew(loaded, path, cache, spoil, caplog):
    (wanted,) = ask(*loaded, path, ["What?"], max_new_tokens=2, cache=cache)
    (file,) = entries(cache)
    content = bytearray(file.read_bytes())
    if spoil == "cut":
        content = content[:-7]
    elif spoil == "flip":
        content[-3] ^= 16
    elif spoil == "facts":
        content = content.replace(b"pyav", b"pyaw").replace(b"torchcodec", b"torchcodek")
    else:
        content = bytearray() if spoil == "empty" else bytearray(b"something else " * 100)
    file.write_bytes(content)
    (again,) = ask(*loaded, path, ["What?"], max_new_tokens=2, cache=cache)
    assert replace(again, timings={}) == replace(wanted, timings={})
    assert "is corrupt" in caplog.text
    assert cache.get(file.stem) is not None


def test_a_folder_that_takes_nothing_stops_nobody(loaded, path, cache, caplog):
    key = cache.key("x")
    (cache.folder / key[:2]).write_text("a file in the way")
    cache.put(key, torch.zeros(2, 2), {})
    assert "cannot be written" in caplog.text
    assert cache.get(key) is None
    with pytest.raises(ValueError, match="max_bytes must be positive"):
        TokenDiskCache(cache.folder, 0)


# -- several processes -------------------------------------------------------------------------------------------------
SHARING = """
import sys, torch
from videopanda.inference.visual_cache import TokenDiskCache
cache, number = TokenDiskCache(sys.argv[1], 40_000), int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for turn in range(200):  # put and get what others put, get and evict: what is found must be whole
    value = (turn * (number + 1)) % 12
    key, wanted = cache.key(str(value)), torch.full((50, 20), float(value))
    entry = cache.get(key)
    if entry is None:
        cache.put(key, wanted, {"value": value})
    else:
        assert entry.facts == {"value": value} and torch.equal(entry.tokens, wanted)
"""


def _start(script: str, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-c", script, *arguments]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    return process


def _await_ready(process: subprocess.Popen) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def test_processes_share_a_folder(tmp_path):
    workers = [_start(SHARING, str(tmp_path), str(number)) for number in range(3)]
    for worker in workers:
        _await_ready(worker)
    for worker in workers:  # all begin at once
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        _, told = worker.communicate(timeout=240)
        assert worker.returncode == 0, told[-2000:]
        assert "corrupt" not in told
    size = TokenDiskCache(tmp_path, 40_000).size
    assert 0 < size <= 40_000 + 3 * 4500  # each may just have added one that the others had not seen
    assert not list(tmp_path.glob("*/*.draft"))


KILLED = """
import sys, torch
from videopanda.inference.visual_cache import TokenDiskCache
cache = TokenDiskCache(sys.argv[1], 200 * 2**20)
tokens = torch.full((20_000, 100), 3.0)
print("ready", flush=True)
number = 0
while True:
    cache.put(cache.key(str(number)), tokens, {"value": number})
    number += 1
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
def test_a_killed_writer_leaves_whole_entries_only(tmp_path):
    writer = _start(KILLED, str(tmp_path))
    _await_ready(writer)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*/*.draft")) or len(list(tmp_path.glob("*/*.safetensors"))) < 3:
        assert time.monotonic() < deadline
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    cache = TokenDiskCache(tmp_path, GIB)
    found = entries(cache)
    assert len(found) >= 3
    for file in found:
        entry = cache.get(file.stem)
        assert entry is not None
        assert cache.key(str(entry.facts["value"])) == file.stem
        assert bool((entry.tokens == 3.0).all())
    for draft in tmp_path.glob("*/*.draft"):
        os.utime(draft, (1000, 1000))  # long ago
    cache.put(cache.key("one more"), torch.zeros(2, 2), {})
    assert not list(Path(tmp_path).glob("*/*.draft"))


def test_a_memory_is_no_other_with_a_cache(path, cache):
    model, processor = compressed("elva", {"kind": "pool", "pool_time": 2})
    processor.video_processor.max_visual_tokens = 90
    clips = [Chat(model, processor, path, fps=4.0, cache=kept).clip for kept in (None, cache)]
    assert clips[0].num_tokens == clips[1].num_tokens <= 90
