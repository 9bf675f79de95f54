"""Protects the times of frames in prompts: in place, counted exactly, the same by every door and in every family."""

import json
import subprocess
import sys

import pytest
import torch
from engine_helpers import by_transformers, finished
from fastapi.testclient import TestClient

from compressed import FAMILIES, compressed
from tiny import clip
from videopanda.checkpoints.export import export
from videopanda.data.collate import IGNORE, Collator
from videopanda.data.sample import Sample
from videopanda.data.worlds.scenes.dataset import Clip
from videopanda.inference.answer import Chat, build_prompt, question_messages
from videopanda.inference.clip import encode_clips, prepare_clips
from videopanda.inference.engine import Engine
from videopanda.inference.engine_thread import EngineThread
from videopanda.inference.load import BUNDLED_MODEL, load
from videopanda.inference.request import GenerateRequest
from videopanda.inference.session import VideoSession
from videopanda.inference.visual_cache import TokenDiskCache
from videopanda.plan.planner import Planner
from videopanda.serving.api import ServerSettings, create_app
from videopanda.training.build import as_trained, change_checkpoint
from videopanda.training.stages import make_config

TIMES = (0.0, 0.52, 1.04, 9.96, 62.5)
VIDEO = Clip(clip(5, 24, 40), TIMES, 63.0)
STAMPS = ("<0.0 seconds>", "<0.5 seconds>", "<1.0 seconds>", "<10.0 seconds>", "<62.5 seconds>")


def stamped(family, compression=None):
    return compressed(family, compression, timestamps="frame")


def text_of(processor, video):
    (prepared,) = prepare_clips(processor, [video])
    return prepared.placeholder_text


def ids_of(processor, video):
    return processor(text=["user: <video>What?"], videos=[video])["input_ids"][0].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_each_frame_follows_its_time(family):
    model, processor = stamped(family)
    per_frame = processor.video_processor.token_count(1, 24, 40)
    told = "63.0 seconds: " * processor.time_prompt
    assert processor.time_prompt
    assert text_of(processor, VIDEO) == told + "".join(stamp + "<video>" * per_frame for stamp in STAMPS)
    plain = compressed(family)[1]
    assert text_of(plain, VIDEO) == told + "<video>" * 5 * per_frame
    # Not one token more than is counted, and the others as they were.
    with_times, without = ids_of(processor, VIDEO), ids_of(plain, VIDEO)
    assert len(with_times) - len(without) == processor.stamp_tokens(TIMES) > 0
    assert plain.stamp_tokens(TIMES) == 0
    assert with_times.count(processor.video_token_id) == without.count(processor.video_token_id) == 5 * per_frame
    assert with_times[-4:] == without[-4:]
    planner = Planner(
        model.config,
        processor.video_processor,
        torch.float32,
        stamp_tokens=lambda frames: processor.stamp_tokens(TIMES[:frames]),
    )
    text = len(without) - 5 * per_frame
    assert planner.plan(5, 24, 40, text_tokens=text, new_tokens=3).tokens == len(with_times) + 3
    assert planner.fits_context(5, 24, 40, text_tokens=text, new_tokens=planner.context - len(with_times))
    assert not planner.fits_context(5, 24, 40, text_tokens=text, new_tokens=planner.context - len(with_times) + 1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("keep", "shown"), [(1, (0, 2, 4)), (2, (0, 4))])
def test_pooled_frames_have_the_time_of_the_first(family, keep, shown):
    _, processor = stamped(family, {"kind": "pool", "pool_time": 2, "keep_every": keep})
    text = text_of(processor, VIDEO)
    assert [stamp for stamp in STAMPS if stamp in text] == [STAMPS[i] for i in shown]
    assert text.index("<video>") > text.index(STAMPS[0])
    plain = compressed(family, {"kind": "pool", "pool_time": 2, "keep_every": keep})[1]
    assert len(ids_of(processor, VIDEO)) - len(ids_of(plain, VIDEO)) == processor.stamp_tokens(TIMES)


def test_frames_without_known_times_are_refused():
    _, processor = stamped("videopanda")
    metadata = {"duration": 4.0, "fps": 2.0, "total_num_frames": 8}
    asked = {"text": ["<video>?"], "videos": [clip(8, 24, 40)], "do_sample_frames": True, "num_frames": 2}
    ids = processor(**asked, video_metadata=[metadata])["input_ids"][0]
    text = processor.tokenizer.decode(ids)  # the third and the seventh of eight frames, two a second
    assert text.index("<1.0 seconds><video>") < text.index("<3.0 seconds><video>")
    with pytest.raises(ValueError, match="times are unknown"):
        processor(**asked, video_metadata=[{**metadata, "fps": None}])


def test_padding_frames_have_no_time():
    _, processor = stamped("videopanda")
    per_frame = processor.video_processor.token_count(1, 24, 40)
    processor.video_processor.pad_frames, processor.video_processor.canvas = True, "square"
    before, _, last = text_of(processor, VIDEO).rpartition("seconds>")
    assert before.count("seconds>") == 4
    assert before.count("<video>") == 4 * per_frame
    assert last == "<video>" * (processor.video_processor.token_count(5, 24, 40) - 4 * per_frame)
    assert last.count("<video>") > per_frame


@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_gives_the_tokens_of_generate(family, tmp_path):
    model, processor = stamped(family)
    cache = TokenDiskCache(tmp_path, 1 << 24)
    wanted = by_transformers(model, processor, "What?", VIDEO, max_new_tokens=5)
    for kept in (None, cache, cache):
        (encoded,) = encode_clips(model, processor, [VIDEO], kept)
        assert encoded.placeholder_text == text_of(processor, VIDEO)
        prompt = build_prompt(processor, question_messages(processor, "What?"), [encoded])
        (end,) = finished(Engine(model, processor), [GenerateRequest(prompt, [encoded], 5)])
        assert end.token_ids[:5] == wanted[: len(end.token_ids)]
    assert Chat(model, processor, VIDEO, max_new_tokens=5).ask("What?").prompt_tokens == len(prompt)


def test_a_stream_tells_the_times_that_a_clip_tells():
    model, processor = stamped("elva")
    session, video = VideoSession(model, processor), Clip(clip(4, 24, 40), (0.0, 1.0, 2.0, 3.0), 4.0)
    for frame, moment in zip(video.frames, video.timestamps):
        session.push(frame, moment)
    assert session.clip().placeholder_text == text_of(processor, video)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_conversation_is_what_it_is_alone(family):
    model, processor = stamped(family)
    turns = ((("What?", "red"),), (("Which way is it?", "to the left"),))
    collator = Collator(processor, 4096)
    sample = Sample("one", (VIDEO,), turns)
    batch = collator([sample])
    row = collator.pack(sample, [text_of(processor, VIDEO)])
    with torch.no_grad():
        together = model(**{name: value for name, value in batch.items() if name != "labels"}).logits[0]
    for k in range(2):
        single = collator([Sample("one", (VIDEO,), turns[k : k + 1])])
        ids = single["input_ids"][0]
        assert ids.tolist()[: len(ids_of(processor, VIDEO)) - 6] == ids_of(processor, VIDEO)[:-6]
        places = [i for i, segment in enumerate(row.segments) if segment in (0, k + 1)]
        assert batch["input_ids"][0, places].tolist() == ids.tolist()
        with torch.no_grad():
            alone = model(**{name: value for name, value in single.items() if name != "labels"}).logits[0]
        torch.testing.assert_close(together[places], alone, rtol=0, atol=1e-4)  # measured: 6e-6
        supervised = ids[single["labels"][0] != IGNORE]
        assert "seconds" not in processor.tokenizer.decode(supervised)


def test_the_server_counts_them(tmp_path):
    model, processor = load(None, "cpu")
    video = BUNDLED_MODEL.parent / "demo.mp4"
    plain = Chat(model, processor, video).ask("What?")
    processor.timestamps = "frame"
    wanted = Chat(model, processor, video).ask("What?")
    assert wanted.prompt_tokens - plain.prompt_tokens == processor.stamp_tokens(wanted.frame_times)
    app = create_app(EngineThread(model, processor), ServerSettings("nano", tmp_path / "files"))
    with TestClient(app, base_url="http://localhost") as client:
        file = client.post("/v1/files", files={"file": video.read_bytes()}, data={"purpose": "user_data"}).json()["id"]
        content = [{"type": "file", "file": {"file_id": file}}, {"type": "text", "text": "What?"}]
        asked = {"messages": [{"role": "user", "content": content}]}
        reply = client.post("/v1/chat/completions", json=asked).json()
    assert reply["usage"]["prompt_tokens"] == wanted.prompt_tokens
    assert reply["choices"][0]["message"]["content"] == wanted.answer


STRANGER = """
import sys
sys.modules["videopanda"] = None
import numpy as np
from types import SimpleNamespace
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
frames = np.random.default_rng(0).integers(0, 256, (5, 24, 40, 3), dtype=np.uint8)
video = SimpleNamespace(frames=frames, timestamps=[float(t) for t in sys.argv[2:]], duration=63.0)
print(processor(text=["user: <video>What?"], videos=[video])["input_ids"][0].tolist())
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_keeps_them(family, tmp_path):
    """Set on a trained model by `init` and by `train`, and saved."""
    model, processor = compressed(family)
    model.save_pretrained(tmp_path / "plain")
    processor.save_pretrained(tmp_path / "plain")
    change_checkpoint(tmp_path / "changed", tmp_path / "plain", {"timestamps": "frame"})
    loaded, found = load(tmp_path / "changed", "cpu")
    assert (loaded.config.timestamps, found.timestamps) == ("frame", "frame")
    as_trained(model, processor, make_config("finetune", overrides=["timestamps=frame"]))
    assert (model.config.timestamps, processor.timestamps) == ("frame", "frame")
    as_trained(model, processor, make_config("finetune"))
    assert processor.timestamps == "frame"
    assert ids_of(found, VIDEO) == ids_of(stamped(family)[1], VIDEO)


def test_an_exported_folder_writes_them_without_the_package(tmp_path):
    model, processor = stamped("elva")
    model.save_pretrained(tmp_path / "plain")
    processor.save_pretrained(tmp_path / "plain")
    export(tmp_path / "plain", tmp_path / "exported")
    done = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, tmp_path / "exported", *map(str, TIMES)],
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == ids_of(processor, VIDEO)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_that_merged_across_frames_have_no_time_of_a_frame(family):
    """The times would stand before tokens of other frames, and those of later frames before none."""
    merging = {"kind": "pool", "pool_time": 1, "merge_tokens": 2}
    with pytest.raises(ValueError, match="timestamps=frame states the time of every frame, and"):
        compressed(family, merging, timestamps="frame")
    _, processor = compressed(family, merging)
    processor.timestamps = "frame"
    with pytest.raises(ValueError, match=r"set timestamps=none, or compression\.merge_tokens=0"):
        processor.video_text(torch.zeros(2, 4, dtype=torch.long), 4.0, [0.0, 1.0, 2.0, 3.0])
