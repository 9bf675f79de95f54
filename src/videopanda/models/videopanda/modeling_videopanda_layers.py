"""What STAB is built of: masks over frames and cells, pooling by a query, and layers that torch has not.

Dimensions: as in `modeling_videopanda_stab.py`.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_videopanda import PADDING_FRAME_CELLS, VideoPandaStabConfig


class CellGrid(NamedTuple):
    """What the placement says about every cell of a batch."""

    sends: Tensor  # (B, T, R, C) bool: the cell sends a token
    takes_part: Tensor  # (B, T, R, C) bool: the cell may influence other cells
    frame_sends: Tensor  # (B, T) bool: the frame sends tokens
    top: Tensor  # (B, T) first row of the picture in its frame
    left: Tensor  # (B, T) first column
    end: Tensor  # (B, T) first column behind it


def cell_grid(placement_B6: Tensor, frames: int, rows: int, columns: int, mask_padding: bool) -> CellGrid:
    """Expand `placement` (top, left, rows, columns, num_frames, num_real) to masks over frames and cells."""
    top_B1, left_B1, rows_B1, columns_B1, num_frames_B1, num_real_B1 = placement_B6.unsqueeze(-1).unbind(1)
    t_T = torch.arange(frames, device=placement_B6.device)
    frame_sends_BT = t_T < num_frames_B1
    real_BT = t_T < num_real_B1
    corner = min(PADDING_FRAME_CELLS, rows, columns)
    top_BT, left_BT = torch.where(real_BT, top_B1, 0), torch.where(real_BT, left_B1, 0)
    rows_BT = torch.where(real_BT, rows_B1, corner)
    columns_BT = torch.where(real_BT, columns_B1, corner)
    r_R = torch.arange(rows, device=placement_B6.device)
    c_C = torch.arange(columns, device=placement_B6.device)
    row_inside_BTR = (r_R >= top_BT[..., None]) & (r_R < (top_BT + rows_BT)[..., None])
    column_inside_BTC = (c_C >= left_BT[..., None]) & (c_C < (left_BT + columns_BT)[..., None])
    inside_BTRC = row_inside_BTR[..., None] & column_inside_BTC[:, :, None, :]
    sends_BTRC = inside_BTRC & frame_sends_BT[..., None, None]
    if mask_padding:
        takes_part_BTRC = sends_BTRC & real_BT[..., None, None]
    else:
        takes_part_BTRC = frame_sends_BT[..., None, None].expand_as(sends_BTRC)
    return CellGrid(sends_BTRC, takes_part_BTRC, frame_sends_BT, top_BT, left_BT, left_BT + columns_BT)


def cells_to_patches(x_BTRC: Tensor) -> Tensor:
    """Repeat every cell value for its 2 × 2 patches."""
    return x_BTRC.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def pool_by_query(
    query_D: Tensor, keys_ZMD: Tensor, mask_ZM: Tensor, wk_DD: Tensor, wv_DD: Tensor, heads: int, scale: float
) -> Tensor:
    """Multi-head attention of one query over `keys_ZMD`; returns (Z, D).

    With a single query the key projection folds into the query and the value projection follows the weighted sum, so no
    key or value is ever projected. The result is that of ordinary attention.
    """
    wk_NKD = wk_DD.unflatten(0, (heads, -1))
    wv_NDK = wv_DD.unflatten(0, (heads, -1)).transpose(1, 2)  # (N, D, K)
    folded_ND = torch.bmm(query_D.view(heads, 1, -1), wk_NKD).squeeze(1)
    scores_ZMN = F.linear(keys_ZMD, folded_ND) * scale
    scores_ZMN = scores_ZMN.masked_fill(~mask_ZM[..., None], torch.finfo(scores_ZMN.dtype).min)
    weights_ZMN = scores_ZMN.softmax(dim=1)
    pooled_NZD = torch.matmul(weights_ZMN.to(keys_ZMD.dtype).transpose(1, 2), keys_ZMD).transpose(0, 1)  # (N, Z, D)
    return torch.bmm(pooled_NZD, wv_NDK.to(pooled_NZD.dtype)).transpose(0, 1).flatten(1)  # (Z, D)


class ReadLinear(nn.Module):
    """A linear map whose weights the modules around it read directly.

    Not an `nn.Linear`: vLLM, PEFT and quantisers replace those by layers that keep their weights in another form.
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
        return F.linear(patches_BTHW, self.weight.flatten(1))


class MaskedBatchNorm(nn.Module):
    """Batch norm over the last axis whose statistics cover only the positions of a mask.

    Statistics are those of this process; the official code takes them per video.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x_ZLHWD: Tensor, mask_ZLHW1: Tensor) -> Tensor:
        """Normalise with batch statistics where it is trained and with running statistics otherwise.

        Frozen, it keeps its statistics in training mode too: an adapter that is trained behind it does not save them.
        """
        mean_D, var_D = self.running_mean.float(), self.running_var.float()
        if self.training and self.weight.requires_grad:
            weight_ZLHW1 = mask_ZLHW1.float()
            count = weight_ZLHW1.sum().clamp(min=1.0)
            mean_D = (x_ZLHWD * weight_ZLHW1).sum((0, 1, 2, 3)) / count
            var_D = ((x_ZLHWD - mean_D).square() * weight_ZLHW1).sum((0, 1, 2, 3)) / count
            with torch.no_grad():
                self.running_mean.lerp_(mean_D.to(self.running_mean.dtype), self.momentum)
                unbiased_D = var_D * count / (count - 1.0).clamp(min=1.0)
                self.running_var.lerp_(unbiased_D.to(self.running_var.dtype), self.momentum)
        scale_D = self.weight.float() * torch.rsqrt(var_D + self.eps)
        shift_D = self.bias.float() - mean_D * scale_D
        return torch.addcmul(shift_D.to(x_ZLHWD.dtype), x_ZLHWD, scale_D.to(x_ZLHWD.dtype))


class ZeroConv3d(nn.Conv3d):
    """Convolution whose fresh weights are zero, so that the residual branch it ends starts as nothing."""
