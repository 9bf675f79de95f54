"""The visual tokens of a batch, their places on the canvas and their order in the language model.

Everything here follows from the placement alone, so it is known before any pixel is touched.

Dimensions: B videos; T frames; R × C cells; V visual tokens of the batch; U distinct ones.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..visual import CELL, CONTEXT, PADDING, ROW_END
from .configuration_videopanda import PADDING_FRAME_CELLS


class CellGrid(NamedTuple):
    """The placement expanded to every cell of a batch."""

    sends: Tensor  # (B, T, R, C) bool: the cell sends a token
    visible: Tensor  # (B, T, R, C) bool: the cell may influence other cells
    frame_sends: Tensor  # (B, T) bool: the frame sends tokens
    top: Tensor  # (B, T) first row of the picture in its frame
    left: Tensor  # (B, T) first column
    end: Tensor  # (B, T) exclusive end column


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
        visible_BTRC = sends_BTRC & real_BT[..., None, None]
    else:
        visible_BTRC = frame_sends_BT[..., None, None].expand_as(sends_BTRC)
    return CellGrid(sends_BTRC, visible_BTRC, frame_sends_BT, top_BT, left_BT, left_BT + columns_BT)


def cells_to_patches(x_BTRC: Tensor) -> Tensor:
    """Repeat every cell value for its 2 × 2 patches."""
    return x_BTRC.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def token_sources(grid: CellGrid, row_tokens: bool, context_token: bool) -> tuple[Tensor, Tensor]:
    """Where each token comes from, (V,), as a row of the table [cells (B·T·R·C), contexts (B·T)]; is it a row token.

    Per frame the context token, then each row of cells and its row token, whose source is meaningless.
    """
    b, t, r, c = grid.sends.shape
    c_C = torch.arange(c + 1, device=grid.sends.device)  # one more slot per row, for the row token
    end_BT11 = grid.end[..., None, None]
    row_sends_BTR1 = grid.sends.any(-1, keepdim=True)
    is_row_BTRC = row_sends_BTR1 & (c_C == end_BT11) & row_tokens
    filled_BTRC = F.pad(grid.sends, (0, 1)) | is_row_BTRC
    source_BTRC = torch.arange(b * t * r, device=c_C.device).view(b, t, r, 1) * c + c_C
    filled_BTX, is_row_BTX, source_BTX = filled_BTRC.flatten(2), is_row_BTRC.flatten(2), source_BTRC.flatten(2)
    if context_token:
        first_BT1 = b * t * r * c + torch.arange(b * t, device=c_C.device).view(b, t, 1)
        source_BTX = torch.cat([first_BT1, source_BTX], dim=2)
        filled_BTX = torch.cat([grid.frame_sends[..., None], filled_BTX], dim=2)
        is_row_BTX = F.pad(is_row_BTX, (1, 0))
    chosen_V = filled_BTX.flatten().nonzero().squeeze(1)  # the one place that waits for the device
    return source_BTX.flatten()[chosen_V], is_row_BTX.flatten()[chosen_V]


def token_layout(placement: Any, max_cells: int, row_tokens: bool, context_token: bool) -> Tensor:
    """Frame, row, column and kind of every token of one placement row, (V, 4); see `EncodedVisual`."""
    top, left, rows, columns, num_frames, num_real = map(int, placement)
    corner = min(PADDING_FRAME_CELLS, max_cells)

    def frame(top: int, left: int, rows: int, columns: int, kind: int) -> Tensor:
        r_R1, c_1C = torch.arange(top, top + rows)[:, None], torch.arange(left, left + columns)[None]
        cells_RC3 = torch.stack([*torch.broadcast_tensors(r_R1, c_1C), torch.full((rows, columns), kind)], dim=-1)
        if row_tokens:
            end_R13 = torch.tensor([-1, -1, ROW_END]).expand(rows, 1, 3)
            cells_RC3 = torch.cat([cells_RC3, end_R13], dim=1)
        context_X3 = torch.tensor([[-1, -1, CONTEXT]] * context_token, dtype=torch.int64).view(-1, 3)
        return torch.cat([context_X3, cells_RC3.flatten(0, 1)])

    frames = [frame(top, left, rows, columns, CELL)] * num_real
    frames += [frame(0, 0, corner, corner, PADDING)] * (num_frames - num_real)
    numbered = [F.pad(frame_X3, (1, 0), value=number) for number, frame_X3 in enumerate(frames)]
    return torch.cat(numbered) if numbered else torch.zeros(0, 4, dtype=torch.int64)


class TokenLayout(NamedTuple):
    """The plan of a batch for inference: what need not be computed, and the sequence in terms of distinct tokens.
    Tokens come only from cells of the box, and all row tokens are the same. Computed on the CPU, so the model neither
    waits for the device nor depends on data.
    """

    box: tuple[int, int, int, int]  # first row, end row, first column, end column (exclusive) of the cells used
    grid: CellGrid  # of the box
    placement: Tensor  # (B, 6) of the whole videos, within the box
    first: int  # number of the first frame
    visible: Tensor | None  # (B, T, R, C) of the whole canvas; None: everything may
    kept: Tensor  # (U,) distinct tokens, as rows of the table [cells of the box, contexts, row token]
    order: Tensor  # (V,) which of them each token of the sequence is

    def crop(self, x_BTHWD: Tensor, per_cell: int) -> Tensor:
        """The box of features, with `per_cell` × `per_cell` of them per cell."""
        top, bottom, left, right = (per_cell * side for side in self.box)
        return x_BTHWD[:, :, top:bottom, left:right]


def plan_tokens(
    placement_B6: Tensor,
    canvas: tuple[int, int, int],
    segment_frames: int | None,
    *,
    mask_padding: bool,
    row_tokens: bool,
    context_token: bool,
    crop: bool,
    device: torch.device,
    first: int = 0,
) -> TokenLayout:
    """Plan the tokens of a batch on a canvas of (frames, rows, columns) cells, starting with frame number `first`.

    Without `crop` the box is the canvas.
    """
    frames, rows, columns = canvas
    placement_B6 = placement_B6.cpu()
    part_B6 = torch.cat([placement_B6[:, :4], (placement_B6[:, 4:] - first).clamp(0, frames)], dim=1)
    whole = cell_grid(part_B6, frames, rows, columns, mask_padding)
    top, bottom, left, right = 0, rows, 0, columns
    if crop and whole.sends.any():
        row_numbers, column_numbers = (whole.sends.any(0).any(0).any(axis).nonzero().squeeze(1) for axis in (1, 0))
        top, bottom = int(row_numbers[0]), int(row_numbers[-1]) + 1
        left, right = int(column_numbers[0]), int(column_numbers[-1]) + 1
    grid = CellGrid(
        whole.sends[:, :, top:bottom, left:right],
        whole.visible[:, :, top:bottom, left:right],
        whole.frame_sends,
        whole.top - top,
        whole.left - left,
        whole.end - left,
    )
    source_V, is_row_V = token_sources(grid, row_tokens, context_token)
    kept_U = source_V[~is_row_V]
    order_V = torch.where(is_row_V, len(kept_U), (~is_row_V).cumsum(0) - 1)
    if row_tokens:
        kept_U = F.pad(kept_U, (0, 1), value=grid.sends.numel() + (grid.frame_sends.numel() if context_token else 0))
    complete = bool(whole.visible.all()) and frames % (segment_frames or frames) == 0
    return TokenLayout(
        (top, bottom, left, right),
        CellGrid(*(part.to(device) for part in grid)),
        (placement_B6 - torch.tensor([top, left, 0, 0, 0, 0])).to(device),
        first,
        None if complete else whole.visible.to(device),
        kept_U.to(device),
        order_V.to(device),
    )
