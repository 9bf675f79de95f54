"""Protects the loss that is computed in parts: the value and the gradients of the plain one, without all logits."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tiny import tiny_config, tiny_model, tiny_text_config
from videopanda.models.videopanda import VideoPandaConfig, VideoPandaForConditionalGeneration

# Float32, relative to the largest gradient. Measured worst: 4.9e-7.
TOLERANCE = 1e-6
SOFT_CAP = {"head_dim": 12, "final_logit_softcapping": 2.0}
WORDS, WIDTH = 3000, 48


def model_of(kind: str) -> VideoPandaForConditionalGeneration:
    """A model with a head that shares its weights with the embedding."""
    text = {**tiny_text_config("llama"), "model_type": kind, "vocab_size": WORDS, "tie_word_embeddings": True}
    text |= SOFT_CAP if kind == "gemma3_text" else {}
    torch.manual_seed(0)
    config = tiny_config("paper").to_dict() | {"text_config": text, "tie_word_embeddings": True}
    return VideoPandaForConditionalGeneration(VideoPandaConfig(**config)).train()


def gradients(model, **given) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, WORDS, (3, 40), generator=generator)
    labels = ids.masked_fill(torch.rand(ids.shape, generator=generator) < 0.3, -100)
    hidden = model.model(input_ids=ids).last_hidden_state
    loss = model.answer_loss(hidden, labels, **given)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
@pytest.mark.parametrize("num_items", [None, 50])
def test_parts_are_the_whole(kind, num_items):
    model = model_of(kind)
    whole, expected = gradients(model, num_items=num_items)
    parts, found = gradients(model, num_items=num_items, most_logits=9 * WORDS)
    assert parts == pytest.approx(whole, rel=TOLERANCE)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= TOLERANCE * gradient.abs().max(), name


def test_a_soft_cap_is_applied_in_every_part():
    """The comparison above would hold, too, if nobody applied it."""
    model = model_of("gemma3_text")
    capped, _ = gradients(model, most_logits=9 * WORDS)
    model.config.text_config.final_logit_softcapping = None
    free, _ = gradients(model, most_logits=9 * WORDS)
    assert abs(capped - free) > 1e-3


class Largest(TorchDispatchMode):
    """Remembers the largest tensor of logits that any operation makes, forward or backward."""

    rows = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            is_logits = isinstance(tensor, torch.Tensor) and tensor.ndim == 2 and tensor.shape[1] == WORDS
            if is_logits and len(tensor) != WIDTH:  # which is the weight, transposed
                self.rows = max(self.rows, len(tensor))
        return result


def test_no_more_logits_exist_than_were_allowed():
    """Forward and backward; all at once they are those of more than fifty answers."""
    rows = []
    for most in (9 * WORDS, 1 << 26):
        with Largest() as largest:
            gradients(model_of("llama"), most_logits=most)
        rows.append(largest.rows)
    assert rows[0] == 9
    assert rows[1] > 50


def test_without_gradients_and_without_answers():
    model = tiny_model("paper")
    hidden, labels = torch.randn(2, 20, 48), torch.randint(5, 200, (2, 20))
    with torch.no_grad():
        logits = model.compute_logits(hidden[:, :-1].flatten(0, 1))
        logits[:, [model.config.video_token_id, model.config.image_token_id]] = -torch.inf
        expected = F.cross_entropy(logits, labels[:, 1:].flatten())
        found = model.answer_loss(hidden, labels, most_logits=7 * 300)
        assert found.item() == pytest.approx(expected.item(), rel=TOLERANCE)
        assert model.answer_loss(hidden, torch.full_like(labels, -100), most_logits=1).item() == 0
