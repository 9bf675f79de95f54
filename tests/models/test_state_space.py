"""Protects the Mamba mixers: scans equal the sequential recurrence, chunks the whole sequence, and Mamba-2 the one of
transformers."""

import pytest
import torch
from torch import Tensor
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from videopanda.models import state_space
from videopanda.models.state_space import Kernels, Mamba, Mamba2, selective_scan, ssd_scan

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


# -- the kernels of mamba_ssm, by stand-ins with their public signatures -----------------------------------------------
class SelectiveScan(torch.autograd.Function):
    """As in mamba_ssm: u, delta (B, D, L), A (D, N), B, C (B, N, L); no gradient of the last state."""

    @staticmethod
    def forward(ctx, *inputs):
        ctx.save_for_backward(*inputs)
        u, delta, a, b, c = (part.transpose(1, 2) if part.dim() == 3 else part for part in inputs)
        y, last = selective_scan(u, delta, a, b, c, u.new_zeros(len(u), *a.shape))
        return y.transpose(1, 2), last

    @staticmethod
    def backward(ctx, dy, *_):
        leaves = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            u, delta, a, b, c = (part.transpose(1, 2) if part.dim() == 3 else part for part in leaves)
            y, _ = selective_scan(u, delta, a, b, c, u.new_zeros(len(u), *a.shape))
            return torch.autograd.grad(y.transpose(1, 2), leaves, dy)


@pytest.fixture
def called(monkeypatch):
    """Puts stand-ins in place of the kernels, as on CUDA; names of those that were called."""
    calls: list[str] = []

    def selective_scan_fn(u, delta, a, b, c, d=None, z=None, delta_bias=None, delta_softplus=False,
                          return_last_state=False):  # fmt: skip
        calls.append("selective")
        assert u.shape == delta.shape
        assert b.shape == c.shape == (len(u), a.shape[1], u.shape[2])
        assert return_last_state
        return SelectiveScan.apply(u, delta, a, b, c)

    def mamba_chunk_scan_combined(x, dt, a, b, c, chunk_size, d=None, z=None, dt_bias=None, initial_states=None,
                                  seq_idx=None, cu_seqlens=None, dt_softplus=False, dt_limit=(0.0, float("inf")),
                                  return_final_states=False):  # fmt: skip
        calls.append("ssd")
        assert b.shape == c.shape == (*x.shape[:2], 1, initial_states.shape[3])
        assert return_final_states
        y, last = ssd_scan(x.float(), dt, a, b.squeeze(2).float(), c.squeeze(2).float(), initial_states, chunk_size)
        return y.to(x.dtype), last

    monkeypatch.setattr(state_space, "kernels_for", lambda x: Kernels(selective_scan_fn, mamba_chunk_scan_combined))
    return calls


def test_the_kernel_of_mamba_starts_a_clip_and_gives_the_state_for_the_next_chunk(called, monkeypatch):
    torch.manual_seed(0)
    mixer, x = Mamba(16), torch.randn(B, L, 16)
    (first, state), (fast, _) = mixer(x[:, :11]), mixer(x)
    second, after = mixer(x[:, 11:], state)
    assert called == ["selective", "selective"]  # not with a state, which it cannot take
    monkeypatch.undo()
    plain, last = mixer(x)
    torch.testing.assert_close(fast, plain, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(torch.cat([first, second], 1), plain, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(after.recurrent, last.recurrent, atol=1e-6, rtol=1e-5)
    with_kernel = torch.autograd.grad(fast.square().sum(), mixer.parameters())
    without = torch.autograd.grad(plain.square().sum(), mixer.parameters())
    for one, other in zip(with_kernel, without):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)  # measured: 4e-6
    with pytest.raises(RuntimeError, match="has no gradient of its state"):
        second.sum().backward()


def test_the_kernel_of_mamba2_is_not_taken_where_its_products_are_less_exact(called):
    torch.manual_seed(0)
    mixer, x = Mamba2(16, state_size=8, head_size=8), torch.randn(B, L, 16)
    plain, last = mixer(x)
    assert called == []
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        first, state = mixer(x[:, :11])
        second, after = mixer(x[:, 11:], state)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    torch.testing.assert_close(torch.cat([first, second], 1), plain, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(after.recurrent, last.recurrent, atol=1e-6, rtol=1e-5)
    assert called == ["ssd", "ssd"]
    half, state = mixer.bfloat16()(x.bfloat16())
    assert called == ["ssd"] * 3
    assert (half.dtype, state.recurrent.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(half.float(), plain, atol=0.05, rtol=0.05)  # measured: 0.01


def test_a_cpu_asks_for_no_kernel():
    assert state_space.kernels_for(torch.zeros(1)) is None
