"""Protects quantized weights: nearly the same numbers in fewer bits."""

import pytest
import torch
import torch.nn.functional as F

from videopanda.inference.answer import ask
from videopanda.inference.load import BUNDLED_MODEL, load
from videopanda.inference.quantize import QuantizedLinear, quantize, weight_bytes

CLIP = BUNDLED_MODEL.parent / "demo.mp4"
QUESTIONS = ["What shape is the red object?", "How many objects are there in total?", "Describe the clip."]


@pytest.fixture(scope="module")
def nano():
    return load(None, device="cpu")


@pytest.fixture(scope="module")
def plain(nano):
    return [answer.answer for answer in ask(*nano, CLIP, QUESTIONS)]


@pytest.mark.parametrize(("bits", "size"), [("int8", 0.3), ("int4", 0.2)])
def test_weights_are_within_half_a_step(bits, size):
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 48)
    small = QuantizedLinear(linear, bits)
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
    with pytest.raises(ValueError, match="int8 or int4, got 'int3'"):
        quantize(nano[0], "int3")
