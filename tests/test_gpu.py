"""What only a GPU can show; `make test-gpu` runs this and names what was not run where there is none.

Everything is compared with the CPU in float32. Tolerances marked "CPU" were measured there, on the same code.
"""

from copy import deepcopy

import pytest
import torch

from tiny import clip, tiny_model, tiny_processor
from tiny_elva import batch, elva, frames, model_inputs
from videopanda.inference.answer import ask
from videopanda.inference.load import BUNDLED_MODEL, load
from videopanda.models.state_space import Mamba, Mamba2

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]
DEVICE = "cuda"
CLIP = BUNDLED_MODEL.parent / "demo.mp4"
TEXT = "USER: <video>\nWhat moves? ASSISTANT: The circle."


@pytest.fixture(autouse=True)
def exact_products(monkeypatch):
    """float32 stays float32, also in convolutions."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(params=["released", "paper"])
def pair(request):
    """A model and a batch of two clips of different shapes, on the CPU."""
    model, processor = tiny_model(request.param), tiny_processor(request.param)
    inputs = processor(text=[TEXT, TEXT], videos=[clip(8, 30, 40), clip(5, 40, 24, seed=1)])
    return model, dict(inputs)


def moved(inputs, dtype=torch.float32):
    return {name: x.to(DEVICE, dtype if x.is_floating_point() else None) for name, x in inputs.items()}


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits.float().cpu()[inputs["attention_mask"].bool().cpu()]


def relative(found, exact):
    return ((found - exact).norm() / (exact - exact.mean(-1, keepdim=True)).norm()).item()


def test_parity(pair):
    model, inputs = pair
    exact = logits(model, inputs)
    assert relative(logits(model.to(DEVICE), moved(inputs)), exact) <= 1e-4


def test_bfloat16(pair):
    model, inputs = pair
    exact = logits(model, inputs)
    found = logits(model.to(DEVICE, torch.bfloat16), moved(inputs, torch.bfloat16))
    assert relative(found, exact) <= 0.1  # CPU: 0.016


def test_compiled(pair):
    """The vision modules, as `bench efficiency --compile` and training compile them."""
    model, inputs = pair
    exact, inputs = logits(model, inputs), moved(inputs)
    for module in model.to(DEVICE).vision_modules().values():
        module.compile()
    assert relative(logits(model, inputs), exact) <= 1e-4


def test_training_steps(pair):
    """The gradients of the CPU in every module, and a loss that falls."""
    model, inputs = pair
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == model.config.video_token_id, -100)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # devices draw different random numbers
    there = deepcopy(model).to(DEVICE)
    model(**inputs).loss.backward()
    optimizer = torch.optim.AdamW(there.parameters(), lr=1e-2)
    losses = []
    for step in range(5):
        loss = there(**moved(inputs)).loss
        loss.backward()
        if step == 0:
            pairs = [(a.grad, b.grad) for a, b in zip(model.parameters(), there.parameters()) if a.grad is not None]
            scale = torch.stack([a.norm() for a, _ in pairs]).max()
            assert max((a - b.cpu()).norm() / scale for a, b in pairs) <= 1e-4
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]  # CPU: 0.41 and 0.83


def test_generation():
    """The bundled model in float32 gives the words of the CPU, one by one and in a batch."""
    questions = ["What shape is the red object?", "How many objects are there in total?", "Describe the clip."]
    model, processor = load(None, device="cpu")
    expected = [answer.answer for answer in ask(model, processor, CLIP, questions, max_new_tokens=24)]
    model = model.to(DEVICE, torch.float32)
    assert [answer.answer for answer in ask(model, processor, CLIP, questions, max_new_tokens=24)] == expected
    assert [ask(model, processor, CLIP, [text], max_new_tokens=24)[0].answer for text in questions] == expected


@pytest.mark.parametrize("variant", [{}, {"frame_attention": "both", "modality_split": "norm+ffn"}])
def test_merging(variant):
    """A batch of clips of different lengths merges on the GPU as on the CPU: logits, and the tokens of `generate`."""
    model, processor = elva(merge={"layers": [1, 2]}, **variant)
    inputs = model_inputs(batch(processor, [frames(1), frames(2, 3)], ["How many?", "Which way does it go?"]))
    exact, expected = logits(model, inputs), model.generate(**inputs, max_new_tokens=8, do_sample=False)
    model, inputs = model.to(DEVICE), moved(inputs)
    assert relative(logits(model, inputs), exact) <= 1e-4
    assert torch.equal(model.generate(**inputs, max_new_tokens=8, do_sample=False).cpu(), expected)


@pytest.mark.parametrize("kind", [Mamba, Mamba2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_of_mamba_ssm(kind, dtype, monkeypatch):
    """Values and gradients of the mixers with the kernels are those of plain torch, also in chunks."""
    pytest.importorskip("mamba_ssm")
    torch.manual_seed(0)
    mixer, x = kind(64).to(DEVICE, dtype), torch.randn(2, 300, 64, device=DEVICE, dtype=dtype)

    def made():
        y, _ = mixer(x)
        with torch.no_grad():
            state, parts = None, []
            for part in x.split(150, dim=1):
                z, state = mixer(part, state)
                parts.append(z)
        return y, torch.autograd.grad(y.float().square().sum(), mixer.parameters()), torch.cat(parts, 1)

    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"  # or float32 would not take the kernel of Mamba-2
        y, gradients, chunked = made()
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    monkeypatch.setattr("videopanda.models.state_space.kernels_for", lambda x: None)
    exact, expected, _ = made()
    least = 1e-5 if (kind, dtype) == (Mamba, torch.float32) else 2e-2  # TF32 or bfloat16; not measured yet
    for found, right in [(y, exact), (chunked, exact), *zip(gradients, expected)]:
        assert (found - right).float().norm() <= least * right.float().norm()
