"""Protects the engine: answers of the library in any company, clips read once, everybody gets an end."""

import json
import threading

import pytest
import torch
from engine_helpers import Asked

from tiny import TEXT, clip, tiny_model, tiny_processor
from videopanda.data.worlds.scenes.dataset import Clip
from videopanda.inference.answer import ask, encode, question_messages, reply
from videopanda.inference.clip_cache import Visual, VisualCache
from videopanda.inference.engine import Engine, Failed, Limits, Piece, Question
from videopanda.inference.sampling import Sampling, TextStream
from videopanda.serving.errors import BusyError, ContextLengthError, StoppedError, UnfitError

QUESTIONS = ["What colour is the circle?", "How many?", "Which way does the red circle move after it was green?"]


def frames(seed=0, number=8, height=30, width=40):
    return Clip(clip(number, height, width, seed), tuple(range(number)), 8.0)


def visual(key="one", **kwargs):
    return Visual(key, False, frames(**kwargs))


@pytest.fixture(scope="module")
def loaded():
    return tiny_model(), tiny_processor()


@pytest.fixture
def engine(loaded):
    engine = Engine(*loaded)
    yield engine
    engine.close()


def question(processor, text, *visuals, **fields):
    return Question(question_messages(processor, text, has_video=bool(visuals)), visuals, **fields)


# -- answers -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", TEXT)
def test_answers_in_company_are_those_of_the_library(text):
    model, processor = tiny_model(text=text), tiny_processor()
    clips = {"wide": frames(0), "tall": frames(1, height=40, width=20), "long": frames(2, number=12)}
    encoded = dict(zip(clips, encode(model, processor, list(clips.values()))))
    lengths = [3, 12, 1, 7]
    cases = [(text_, key) for key in clips for text_ in QUESTIONS] * 2 + [("Why?", None)] * 4
    wanted = []
    for number, (text_, key) in enumerate(cases):
        prompt = question_messages(processor, text_, has_video=key is not None), encoded.get(key)
        wanted += reply(model, processor, [prompt], lengths[number % 4])
    engine = Engine(model, processor, Limits(max_rows=5))
    asked = []
    for number, (text_, key) in enumerate(cases):
        seen = [engine.visuals.get(key) or Visual(key, False, clips[key])] if key else []
        asked.append(Asked(engine, question(processor, text_, *seen, max_new_tokens=lengths[number % 4])))
    assert [one.end().text for one in asked] == wanted
    assert len(set(wanted)) > 4
    engine.close()


def test_a_reply_ends_where_the_library_ends_it(loaded):
    """With every second token an end token, replies stop early and rows leave at different times."""
    model, processor = tiny_model(), tiny_processor()
    model.generation_config.eos_token_id = list(range(5, len(processor.tokenizer), 6))
    (encoded,) = encode(model, processor, [frames()])
    texts = [f"What is {number}?" for number in range(12)]
    prompts = [question_messages(processor, text) for text in texts]
    wanted = [reply(model, processor, [(prompt, encoded)], 24)[0] for prompt in prompts]
    engine, seen = Engine(model, processor), visual()
    asked_ = [Asked(engine, question(processor, text, seen, max_new_tokens=24)) for text in texts]
    ends = [one.end() for one in asked_]
    engine.close()
    assert [end.text for end in ends] == wanted
    assert len({end.record.completion_tokens for end in ends}) > 3
    assert {end.reason for end in ends} >= {"stop"}


def test_the_bundled_model_answers_as_the_command_does():
    from videopanda.inference.load import BUNDLED_MODEL, load
    from videopanda.video.read import read_video

    model, processor = load(None, device="cpu")
    path = BUNDLED_MODEL.parent / "demo.mp4"
    demo = [item["question"] for item in json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["questions"]]
    wanted = [ask(model, processor, path, [text])[0].answer for text in demo]
    engine = Engine(model, processor)
    seen = Visual("demo", False, read_video(path, num_frames=8))
    ends = [Asked(engine, question(processor, text, seen)) for text in demo]
    assert [one.end().text for one in ends] == wanted
    engine.close()


def test_several_visuals_and_an_image(engine, loaded):
    """Two clips and an image in one conversation, in any order, as the processor and `generate` see them."""
    model, processor = loaded
    picture = clip(1, 30, 40, 9)
    parts = [{"type": "video"}, {"type": "image"}, {"type": "video"}, {"type": "text", "text": "Which?"}]
    messages = [{"role": "user", "content": parts}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[text], videos=[frames(0), frames(1)], images=[picture[0]], return_tensors="pt")
    output = model.generate(**{k: v for k, v in inputs.items() if isinstance(v, torch.Tensor)}, max_new_tokens=9)
    wanted = processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    image = Visual("picture", True, Clip(picture, (0,), 1.0))
    for _ in range(2):  # the second time from what is remembered
        seen = [visual("a", seed=0), image, visual("b", seed=1)]
        end = Asked(engine, Question(messages, seen, max_new_tokens=9)).end()
        assert end.text == wanted


def test_a_clip_is_encoded_and_read_once(engine, loaded, monkeypatch):
    _, processor = loaded
    seen = visual()
    encoded, lengths = [], []
    stab, language = engine.model.model.stab, engine.model.model.language_model
    originals = stab.forward, language.forward
    monkeypatch.setattr(stab, "forward", lambda *a, **k: encoded.append(1) or originals[0](*a, **k))
    monkeypatch.setattr(
        language, "forward", lambda *a, **k: lengths.append(k["inputs_embeds"].shape[1]) or originals[1](*a, **k)
    )
    first = Asked(engine, question(processor, "What?", seen)).end()
    assert engine.visuals.get("one") is seen
    assert seen.video is None
    count = len(lengths)
    second = Asked(engine, question(processor, "And how many?", seen)).end()
    assert len(encoded) == 1
    assert max(lengths[:count]) > first.record.visual_tokens > 10 * max(lengths[count:])
    assert first.record.known_tokens == 0
    assert second.record.known_tokens > second.record.visual_tokens == first.record.visual_tokens
    assert set(second.record.seconds) == {"decode", "queue", "encode", "prefill", "generate"}


# -- choosing tokens, text ---------------------------------------------------------------------------------------------
def test_sampling_is_repeatable_and_alone_or_in_company_the_same(engine, loaded):
    _, processor = loaded
    seen = visual()

    def asked(seed, temperature=1.5, top_p=1.0):
        sampling = Sampling(temperature, top_p, seed)
        return Asked(engine, question(processor, "What?", seen, max_new_tokens=12, sampling=sampling))

    alone = asked(7).end().text
    together = [asked(seed) for seed in (7, 8, 9, None)]
    texts = [one.end().text for one in together]
    assert texts[0] == alone
    assert len(set(texts)) == 4
    greedy = Asked(engine, question(processor, "What?", seen, max_new_tokens=12)).end().text
    assert asked(3, top_p=1e-9).end().text == greedy  # only the most probable token is left


def test_a_generation_config_is_obeyed_or_refused(loaded):
    model, processor = tiny_model(), tiny_processor()
    model.generation_config.repetition_penalty = 1.7
    (encoded,) = encode(model, processor, [frames()])
    (wanted,) = reply(model, processor, [(question_messages(processor, "What?"), encoded)], 12)
    assert wanted != reply(*loaded, [(question_messages(processor, "What?"), encoded)], 12)[0]
    engine = Engine(model, processor)
    assert Asked(engine, question(processor, "What?", visual(), max_new_tokens=12)).end().text == wanted
    engine.close()
    model.generation_config.no_repeat_ngram_size = 2
    with pytest.raises(ValueError, match="no_repeat_ngram_size"):
        Engine(model, processor)


def test_pieces_are_whole_characters_and_stop_strings_never_show():
    tokenizer = tiny_processor().tokenizer

    def pieces(text, *stops):
        stream = TextStream(tokenizer, stops)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        given = []
        for token in ids:
            given.append(stream.push(token))
            if stream.stopped:
                break
        return [*given, stream.finish()], stream

    given, stream = pieces("  A blue 🐼, naïve. \n ")
    assert "".join(given) == stream.text == "A blue 🐼, naïve."
    assert all("\ufffd" not in piece for piece in given)
    assert sum(piece != "" for piece in given) > 5
    given, stream = pieces("one two three four", "e tw", "four")
    assert "".join(given) == "on"
    assert stream.stopped
    given, stream = pieces("one two", "two three")
    assert "".join(given) == "one two"
    assert not stream.stopped
    given, _ = pieces("\nx", "\n")
    assert "".join(given) == ""


def test_stop_strings_end_a_reply(engine, loaded):
    _, processor = loaded
    whole = Asked(engine, question(processor, "What?", max_new_tokens=16)).end()
    assert whole.reason == "length"
    stop = whole.text[5:8]
    end = Asked(engine, question(processor, "What?", max_new_tokens=16, stops=[stop])).end()
    assert end.reason == "stop"
    assert end.text == whole.text[: whole.text.index(stop)].strip()
    assert end.record.completion_tokens < whole.record.completion_tokens


# -- limits and ends ---------------------------------------------------------------------------------------------------
class Gate:
    """Holds the engine's thread at its next event."""

    def __init__(self, engine, processor):
        self.reached, self.open = threading.Event(), threading.Event()
        engine.submit(question(processor, "What?", max_new_tokens=2), self)

    def __call__(self, event):
        self.reached.set()
        self.open.wait(120)


def test_the_queue_is_bounded_and_cancelled_questions_leave_it(loaded):
    _, processor = loaded
    engine = Engine(*loaded, Limits(max_waiting=2))
    gate = Gate(engine, processor)
    gate.reached.wait(120)
    waiting = [Asked(engine, question(processor, "How?", max_new_tokens=500)) for _ in range(2)]
    with pytest.raises(BusyError, match="2 questions"):
        Asked(engine, question(processor, "Why?"))
    waiting[0].job.cancel()
    gate.open.set()
    assert isinstance(waiting[1].next(), Piece)
    waiting[1].job.cancel()  # while it is running
    assert Asked(engine, question(processor, "Why?", max_new_tokens=3)).end().record.completion_tokens <= 3
    assert engine.load == (0, 0)
    assert waiting[0].events.empty()
    engine.close()


def test_a_row_that_is_cancelled_leaves_the_others_as_they_are(engine, loaded):
    _, processor = loaded
    wanted = Asked(engine, question(processor, "What?", visual(), max_new_tokens=40)).end().text
    long = Asked(engine, question(processor, "A much longer question than the other one, is it?", max_new_tokens=900))
    assert isinstance(long.next(), Piece)
    other = Asked(engine, question(processor, "What?", visual(), max_new_tokens=40))
    assert isinstance(other.next(), Piece)
    long.job.cancel()
    assert other.end().text == wanted


def test_the_batch_never_holds_more_than_it_may(loaded, monkeypatch):
    model, processor = loaded
    engine = Engine(model, processor, Limits(max_rows=4, max_positions=700))
    held = []
    step = engine._batch.step
    monkeypatch.setattr(
        engine._batch, "step", lambda: held.append(len(engine._batch.rows) * (engine._batch.positions + 1)) or step()
    )
    asked_ = [Asked(engine, question(processor, text * 3, max_new_tokens=60)) for text in QUESTIONS * 3]
    assert all(one.end().record.completion_tokens == 60 for one in asked_)
    assert 300 < max(held) <= 700
    assert Asked(engine, question(processor, "What?", max_new_tokens=800)).end().record.completion_tokens < 700
    with pytest.raises(ContextLengthError, match="use fewer frames"):
        Asked(engine, question(processor, "word " * 700)).end()
    engine.close()


def test_a_clip_that_does_not_fit_is_refused_before_it_is_encoded(engine, loaded, monkeypatch):
    _, processor = loaded
    long = visual(number=200)
    with pytest.raises(ContextLengthError, match=r"at most [0-9]+ frames fit"):
        Asked(engine, question(processor, "What?", long)).end()
    monkeypatch.setattr("videopanda.inference.engine.budget", lambda model: 1 << 20)
    with pytest.raises(UnfitError, match="of memory"):
        Asked(engine, question(processor, "What?", visual())).end()
    assert long.encoded is None
    poor = Engine(*loaded, Limits(cache_bytes=0))
    assert poor.max_positions < engine.max_positions
    poor.close()


def test_a_failing_question_fails_alone(engine, loaded):
    _, processor = loaded
    good = Asked(engine, question(processor, "What?", max_new_tokens=30))
    broken = Asked(engine, Question([{"role": "nobody", "content": "?"}]))
    event = broken.next()
    assert isinstance(event, Failed)
    assert good.end().record.completion_tokens == 30


def test_a_step_that_fails_ends_its_jobs_and_the_engine_goes_on(engine, loaded, monkeypatch):
    _, processor = loaded

    def fail():
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine._batch, "step", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        Asked(engine, question(processor, "What?", max_new_tokens=30)).end()
    assert Asked(engine, question(processor, "What?", max_new_tokens=3)).end().text


@pytest.mark.parametrize("drain", [True, False])
def test_closing_ends_every_question(loaded, drain):
    _, processor = loaded
    engine = Engine(*loaded, Limits(max_rows=2))
    wanted = Asked(engine, question(processor, "What?", max_new_tokens=150)).end().text
    asked_ = [Asked(engine, question(processor, "What?", max_new_tokens=150)) for _ in range(4)]
    assert isinstance(asked_[0].next(), Piece)
    engine.close(drain=drain)
    assert not engine.is_alive
    with pytest.raises(StoppedError):
        Asked(engine, question(processor, "What?"))
    for one in asked_:
        if drain:
            assert one.end().text == wanted
        else:
            with pytest.raises(StoppedError):
                one.end()


def test_the_cache_forgets_what_was_used_longest_ago():
    cache = VisualCache(3 * visual().num_bytes)
    for key in "abc":
        cache.put(visual(key))
    cache.get("a")
    cache.put(visual("d"))
    assert [key for key in "abcd" if cache.get(key)] == ["a", "c", "d"]
    assert cache.num_bytes <= cache.max_bytes
    cache.put(visual("huge", number=100))
    assert len(cache) == 0
