"""Protects quantized weights: nearly the same numbers in fewer bits."""

import pytest
import torch

from tiny import tiny_model
from videopanda.inference.answer import ask
from videopanda.inference.load import BUNDLED_MODEL, load
from videopanda.inference.quantize import quantize, weight_bytes

CLIP = BUNDLED_MODEL.parent / "demo.mp4"
QUESTIONS = ["What shape is the red object?", "How many objects are there in total?", "Describe the clip."]


@pytest.fixture(scope="module")
def nano():
    return load(None, device="cpu")


@pytest.fixture(scope="module")
def plain(nano):
    return [answer.answer for answer in ask(*nano, CLIP, QUESTIONS)]


@pytest.mark.parametrize(("bits", "bound", "size"), [("int8", 0.01, 0.5), ("int4", 0.12, 0.42)])
def test_fewer_bits(nano, plain, bits, bound, size):
    """Logits stay near, relative to their spread; memory falls; the words of easy questions stay."""
    model, processor = load(None, device="cpu")
    quantize(model, bits)
    assert weight_bytes(model) < size * weight_bytes(nano[0])  # measured: 0.448 and 0.359
    ids = torch.tensor([processor.tokenizer("USER: Describe the clip. ASSISTANT:")["input_ids"]])
    with torch.no_grad():
        exact, found = nano[0](input_ids=ids).logits, model(input_ids=ids).logits
    error = ((found - exact).norm() / (exact - exact.mean(-1, keepdim=True)).norm()).item()
    assert error <= bound  # measured: 0.0051 and 0.108
    assert ask(model, processor, CLIP, QUESTIONS[:1])[0].answer == plain[0]


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_rows_do_not_know_of_each_other(bits):
    """A batch gives what each of its rows gives alone."""
    torch.manual_seed(0)
    model = tiny_model()
    quantize(model, bits)
    ids = torch.randint(5, 200, (3, 7))
    with torch.no_grad():
        together = model(input_ids=ids).logits
        alone = torch.cat([model(input_ids=row[None]).logits for row in ids])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)  # measured: 0


def test_unknown_bits(nano):
    with pytest.raises(ValueError, match="int8 or int4, got 'int3'"):
        quantize(nano[0], "int3")
