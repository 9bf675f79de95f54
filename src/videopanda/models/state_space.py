"""Mamba-1 and Mamba-2 mixers in plain torch, with carried state: processing a sequence in chunks gives the same result.

    mixer = Mamba(width=256)                       # or Mamba2(width=256)
    y_BLD, state = mixer(x_BLD, state)             # state: None at the start, then what the last call returned

`selective_scan` (Gu & Dao 2023, Alg. 2) is a scan by doubling within chunks, `ssd_scan` (Dao & Gu 2024, Listing 1) the
block decomposition of state space duality. Both equal the sequential recurrence. On CUDA, the kernels of the package
mamba_ssm take their place where it is installed and they compute the same: that of Mamba-1 only from an empty state,
that of Mamba-2 only in half precision or where TF32 is allowed, because its products are TF32.

Dimensions: B sequences; L steps; D width; I inner width; N state size; H heads; P = I / H; Q steps of a chunk;
K kernel of the convolution.
"""

from functools import cache
from math import ceil, log
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init


class MixerState(NamedTuple):
    """The carried state of a mixer: the last K - 1 inputs of its convolution, and the state of its recurrence."""

    inputs: Tensor  # (B, channels, K - 1)
    recurrent: Tensor  # (B, I, N) or (B, H, P, N)


def selective_scan(
    x_BLI: Tensor, dt_BLI: Tensor, a_IN: Tensor, b_BLN: Tensor, c_BLN: Tensor, state_BIN: Tensor, chunk: int = 64
) -> tuple[Tensor, Tensor]:
    """h_t = exp(dt_t · A) h_{t-1} + dt_t · B_t x_t;  y_t = C_t · h_t. Returns y (B, L, I) and the last h (B, I, N)."""
    outputs = []
    for start in range(0, x_BLI.shape[1], chunk):
        part = slice(start, start + chunk)
        dt_BQI1 = dt_BLI[:, part, :, None]
        decay_BQIN = (dt_BQI1 * a_IN).exp()
        h_BQIN = dt_BQI1 * x_BLI[:, part, :, None] * b_BLN[:, part, None, :]
        # The carried state enters through the first step; then every step takes in twice as many steps at a time.
        first = h_BQIN[:, :1] + decay_BQIN[:, :1] * state_BIN[:, None]
        h_BQIN = torch.cat([first, h_BQIN[:, 1:]], 1)
        reach = 1
        while reach < h_BQIN.shape[1]:
            h_BQIN = torch.cat([h_BQIN[:, :reach], h_BQIN[:, reach:] + decay_BQIN[:, reach:] * h_BQIN[:, :-reach]], 1)
            decay_BQIN = torch.cat([decay_BQIN[:, :reach], decay_BQIN[:, reach:] * decay_BQIN[:, :-reach]], 1)
            reach *= 2
        outputs.append((h_BQIN * c_BLN[:, part, None, :]).sum(3))
        state_BIN = h_BQIN[:, -1]
    return torch.cat(outputs, 1), state_BIN


def ssd_scan(
    x_BLHP: Tensor, dt_BLH: Tensor, a_H: Tensor, b_BLN: Tensor, c_BLN: Tensor, state_BHPN: Tensor, chunk: int = 128
) -> tuple[Tensor, Tensor]:
    """As `selective_scan` with one decay per head; products within a chunk are matrix products.

    Returns y (B, L, H, P) and the last state (B, H, P, N).
    """
    outputs = []
    for start in range(0, x_BLHP.shape[1], chunk):
        part = slice(start, start + chunk)
        x_BQHP = x_BLHP[:, part] * dt_BLH[:, part, :, None]
        b_BQN, c_BQN = b_BLN[:, part], c_BLN[:, part]
        log_BHQ = (dt_BLH[:, part] * a_H).transpose(1, 2).cumsum(2)
        steps = x_BQHP.shape[1]
        later_QQ = torch.ones(steps, steps, dtype=torch.bool, device=x_BLHP.device).tril()
        decay_BHQQ = (log_BHQ[..., :, None] - log_BHQ[..., None, :]).masked_fill(~later_QQ, -torch.inf).exp()
        within_BHQQ = (c_BQN @ b_BQN.transpose(1, 2))[:, None] * decay_BHQQ
        y_BQHP = torch.einsum("bhqs,bshp->bqhp", within_BHQQ, x_BQHP)
        y_BQHP = y_BQHP + torch.einsum("bqn,bhpn,bhq->bqhp", c_BQN, state_BHPN, log_BHQ.exp())
        to_end_BHQ = (log_BHQ[..., -1:] - log_BHQ).exp()
        added_BHPN = torch.einsum("bqhp,bqn,bhq->bhpn", x_BQHP, b_BQN, to_end_BHQ)
        state_BHPN = state_BHPN * log_BHQ[..., -1].exp()[..., None, None] + added_BHPN
        outputs.append(y_BQHP)
    return torch.cat(outputs, 1), state_BHPN


class Kernels(NamedTuple):
    """`selective_scan_fn` and `mamba_chunk_scan_combined` of mamba_ssm."""

    selective: Any
    ssd: Any


@cache
def _installed_kernels() -> Kernels | None:
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    except ImportError:
        return None
    return Kernels(selective_scan_fn, mamba_chunk_scan_combined)


def kernels_for(x: Tensor) -> Kernels | None:
    """The kernels for a tensor; None on other devices than CUDA, and where mamba_ssm is not installed."""
    return _installed_kernels() if x.is_cuda else None


def selective_scan_by(
    kernel: Any, x_BLI: Tensor, dt_BLI: Tensor, a_IN: Tensor, b_BLN: Tensor, c_BLN: Tensor
) -> tuple[Tensor, Tensor]:
    """`selective_scan` from an empty state by `selective_scan_fn`, which can take no other.

    Raises:
        RuntimeError: in a backward pass through the state after it, of which the kernel has no gradient.
    """
    x_BIL, dt_BIL, b_BNL, c_BNL = (tensor.transpose(1, 2) for tensor in (x_BLI, dt_BLI, b_BLN, c_BLN))
    y_BIL, state_BIN = kernel(x_BIL, dt_BIL, a_IN, b_BNL, c_BNL, return_last_state=True)
    if state_BIN.requires_grad:
        state_BIN.register_hook(_refuse_gradient)
    return y_BIL.transpose(1, 2), state_BIN


def _refuse_gradient(gradient: Tensor | None) -> None:
    if gradient is not None:
        raise RuntimeError("the kernel of mamba_ssm has no gradient of its state: train on whole clips")


def ssd_scan_by(
    kernel: Any, x_BLHP: Tensor, dt_BLH: Tensor, a_H: Tensor, b_BLN: Tensor, c_BLN: Tensor, state_BHPN: Tensor
) -> tuple[Tensor, Tensor]:
    """`ssd_scan` by `mamba_chunk_scan_combined`."""
    b_BL1N, c_BL1N = b_BLN[:, :, None], c_BLN[:, :, None]  # one group
    return kernel(
        x_BLHP, dt_BLH, a_H, b_BL1N, c_BL1N, chunk_size=128, initial_states=state_BHPN, return_final_states=True
    )


class _Mixer(nn.Module):
    """The shared part of both mixers: a causal depth-wise convolution that continues where the last chunk ended."""

    def __init__(self, channels: int, kernel: int):
        super().__init__()
        self.conv1d = nn.Conv1d(channels, channels, kernel, groups=channels)

    def _convolved(self, x_BLC: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """The activated convolution (B, L, C), and the inputs that the next chunk needs, (B, C, K - 1)."""
        x_BCL = x_BLC.transpose(1, 2)
        keep = self.conv1d.kernel_size[0] - 1
        if before is None:
            before = x_BCL.new_zeros(x_BCL.shape[0], x_BCL.shape[1], keep)
        joined = torch.cat([before, x_BCL], 2)
        return F.silu(self.conv1d(joined)).transpose(1, 2), joined[:, :, joined.shape[2] - keep :]


class Mamba(_Mixer):
    """The Mamba-1 mixer: a selective state space per channel, gated.

    Args:
        width: D; the inner width is twice that.
        state_size: N.
        kernel: K.
    """

    def __init__(self, width: int, state_size: int = 16, kernel: int = 4, expand: int = 2):
        inner, rank = expand * width, ceil(width / 16)
        super().__init__(inner, kernel)
        self.rank, self.state_size = rank, state_size
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.x_proj = nn.Linear(inner, rank + 2 * state_size, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.empty(inner, state_size))
        self.D = nn.Parameter(torch.empty(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)
        reset_mixer(self)

    def forward(self, x_BLD: Tensor, state: MixerState | None = None) -> tuple[Tensor, MixerState]:
        """Mix (B, L, D); returns the result and the state after it."""
        x_BLI, gate_BLI = self.in_proj(x_BLD).chunk(2, dim=2)
        x_BLI, inputs = self._convolved(x_BLI, None if state is None else state.inputs)
        parts = self.x_proj(x_BLI).split([self.rank, self.state_size, self.state_size], dim=2)
        dt_BLI, b_BLN, c_BLN = F.softplus(self.dt_proj(parts[0])).float(), parts[1].float(), parts[2].float()
        a_IN = -self.A_log.float().exp()
        kernels = kernels_for(x_BLI)
        if kernels and state is None and self.state_size <= 256:  # the most that the kernel takes
            y_BLI, after = selective_scan_by(kernels.selective, x_BLI.float(), dt_BLI, a_IN, b_BLN, c_BLN)
        else:
            before = a_IN.new_zeros(len(x_BLD), *a_IN.shape) if state is None else state.recurrent
            y_BLI, after = selective_scan(x_BLI.float(), dt_BLI, a_IN, b_BLN, c_BLN, before)
        y_BLI = (y_BLI + self.D * x_BLI.float()).to(x_BLI.dtype) * F.silu(gate_BLI)
        return self.out_proj(y_BLI), MixerState(inputs, after)


class Mamba2(_Mixer):
    """The Mamba-2 mixer: state space duality, one decay per head, norm before the output.

    Args:
        width: D; the inner width is twice that and must be a multiple of `head_size`.
        state_size: N.
        head_size: P.
    """

    def __init__(self, width: int, state_size: int = 64, head_size: int = 64, kernel: int = 4, expand: int = 2):
        inner = expand * width
        if inner % head_size:
            raise ValueError(f"an inner width of {inner} is not a multiple of the head size {head_size}")
        super().__init__(inner + 2 * state_size, kernel)
        self.inner, self.state_size, self.heads = inner, state_size, inner // head_size
        self.in_proj = nn.Linear(width, 2 * inner + 2 * state_size + self.heads, bias=False)
        self.dt_bias = nn.Parameter(torch.empty(self.heads))
        self.A_log = nn.Parameter(torch.empty(self.heads))
        self.D = nn.Parameter(torch.empty(self.heads))
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        self.out_proj = nn.Linear(inner, width, bias=False)
        reset_mixer(self)

    def forward(self, x_BLD: Tensor, state: MixerState | None = None) -> tuple[Tensor, MixerState]:
        """Mix (B, L, D); returns the result and the state after it."""
        sizes = [self.inner, self.inner + 2 * self.state_size, self.heads]
        gate_BLI, mixed_BLC, dt_BLH = self.in_proj(x_BLD).split(sizes, dim=2)
        mixed_BLC, inputs = self._convolved(mixed_BLC, None if state is None else state.inputs)
        kernels, exact = kernels_for(mixed_BLC), mixed_BLC.dtype == torch.float32
        if not kernels or (exact and torch.backends.cuda.matmul.fp32_precision != "tf32"):
            kernels, mixed_BLC = None, mixed_BLC.float()
        x_BLI, b_BLN, c_BLN = mixed_BLC.split([self.inner, self.state_size, self.state_size], dim=2)
        x_BLHP = x_BLI.unflatten(2, (self.heads, -1))
        dt_BLH, a_H = F.softplus(dt_BLH.float() + self.dt_bias), -self.A_log.float().exp()
        shape = (len(x_BLD), self.heads, x_BLHP.shape[3], self.state_size)
        before = a_H.new_zeros(shape) if state is None else state.recurrent
        if kernels:
            y_BLHP, after = ssd_scan_by(kernels.ssd, x_BLHP, dt_BLH, a_H, b_BLN, c_BLN, before)
        else:
            y_BLHP, after = ssd_scan(x_BLHP, dt_BLH, a_H, b_BLN, c_BLN, before)
        y_BLI = (y_BLHP.float() + self.D[:, None] * x_BLHP.float()).flatten(2).to(gate_BLI.dtype)
        return self.out_proj(self.norm(y_BLI * F.silu(gate_BLI))), MixerState(inputs, after)


def reset_mixer(mixer: Mamba | Mamba2) -> None:
    """The initial values of the papers: time steps between 0.001 and 0.1, decays 1, 2, …"""
    init.kaiming_uniform_(mixer.conv1d.weight, a=5**0.5)
    init.zeros_(mixer.conv1d.bias)  # type: ignore[arg-type]
    init.ones_(mixer.D)
    rates = torch.arange(1, mixer.A_log.shape[-1] + 1, device=mixer.A_log.device).float().log()
    init.copy_(mixer.A_log, rates.expand_as(mixer.A_log))
    steps = mixer.dt_proj.bias if isinstance(mixer, Mamba) else mixer.dt_bias
    dt = torch.empty_like(steps, dtype=torch.float32).uniform_(log(0.001), log(0.1)).exp()
    init.copy_(steps, dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
