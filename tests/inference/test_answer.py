"""Protects answers: the same alone, in a batch and in a chat; and clear words for what cannot be answered."""

import json
import shutil
from contextlib import aclosing

import numpy as np
import pytest
import torch
from engine_helpers import ask_for, finished

import coroutines
import videopanda
from tiny import clip, tiny_model, tiny_processor
from videopanda.data.worlds.scenes.dataset import Clip
from videopanda.data.worlds.scenes.make import ensure_clip
from videopanda.inference import clip as clip_module
from videopanda.inference.answer import Chat, ask, question_messages
from videopanda.inference.clip import encode_clips
from videopanda.inference.engine import Engine
from videopanda.inference.load import load
from videopanda.plan.planner import DoesNotFitError, planner_for
from videopanda.video.read import VideoReadError, read_video

QUESTIONS = ["What colour is the circle?", "How many?", "Which way does the red circle move after it was green?"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return ensure_clip(tmp_path_factory.mktemp("clips"), 0, "test", 0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    tiny_processor(time_prompt=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return load(checkpoint, device="cpu")


def _by_hand(model, processor, video, messages, max_new_tokens):
    """The reply by the ordinary calls of transformers, without any of our shortcuts."""
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[text], videos=[video], return_tensors="pt")
    inputs = {k: v for k, v in inputs.items() if isinstance(v, torch.Tensor)}
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


# -- answers -----------------------------------------------------------------------------------------------------------
def test_ask_tells_what_it_looked_at(loaded, path, checkpoint):
    model, processor = loaded
    answers = ask(model, processor, path, QUESTIONS, max_new_tokens=8)
    video = read_video(path, num_frames=8)
    assert [answer.question for answer in answers] == QUESTIONS
    for answer in answers:
        assert answer.frame_times == tuple(video.timestamps)
        assert answer.frame_indices == tuple(video.indices)
        assert answer.visual_tokens == processor.video_processor.token_count(8, video.height, video.width)
        assert answer.decoder == f"{video.decoder} {video.decoder_version}"
        assert set(answer.timings) == {"decode", "preprocess", "generate"}
        assert all(seconds > 0 for seconds in answer.timings.values())
        assert answer.model == str(checkpoint)
        assert answer.answer == _by_hand(model, processor, video, question_messages(processor, answer.question), 8)


def test_a_released_model_looks_at_the_frames_of_the_released_rule(loaded, path):
    model, _ = loaded
    video = read_video(path, num_frames=8, sampling="released")
    (answer,) = ask(model, tiny_processor(frame_sampling="released"), path, ["What?"], max_new_tokens=2)
    assert answer.frame_indices == tuple(video.indices) != tuple(read_video(path, num_frames=8).indices)


def test_a_range_is_looked_at_as_a_clip_of_its_own_length(loaded, path):
    model, processor = loaded
    chat = Chat(model, processor, path, num_frames=4, start=1.0, end=2.0)
    assert chat.clip.placeholder_text.startswith("1.0 seconds: ")
    times = np.array(chat.ask("What?").frame_times)
    assert len(times) == 4
    assert ((times >= 0.9) & (times < 2)).all()


def test_decoded_frames_are_taken_as_they_are(loaded):
    model, processor = loaded
    frames = Clip(clip(8), tuple(range(8)), 8.0)
    (answer,) = ask(model, processor, frames, ["What?"], max_new_tokens=4)
    assert answer.frame_times == tuple(map(float, range(8)))
    assert answer.frame_indices is None
    assert answer.decoder is None
    with pytest.raises(ValueError, match="already decoded"):
        ask(model, processor, frames, ["What?"], num_frames=4)


def test_a_chat_remembers(loaded, path):
    model, processor = loaded
    chat = Chat(model, processor, path, max_new_tokens=6)
    first, second = chat.ask("What?"), chat.ask("And then?")
    history = [
        *question_messages(processor, "What?"),
        {"role": "assistant", "content": [{"type": "text", "text": first.answer}]},
        *question_messages(processor, "And then?", has_video=False),
    ]
    assert first.answer == ask(model, processor, path, ["What?"], max_new_tokens=6)[0].answer
    assert second.answer == _by_hand(model, processor, read_video(path, num_frames=8), history, 6)
    assert first.timings["decode"] > 0
    assert second.timings["decode"] == 0
    assert chat.messages[:3] == history


def test_a_chat_reads_its_clip_once(loaded, path, monkeypatch):
    """Neither STAB nor the language model sees the clip again, and what is remembered stays as it was."""
    model, processor = loaded
    read, encoded = [], []
    for module, into in ((model.model.language_model, read), (model.model.stab, encoded)):
        original = module.forward
        monkeypatch.setattr(
            module,
            "forward",
            lambda *args, original=original, into=into, **kwargs: (
                into.append(kwargs["inputs_embeds"].shape[1] if "inputs_embeds" in kwargs else 0)
                or original(*args, **kwargs)
            ),
        )
    chat = Chat(model, processor, path, max_new_tokens=4)
    first = chat.ask_each(["What?"])[0]
    assert max(read) > first.visual_tokens
    read.clear()
    second = chat.ask_each(["And how many?", "Why?"])
    third = chat.ask("What?")
    chat.ask("And then?")
    assert 10 * max(read) < first.visual_tokens
    assert len(encoded) == 1
    assert third.answer == first.answer
    apart = [ask(model, processor, path, [a.question], max_new_tokens=4)[0].answer for a in second]
    assert [a.answer for a in second] == apart


def test_a_clip_keeps_no_prefix_unless_told(loaded):
    model, processor = loaded
    (one,) = encode_clips(model, processor, [Clip(clip(), tuple(range(8)), 8.0)])
    requests = [ask_for(processor, q, one, max_new_tokens=4) for q in QUESTIONS]
    ids = [end.token_ids for end in finished(Engine(model, processor), requests)]
    assert not one.kv_prefixes
    keeping = Engine(model, processor, keep_prefixes=True)
    assert [end.token_ids for end in finished(keeping, requests)] == ids
    assert len(one.kv_prefixes) == 1
    assert [end.token_ids for end in finished(keeping, requests)] == ids


def test_a_list_of_questions_gets_a_list_of_answers(checkpoint, path):
    answers = videopanda.answer(path, QUESTIONS, model=checkpoint)
    assert list(map(str, answers)) == [str(videopanda.answer(path, text, model=checkpoint)) for text in QUESTIONS]
    each = videopanda.answer([path, path], (text for text in QUESTIONS), model=checkpoint)  # a generator is read once
    assert [list(map(str, one)) for one in each] == 2 * [list(map(str, answers))]


def test_the_public_name_loads_a_model_once(checkpoint, path):
    from videopanda.inference.answer import _load_once

    _load_once.cache_clear()
    replies = {str(videopanda.answer(path, "What?", model=checkpoint)) for _ in range(2)}
    assert len(replies) == 1
    assert _load_once.cache_info().misses == 1


# -- mistakes ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ([], "one or more"),
        ("What?", "list"),
        (None, "list"),
        ([5], "list"),
        (b"What?", "list"),
        ([" "], "empty"),
        (["Is <video> ok?"], "must not contain <video>"),
    ],
)
def test_bad_questions_are_told_before_the_video_is_read(loaded, questions, message):
    with pytest.raises(ValueError, match=message):
        ask(*loaded, "missing.mp4", questions)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": "hot"},
        {"top_p": 0},
        {"top_p": 1.1},
        {"repetition_penalty": 0},
        {"seed": 2**63},
        {"seed": 1.5},
    ],
)
def test_a_wrong_sampling_is_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be an? (number|integer)"):
        videopanda.Sampling(**wrong)


def test_a_missing_video_and_a_wrong_range(loaded, path):
    with pytest.raises(VideoReadError, match=r"missing\.mp4"):
        ask(*loaded, "missing.mp4", ["What?"])
    with pytest.raises(ValueError, match="start"):
        ask(*loaded, path, ["What?"], start=100.0)
    with pytest.raises(ValueError, match="num_frames"):
        ask(*loaded, path, ["What?"], num_frames=0)
    with pytest.raises(ValueError, match="start must be a time in seconds, at least 0, got '0:01'"):
        ask(*loaded, path, ["What?"], start="0:01")
    with pytest.raises(ValueError, match="fps must be a positive number of frames per second, got '2'"):
        ask(*loaded, path, ["What?"], fps="2")


def test_a_prompt_that_does_not_fit_is_refused(loaded, path):
    with pytest.raises(DoesNotFitError, match="at most 53 frames fit"):
        ask(*loaded, path, ["What?"], num_frames=64)
    ask(*loaded, path, ["What?"], num_frames=40, max_new_tokens=1)
    with pytest.raises(DoesNotFitError, match="a prompt of"):
        ask(*loaded, path, ["What? " * 500], num_frames=40, max_new_tokens=1)


def test_too_many_frames_are_refused_before_they_are_decoded(loaded, path, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        clip_module,
        "read_video",
        lambda *args, **kwargs: decoded.append(kwargs["num_frames"]) or read_video(*args, **kwargs),
    )
    with pytest.raises(DoesNotFitError, match="100000 frames of 144x192 take"):
        ask(*loaded, path, ["What?"], num_frames=100_000)
    assert decoded == [1]


def test_what_does_not_fit_the_memory_is_refused_before_it_is_encoded(loaded, path, monkeypatch):
    model, processor = loaded
    monkeypatch.setattr(clip_module, "budget", lambda model: planner_for(model, processor.video_processor).weight_bytes)
    monkeypatch.setattr(clip_module, "encode_prepared", None)
    with pytest.raises(DoesNotFitError, match="not even one frame fits"):
        ask(model, processor, path, ["What?"])


# -- checkpoints -------------------------------------------------------------------------------------------------------
def test_weights_in_half_precision_run_in_full_on_a_cpu(tmp_path, checkpoint):
    folder = shutil.copytree(checkpoint, tmp_path / "half")
    tiny_model().to(torch.bfloat16).save_pretrained(folder)
    model, _ = load(folder, device="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training


def _edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda f: shutil.rmtree(f), FileNotFoundError, "no model folder"),
        (lambda f: (f / "config.json").unlink(), ValueError, "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), ValueError, "damaged"),
        (lambda f: _edit(f, model_type="llama"), ValueError, "is a plain llama model"),
        (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, "no weights"),
        (lambda f: (f / "processor_config.json").unlink(), ValueError, "not a complete videopanda checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, checkpoint, spoil, error, message):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    spoil(folder)
    with pytest.raises(error, match=message) as caught:
        load(folder)
    assert str(folder) in str(caught.value)


def test_missing_weights_are_never_made_up(tmp_path, checkpoint):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(checkpoint, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.stab.row_token")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="row_token"):
        load(folder)


def test_choices_of_frames_that_do_not_go_together_are_refused(loaded, path):
    """One of them was ignored."""
    encoded = Chat(*loaded, path).clip
    frames = Clip(clip(4), tuple(range(4)), 4.0)
    for video, options, said in (
        (encoded, {"start": 1.0}, "already encoded"),
        (encoded, {"num_frames": 2}, "already encoded"),
        (encoded, {"frames_by": "motion"}, "already encoded"),
        (path, {"frames_by": "motion", "max_visual_tokens": 200}, "omit fps, start, end, max_visual_tokens"),
        (path, {"frames_by": "motion", "last_frames": 2}, "omit fps, start, end, max_visual_tokens"),
        (path, {"frames_by": "motion", "num_frames": 0}, "at least 1"),
        (frames, {"frames_by": "motion"}, "already decoded"),
    ):
        with pytest.raises(ValueError, match=said):
            Chat(*loaded, video, **options)


def test_a_stream_that_is_closed_frees_its_chat(loaded, path):
    chat = Chat(*loaded, path, max_new_tokens=12)

    async def ask_twice() -> str:
        async with aclosing(chat.astream(QUESTIONS[0])) as pieces:
            async for _ in pieces:
                break
        return (await chat.aask(QUESTIONS[0])).answer

    assert coroutines.run(ask_twice()) == Chat(*loaded, path, max_new_tokens=12).ask(QUESTIONS[0]).answer
