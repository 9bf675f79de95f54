"""Protects the Mamba mixers: scans equal the sequential recurrence, chunks the whole sequence, and Mamba-2 the one of
transformers."""

import pytest
import torch
from torch import Tensor
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from videopanda.models.state_space import Mamba, Mamba2, selective_scan, ssd_scan

B, L, H, P, N = 2, 37, 3, 4, 5


def random_inputs() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(B, L, H * P, generator=generator)
    dt = torch.rand(B, L, H, generator=generator) * 2
    b, c = (torch.randn(B, L, N, generator=generator) for _ in range(2))
    a = -torch.rand(H, generator=generator) * 3
    state = torch.randn(B, H, P, N, generator=generator)
    return x, dt, a, b, c, state


def recurrence(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Step by step; one decay per head."""
    outputs = []
    for t in range(x.shape[1]):
        step = x[:, t].unflatten(1, (H, P))
        decay = (dt[:, t] * a).exp()[..., None, None]
        added = dt[:, t, :, None, None] * step[..., None] * b[:, t, None, None, :]
        state = decay * state + added
        outputs.append((state * c[:, t, None, None, :]).sum(3).flatten(1))
    return torch.stack(outputs, 1), state


def scanned(kind: str, inputs: tuple[Tensor, ...], chunk: int) -> tuple[Tensor, Tensor]:
    x, dt, a, b, c, state = inputs
    if kind == "ssd":
        y, state = ssd_scan(x.unflatten(2, (H, P)), dt, a, b, c, state, chunk)
        return y.flatten(2), state
    a_wide, dt_wide = a.repeat_interleave(P)[:, None].expand(-1, N), dt.repeat_interleave(P, dim=2)
    y, last = selective_scan(x, dt_wide, a_wide, b, c, state.flatten(1, 2), chunk)
    return y, last.unflatten(1, (H, P))


@pytest.mark.parametrize("chunk", [1, 8, 16, 64])
@pytest.mark.parametrize("kind", ["selective", "ssd"])
def test_a_scan_equals_the_recurrence(kind, chunk):
    results = []
    for way in (lambda inputs: scanned(kind, inputs, chunk), lambda inputs: recurrence(*inputs)):
        leaves = tuple(tensor.clone().requires_grad_() for tensor in random_inputs())
        y, state = way(leaves)
        (y.square().sum() + state.sin().sum()).backward()
        results.append([y, state, *(leaf.grad for leaf in leaves)])
    for fast, slow in zip(*results):
        scale = float(slow.detach().abs().max())
        torch.testing.assert_close(fast, slow, atol=1e-5 * scale, rtol=0)  # measured: 6e-7 of the largest value


@pytest.mark.parametrize("kind", [Mamba, lambda width: Mamba2(width, state_size=8, head_size=8)])
@pytest.mark.parametrize("cuts", [[11], [1, 2, 3], [30, 31]])
def test_chunks_with_carried_state_equal_the_whole_sequence(kind, cuts):
    torch.manual_seed(0)
    mixer = kind(16)
    x = torch.randn(B, L, 16)
    whole, last = mixer(x)
    parts, state = [], None
    for part in torch.tensor_split(x, cuts, dim=1):
        y, state = mixer(part, state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-6, rtol=1e-5)  # measured: 1e-7
    torch.testing.assert_close(state.recurrent, last.recurrent, atol=1e-6, rtol=1e-5)
    assert torch.equal(state.inputs, last.inputs)


def test_mamba2_equals_the_one_of_transformers():
    torch.manual_seed(0)
    config = Mamba2Config(
        hidden_size=16, num_heads=4, head_dim=8, state_size=8, n_groups=1, conv_kernel=4, expand=2, chunk_size=16,
        use_conv_bias=True, use_bias=False, time_step_limit=(0.0, float("inf")),
    )  # fmt: skip
    theirs, ours = Mamba2Mixer(config, layer_idx=0), Mamba2(16, state_size=8, head_size=8)
    names = dict(ours.named_parameters())
    values = dict(theirs.named_parameters())
    assert names.keys() == values.keys()
    with torch.no_grad():
        for name, parameter in names.items():
            parameter.copy_(values[name])
    x = torch.randn(B, L, 16)
    torch.testing.assert_close(ours(x)[0], theirs(x), atol=1e-5, rtol=1e-5)  # measured: 2e-7
