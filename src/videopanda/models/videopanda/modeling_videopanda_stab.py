"""Spatio-Temporal Alignment Block (STAB) of Video-Panda, in the order of the data flow.

pixels → patches → LSTE (with position encoding) → GSTRA → LSD → FSRA → context, rows and row tokens.

Every module works on all frames of all videos at once, channels last. Padding never needs a loop: a mask excludes it,
and one index selection at the end picks the tokens that exist.

Dimensions: B videos; T frames; S segments of L frames; Z = B·S; F = B·T; P pixels per patch side; H × W patches; R × C
    cells (2 × 2 patches, one token each); Q = F·R·C windows; J = 4 patches of a window; M keys; D width; U bottleneck
    width; N heads; K = D / N; V visual tokens of the batch.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_videopanda import VideoPandaStabConfig
from .layout_videopanda import CellGrid, TokenLayout, cell_grid, cells_to_patches, plan_tokens, token_sources
from .modeling_videopanda_layers import (
    Linear,
    MaskedBatchNorm,
    PatchEmbedding,
    ReadLinear,
    ZeroConv3d,
    is_cpu_inference,
    linear,
    pool_by_query,
)

# Windows per pass at inference, a quarter of those of eight square frames: more cost memory without being faster.
WINDOWS_PER_PASS = 512


class LocalSpatioTemporalEncoding(nn.Module):
    """LSTE (Eqs. 2 and 3): a temporal bottleneck and a depth-wise 3 × 3 × 3 position encoding, both residual.

    The convolutions are kept as `Conv3d` parameters and computed as matrix products and channels-last 2-D convolutions,
    several times faster in training than `conv3d` on CPU. There is no activation between them.
    """

    def __init__(self, config: VideoPandaStabConfig):
        super().__init__()
        d, u = config.hidden_size, config.lste_bottleneck
        groups = u if config.lste_depthwise else 1
        # QUIRK(ckpt): the released branch starts with a batch norm and its temporal convolution is depth-wise.
        self.norm = MaskedBatchNorm(d) if config.lste_batch_norm else None
        self.reduce = nn.Conv3d(d, u, 1)
        self.temporal = nn.Conv3d(u, u, (3, 1, 1), padding=(1, 0, 0), groups=groups)
        self.expand = ZeroConv3d(u, d, 1)
        self.position = nn.Conv3d(d, d, 3, padding=1, groups=d)

    def temporal_branch(self, x_ZLHWD: Tensor, mask_ZLHW1: Tensor | None) -> Tensor:
        """1 × 1 × 1, 3 × 1 × 1 and 1 × 1 × 1 convolution."""
        if mask_ZLHW1 is None:
            h_ZLHWU = self.normed_reduce(x_ZLHWD)
        else:
            if self.norm is not None:
                x_ZLHWD = self.norm(x_ZLHWD, mask_ZLHW1)
            h_ZLHWU = F.linear(x_ZLHWD, self.reduce.weight.flatten(1), self.reduce.bias)
            h_ZLHWU = h_ZLHWU * mask_ZLHW1.to(h_ZLHWU.dtype)
        h_ZUL_HW = h_ZLHWU.flatten(2, 3).permute(0, 3, 1, 2)  # (Z, U, L, H·W), channels last in memory
        weight_U_31 = self.temporal.weight.squeeze(-1)  # (U, 1 or U, 3, 1)
        h_ZUL_HW = F.conv2d(h_ZUL_HW, weight_U_31, self.temporal.bias, padding=(1, 0), groups=self.temporal.groups)
        h_ZLHWU = h_ZUL_HW.permute(0, 2, 3, 1).reshape(h_ZLHWU.shape)
        return linear(h_ZLHWU, self.expand.weight.flatten(1), self.expand.bias)

    def normed_reduce(self, x_ZLHWD: Tensor) -> Tensor:
        """Batch norm with running statistics and the first convolution, as one linear map."""
        weight_UD, bias_U = self.reduce.weight.flatten(1), self.reduce.bias
        assert bias_U is not None
        if self.norm is not None:
            scale_D, shift_D = self.norm.affine(self.norm.running_mean.float(), self.norm.running_var.float())
            bias_U = (bias_U.float() + weight_UD.float() @ shift_D).to(bias_U.dtype)
            weight_UD = (weight_UD.float() * scale_D).to(weight_UD.dtype)
        return linear(x_ZLHWD, weight_UD, bias_U)

    def position_branch(self, x_ZLHWD: Tensor) -> Tensor:
        """Depth-wise 3 × 3 × 3 convolution as one spatial convolution for each of the three neighboring frames.

        At inference on a CPU a single 3-D convolution is faster; its gradient is slow.
        """
        z, length, h, w, d = x_ZLHWD.shape
        if is_cpu_inference(x_ZLHWD):
            x_ZDLHW = x_ZLHWD.permute(0, 4, 1, 2, 3)  # channels last in memory
            return self.position(x_ZDLHW).permute(0, 2, 3, 4, 1)
        x_FDHW = x_ZLHWD.reshape(z * length, h, w, d).permute(0, 3, 1, 2)
        previous_ZLHWD, same_ZLHWD, next_ZLHWD = (
            F.conv2d(x_FDHW, self.position.weight[:, :, k], bias, padding=1, groups=d)
            .permute(0, 2, 3, 1)
            .reshape(z, length, h, w, d)
            for k, bias in ((0, None), (1, self.position.bias), (2, None))
        )
        same_ZLHWD[:, 1:] += previous_ZLHWD[:, :-1]
        same_ZLHWD[:, :-1] += next_ZLHWD[:, 1:]
        return same_ZLHWD

    def forward(self, x_ZLHWD: Tensor, mask_ZLHW1: Tensor | None) -> Tensor:
        """Encode segments; positions outside the mask influence nothing. None, at inference: there are none."""
        branch_ZLHWD = self.temporal_branch(x_ZLHWD, mask_ZLHW1)
        if mask_ZLHW1 is None:
            x_ZLHWD = branch_ZLHWD.add_(x_ZLHWD)
        else:
            x_ZLHWD = torch.addcmul(x_ZLHWD, branch_ZLHWD, mask_ZLHW1.to(branch_ZLHWD.dtype))
        return self.position_branch(x_ZLHWD).add_(x_ZLHWD)


class GlobalSpatioTemporalAggregator(nn.Module):
    """GSTRA (Eqs. 11 to 13): one learned query attends to every token of a segment and summarizes it."""

    def __init__(self, config: VideoPandaStabConfig):
        super().__init__()
        d = config.hidden_size
        self.heads = config.num_heads
        self.scale = (d // config.num_heads) ** -0.5
        self.residual = config.query_residual
        self.query = nn.Parameter(torch.zeros(d))
        self.query_norm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.key_norm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.in_proj = ReadLinear(d, 3 * d)  # query, key and value rows
        self.out_proj = nn.Linear(d, d)
        self.has_mlp = config.gstra_mlp
        if config.gstra_mlp:
            self.mlp_norm = nn.LayerNorm(d, eps=config.layer_norm_eps)
            self.mlp_up = nn.Linear(d, 4 * d)
            self.mlp_down = nn.Linear(4 * d, d)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, keys_ZMD: Tensor, mask_ZM: Tensor | None) -> Tensor:
        """Return one summary (Z, D) per segment. A segment without keys yields an unused value."""
        wq_DD, wk_DD, wv_DD = self.in_proj.weight.chunk(3)
        bq_D, bk_D, bv_D = self.in_proj.bias.chunk(3)
        query_D = F.linear(self.query_norm(self.query), wq_DD, bq_D)
        pooled_ZD = pool_by_query(query_D, self.key_norm(keys_ZMD), mask_ZM, wk_DD, wv_DD, self.heads, self.scale)
        # QUIRK(ckpt): the key bias shifts all scores of a head alike and cancels; × 0 keeps it in the graph.
        z_ZD = self.out_proj(pooled_ZD + bv_D + 0.0 * bk_D)
        if self.residual:
            z_ZD = z_ZD + self.query
        if not self.has_mlp:
            return z_ZD
        h_Z4D = self.mlp_up(self.mlp_norm(z_ZD))
        h_Z4D = self.dropout(h_Z4D * torch.sigmoid(1.702 * h_Z4D))
        return z_ZD + self.mlp_down(h_Z4D)


class LearnedPooling(nn.Module):
    """Shared by LSD and FSRA: norms and projections of query, keys and values, without biases."""

    def __init__(self, config: VideoPandaStabConfig):
        super().__init__()
        d = config.hidden_size
        self.heads = config.num_heads
        # QUIRK(ckpt): the released scale is that of the full width, not of one head.
        self.scale = (d if config.attention_scale == "width" else d // config.num_heads) ** -0.5
        self.residual = config.query_residual
        self.query_norm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.query_proj = Linear(d, d, bias=False)
        self.key_norm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.kv_proj = ReadLinear(d, 2 * d, bias=False)
        self.out_proj = Linear(d, d)


class LocalSpatialDownsampling(LearnedPooling):
    """LSD (Eqs. 5 to 7): each window of 2 × 2 patches becomes one token by attention over its four patches.

    As in `pool_by_query` the key projection folds into the query and the value projection follows the weighted sum,
    which needs a quarter of the products of projecting all patches.
    """

    def __init__(self, config: VideoPandaStabConfig):
        super().__init__(config)
        self.query = nn.Parameter(torch.randn(config.hidden_size)) if config.lsd_query == "learned" else None

    def forward(self, x_BTHWD: Tensor, grid: CellGrid) -> Tensor:
        """Map (B, T, H, W, D) to (B, T, R, C, D); all windows, including unused ones."""
        b, t, h, w, d = x_BTHWD.shape
        x_Y2C2D = x_BTHWD.reshape(-1, 2, w // 2, 2, d)  # Y rows of cells
        rows = len(x_Y2C2D) if torch.is_grad_enabled() else max(1, WINDOWS_PER_PASS // (w // 2))
        pieces = [self.pool(piece_Y2C2D.transpose(1, 2).reshape(-1, 4, d)) for piece_Y2C2D in x_Y2C2D.split(rows)]
        return torch.cat(pieces).view(b, t, h // 2, w // 2, d)

    def pool(self, x_QJD: Tensor) -> Tensor:
        """Map windows (Q, 4, D) to tokens (Q, D)."""
        keys_QJD = self.key_norm(x_QJD)
        wk_DD, wv_DD = self.kv_proj.weight.chunk(2)
        if self.query is None:
            base_QD = x_QJD.mean(1)
            query_NQK = self.query_proj(self.query_norm(base_QD)).unflatten(-1, (self.heads, -1)).transpose(0, 1)
            folded_NQD = torch.bmm(query_NQK, wk_DD.unflatten(0, (self.heads, -1)).to(query_NQK.dtype))
            scores_QNJ = torch.matmul(folded_NQD.transpose(0, 1), keys_QJD.transpose(1, 2)) * self.scale
            weights_QNJ = scores_QNJ.softmax(-1).to(keys_QJD.dtype)
            pooled_NQD = torch.matmul(weights_QNJ, keys_QJD).transpose(0, 1)  # (N, Q, D)
            wv_NDK = wv_DD.unflatten(0, (self.heads, -1)).transpose(1, 2)  # (N, D, K)
            pooled_QD = torch.bmm(pooled_NQD, wv_NDK.to(pooled_NQD.dtype)).transpose(0, 1).flatten(1)  # (Q, D)
        else:
            base_QD = self.query
            query_D = self.query_proj(self.query_norm(self.query))
            everything_QJ = keys_QJD.new_ones(keys_QJD.shape[:2], dtype=torch.bool)
            pooled_QD = pool_by_query(query_D, keys_QJD, everything_QJ, wk_DD, wv_DD, self.heads, self.scale)
        out_QD = self.out_proj(pooled_QD)
        return out_QD + base_QD if self.residual else out_QD


class AverageDownsampling(nn.Module):
    """Ablation of LSD: the mean of each window."""

    def forward(self, x_BTHWD: Tensor, grid: CellGrid) -> Tensor:
        """Map (B, T, H, W, D) to (B, T, R, C, D)."""
        b, t, h, w, d = x_BTHWD.shape
        return x_BTHWD.reshape(b, t, h // 2, 2, w // 2, 2, d).mean((3, 5))  # (B, T, R, C, D)


class NoDownsampling(nn.Module):
    """Ablation of LSD: the frames have half the resolution, so each patch already is a token."""

    def forward(self, x_BTRCD: Tensor, grid: CellGrid) -> Tensor:
        """Return the input."""
        return x_BTRCD


class PerceiverDownsampling(LearnedPooling):
    """Ablation of LSD: learned queries, one per cell of the picture, attend to all patches of their frame.

    A one-layer Perceiver resampler. It keeps the token grid, so that only the downsampling differs from the full model.
    """

    def __init__(self, config: VideoPandaStabConfig):
        super().__init__(config)
        d = config.hidden_size
        self.query = nn.Parameter(torch.randn(config.max_cells, config.max_cells, d))
        self.mlp_norm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.mlp_up = nn.Linear(d, 4 * d)
        self.mlp_down = nn.Linear(4 * d, d)

    def forward(self, x_BTHWD: Tensor, grid: CellGrid) -> Tensor:
        """Map (B, T, H, W, D) to (B, T, R, C, D)."""
        b, t, h, w, d = x_BTHWD.shape
        limit = self.query.shape[0] - 1
        r_BTR = (torch.arange(h // 2, device=x_BTHWD.device) - grid.top[..., None]).clamp(0, limit)
        c_BTC = (torch.arange(w // 2, device=x_BTHWD.device) - grid.left[..., None]).clamp(0, limit)
        base_FMD = self.query[r_BTR[..., None], c_BTC[:, :, None, :]].view(b * t, -1, d)
        query_FNMK, key_FNMK, value_FNMK = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (F, N, M, K)
            for x in (
                self.query_proj(self.query_norm(base_FMD)),
                *self.kv_proj(self.key_norm(x_BTHWD).reshape(b * t, h * w, d)).chunk(2, dim=-1),
            )
        )
        visible_F11M = cells_to_patches(grid.sends).view(b * t, 1, 1, h * w)
        bias_F11M = torch.zeros_like(visible_F11M, dtype=query_FNMK.dtype)
        bias_F11M = bias_F11M.masked_fill(~visible_F11M, torch.finfo(query_FNMK.dtype).min)
        out_FNMK = F.scaled_dot_product_attention(query_FNMK, key_FNMK, value_FNMK, attn_mask=bias_F11M)
        out_FMD = base_FMD + self.out_proj(out_FNMK.transpose(1, 2).flatten(2))
        out_FMD = out_FMD + self.mlp_down(F.gelu(self.mlp_up(self.mlp_norm(out_FMD))))
        return out_FMD.view(b, t, h // 2, w // 2, d)


class FrameSpatialAggregator(LearnedPooling):
    """FSRA (Eqs. 8 to 10): one learned query, shared by all frames, attends to the tokens of its frame."""

    def __init__(self, config: VideoPandaStabConfig):
        super().__init__(config)
        self.query = nn.Parameter(torch.randn(config.hidden_size))

    def forward(self, x_BTRCD: Tensor, grid: CellGrid) -> Tensor:
        """Return one summary (B, T, D) per frame."""
        wk_DD, wv_DD = self.kv_proj.weight.chunk(2)
        query_D = self.query_proj(self.query_norm(self.query))
        keys_FMD = self.key_norm(x_BTRCD).flatten(2, 3).flatten(0, 1)  # (F, M, D)
        mask_FM = grid.sends.flatten(2).flatten(0, 1)  # (F, M)
        pooled_FD = pool_by_query(query_D, keys_FMD, mask_FM, wk_DD, wv_DD, self.heads, self.scale)
        out_FD = self.out_proj(pooled_FD)
        if self.residual:
            out_FD = out_FD + self.query
        return out_FD.view(*x_BTRCD.shape[:2], -1)  # (B, T, D)


class ContextFusion(nn.Module):
    """Combine the segment and frame summaries into a frame's context token (Eq. 14)."""

    def __init__(self, config: VideoPandaStabConfig):
        super().__init__()
        d = config.hidden_size
        gated = config.fusion == "gated"
        self.gated = gated
        # QUIRK(ckpt): released weights store the gate before its sigmoid, and normalize before the linear map.
        self.balance = nn.Parameter(torch.full((d,), 0.0 if gated else 0.5)) if config.fsra else None
        self.norm = nn.LayerNorm(d, eps=config.layer_norm_eps) if gated else nn.Identity()
        self.dropout = nn.Dropout(config.dropout if gated else 0.0)
        self.proj = nn.Linear(d, d)

    def forward(self, segment_BTD: Tensor, frame_BTD: Tensor | None) -> Tensor:
        """Return context tokens (B, T, D); without a frame summary the segment summary stands alone."""
        mixed_BTD = segment_BTD
        if self.balance is not None and frame_BTD is not None:
            alpha_D = torch.sigmoid(self.balance) if self.gated else self.balance
            mixed_BTD = segment_BTD + alpha_D * (frame_BTD - segment_BTD)
        return self.proj(self.dropout(self.norm(mixed_BTD)))


class Coordinates(nn.Module):
    """Where and when a token is: waves of 1, 2, ... half periods over the picture and over the clip.

    Not in the paper, where a large language model has learned to count tokens; a small one learns that very slowly.
    """

    num_waves = 8  # per axis

    def __init__(self, hidden_size: int):
        super().__init__()
        self.projection = ReadLinear(6 * self.num_waves, hidden_size, bias=False)

    def forward(self, grid: CellGrid, placement_B6: Tensor, first: int = 0) -> Tensor:
        """Return (B, T, R, C, D), to be added to the visual tokens. The grid begins with frame `first` of the clips."""
        _, t, rows, columns = grid.sends.shape
        device = placement_B6.device
        top_B, left_B, rows_B, columns_B, num_frames_B, _ = (x_B[:, None].float() for x_B in placement_B6.unbind(1))
        when_BT = (torch.arange(first, first + t, device=device) + 0.5) / num_frames_B.clamp(
            min=1
        )  # a video may have none
        row_BR = (torch.arange(rows, device=device) + 0.5 - top_B) / rows_B
        column_BC = (torch.arange(columns, device=device) + 0.5 - left_B) / columns_B
        when, row, column = self.waves(when_BT), self.waves(row_BR), self.waves(column_BC)
        # The projection of the three axes side by side is the sum of one projection for each.
        when, row, column = (
            x @ weight.T for x, weight in zip((when, row, column), self.projection.weight.split(2 * self.num_waves, 1))
        )
        return when[:, :, None, None] + row[:, None, :, None] + column[:, None, None, :]

    def waves(self, x_BN: Tensor) -> Tensor:
        """Cosines and sines (B, N, 2 × num_waves) of positions between 0 and 1."""
        angle = torch.pi * x_BN[..., None] * torch.arange(1, self.num_waves + 1, device=x_BN.device)
        return torch.cat([angle.cos(), angle.sin()], dim=-1).to(self.projection.weight.dtype)


class VideoPandaStab(nn.Module):
    """STAB: maps frames of a batch of videos to the visual tokens for the projector."""

    def __init__(self, config: VideoPandaStabConfig):
        super().__init__()
        self.config = config
        self.patch_embedding = PatchEmbedding(config)
        self.lste = LocalSpatioTemporalEncoding(config) if config.lste else None
        self.gstra = GlobalSpatioTemporalAggregator(config) if config.gstra else None
        if config.downsampling == "lsd":
            self.lsd: nn.Module = LocalSpatialDownsampling(config)
        elif config.downsampling == "perceiver":
            self.lsd = PerceiverDownsampling(config)
        else:
            self.lsd = AverageDownsampling() if config.downsampling == "average" else NoDownsampling()
        self.fsra = FrameSpatialAggregator(config) if config.fsra else None
        self.fusion = ContextFusion(config) if config.gstra else None
        self.row_token = nn.Parameter(torch.randn(config.hidden_size)) if config.row_tokens else None
        self.coordinates = Coordinates(config.hidden_size) if config.coordinates else None

    def plan(
        self, placement_B6: Tensor, frames: int, rows: int, columns: int, is_image: bool, device: Any, first: int = 0
    ) -> TokenLayout:
        """Plan the tokens of a batch of videos or images on a canvas of `rows` × `columns` cells, for `forward`.

        The plan is for `frames` frames of the videos from number `first` on, which begins a segment.
        """
        config = self.config
        return plan_tokens(
            placement_B6,
            (frames, rows, columns),
            config.segment_frames,
            mask_padding=config.mask_padding,
            row_tokens=config.row_tokens,
            context_token=config.image_context_token if is_image else config.context_token,
            crop=not config.downsample_first,
            device=device,
            first=first,
        )

    def forward(
        self, pixel_values_BTXY: Tensor, placement_B6: Tensor, is_image: bool = False, layout: TokenLayout | None = None
    ) -> Tensor:
        """Map normalized frames (B, T, 3, height, width) to the tokens (V, D) of all videos, one video after the other.

        `placement_B6` holds top, left, rows, columns of the picture in cells, the number of frames that yield tokens
        and the number of real frames among them. Images are videos of one frame for which LSTE, GSTRA and fusion are
        skipped.

        With the `layout` of `plan`, at inference, only what tokens need is computed, and each distinct token is
        returned once, (U, D): `layout.order` puts them in order. The values are the same.
        """
        assert layout is None or not self.training
        config = self.config
        if config.downsampling == "half_resolution":
            pixel_values_BTXY = F.avg_pool2d(pixel_values_BTXY.flatten(0, 1), 2).unflatten(
                0, pixel_values_BTXY.shape[:2]
            )
        x_BTHWD = self.patch_embedding(pixel_values_BTXY)
        per_cell = 1 if config.downsampling == "half_resolution" else 2
        _, t, h, w, _ = x_BTHWD.shape
        if layout is None:
            grid = cell_grid(placement_B6, t, h // per_cell, w // per_cell, config.mask_padding)
            visible: Tensor | None = grid.visible
            first = 0
        else:
            grid, placement_B6, visible, first = layout.grid, layout.placement, layout.visible, layout.first
        if is_image:
            tokens_BTRCD = self.lsd(x_BTHWD if layout is None else layout.crop(x_BTHWD, per_cell), grid)
            context_BTD = None if self.fsra is None else self.fsra(tokens_BTRCD, grid)
            return self.lay_out(self.locate(tokens_BTRCD, grid, placement_B6, first), context_BTD, grid, layout)
        if config.downsample_first:
            x_BTHWD = self.lsd(x_BTHWD, grid)
        on_cells = config.downsample_first or per_cell == 1
        mask_BTHW = visible if visible is None or on_cells else cells_to_patches(visible)
        encoded_BTHWD = x_BTHWD if self.lste is None else self.encode(self.lste, x_BTHWD, mask_BTHW)
        tokens_BTRCD = encoded_BTHWD
        if layout is not None:
            tokens_BTRCD = layout.crop(encoded_BTHWD, 1 if on_cells else per_cell)
            x_BTHWD = layout.crop(x_BTHWD, 1 if on_cells else per_cell)
        if self.lste is not None and config.dense_connection:
            # QUIRK(ckpt): the patch embedding is added once more for LSD, while GSTRA sees the sum without it.
            tokens_BTRCD = tokens_BTRCD + x_BTHWD
        if not config.downsample_first:
            tokens_BTRCD = self.lsd(tokens_BTRCD, grid)
        context_BTD = None if self.fsra is None else self.fsra(tokens_BTRCD, grid)
        if self.gstra is not None and self.fusion is not None:
            if config.gstra_input == "full":
                segment_BTD = self.summarize(self.gstra, encoded_BTHWD, mask_BTHW)
            else:
                segment_BTD = self.summarize(self.gstra, tokens_BTRCD, grid.sends & grid.visible)
            context_BTD = self.fusion(segment_BTD, context_BTD)
        return self.lay_out(self.locate(tokens_BTRCD, grid, placement_B6, first), context_BTD, grid, layout)

    def locate(self, tokens_BTRCD: Tensor, grid: CellGrid, placement_B6: Tensor, first: int) -> Tensor:
        """Add coordinates to the tokens of cells, where the configuration asks for them."""
        if self.coordinates is None:
            return tokens_BTRCD
        return tokens_BTRCD + self.coordinates(grid, placement_B6, first).to(tokens_BTRCD.dtype)

    def to_segments(self, x_BT: Tensor) -> Tensor:
        """Cut (B, T, ...) into consecutive segments (Z, L, ...), the last one padded with zeros.

        The official code splits T frames into T // 4 equal pieces; both agree when T is a multiple of four.
        """
        b, t = x_BT.shape[:2]
        length = self.config.segment_frames or t
        missing = -t % length
        if missing:
            x_BT = torch.cat([x_BT, x_BT.new_zeros(b, missing, *x_BT.shape[2:])], dim=1)
        return x_BT.reshape(-1, length, *x_BT.shape[2:])  # (Z, L, ...)

    def encode(self, lste: nn.Module, x_BTHWD: Tensor, mask_BTHW: Tensor | None) -> Tensor:
        """Run LSTE on all segments."""
        x_ZLHWD, mask_ZLHW1 = self.to_segments(x_BTHWD), None
        if mask_BTHW is not None:
            mask_ZLHW1 = self.to_segments(mask_BTHW)[..., None]
            x_ZLHWD = x_ZLHWD * mask_ZLHW1.to(x_BTHWD.dtype)
        x_ZLHWD = lste(x_ZLHWD, mask_ZLHW1)
        return x_ZLHWD.reshape(x_BTHWD.shape[0], -1, *x_BTHWD.shape[2:])[:, : x_BTHWD.shape[1]]

    def summarize(self, gstra: nn.Module, x_BTHWD: Tensor, mask_BTHW: Tensor | None) -> Tensor:
        """Run GSTRA on all segments and give each frame (B, T, D) the summary of its segment."""
        b, t = x_BTHWD.shape[:2]
        x_ZLHWD = self.to_segments(x_BTHWD)
        mask_ZM = None if mask_BTHW is None else self.to_segments(mask_BTHW).flatten(1)
        segment_ZD = gstra(x_ZLHWD.flatten(1, 3), mask_ZM)
        return segment_ZD.view(b, -1, 1, segment_ZD.shape[-1]).expand(-1, -1, x_ZLHWD.shape[1], -1).flatten(1, 2)[:, :t]

    def lay_out(
        self, tokens_BTRCD: Tensor, context_BTD: Tensor | None, grid: CellGrid, layout: TokenLayout | None
    ) -> Tensor:
        """Put the tokens in order, (V, D), or with a layout gather the distinct ones, (U, D)."""
        table_XD = tokens_BTRCD.reshape(-1, tokens_BTRCD.shape[-1])
        if context_BTD is not None:
            table_XD = torch.cat([table_XD, context_BTD.reshape(-1, table_XD.shape[1]).to(table_XD.dtype)])
        row_token = self.row_token
        if layout is not None:
            if row_token is not None:
                table_XD = torch.cat([table_XD, row_token[None].to(table_XD.dtype)])
            return table_XD.index_select(0, layout.kept)
        source_V, is_row_V = token_sources(grid, row_token is not None, context_BTD is not None)
        tokens_VD = table_XD.index_select(0, source_V.masked_fill(is_row_V, 0))
        if row_token is not None:
            tokens_VD = torch.where(is_row_V[:, None], row_token.to(tokens_VD.dtype), tokens_VD)
        return tokens_VD
