"""The official arithmetic of Video-Panda, implemented literally: the baseline for the optimized path, measured with it.

    python benchmarks/official_arithmetic.py [--resolution 448x448] [--rounds 5] > efficiency.json

Written from the facts about the released model (docs/fidelity.md), with its parameter names and order of operations:
one video after the other, LSD, FSRA and projector one frame after the other, keys and values of every token projected,
3-D convolutions, the picture located again in a pixel mask. It reproduces the golden numbers, as the model does.

Dimensions: S segments of L frames; F = S·L; Q queries; D width; E width of the language model; H × W patches; R × C
    cells; M keys; N heads.
"""

import argparse
import json

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videopanda.bench.efficiency import CONTENDERS, FRAMES, Contender, measure, own_arguments

NAME = "video-panda-official-arithmetic"
SEGMENT_FRAMES = 4
PADDING_PATCHES = 16  # of an all-padding frame the first 16 × 16 patches are read


class QueryAttention(nn.Module):
    """Norms and projections of LSD and FSRA; the scale is that of the full width."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, width**-0.5
        self.q = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width, bias=False))
        self.kv = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width, bias=False))
        self.proj = nn.Linear(width, width)

    def forward(self, query_Q1D: Tensor, keys_QMD: Tensor) -> Tensor:
        """One query for each of Q sets of M keys: (Q, 1, D) and (Q, M, D) to (Q, 1, D)."""
        q_QN1K = self.q(query_Q1D).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k_QMD, v_QMD = self.kv(keys_QMD).chunk(2, dim=-1)
        k_QNMK, v_QNMK = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (k_QMD, v_QMD))
        weights_QN1M = (q_QN1K @ k_QNMK.transpose(-2, -1) * self.scale).softmax(-1)
        return self.proj((weights_QN1M @ v_QNMK).transpose(1, 2).flatten(2))


class SegmentAttention(nn.Module):
    """GSTRA: one query attends to all patches of a segment, then an MLP with x · sigmoid(1.702 x)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1, self.ln_2, self.ln_3 = (nn.LayerNorm(width) for _ in range(3))
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, query_S1D: Tensor, keys_SMD: Tensor) -> Tensor:
        """Summaries (S, 1, D)."""
        query, keys_SMD = self.ln_1(query_S1D), self.ln_3(keys_SMD)
        z_S1D = query_S1D + self.attn(query, keys_SMD, keys_SMD, need_weights=False)[0]
        h_S14D = self.mlp["c_fc"](self.ln_2(z_S1D))
        return z_S1D + self.mlp["c_proj"](h_S14D * torch.sigmoid(1.702 * h_S14D))


class TemporalBranch(nn.Module):
    """The bottleneck of LSTE."""

    def __init__(self, width: int):
        super().__init__()
        u = int(width / 1.5)
        self.pos_embed = nn.Sequential(
            nn.BatchNorm3d(width),
            nn.Conv3d(width, u, 1),
            nn.Conv3d(u, u, (3, 1, 1), padding=(1, 0, 0), groups=u),
            nn.Conv3d(u, width, 1),
        )

    def forward(self, x_SDLHW: Tensor) -> Tensor:
        """Map (S, D, L, H, W) to the same shape."""
        return self.pos_embed(x_SDLHW)


class OfficialTower(nn.Module):
    """The tower: segments of one video to the visual tokens of each frame."""

    def __init__(self, width: int = 1024, patch: int = 14, heads: int = 8):
        super().__init__()
        self.patch = patch
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.split_embedding = nn.Parameter(torch.randn(width))
        self.temporal_cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.balance = nn.Parameter(torch.zeros(width))
        self.lmhra1 = TemporalBranch(width)
        self.dpe = nn.Conv3d(width, width, 3, padding=1, groups=width)
        self.dec = SegmentAttention(width, heads)
        self.proj = nn.Sequential(nn.LayerNorm(width), nn.Dropout(0.5), nn.Linear(width, width))
        self.local_attention = QueryAttention(width, heads)
        self.global_attention = QueryAttention(width, heads)

    def forward(self, pixels_SLCXY: Tensor, mask_SLXY: Tensor) -> list[Tensor]:
        """Map segments (S, L, 3, X, Y) and their masks (1: picture, 0: padding) to one (tokens, D) per frame."""
        s, length = pixels_SLCXY.shape[:2]
        mask_FHW = F.avg_pool2d(mask_SLXY.flatten(0, 1), self.patch)
        p_FDHW = self.patch_embedding(pixels_SLCXY.flatten(0, 1))
        x_SDLHW = p_FDHW.clone().unflatten(0, (s, length)).permute(0, 2, 1, 3, 4).contiguous()
        x_SDLHW = x_SDLHW + self.lmhra1(x_SDLHW)
        x_SDLHW = x_SDLHW + self.dpe(x_SDLHW)
        keys_SMD = x_SDLHW.flatten(2).transpose(1, 2).contiguous()
        summary_S1D = self.dec(self.temporal_cls_token.expand(s, -1, -1), keys_SMD)
        y_FDHW = x_SDLHW.permute(0, 2, 1, 3, 4).flatten(0, 1) + p_FDHW
        return [
            self.frame_tokens(y_DHW, mask_HW, summary_S1D[t // length])
            for t, (y_DHW, mask_HW) in enumerate(zip(y_FDHW, mask_FHW))
        ]

    def frame_tokens(self, y_DHW: Tensor, mask_HW: Tensor, summary_1D: Tensor) -> Tensor:
        """Context token, then rows of cells with their row token, (1 + R · (C + 1), D)."""
        places = mask_HW.nonzero()
        if len(places):
            (top, left), (bottom, right) = places[0].tolist(), places[-1].tolist()
            y_DHW = y_DHW[:, top : bottom + 1, left : right + 1]
        else:
            y_DHW = y_DHW[:, :PADDING_PATCHES, :PADDING_PATCHES]
        d, h, w = y_DHW.shape
        base_Q1D = F.avg_pool2d(y_DHW, 2).flatten(1).T.unsqueeze(1)
        windows_Q4D = y_DHW.view(d, h // 2, 2, w // 2, 2).permute(1, 3, 2, 4, 0).reshape(-1, 4, d)
        cells_QD = (base_Q1D + self.local_attention(base_Q1D, windows_Q4D)).squeeze(1)
        query_1D = self.class_embedding[None]
        frame_1D = query_1D + self.global_attention(query_1D[None], cells_QD[None])[0]
        alpha_D = torch.sigmoid(self.balance)
        context_1D = self.proj((1 - alpha_D) * summary_1D + alpha_D * frame_1D)
        rows_RCD = cells_QD.unflatten(0, (h // 2, w // 2))
        split_R1D = self.split_embedding.expand(h // 2, 1, d)
        return torch.cat([context_1D, torch.cat([rows_RCD, split_R1D], dim=1).flatten(0, 1)])


class OfficialVision(nn.Module):
    """Tower and projector, one video and one frame at a time."""

    def __init__(self, width: int = 1024, output: int = 4096, patch: int = 14, heads: int = 8):
        super().__init__()
        self.video_tower = OfficialTower(width, patch, heads)
        self.video_projector = nn.Sequential(nn.Linear(width, output), nn.GELU(), nn.Linear(output, output))

    def forward(self, pixels_BTCXY: Tensor, mask_BTXY: Tensor) -> list[Tensor]:
        """Map videos (B, T, 3, X, Y) and masks to (tokens, E) of each frame. T must be a multiple of four."""
        frames = []
        for video in zip(pixels_BTCXY, mask_BTXY):
            pixels_SLCXY, mask_SLXY = (torch.stack(x.chunk(len(x) // SEGMENT_FRAMES)) for x in video)
            frames += [self.video_projector(tokens_VD) for tokens_VD in self.video_tower(pixels_SLCXY, mask_SLXY)]
        return frames


def official_arguments(height: int, width: int) -> tuple[Tensor, Tensor]:
    """The frames that the model is measured with, and a mask of the picture."""
    pixels, placement = own_arguments(height, width)
    top, left, rows, columns = (28 * cells for cells in placement[0, :4].tolist())
    mask = torch.zeros(1, FRAMES, *pixels.shape[-2:])
    mask[:, :, top : top + rows, left : left + columns] = 1.0
    return pixels, mask


CONTENDERS[NAME] = Contender(OfficialVision, official_arguments)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", default="448x448")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    columns, rows = map(int, options.resolution.split("x"))
    print(json.dumps(measure(list(CONTENDERS), rows, columns, rounds=options.rounds), indent=1))
