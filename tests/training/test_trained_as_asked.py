"""Protects that every preset trains on the frames and the words that the model will answer with, to the token."""

import io
import json
import logging
import tarfile
from pathlib import Path

import pytest
import torch

from media import write_video
from tiny import tiny_model, tiny_processor
from videopanda.data.conversations import ConversationDataset
from videopanda.data.shards import ShardDataset, write_shards
from videopanda.models.load import load_checkpoint
from videopanda.models.prompts import ANSWERING_SYSTEM_PROMPT, TRAINING_SYSTEM_PROMPT
from videopanda.training import run
from videopanda.training.arguments import arguments
from videopanda.training.stages import make_config
from videopanda.video.read import VideoReadError, read_video

PRESETS = {"paper": "uniform", "scripts": "released", "nano": "uniform", "custom": "released"}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A question about a clip of 12.5 s, of which the released rule takes other frames than the uniform one."""
    write_video(tmp_path / "a.mp4", range(100), fps=8)
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "red"}]
    (tmp_path / "rows.json").write_text(json.dumps([{"id": "x", "video": "a.mp4", "conversations": turns}]))
    return tmp_path


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("shards", [False, True])
def test_a_batch_is_what_the_trained_model_is_asked_with(folder, preset, shards):
    sampling = PRESETS[preset]
    kind = "released" if sampling == "released" else "paper"
    tiny_model(kind).save_pretrained(folder / "model")
    tiny_processor(kind, frame_sampling=sampling).save_pretrained(folder / "model")
    given = [
        "official_flip=false",
        "max_length=2048",
        "distill_weight=0",
        "align_weight=0",
        "compile=false",
    ]
    settings = make_config("finetune", preset, [f"data={folder / 'rows.json'}", *given])
    rule = run.frame_sampling(settings, folder / "model")
    assert rule == sampling
    dataset = run.make_dataset(settings, rule)
    if shards:
        write_shards(dataset, folder / "shards")
        dataset = ShardDataset(folder / "shards", settings.num_frames, sampling=rule)
    _, processor = run._start(settings, folder / "model", dataset)
    trained = run.make_collator(settings, processor)([dataset[0]])
    processor.save_pretrained(folder / "trained")
    tiny_model(kind).save_pretrained(folder / "trained")
    _, answering = load_checkpoint(folder / "trained", torch.float32)  # what the checkpoint holds, and nothing else
    content = [{"type": "video"}, {"type": "text", "text": "What?"}]
    text = answering.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    rules = answering.video_processor
    video = read_video(folder / "a.mp4", num_frames=rules.num_frames, sampling=rules.frame_sampling)
    asked = answering(text=text, videos=video)
    assert torch.equal(trained["pixel_values_videos"], asked["pixel_values_videos"])
    prompt = asked["input_ids"][0].tolist()
    assert trained["input_ids"][0, : len(prompt)].tolist() == prompt
    words = answering.tokenizer.decode(prompt)
    system = TRAINING_SYSTEM_PROMPT if preset == "scripts" else ANSWERING_SYSTEM_PROMPT
    assert system in words
    assert dataset[0].videos[0].timestamps.tolist() == video.timestamps.tolist()


def test_a_range_is_told_as_long_as_it_is(folder):
    """The length in the prompt is that of the part that is shown."""
    rows = json.loads((folder / "rows.json").read_text())
    (folder / "rows.json").write_text(json.dumps([{**rows[0], "start": 2, "end": 5}]))
    (video,) = ConversationDataset(folder / "rows.json")[0].videos
    assert video.duration == 3.0


def test_scenes_are_refused_where_the_model_looks_otherwise(folder):
    tiny_model().save_pretrained(folder / "model")
    tiny_processor(frame_sampling="released").save_pretrained(folder / "model")
    with pytest.raises(ValueError, match="samples frames by the rule 'released'"):
        run.frame_sampling(make_config("finetune", "nano"), folder / "model")


@pytest.mark.parametrize("name", ["../../outside.png", "/tmp/outside.png", "..", "a\\b.png"])
def test_names_in_a_shard_are_never_paths(tmp_path, name):
    from PIL import Image

    frames = tmp_path / "clip"
    frames.mkdir()
    for i in range(2):
        Image.new("RGB", (32, 24), (9 * i, 0, 0)).save(frames / f"{i}.png")
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "red"}]
    (tmp_path / "rows.json").write_text(json.dumps([{"id": "x", "video": "clip", "conversations": turns}]))
    write_shards(ConversationDataset(tmp_path / "rows.json", num_frames=2, format="llava"), tmp_path / "shards")
    assert len(ShardDataset(tmp_path / "shards", num_frames=2)[0].videos[0]) == 2
    path = tmp_path / "shards" / "000000.tar"
    with tarfile.open(path) as tar:
        members = [(info, tar.extractfile(info).read()) for info in tar]
    with tarfile.open(path, "w") as tar:
        for info, data in members:
            info.name = info.name.replace("0.png", name)
            tar.addfile(info, io.BytesIO(data))
        stop = tar.offset
    index = json.loads(path.with_suffix(".jsonl").read_text())
    path.with_suffix(".jsonl").write_text(json.dumps({**index, "stop": stop}) + "\n")
    before = set(tmp_path.parent.iterdir())
    with pytest.raises(VideoReadError, match="which is a path and not a name"):
        ShardDataset(tmp_path / "shards", num_frames=2)[0]
    assert set(tmp_path.parent.iterdir()) == before
    assert not Path("/tmp/outside.png").exists()


def test_without_a_compiler_training_falls_back(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    with caplog.at_level(logging.INFO):
        assert run._can_compile() is False
    assert "the first step takes about a minute" in caplog.text
    assert "torch.compile does not work here, training continues without it (is g++ installed?)" in caplog.text


@pytest.mark.parametrize(("short", "kind"), [("CP", "context"), ("SP", "sequence"), ("TP", "tensor")])
def test_rows_are_not_split_over_processes(monkeypatch, tmp_path, short, kind):
    monkeypatch.setenv(f"PARALLELISM_CONFIG_{short}_SIZE", "2")  # as `accelerate launch` says it
    with pytest.raises(ValueError, match=f"{kind} parallelism is not supported: start without --parallelism_config_"):
        arguments(make_config("pretrain"), tmp_path)
