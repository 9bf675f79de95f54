"""Protects ways of generation: every one gives the words of the plain one, or nearly the same numbers in fewer bits."""

import pytest
import torch
import torch.nn.functional as F

from videopanda.inference.answer import Chat, ask
from videopanda.inference.generation import Generation
from videopanda.inference.load import BUNDLED_MODEL, load
from videopanda.inference.quantize import QuantisedLinear, quantize, weight_bytes

CLIP = BUNDLED_MODEL.parent / "demo.mp4"
QUESTIONS = ["What shape is the red object?", "How many objects are there in total?", "Describe the clip."]


@pytest.fixture(scope="module")
def nano():
    return load(None, device="cpu")


@pytest.fixture(scope="module")
def plain(nano):
    return [answer.answer for answer in ask(*nano, CLIP, QUESTIONS)]


@pytest.mark.parametrize(
    "way",
    [
        Generation(static_cache=True),
        Generation(prompt_lookup=4),
        Generation(prefill_chunk=50),
        Generation(prefill_chunk=7),
    ],
)
def test_words_stay(nano, plain, way):
    assert [answer.answer for answer in ask(*nano, CLIP, QUESTIONS, generation=way)] == plain
    chat = Chat(*nano, CLIP, generation=way)
    assert [chat.ask_apart([question])[0].answer for question in QUESTIONS] == plain
    assert all(plain)


def test_chunks_are_what_the_language_model_reads(nano, monkeypatch):
    model, processor = nano
    language_model, lengths = model.model.language_model, []
    original = language_model.forward
    monkeypatch.setattr(
        language_model,
        "forward",
        lambda *args, **kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]) or original(*args, **kwargs),
    )
    ask(model, processor, CLIP, QUESTIONS[:1], max_new_tokens=1, generation=Generation(prefill_chunk=50))
    assert max(lengths) == 50


@pytest.mark.parametrize(
    "fields",
    [{"prompt_lookup": -1}, {"static_cache": True, "prefill_chunk": 8}, {"prompt_lookup": 2, "prefill_chunk": 8}],
)
def test_ways_that_do_not_go(fields):
    with pytest.raises(ValueError, match=r"0 for none|choose"):
        Generation(**fields)


@pytest.mark.parametrize(("bits", "size"), [("int8", 0.3), ("int4", 0.2)])
def test_weights_are_within_half_a_step(bits, size):
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 48)
    small = QuantisedLinear(linear, bits)
    steps = small.scale.float().squeeze(-1)
    error = (small.unpacked(torch.float32) - linear.weight).abs()
    assert (error <= 0.51 * steps.repeat_interleave(64 // steps.shape[1], 1)).all()  # scales are rounded too
    x = torch.randn(2, 5, 64)
    torch.testing.assert_close(small(x), F.linear(x, small.unpacked(torch.float32), linear.bias))
    assert weight_bytes(small) < size * weight_bytes(linear)


@pytest.mark.parametrize(("bits", "bound", "size"), [("int8", 0.01, 0.5), ("int4", 0.12, 0.42)])
def test_fewer_bits(nano, plain, bits, bound, size):
    """Logits stay near, relative to their spread; memory falls; the words of easy questions stay."""
    model, processor = load(None, device="cpu")
    quantize(model, bits)
    assert weight_bytes(model) < size * weight_bytes(nano[0])  # measured: 0.449 and 0.368
    ids = torch.tensor([processor.tokenizer("USER: Describe the clip. ASSISTANT:")["input_ids"]])
    with torch.no_grad():
        exact, found = nano[0](input_ids=ids).logits, model(input_ids=ids).logits
    error = ((found - exact).norm() / (exact - exact.mean(-1, keepdim=True)).norm()).item()
    assert error <= bound  # measured: 0.0046 and 0.070
    assert ask(model, processor, CLIP, QUESTIONS[:1])[0].answer == plain[0]


def test_unknown_bits(nano):
    with pytest.raises(ValueError, match="int8 or int4, not 'int3'"):
        quantize(nano[0], "int3")
