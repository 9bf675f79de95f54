"""Protects the engine: answers of the library in any company, clips read once, everybody gets an end."""

import json
import queue
import threading
from dataclasses import replace

import pytest
import torch
from backbones import backbone_model
from engine_helpers import Asked, ask_for, by_transformers, finished

from tiny import TEXT, clip, tiny_model, tiny_processor
from videopanda.data.worlds.scenes.dataset import Clip
from videopanda.inference import engine as engine_module
from videopanda.inference.answer import ask, build_prompt, question_messages
from videopanda.inference.batch import Batch
from videopanda.inference.clip import ClipMemoryCache, encode_clips, prepare_clips
from videopanda.inference.engine import Engine, Limits
from videopanda.inference.engine_thread import EngineThread
from videopanda.inference.errors import EngineStoppedError, QueueFullError
from videopanda.inference.load import BUNDLED_MODEL, load
from videopanda.inference.request import Failed, GenerateRequest, TextDelta
from videopanda.inference.sampling import Sampler, Sampling
from videopanda.plan.planner import DoesNotFitError, planner_for
from videopanda.video.read import read_video

QUESTIONS = ["What colour is the circle?", "How many?", "Which way does the red circle move after it was green?"]


def frames(seed=0, number=8, height=30, width=40):
    return Clip(clip(number, height, width, seed), tuple(range(number)), 8.0)


def prepared(processor, key="one", kind="video", **kwargs):
    """A clip that is not encoded yet."""
    (clip_,) = prepare_clips(processor, [frames(**kwargs)], kind, [key])
    return clip_


@pytest.fixture(scope="module")
def loaded():
    return tiny_model(), tiny_processor()


@pytest.fixture
def engine(loaded):
    engine = EngineThread(*loaded)
    yield engine
    engine.close()


# -- answers -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", TEXT)
def test_replies_from_many_threads_are_those_of_the_library(text):
    model, processor = tiny_model(text=text), tiny_processor()
    videos = {"wide": frames(0), "tall": frames(1, height=40, width=20), "long": frames(2, number=12)}
    clips = dict(zip(videos, encode_clips(model, processor, list(videos.values()))))
    lengths = [3, 12, 1, 7]
    cases = [(text_, key) for key in videos for text_ in QUESTIONS] * 2 + [("Why?", None)] * 4
    wanted = []
    for number, (text_, key) in enumerate(cases):
        shown = [clips[key]] if key else []
        request = ask_for(processor, text_, *shown, max_new_tokens=lengths[number % 4])
        wanted += finished(Engine(model, processor), [request])
    engine = EngineThread(model, processor, Limits(max_num_seqs=5, cache_bytes=1 << 30))
    fresh = {key: prepare_clips(processor, [video], keys=[key])[0] for key, video in videos.items()}
    asked = []
    for number, (text_, key) in enumerate(cases):
        shown = [fresh[key]] if key else []
        asked.append(Asked(engine, ask_for(processor, text_, *shown, max_new_tokens=lengths[number % 4])))
    ends = [one.end() for one in asked]
    assert [end.token_ids for end in ends] == [end.token_ids for end in wanted]
    assert [end.text for end in ends] == [end.text for end in wanted]
    assert len({end.text for end in wanted}) > 4
    engine.close()


def test_a_reply_ends_at_its_end_token():
    """With every sixth token an end token, replies stop early and sequences leave at different times."""
    model, processor = tiny_model(), tiny_processor()
    model.generation_config.eos_token_id = list(range(5, len(processor.tokenizer), 6))
    (encoded,) = encode_clips(model, processor, [frames()])
    texts = [f"What is {number}?" for number in range(12)]
    wanted = [by_transformers(model, processor, text, frames(), max_new_tokens=24) for text in texts]
    ends = finished(Engine(model, processor), [ask_for(processor, text, encoded, max_new_tokens=24) for text in texts])
    assert [end.token_ids for end in ends] == wanted
    assert len({end.stats.completion_tokens for end in ends}) > 3
    assert {end.finish_reason for end in ends} >= {"stop"}


def test_the_bundled_model_answers_as_the_command_does():
    model, processor = load(None, device="cpu")
    path = BUNDLED_MODEL.parent / "demo.mp4"
    demo = [item["question"] for item in json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["questions"]]
    wanted = [ask(model, processor, path, [text])[0].answer for text in demo]
    engine = EngineThread(model, processor)
    (clip_,) = prepare_clips(processor, [read_video(path, num_frames=8)], keys=["demo"])
    ends = [Asked(engine, ask_for(processor, text, clip_)) for text in demo]
    assert [one.end().text for one in ends] == wanted
    engine.close()


def test_several_clips_and_an_image(engine, loaded):
    """Two clips and an image in one conversation, in any order, as the processor and `generate` see them."""
    model, processor = loaded
    picture = clip(1, 30, 40, 9)
    parts = [{"type": "video"}, {"type": "image"}, {"type": "video"}, {"type": "text", "text": "Which?"}]
    messages = [{"role": "user", "content": parts}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[text], videos=[frames(0), frames(1)], images=[picture[0]], return_tensors="pt")
    output = model.generate(**{k: v for k, v in inputs.items() if isinstance(v, torch.Tensor)}, max_new_tokens=9)
    wanted = processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    image = prepared(processor, "picture", "image", seed=9, number=1)
    shown = [prepared(processor, "a", seed=0), image, prepared(processor, "b", seed=1)]
    for _ in range(2):  # the second time from the kept prefix
        end = Asked(engine, GenerateRequest(build_prompt(processor, messages, shown), shown, 9)).end()
        assert end.text == wanted
    with pytest.raises(ValueError, match="shows video, image, video, but got image, video, video"):
        build_prompt(processor, messages, [image, shown[0], shown[2]])
    with pytest.raises(ValueError, match="shows nothing, but got image"):
        build_prompt(processor, question_messages(processor, "What?", has_video=False), [image])


def test_a_clip_is_encoded_and_prefilled_once(engine, loaded, monkeypatch):
    _, processor = loaded
    shown = prepared(processor)
    encoded, lengths = [], []
    stab, language = engine.model.model.stab, engine.model.model.language_model
    originals = stab.forward, language.forward
    monkeypatch.setattr(stab, "forward", lambda *a, **k: encoded.append(1) or originals[0](*a, **k))
    monkeypatch.setattr(
        language, "forward", lambda *a, **k: lengths.append(k["inputs_embeds"].shape[1]) or originals[1](*a, **k)
    )
    first = Asked(engine, ask_for(processor, "What?", shown)).end()
    assert engine.clips.get("one") is shown
    assert shown.inputs is None
    assert engine.clips.num_bytes == shown.num_bytes > shown.tokens.nbytes
    count = len(lengths)
    second = Asked(engine, ask_for(processor, "And how many?", shown)).end()
    assert len(encoded) == 1
    assert max(lengths[:count]) > first.stats.visual_tokens > 10 * max(lengths[count:])
    assert first.stats.cached_tokens == 0
    assert second.stats.cached_tokens > second.stats.visual_tokens == first.stats.visual_tokens
    assert set(second.stats.seconds) == {"decode", "queue", "encode", "prefill", "generate"}


# -- kept prefixes -----------------------------------------------------------------------------------------------------
def test_a_prefix_is_used_only_after_the_same_text_and_clips(loaded):
    """What stands before a clip changes its keys and values: they must not be used after other words."""
    model, processor = loaded
    first, second = encode_clips(model, processor, [frames(0), frames(1)])
    engine = Engine(model, processor, keep_prefixes=True)

    def request(before, *clips):
        content = [{"type": "text", "text": before}, *({"type": "video"} for _ in clips), {"type": "text", "text": "?"}]
        return GenerateRequest(build_prompt(processor, [{"role": "user", "content": content}], clips), clips, 12)

    # As many tokens before the clip, but other ones; another clip before it; nothing before it.
    words = ("zzzzqqqqzz", "jjjjkkkkjj")
    requests = [request(word, first) for word in (*words, "")] + [request(words[0], second, first)]
    assert len(requests[0].prompt_ids) == len(requests[1].prompt_ids)
    wanted = [finished(Engine(model, processor), [one])[0].token_ids for one in requests]
    assert len(set(wanted)) == 4
    for _ in range(2):
        found = [finished(engine, [one])[0] for one in requests]
        assert [one.token_ids for one in found] == wanted


def test_a_clip_keeps_two_prefixes_at_most(loaded):
    model, processor = loaded
    (one,) = encode_clips(model, processor, [frames()])
    engine = Engine(model, processor, keep_prefixes=True)
    sizes = []
    for before in ("a", "b", "c", "d"):
        content = [{"type": "text", "text": before}, {"type": "video"}, {"type": "text", "text": "?"}]
        ids = build_prompt(processor, [{"role": "user", "content": content}], [one])
        finished(engine, [GenerateRequest(ids, [one], 2)])
        sizes.append(one.num_bytes)
    assert len(one.kv_prefixes) == 2
    assert 1.5 * sizes[0] < sizes[1] < 2.1 * sizes[0]
    assert max(sizes) < 1.01 * sizes[1]
    assert finished(engine, [GenerateRequest(ids, [one], 2)])[0].stats.cached_tokens > 0


# -- sampling and stop strings -----------------------------------------------------------------------------------------
def test_sampling_is_repeatable_and_alone_or_in_company_the_same(engine, loaded):
    _, processor = loaded
    shown = prepared(processor)

    def asked(seed, temperature=1.5, top_p=1.0):
        sampling = Sampling(temperature, top_p, seed)
        return Asked(engine, ask_for(processor, "What?", shown, max_new_tokens=12, sampling=sampling))

    alone = asked(7).end().token_ids
    together = [asked(seed) for seed in (7, 8, 9, None)]
    found = [one.end().token_ids for one in together]
    assert found[0] == alone
    assert len(set(found)) == 4
    greedy = Asked(engine, ask_for(processor, "What?", shown, max_new_tokens=12)).end().token_ids
    assert asked(3, top_p=1e-9).end().token_ids == greedy  # only the most probable token is left
    assert asked(3, temperature=1e-300).end().token_ids == greedy


def test_a_generation_config_is_obeyed_or_refused(loaded):
    model, processor = tiny_model(), tiny_processor()
    model.generation_config.repetition_penalty = 1.7
    wanted = by_transformers(model, processor, "What?", frames(), max_new_tokens=12)
    (one,) = encode_clips(model, processor, [frames()])
    request = ask_for(processor, "What?", one, max_new_tokens=12)
    assert finished(Engine(model, processor), [request])[0].token_ids == wanted
    plain = finished(Engine(*loaded), [request])[0].token_ids
    assert wanted != plain
    own = replace(request, sampling=Sampling(repetition_penalty=1.7))
    assert [end.token_ids for end in finished(Engine(*loaded), [own, request])] == [wanted, plain]
    model.generation_config.no_repeat_ngram_size = 2
    with pytest.raises(ValueError, match="no_repeat_ngram_size"):
        Engine(model, processor)


def test_placeholders_are_never_chosen(loaded):
    model, processor = loaded
    sampler = Sampler(model.generation_config)
    logits = torch.zeros(1, len(processor.tokenizer))
    logits[0, processor.video_token_id] = 9
    logits[0, 7] = 5
    sampling = Sampling()
    assert sampler(logits, [[1]], [sampling], [sampling.generator()]) == [7]


def test_stop_strings_end_a_reply(engine, loaded):
    _, processor = loaded
    whole = Asked(engine, ask_for(processor, "What?", max_new_tokens=16)).end()
    assert whole.finish_reason == "length"
    stop = whole.text[5:8]
    end = Asked(engine, ask_for(processor, "What?", max_new_tokens=16, stop=[stop])).end()
    assert end.finish_reason == "stop"
    assert end.text == whole.text[: whole.text.index(stop)].strip()
    assert end.stats.completion_tokens < whole.stats.completion_tokens


# -- limits and ends ---------------------------------------------------------------------------------------------------
class Gate:
    """Holds the engine's thread at its next event."""

    def __init__(self, engine, processor):
        self.reached, self.open = threading.Event(), threading.Event()
        engine.submit(ask_for(processor, "What?", max_new_tokens=2), self)

    def __call__(self, event):
        self.reached.set()
        self.open.wait(120)


def test_the_queue_is_bounded_and_cancelled_requests_leave_it(loaded):
    _, processor = loaded
    engine = EngineThread(*loaded, Limits(max_queue=2))
    gate = Gate(engine, processor)
    gate.reached.wait(120)
    waiting = [Asked(engine, ask_for(processor, "How?", max_new_tokens=500)) for _ in range(2)]
    with pytest.raises(QueueFullError, match="2 requests"):
        Asked(engine, ask_for(processor, "Why?"))
    waiting[0].sequence.cancel()
    gate.open.set()
    assert isinstance(waiting[1].next(), TextDelta)
    waiting[1].sequence.cancel()  # while it is running
    assert Asked(engine, ask_for(processor, "Why?", max_new_tokens=3)).end().stats.completion_tokens <= 3
    assert waiting[0].events.empty()
    engine.close()
    assert engine.load == (0, 0)


def test_a_sequence_that_is_cancelled_leaves_the_others_as_they_are(engine, loaded):
    _, processor = loaded
    shown = prepared(processor)
    wanted = Asked(engine, ask_for(processor, "What?", shown, max_new_tokens=40)).end().token_ids
    long = Asked(engine, ask_for(processor, "A much longer question than the other one, is it?", max_new_tokens=900))
    assert isinstance(long.next(), TextDelta)
    other = Asked(engine, ask_for(processor, "What?", shown, max_new_tokens=40))
    assert isinstance(other.next(), TextDelta)
    long.sequence.cancel()
    assert other.end().token_ids == wanted


def test_the_batch_never_holds_more_than_it_may(loaded, monkeypatch):
    model, processor = loaded
    engine = Engine(model, processor, Limits(max_num_seqs=4, max_kv_tokens=700))
    held = []
    step = Batch.step

    def measured(batch, ids):
        logits = step(batch, ids)
        held.append(len(batch.sequences) * batch.columns)
        return logits

    monkeypatch.setattr(Batch, "step", measured)
    requests = [ask_for(processor, text * 3, max_new_tokens=60) for text in QUESTIONS * 3]
    assert all(one.stats.completion_tokens == 60 for one in finished(engine, requests))
    assert 300 < max(held) <= 700
    with pytest.raises(DoesNotFitError, match="use fewer frames"):
        engine.submit(ask_for(processor, "What?", max_new_tokens=700), print)


def test_memory_is_counted_as_it_is_used():
    """Layers with a window keep all positions here, and states take no more for longer sequences."""
    for name, states in (("mistral", 0), ("lfm2", 1)):
        model, processor = backbone_model(name), tiny_processor()
        per_token, per_sequence = planner_for(model, processor.video_processor).sequence_bytes()
        (one,) = encode_clips(model, processor, [frames()])
        engine = Engine(model, processor, keep_prefixes=True)
        finished(engine, [ask_for(processor, "What?", one, max_new_tokens=2)])
        (kept,) = one.kv_prefixes.values()
        assert kept.num_bytes == kept.columns * per_token + per_sequence
        assert bool(per_sequence) == bool(states)


def test_a_clip_that_does_not_fit_is_refused_before_it_is_encoded(engine, loaded, monkeypatch):
    _, processor = loaded
    long = prepared(processor, number=200)
    with pytest.raises(DoesNotFitError, match="a prompt of"):
        Asked(engine, ask_for(processor, "What?", long))
    monkeypatch.setattr("videopanda.inference.clip.budget", lambda model: 1 << 20)
    with pytest.raises(DoesNotFitError, match="of memory"):
        Asked(engine, ask_for(processor, "What?", prepared(processor))).end()
    assert long.tokens is None
    poor = EngineThread(*loaded, Limits(max_num_seqs=1 << 30, cache_bytes=1 << 30))
    rich = EngineThread(*loaded, Limits(max_num_seqs=1 << 30, cache_bytes=0))
    assert poor.max_kv_tokens < rich.max_kv_tokens
    poor.close()
    rich.close()


def test_a_failing_request_fails_alone(loaded, monkeypatch):
    """A prompt that cannot be prefilled takes the others of its group with it only once."""
    model, processor = loaded
    prefill = engine_module.prefill

    def failing(model, layout, prompts):
        if any(len(prompt.ids) == len(bad.prompt_ids) for prompt in prompts):
            raise RuntimeError("out of memory")
        return prefill(model, layout, prompts)

    monkeypatch.setattr(engine_module, "prefill", failing)
    bad = ask_for(processor, "Is this the one question that fails?", max_new_tokens=5)
    good = [ask_for(processor, text, max_new_tokens=5) for text in QUESTIONS]
    results = Engine(model, processor).generate([*good[:2], bad, good[2]])
    assert [isinstance(result, Failed) for result in results] == [False, False, True, False]
    assert [result.token_ids for result in finished(Engine(model, processor), good)] == [
        results[place].token_ids for place in (0, 1, 3)
    ]


def test_a_callback_that_fails_ends_its_sequence_only(engine, loaded):
    _, processor = loaded
    good = Asked(engine, ask_for(processor, "What?", max_new_tokens=30))

    def broken(event):
        raise RuntimeError("nobody is there")

    engine.submit(ask_for(processor, "What?", max_new_tokens=30), broken)
    assert good.end().stats.completion_tokens == 30
    assert Asked(engine, ask_for(processor, "What?", max_new_tokens=3)).end().text


@pytest.mark.parametrize("method", ["step", "join", "keep"])
def test_a_step_that_fails_ends_its_sequences_and_the_engine_continues(engine, loaded, monkeypatch, method):
    _, processor = loaded

    def fail(*args):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Batch, method, fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            Asked(engine, ask_for(processor, "What?", max_new_tokens=30)).end()
    assert Asked(engine, ask_for(processor, "What?", max_new_tokens=3)).end().text
    assert engine.is_alive


def test_a_crash_fails_every_request_and_gives_its_reason(loaded, monkeypatch):
    _, processor = loaded
    reasons = queue.SimpleQueue()
    engine = EngineThread(*loaded, on_crash=reasons.put)
    gate = Gate(engine, processor)
    gate.reached.wait(120)
    waiting = Asked(engine, ask_for(processor, "What?", max_new_tokens=30))

    def crash(self):
        raise EngineStoppedError("the device no longer works")

    monkeypatch.setattr(EngineThread, "_admit", crash)
    gate.open.set()
    with pytest.raises(EngineStoppedError):
        waiting.end()
    assert "the device no longer works" in str(reasons.get(timeout=120))
    assert not engine.is_alive
    with pytest.raises(EngineStoppedError):
        Asked(engine, ask_for(processor, "What?"))


@pytest.mark.parametrize("drain", [True, False])
def test_closing_ends_every_request(loaded, drain):
    _, processor = loaded
    engine = EngineThread(*loaded, Limits(max_num_seqs=2))
    wanted = Asked(engine, ask_for(processor, "What?", max_new_tokens=150)).end().token_ids
    asked_ = [Asked(engine, ask_for(processor, "What?", max_new_tokens=150)) for _ in range(4)]
    assert isinstance(asked_[0].next(), TextDelta)
    engine.close(drain=drain)
    assert not engine.is_alive
    with pytest.raises(EngineStoppedError):
        Asked(engine, ask_for(processor, "What?"))
    for one in asked_:
        if drain:
            assert one.end().token_ids == wanted
        else:
            with pytest.raises(EngineStoppedError):
                one.end()


def test_the_cache_evicts_the_least_recently_used(loaded):
    _, processor = loaded
    cache = ClipMemoryCache(3 * prepared(processor).num_bytes)
    for key in "abc":
        cache.put(prepared(processor, key))
    cache.get("a")
    cache.put(prepared(processor, "d"))
    assert [key for key in "abcd" if cache.get(key)] == ["a", "c", "d"]
    assert cache.num_bytes <= cache.max_bytes
    cache.put(prepared(processor, "huge", number=100))
    assert len(cache) == 0
