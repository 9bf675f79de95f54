"""The video patch embedding layer of ELVA: ragged frames to FRAME, patch and LINE tokens, without loops over frames.

    layout = token_places(grids_F4)                       # where every token comes from, by arithmetic
    tokens_VE = embedding(cells_CPX, grids_F4)            # h·w + h + 1 tokens per frame, in reading order

Dimensions: F frames of the whole batch; C cells of all frames; P = 4 patches of a cell; X = 3·p·p pixel values of a
patch; c width of the embedding; H heads, W = c / H; R rows of all frames; V = C + R + F tokens; E width of the language
model. `grids_F4` holds per frame: number of its video, number in its video, rows, columns.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..visual import CELL, CONTEXT, ROW_END
from .configuration_elva import ElvaEmbeddingConfig, frame_tokens

CELLS_AT_ONCE = 1024  # without gradients: a long clip takes no more memory here than a short one


class TokenPlaces(NamedTuple):
    """Where the tokens of a batch of frames are.

    row_of_cell, frame_of_cell: (C,) number of the row and of the frame of each cell.
    column_of_cell: (C,) column in its row.
    frame_of_row: (R,); row_in_frame: (R,).
    cell, line, frame: places of patch (C,), LINE (R,) and FRAME (F,) tokens among all V.
    """

    row_of_cell: Tensor
    frame_of_cell: Tensor
    column_of_cell: Tensor
    frame_of_row: Tensor
    row_in_frame: Tensor
    cell: Tensor
    line: Tensor
    frame: Tensor

    def only(self, kept_C: Tensor) -> "TokenPlaces":
        """The places of what remains if only some cells are kept; rows and frames stay."""
        stays_V = torch.ones(len(self.cell) + len(self.line) + len(self.frame), dtype=torch.bool, device=kept_C.device)
        stays_V[self.cell[~kept_C]] = False
        place_V = stays_V.cumsum(0) - 1
        of_cell = (self.row_of_cell[kept_C], self.frame_of_cell[kept_C], self.column_of_cell[kept_C])
        places = (place_V[self.cell[kept_C]], place_V[self.line], place_V[self.frame])
        return TokenPlaces(*of_cell, self.frame_of_row, self.row_in_frame, *places)


def token_places(grids_F4: Tensor) -> TokenPlaces:
    """Compute the places of all tokens from the grids of the frames."""
    rows_F, columns_F = grids_F4[:, 2], grids_F4[:, 3]
    number_F = torch.arange(len(grids_F4), device=grids_F4.device)
    length_F = frame_tokens(rows_F, columns_F)
    frame = length_F.cumsum(0) - length_F
    frame_of_row = torch.repeat_interleave(number_F, rows_F)
    row_in_frame = torch.arange(len(frame_of_row), device=frame.device) - (rows_F.cumsum(0) - rows_F)[frame_of_row]
    columns_R = columns_F[frame_of_row]
    line = frame[frame_of_row] + (row_in_frame + 1) * (columns_R + 1)
    row_of_cell = torch.repeat_interleave(torch.arange(len(columns_R), device=frame.device), columns_R)
    first_R = columns_R.cumsum(0) - columns_R
    column_of_cell = torch.arange(len(row_of_cell), device=frame.device) - first_R[row_of_cell]
    cell = line[row_of_cell] - columns_R[row_of_cell] + column_of_cell
    return TokenPlaces(
        row_of_cell, frame_of_row[row_of_cell], column_of_cell, frame_of_row, row_in_frame, cell, line, frame
    )


def token_layout(grids_F4: Tensor) -> Tensor:
    """Frame, row, column and kind of every token, (V, 4); see `EncodedVisual`."""
    places = token_places(grids_F4)
    layout_V4 = grids_F4.new_full((len(places.cell) + len(places.line) + len(places.frame), 4), -1)
    for where, frames, kind in (
        (places.cell, places.frame_of_cell, CELL),
        (places.line, places.frame_of_row, ROW_END),
        (places.frame, torch.arange(len(grids_F4), device=grids_F4.device), CONTEXT),
    ):
        layout_V4[where, 0] = grids_F4[frames, 1]
        layout_V4[where, 3] = kind
    layout_V4[places.cell, 1] = places.row_in_frame[places.row_of_cell]
    layout_V4[places.cell, 2] = places.column_of_cell
    return layout_V4


class SharedCrossAttention(nn.Module):
    """One attention for all queries of the layer: windows of 2 × 2 patches, rows and frames. No biases.

    Every token is read by one query of its group, so a softmax over groups replaces a block mask.
    """

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v = nn.Linear(hidden_size, hidden_size, bias=False)
        self.o = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, queries_Gc: Tensor, tokens_Tc: Tensor, group_T: Tensor, groups: int) -> Tensor:
        """Let query g attend to the tokens of group g.

        Args:
            queries_Gc: one query per group, (G, c), or one for all, (1, c).
            group_T: group of each token.
            groups: G.

        Returns: (G, c).
        """
        return self.attend(queries_Gc, self.k(tokens_Tc), self.v(tokens_Tc), group_T, groups)

    def attend(self, queries_Gc: Tensor, keys_Tc: Tensor, values_Tc: Tensor, group_T: Tensor, groups: int) -> Tensor:
        """As `forward`, with precomputed keys and values."""
        heads = self.num_heads
        q_GHW = self.q(queries_Gc).unflatten(1, (heads, -1))
        k_THW, v_THW = keys_Tc.unflatten(1, (heads, -1)), values_Tc.unflatten(1, (heads, -1))
        q_THW = q_GHW if len(q_GHW) == 1 else q_GHW[group_T]
        score_TH = (q_THW * k_THW).sum(2).float() * q_GHW.shape[2] ** -0.5
        index_TH = group_T[:, None].expand(-1, heads)
        peak_GH = score_TH.new_full((groups, heads), -torch.inf).scatter_reduce(0, index_TH, score_TH.detach(), "amax")
        weight_TH = (score_TH - peak_GH[group_T]).exp()
        total_GH = weight_TH.new_zeros(groups, heads).index_add(0, group_T, weight_TH)
        share_TH = (weight_TH / total_GH[group_T]).to(v_THW.dtype)
        read_GHW = v_THW.new_zeros(groups, *v_THW.shape[1:]).index_add(0, group_T, share_TH[..., None] * v_THW)
        return self.o(read_GHW.flatten(1))


class ElvaCoordinates(nn.Module):
    """Where in the picture and when in the clip a token is: waves of 1, 2, ... half periods over each of three axes.

    No source describes this: a large language model counts FRAME and LINE tokens, a small one learns that slowly.
    """

    num_waves = 8  # per axis

    def __init__(self, hidden_size: int):
        super().__init__()
        self.projection = nn.Linear(6 * self.num_waves, hidden_size, bias=False)

    def forward(self, places: TokenPlaces, grids_F4: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is added to patch (C, c), LINE (R, c) and FRAME (F, c) tokens: time; time and row; all three axes."""
        frames_F = torch.bincount(grids_F4[:, 0])[grids_F4[:, 0]].to(self.projection.weight.device)
        grids_F4 = grids_F4.to(frames_F.device)
        when_Fc, row_Rc, column_Cc = (
            self.waves(number, count) @ weight.T
            for weight, number, count in zip(
                self.projection.weight.split(2 * self.num_waves, 1),
                (grids_F4[:, 1], places.row_in_frame, places.column_of_cell),
                (frames_F, grids_F4[places.frame_of_row, 2], grids_F4[places.frame_of_cell, 3]),
            )
        )
        line_Rc = when_Fc[places.frame_of_row] + row_Rc
        return line_Rc[places.row_of_cell] + column_Cc, line_Rc, when_Fc

    def waves(self, number_N: Tensor, count_N: Tensor) -> Tensor:
        """Cosines and sines (N, 2 × num_waves) of the middles of `count` equal parts of an axis."""
        angle = (
            torch.pi * ((number_N + 0.5) / count_N)[:, None] * torch.arange(1, self.num_waves + 1).to(number_N.device)
        )
        return torch.cat([angle.cos(), angle.sin()], dim=-1).to(self.projection.weight.dtype)


class ElvaVideoEmbedding(nn.Module):
    """Patch convolution, reduction of 2 × 2 patches, FRAME and LINE tokens by cross-attention, linear map to E.

    The layout is the default of docs/elva.md: 8.47 M parameters at p = 14, c = 1024, E = 3584, learned vectors and
    norms not counted.
    """

    def __init__(self, config: ElvaEmbeddingConfig, output_size: int):
        super().__init__()
        self.config = config
        c, pixels = config.hidden_size, 3 * config.patch_size**2
        self.frame_token = nn.Parameter(torch.empty(c))
        self.line_token = nn.Parameter(torch.empty(c))
        if config.kind == "linear":
            self.patch = nn.Linear(4 * pixels, c)
            self.norm_pixels = nn.LayerNorm(4 * pixels)
            self.norm_placed = nn.LayerNorm(c)
            self.row_position = nn.Embedding(config.max_side, c)
            self.column_position = nn.Embedding(config.max_side, c)
        else:
            self.patch = nn.Linear(pixels, c, bias=False)  # a convolution whose stride is its kernel
        if config.kind == "convolution":
            self.reduce = nn.Linear(4 * c, c, bias=False)
        self.norm = nn.LayerNorm(c)
        if config.kind == "vpel" and config.markers:
            self.norm_marker = nn.LayerNorm(c)
        if config.kind == "vpel" and (config.markers or config.frame_link or config.reduction == "attention"):
            self.attention = SharedCrossAttention(c, config.num_heads)
        if config.coordinates:
            self.coordinates = ElvaCoordinates(c)
        self.output = nn.Linear(c, output_size, bias=False)

    def forward(self, cells_CPX: Tensor, grids_F4: Tensor) -> Tensor:
        """Map the cells of ragged frames to tokens (V, E); see `features`."""
        return self.output(self.features(cells_CPX, grids_F4))

    def features(self, cells_CPX: Tensor, grids_F4: Tensor, kept_C: Tensor | None = None) -> Tensor:
        """Map the cells of ragged frames to tokens (V, c) of the embedding's own width.

        Args:
            cells_CPX: patches of all cells in reading order, (C, 4, 3·p·p).
            grids_F4: (F, 4), see above; on the CPU, so that shapes are known without waiting for the device.
            kept_C: which cells of these grids are given, bool, on the CPU; None: all.
        """
        known = token_places(grids_F4) if kept_C is None else token_places(grids_F4).only(kept_C)
        places = TokenPlaces(*(place.to(cells_CPX.device) for place in known))
        blocks = 1 if torch.is_grad_enabled() else max(1, -(-len(cells_CPX) // CELLS_AT_ONCE))
        row_C = places.row_in_frame[places.row_of_cell]
        parts = zip(*(part.tensor_split(blocks) for part in (cells_CPX, row_C, places.column_of_cell)))
        tokens_Cc = torch.cat([self._cells(*part) for part in parts])
        frame_Fc = self.frame_token.expand(len(grids_F4), -1)
        line_Rc = self.line_token.expand(len(places.line), -1)
        if self.config.kind == "vpel" and self.config.markers:
            keys_Cc = self.norm(tokens_Cc)
            keys_Cc, values_Cc = self.attention.k(keys_Cc), self.attention.v(keys_Cc)
            marker_2c = self.norm_marker(torch.stack([self.line_token, self.frame_token]))
            attend = self.attention.attend
            line_Rc = line_Rc + attend(marker_2c[:1], keys_Cc, values_Cc, places.row_of_cell, len(places.line))
            frame_Fc = frame_Fc + attend(marker_2c[1:], keys_Cc, values_Cc, places.frame_of_cell, len(places.frame))
        if self.config.kind == "vpel" and self.config.frame_link:
            frame_Fc = frame_Fc + self._linked(frame_Fc, grids_F4[:, 0].to(frame_Fc.device))
        if self.config.coordinates:
            at_Cc, at_Rc, at_Fc = self.coordinates(places, grids_F4)
            tokens_Cc, line_Rc, frame_Fc = tokens_Cc + at_Cc, line_Rc + at_Rc, frame_Fc + at_Fc
        tokens_Vc = tokens_Cc.new_empty(len(places.cell) + len(places.line) + len(places.frame), tokens_Cc.shape[1])
        tokens_Vc = tokens_Vc.index_copy(0, places.cell, tokens_Cc)
        return tokens_Vc.index_copy(0, places.line, line_Rc).index_copy(0, places.frame, frame_Fc)

    def _cells(self, cells_CPX: Tensor, row_C: Tensor, column_C: Tensor) -> Tensor:
        """One token per cell, (C, c), which depends on no other cell."""
        if self.config.kind == "linear":
            limit = self.config.max_side - 1
            row_C, column_C = row_C.clamp(max=limit), column_C.clamp(max=limit)
            tokens_Cc = self.norm(self.patch(self.norm_pixels(cells_CPX.flatten(1))))
            placed_Cc = self.norm_placed(tokens_Cc + self.row_position(row_C) + self.column_position(column_C))
            return F.rms_norm(placed_Cc, placed_Cc.shape[1:], eps=1e-6)
        patches_CPc = F.gelu(self.patch(cells_CPX))
        if self.config.kind == "convolution":
            return self.reduce(patches_CPc.flatten(1))
        mean_Cc = patches_CPc.mean(1)
        if self.config.reduction == "mean":
            return mean_Cc
        cells, patches = patches_CPc.shape[:2]
        window_T = torch.arange(cells, device=cells_CPX.device)[:, None].expand(-1, patches).flatten()
        return mean_Cc + self.attention(self.norm(mean_Cc), self.norm(patches_CPc.flatten(0, 1)), window_T, cells)

    def _linked(self, frame_Fc: Tensor, video_F: Tensor) -> Tensor:
        """FRAME tokens attend to those of the same and of earlier frames of their video, (F, c)."""
        heads, tokens_Fc = self.config.num_heads, self.norm(frame_Fc)
        parts = self.attention.q, self.attention.k, self.attention.v
        q, k, v = (part(tokens_Fc).unflatten(1, (heads, -1)).transpose(0, 1) for part in parts)
        seen_FF = (video_F[:, None] == video_F).tril()
        read_HFW = F.scaled_dot_product_attention(q, k, v, attn_mask=seen_FF)
        return self.attention.o(read_HFW.transpose(0, 1).flatten(1))
