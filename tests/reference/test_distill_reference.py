"""The fast distillation equals the slow one on random layouts, forward and backward."""

import pytest
import torch
from distill_reference import slow_distillation
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny import layouts_of, randomize, tiny_stab
from videopanda.training.distill import Distillation, FusedHead, LastLayerHead, real_cells

SIDE, E, D = 4, 10, 12


@st.composite
def layouts(draw, multiple: int):
    """Placement rows whose pictures end at multiples of `multiple` cells."""
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        sizes = [draw(st.integers(1, SIDE // multiple)) * multiple for _ in range(2)]
        corner = [draw(st.integers(0, (SIDE - size) // multiple)) * multiple for size in sizes]
        real = draw(st.integers(0, 2))
        rows.append([*corner, *sizes, real + draw(st.integers(0, 2)), real])
    return torch.tensor(rows)


@settings(max_examples=8)
@given(st.data())
@pytest.mark.parametrize("grid", [SIDE, 2 * SIDE, SIDE // 2])
def test_fast_equals_slow(grid, data):
    placement = data.draw(layouts(multiple=2 if grid < SIDE else 1))
    frames = max(1, int(placement[:, 4].max()))
    has_context, row_tokens = data.draw(st.booleans()), data.draw(st.booleans())
    stab = tiny_stab(image_size=32, gstra=False, fsra=has_context, row_tokens=row_tokens)
    distance = data.draw(st.sampled_from(["cosine", "mse"]))
    num_states = data.draw(st.integers(1, 4))
    head = LastLayerHead(E, D) if num_states == 1 else FusedHead(E, D, num_states, num_heads=4)
    randomize(head.double(), scale=1.0)
    generator = torch.Generator().manual_seed(0)
    counts = [
        real * (rows * (columns + stab.row_tokens) + stab.context_token)
        + (sent - real) * (SIDE * (SIDE + stab.row_tokens) + stab.context_token)
        for _, _, rows, columns, sent, real in placement.tolist()
    ]
    fast_states = torch.randn(num_states, sum(counts), E, generator=generator, dtype=torch.float64).requires_grad_()
    slow_states = fast_states.detach().clone().requires_grad_()
    teacher = torch.randn(len(placement), frames, grid, grid, D, generator=generator, dtype=torch.float64)
    fast = Distillation(head, stab.max_cells, distance)(list(fast_states), layouts_of(placement, stab), teacher)
    weights = {name: tensor.clone().requires_grad_() for name, tensor in head.state_dict().items()}
    slow = slow_distillation(weights, list(slow_states), placement, teacher, stab, distance, num_heads=4)
    if not placement[:, 5].any():  # padding frames alone: nothing to learn, but the graph holds
        assert fast.item() == slow == 0
        return
    fast.backward()
    slow.backward()
    pairs = [(fast, slow), (fast_states.grad, slow_states.grad)]
    pairs += [(parameter.grad, weights[name].grad) for name, parameter in head.named_parameters()]
    errors = [(one - two).abs().max() / two.abs().max().clamp(min=1) for one, two in pairs]
    assert max(errors).item() <= 1e-5  # measured worst: 2.8e-7; the loss is taken in float32


def test_weights_of_cells_sum_to_one():
    placement = torch.tensor([[0, 0, 2, 6, 4, 3], [1, 1, 4, 4, 2, 2]])
    cells = real_cells(layouts_of(placement, tiny_stab()), 4)
    assert cells.weight.sum().item() == pytest.approx(1)
    assert len(cells.token) == 3 * 12 + 2 * 16
