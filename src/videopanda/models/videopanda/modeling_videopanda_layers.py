"""Building blocks of STAB: pooling by a query, and layers that are not in torch.

Dimensions: as in `modeling_videopanda_stab.py`.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_videopanda import VideoPandaStabConfig


def pool_by_query(
    query_D: Tensor, keys_ZMD: Tensor, mask_ZM: Tensor | None, wk_DD: Tensor, wv_DD: Tensor, heads: int, scale: float
) -> Tensor:
    """Multi-head attention of one query over `keys_ZMD`; returns (Z, D).

    With a single query the key projection folds into the query and the value projection follows the weighted sum, so no
    key or value is ever projected. The result is that of ordinary attention.
    """
    wk_NKD = wk_DD.unflatten(0, (heads, -1))
    wv_NDK = wv_DD.unflatten(0, (heads, -1)).transpose(1, 2)  # (N, D, K)
    folded_ND = torch.bmm(query_D.view(heads, 1, -1), wk_NKD).squeeze(1)
    scores_ZMN = F.linear(keys_ZMD, folded_ND) * scale
    if mask_ZM is not None:
        scores_ZMN = scores_ZMN.masked_fill(~mask_ZM[..., None], torch.finfo(scores_ZMN.dtype).min)
    weights_ZMN = scores_ZMN.softmax(dim=1)
    pooled_NZD = torch.matmul(weights_ZMN.to(keys_ZMD.dtype).transpose(1, 2), keys_ZMD).transpose(0, 1)  # (N, Z, D)
    return torch.bmm(pooled_NZD, wv_NDK.to(pooled_NZD.dtype)).transpose(0, 1).flatten(1)  # (Z, D)


# Above this many products a 1 × 1 convolution is worth its overhead.
CONVOLUTION_FROM = 2**27


def is_cpu_inference(x: Tensor) -> bool:
    """Whether float32 runs on a CPU without gradients, where convolutions are faster than equivalent operations."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled()


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Map (..., I) to (..., O), as `F.linear` does.

    At inference on a CPU large maps run as 1 × 1 convolutions: torch gives those to oneDNN and matrix products to MKL,
    which uses only half of the vector width on non-Intel processors (docs/speed.md).
    """
    if not is_cpu_inference(x) or x.numel() * weight_OI.shape[0] < CONVOLUTION_FROM:
        return F.linear(x, weight_OI, bias_O)
    x_1IX1 = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # channels last in memory
    y_1OX1 = F.conv2d(x_1IX1, weight_OI[..., None, None], bias_O)
    return y_1OX1.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """`nn.Linear` computed by `linear`, unless its weight has been replaced."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        if type(self.weight) is nn.Parameter:
            return linear(input, self.weight, self.bias)
        return super().forward(input)


class ReadLinear(nn.Module):
    """A linear map whose weights the modules around it read directly.

    Not an `nn.Linear`: vLLM, PEFT and quantizers replace those by layers that keep their weights in another form.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        linear = nn.Linear(in_features, out_features, bias=bias)
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return F.linear(x, self.weight, self.bias)


class PatchEmbedding(nn.Module):
    """Cut frames into patches and map each linearly to D channels, without bias."""

    def __init__(self, config: VideoPandaStabConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.weight = nn.Parameter(torch.empty(config.hidden_size, 3, config.patch_size, config.patch_size))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, pixels_BTXY: Tensor) -> Tensor:
        """Map (B, T, 3, H·P, W·P) to (B, T, H, W, D)."""
        p = self.patch_size
        b, t, _, height, width = pixels_BTXY.shape
        patches_BTHW = pixels_BTXY.to(self.weight.dtype).reshape(b, t, 3, height // p, p, width // p, p)
        patches_BTHW = patches_BTHW.permute(0, 1, 3, 5, 2, 4, 6).flatten(4)  # (B, T, H, W, 3·P·P)
        return linear(patches_BTHW, self.weight.flatten(1))


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; so are the gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _SumOverProcesses.apply(gradient)


class MaskedBatchNorm(nn.Module):
    """Batch norm over the last axis whose statistics cover only the positions of a mask.

    Statistics are those of this process, or with `synchronized` those of all processes, which then must run this module
    equally often; the official code takes them per video. A batch without any positions uses the running statistics.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.synchronized = False
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x_ZLHWD: Tensor, mask_ZLHW1: Tensor) -> Tensor:
        """Normalize with batch statistics if it is trained, else with running statistics. A frozen layer keeps its
        statistics in training mode too, because adapter checkpoints do not save them.
        """
        mean_D, var_D = self.running_mean.float(), self.running_var.float()
        if self.training and self.weight.requires_grad:
            found_mean_D, found_var_D, count = self.statistics(x_ZLHWD, mask_ZLHW1.float())
            mean_D, var_D = torch.where(count > 0, found_mean_D, mean_D), torch.where(count > 0, found_var_D, var_D)
            with torch.no_grad():
                momentum = self.momentum * (count > 0)
                self.running_mean.lerp_(mean_D.to(self.running_mean.dtype), momentum.to(self.running_mean.dtype))
                unbiased_D = var_D * count / (count - 1.0).clamp(min=1.0)
                self.running_var.lerp_(unbiased_D.to(self.running_var.dtype), momentum.to(self.running_var.dtype))
        scale_D, shift_D = self.affine(mean_D, var_D)
        return torch.addcmul(shift_D.to(x_ZLHWD.dtype), x_ZLHWD, scale_D.to(x_ZLHWD.dtype))

    def statistics(self, x_ZLHWD: Tensor, weight_ZLHW1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and biased variance of every channel, and the number of positions."""
        sums_D, count_1 = (x_ZLHWD * weight_ZLHW1).sum((0, 1, 2, 3)), weight_ZLHW1.sum()[None]
        sums_D, count_1 = self.total(torch.cat([sums_D, count_1])).split([len(sums_D), 1])
        mean_D = sums_D / count_1.clamp(min=1.0)
        squares_D = self.total(((x_ZLHWD - mean_D).square() * weight_ZLHW1).sum((0, 1, 2, 3)))
        return mean_D, squares_D / count_1.clamp(min=1.0), count_1

    def total(self, x: Tensor) -> Tensor:
        """The sum over all processes, if statistics are synchronized."""
        return _SumOverProcesses.apply(x) if self.synchronized and dist.is_initialized() else x

    def affine(self, mean_D: Tensor, var_D: Tensor) -> tuple[Tensor, Tensor]:
        """The factor and the summand of every channel, in float32."""
        scale_D = self.weight.float() * torch.rsqrt(var_D + self.eps)
        return scale_D, self.bias.float() - mean_D * scale_D


class ZeroConv3d(nn.Conv3d):
    """Convolution whose fresh weights are zero, so the residual branch it ends starts at zero."""
