"""Fewer visual tokens before the language model: pooling, Mamba and pooling (STORM), pooled queries (BIMBA), ToMe, and
cells left out that do not change (EVS).

    compressor = Compressor(CompressionConfig(kind="mamba", pool_time=4), width=1024)
    tokens_VD, layout_V4, visual_V, state = compressor(tokens_VD, layout_V4, visual_V)
    compressed_layout(config, layout_V4, visual_V)        # as many rows, known before any pixel is touched

A compressor needs to know only where tokens come from (see `EncodedVisual.layout`), so it serves every family and
frames of any size. It runs between the vision part and its projection; a new one starts as plain pooling. Layouts stay
on the CPU: how many tokens there are never depends on what they show.

Dimensions: V tokens of B visuals; D width; L tokens of the longest visual; G groups that become one token; Q queries.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from .compression_config import CompressionConfig
from .state_space import Mamba, Mamba2, MixerState, reset_mixer
from .visual import CELL, CONTEXT, ROW_END

LAST_COLUMN = 1 << 20  # reading order: the end of a row comes after its cells


class Groups(NamedTuple):
    """Which tokens are averaged. group: (V,) number of each token's group; layout (G, 4) and visual (G,) of groups."""

    group: Tensor
    layout: Tensor
    visual: Tensor


def pooled_groups(layout_V4: Tensor, visual_V: Tensor, time: int, space: int) -> Groups:
    """Group tokens over `time` frames and squares of `space` cells; marks of frames and rows are pooled alike.

    Frames of different grids are never averaged with each other. Groups come in reading order.
    """
    frame_V, row_V, column_V, kind_V = layout_V4.unbind(1)
    _, frame_id_V = torch.unique(torch.stack([visual_V, frame_V], 1), dim=0, return_inverse=True)
    frames = int(frame_id_V.max()) + 1 if len(frame_id_V) else 0
    grid_F2 = layout_V4.new_full((frames, 2), -1)
    grid_F2.scatter_reduce_(0, frame_id_V[:, None].expand(-1, 2), layout_V4[:, 1:3], "amax")
    place_V = _place_in_frame(frame_id_V)
    ends_V = (kind_V == ROW_END).long()
    before_V = ends_V.cumsum(0) - ends_V
    first_F = torch.full((frames,), len(frame_id_V), device=frame_V.device).scatter_reduce(
        0, frame_id_V, torch.arange(len(frame_id_V), device=frame_V.device), "amin"
    )
    row_of_end_V = before_V - before_V[first_F[frame_id_V]]
    row_V = torch.where(kind_V == ROW_END, row_of_end_V, row_V)
    is_placed_V = (kind_V == CELL) | (kind_V == ROW_END)
    row_V = torch.where(is_placed_V, torch.div(row_V, space, rounding_mode="floor"), -1)
    column_V = torch.where(kind_V == CELL, torch.div(column_V, space, rounding_mode="floor"), LAST_COLUMN)
    column_V = torch.where(is_placed_V | (kind_V == CONTEXT), column_V, place_V)
    step_V = torch.div(frame_V, time, rounding_mode="floor")
    _, block_V = torch.unique(torch.cat([visual_V[:, None], step_V[:, None], grid_F2[frame_id_V]], 1), dim=0,
                              return_inverse=True)  # fmt: skip
    blocks = int(block_V.max()) + 1 if len(block_V) else 0
    start_V = torch.full((blocks,), LAST_COLUMN, device=frame_V.device).scatter_reduce(0, block_V, frame_V, "amin")
    key_V5 = torch.stack([visual_V, start_V[block_V], row_V, column_V, kind_V], 1)
    key_G5, group_V = torch.unique(key_V5, dim=0, return_inverse=True)
    layout_G4 = torch.cat([torch.div(key_G5[:, 1:2], time, rounding_mode="floor"), key_G5[:, 2:]], 1)
    is_cell_G = layout_G4[:, 3] == CELL
    layout_G4[:, 1:3] = torch.where(is_cell_G[:, None], layout_G4[:, 1:3], -1)
    return Groups(group_V, layout_G4, key_G5[:, 0])


def _place_in_frame(frame_id_V: Tensor) -> Tensor:
    """How many tokens of the same frame come before each token; frames are contiguous."""
    starts_V = F.pad(frame_id_V[1:] != frame_id_V[:-1], (1, 0), value=True)
    number_V = torch.arange(len(frame_id_V), device=frame_id_V.device)
    return number_V - torch.where(starts_V, number_V, 0).cummax(0).values


def group_means(tokens_VD: Tensor, groups: Groups) -> Tensor:
    """The mean of each group, (G, D)."""
    count = len(groups.layout)
    size_G1 = torch.bincount(groups.group, minlength=count)[:, None].to(tokens_VD.device)
    total_GD = tokens_VD.new_zeros(count, tokens_VD.shape[1], dtype=torch.float32)
    total_GD = total_GD.index_add(0, groups.group.to(tokens_VD.device), tokens_VD.float())
    return (total_GD / size_G1).to(tokens_VD.dtype)


class ResidualMixer(nn.Module):
    """x + mixer(norm(x)) over each visual's tokens in reading order, in one direction or as a sum of two.

    A new one is the identity: the output weights are zero (as in BIMBA).
    """

    def __init__(self, config: CompressionConfig, width: int):
        super().__init__()
        kind = Mamba if config.kind == "mamba" else Mamba2
        self.norm = nn.LayerNorm(width)
        self.forwards = kind(width, state_size=config.state_size)
        self.backwards = kind(width, state_size=config.state_size) if config.bidirectional else None

    def forward(self, tokens_BLD: Tensor, length_B: Tensor, state: MixerState | None) -> tuple[Tensor, MixerState]:
        """Mix (B, L, D), padded at the end; lengths on the CPU."""
        normed_BLD = self.norm(tokens_BLD)
        added_BLD, state = self.forwards(normed_BLD, state)
        if self.backwards is not None:
            step_L = torch.arange(tokens_BLD.shape[1])
            flipped_BL = torch.where(step_L < length_B[:, None], length_B[:, None] - 1 - step_L, step_L)
            index_BLD = flipped_BL[:, :, None].to(tokens_BLD.device).expand_as(tokens_BLD)
            reversed_BLD, _ = self.backwards(normed_BLD.gather(1, index_BLD))
            added_BLD = added_BLD + reversed_BLD.gather(1, index_BLD)
        return tokens_BLD + added_BLD, state


def init_compressor(module: nn.Module) -> None:
    """Give a part of a new compressor its initial values; called by `_init_weights` of a family for every module."""
    if isinstance(module, Mamba | Mamba2):
        reset_mixer(module)
        init.zeros_(module.out_proj.weight)


class Compressor(nn.Module):
    """Mixers, then pooling or queries, then sampling and merging, as the configuration says."""

    def __init__(self, config: CompressionConfig, width: int):
        super().__init__()
        self.config = config
        layers = config.mixer_layers if config.has_mixers else 0
        self.mixers = nn.ModuleList(ResidualMixer(config, width) for _ in range(layers))
        self.apply(init_compressor)

    def forward(
        self, tokens_VD: Tensor, layout_V4: Tensor, visual_V: Tensor, state: tuple[MixerState, ...] | None = None
    ) -> tuple[Tensor, Tensor, Tensor, tuple[MixerState, ...]]:
        """Compress the tokens of B visuals, or the next chunk of one clip.

        Args:
            layout_V4: frame, row, column and kind of each token, on the CPU; frames of a chunk are numbered from 0.
            visual_V: number of the visual of each token, ascending, on the CPU.
            state: of each mixer after the earlier chunks, which must have ended on `segment_frames`; None at the start.

        Returns: tokens, their layout and visuals, and the state after them.

        Raises:
            ValueError: a state is given to a compressor that needs the whole clip.
        """
        config = self.config
        if state is not None and config.needs_whole_clip:
            raise ValueError("this compressor needs the whole clip: bidirectional mixing and queries cannot stream")
        groups = pooled_groups(layout_V4, visual_V, config.pool_time, config.pool_space)
        mixed_VD, state = self._mix(tokens_VD, visual_V, groups, state)
        pooled_GD = mixed_VD if config.queries else group_means(mixed_VD, groups)
        kept_G = _sampled(config, groups)
        layout_G4, visual_G = groups.layout[kept_G], groups.visual[kept_G]
        if len(kept_G) < len(pooled_GD):
            pooled_GD = pooled_GD[kept_G.to(pooled_GD.device)]
        if config.merge_tokens:
            pooled_GD, kept_G = merge_similar(pooled_GD, layout_G4, visual_G, config.merge_tokens, config.merge_frames)
            visual_G = _merged(config, layout_G4, visual_G)[1]
            layout_G4 = layout_G4.to(kept_G.device)[kept_G]
        return pooled_GD, layout_G4, visual_G, state

    def clips(self, tokens_VD: Tensor, layouts: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Compress whole visuals, which follow one another, and return the tokens and the layout of each."""
        sizes = torch.tensor([len(layout_V4) for layout_V4 in layouts])
        visual_V = torch.repeat_interleave(torch.arange(len(layouts)), sizes)
        if not len(visual_V):  # the mixers have no part in the result, but belong to the graph
            return tokens_VD + 0.0 * sum(weight.sum() for weight in self.parameters()), list(layouts)
        tokens_VD, layout_V4, visual_V, _ = self(tokens_VD, torch.cat(list(layouts)), visual_V)
        return tokens_VD, list(layout_V4.split(torch.bincount(visual_V, minlength=len(layouts)).tolist()))

    def chunk(self, tokens_VD: Tensor, layout_V4: Tensor, state: tuple[MixerState, ...] | None) -> tuple[Any, ...]:
        """Compress the next chunk of one clip: tokens, their layout, and the state."""
        tokens_GD, layout_G4, _, state = self(tokens_VD, layout_V4, layout_V4.new_zeros(len(layout_V4)), state)
        return tokens_GD, layout_G4, state

    def _mix(
        self, tokens_VD: Tensor, visual_V: Tensor, groups: Groups, state: tuple[MixerState, ...] | None
    ) -> tuple[Tensor, tuple[MixerState, ...]]:
        """All tokens mixed, (V, D); with queries only those, (G, D)."""
        if not self.mixers:
            return tokens_VD, ()
        slot_V, tokens_UD, of_U = torch.arange(len(tokens_VD)), tokens_VD, visual_V
        if self.config.queries:
            slot_V, tokens_UD, of_U = interleaved(tokens_VD, visual_V, group_means(tokens_VD, groups), groups.visual)
        length_B = torch.bincount(of_U)
        place_U = torch.arange(len(of_U)) - (length_B.cumsum(0) - length_B)[of_U]
        longest, device = int(length_B.max()), tokens_VD.device
        flat_U = (of_U * longest + place_U).to(device)
        tokens_XD = tokens_UD.new_zeros(len(length_B) * longest, tokens_UD.shape[1]).index_copy(0, flat_U, tokens_UD)
        tokens_BLD = tokens_XD.view(len(length_B), longest, -1)
        states = []
        for number, mixer in enumerate(self.mixers):
            tokens_BLD, after = mixer(tokens_BLD, length_B, None if state is None else state[number])
            states.append(after)
        return tokens_BLD.flatten(0, 1)[flat_U[slot_V.to(device)]], tuple(states)


def _sampled(config: CompressionConfig, groups: Groups) -> Tensor:
    """Numbers of the groups that test-time sampling keeps."""
    return (groups.layout[:, 0] % config.keep_every == 0).nonzero().squeeze(1)


def _merged(config: CompressionConfig, layout_G4: Tensor, visual_G: Tensor) -> tuple[Tensor, Tensor]:
    """Layout and visuals of as many tokens as merging leaves; which cells they are is known only afterwards."""
    clip_C = _clips(layout_G4, visual_G, config.merge_frames)
    size_K = torch.bincount(clip_C)
    is_kept_G = layout_G4[:, 3] != CELL
    is_kept_G[layout_G4[:, 3] == CELL] = (
        torch.arange(len(clip_C)) - (size_K.cumsum(0) - size_K)[clip_C] < config.merge_tokens
    )
    return layout_G4[is_kept_G], visual_G[is_kept_G]


def compressed_layout(config: CompressionConfig, layout_V4: Tensor, visual_V: Tensor | None = None) -> Tensor:
    """The layout of the compressed tokens of one or more visuals, before any is computed: this is what counts tokens.

    Where similar cells merge, or those that do not change are left out, their number is exact, but which of a clip's
    cells survive depends on the pixels.
    """
    if not config.is_active or not len(layout_V4):
        return layout_V4
    visual_V = layout_V4.new_zeros(len(layout_V4)) if visual_V is None else visual_V
    if config.keep_changed < 1:
        stays_V = changed_cells(layout_V4, visual_V, config.keep_changed)
        layout_V4, visual_V = layout_V4[stays_V], visual_V[stays_V]
    groups = pooled_groups(layout_V4, visual_V, config.pool_time, config.pool_space)
    kept_G = _sampled(config, groups)
    layout_G4, visual_G = groups.layout[kept_G], groups.visual[kept_G]
    return _merged(config, layout_G4, visual_G)[0] if config.merge_tokens else layout_G4


def changed_cells(layout_V4: Tensor, visual_V: Tensor, keep: float, change_C: Tensor | None = None) -> Tensor:
    """Which tokens stay, bool (V,): all but the cells that changed least since the frame before.

    Of a frame that follows one of the same grid, ceil(keep · cells) cells stay; of others all.

    Args:
        layout_V4, visual_V: as in `Compressor.forward`, of all cells.
        change_C: how much each cell changed, (C,), on the CPU; None where only the number of tokens matters.
    """
    is_cell_V = layout_V4[:, 3] == CELL
    key_V2 = torch.stack([visual_V, layout_V4[:, 0]], 1)
    key_F2, frame_V = torch.unique_consecutive(key_V2, dim=0, return_inverse=True)
    frames, frame_C = len(key_F2), frame_V[is_cell_V]
    count_F = torch.bincount(frame_C, minlength=frames)
    grid_F2 = layout_V4.new_full((frames, 2), -1)
    grid_F2.scatter_reduce_(0, frame_V[:, None].expand(-1, 2), layout_V4[:, 1:3], "amax")
    alike_F = F.pad((grid_F2[1:] == grid_F2[:-1]).all(1) & (key_F2[1:, 0] == key_F2[:-1, 0]), (1, 0))
    kept_F = torch.where(alike_F, (keep * count_F - 1e-9).ceil().long(), count_F)
    order_C = torch.arange(len(frame_C)) if change_C is None else change_C.argsort(descending=True, stable=True)
    order_C = order_C[frame_C[order_C].argsort(stable=True)]
    rank_C = torch.empty_like(order_C)
    rank_C[order_C] = torch.arange(len(order_C)) - (count_F.cumsum(0) - count_F)[frame_C]
    stays_V = ~is_cell_V
    stays_V[is_cell_V] = rank_C < kept_F[frame_C]
    return stays_V


def interleaved(
    tokens_VD: Tensor, visual_V: Tensor, queries_QD: Tensor, visual_Q: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Put each visual's queries at evenly spaced slots among its tokens, the last slot included (BIMBA).

    Returns: slots of the queries (Q,), the joint sequence (V + Q, D), and the visual of each of its tokens.
    """
    tokens_B, queries_B = torch.bincount(visual_V), torch.bincount(visual_Q, minlength=int(visual_V.max()) + 1)
    joint_B = tokens_B + queries_B
    first_B = joint_B.cumsum(0) - joint_B
    number_Q = torch.arange(len(visual_Q)) - (queries_B.cumsum(0) - queries_B)[visual_Q]
    slot_Q = first_B[visual_Q] + (number_Q + 1) * joint_B[visual_Q] // queries_B[visual_Q] - 1
    total, device = len(tokens_VD) + len(queries_QD), tokens_VD.device
    is_query = torch.zeros(total, dtype=torch.bool)
    is_query[slot_Q] = True
    joint_UD = tokens_VD.new_zeros(total, tokens_VD.shape[1]).index_copy(0, slot_Q.to(device), queries_QD)
    joint_UD = joint_UD.index_copy(0, (~is_query).nonzero().squeeze(1).to(device), tokens_VD)
    return slot_Q, joint_UD, torch.repeat_interleave(torch.arange(len(joint_B)), joint_B)


def _clips(layout_V4: Tensor, visual_V: Tensor, frames: int) -> Tensor:
    """Number of the clip of each cell, (C,): frames of one visual that merge with each other."""
    is_cell_V = layout_V4[:, 3] == CELL
    key_C2 = torch.stack([visual_V, torch.div(layout_V4[:, 0], frames, rounding_mode="floor")], 1)[is_cell_V]
    return torch.unique(key_C2, dim=0, return_inverse=True)[1]


def merge_similar(
    tokens_VD: Tensor, layout_V4: Tensor, visual_V: Tensor, keep: int, frames: int
) -> tuple[Tensor, Tensor]:
    """ToMe (Bolya et al. 2023) over the cells of every `frames` frames, until `keep` remain; frame and row tokens stay.

    In every round each cell at an even place of its clip finds the most similar one at an odd place; the most similar
    pairs merge, as the mean weighted by the number of cells each represents. A pair keeps the place of its odd cell.
    How many remain after a round follows from the layout, so nothing waits for the device.

    Returns: the remaining tokens and their original indices, both in the old order.
    """
    device = tokens_VD.device
    cell_C = (layout_V4[:, 3] == CELL).nonzero().squeeze(1)
    other_X = (layout_V4[:, 3] != CELL).nonzero().squeeze(1).to(device)
    clip_C = _clips(layout_V4, visual_V, frames)
    left_K = torch.bincount(clip_C)  # cells that remain in each clip
    place_C = torch.arange(len(clip_C)) - (left_K.cumsum(0) - left_K)[clip_C]
    clips, most = len(left_K), int(left_K.max()) if len(left_K) else 0
    flat_C, cell_C = (clip_C * most + place_C).to(device), cell_C.to(device)
    cells_KMD = tokens_VD.new_zeros(clips * most, tokens_VD.shape[1]).index_copy(0, flat_C, tokens_VD[cell_C])
    where_KM = cell_C.new_zeros(clips * most).index_copy(0, flat_C, cell_C)
    count_KM = tokens_VD.new_zeros(clips * most).index_fill(0, flat_C, 1)
    state = cells_KMD.view(clips, most, -1), where_KM.view(clips, most), count_KM.view(clips, most)
    while bool((left_K > keep).any()):
        merges_K = torch.minimum((left_K - keep).clamp(min=0), torch.div(left_K, 2, rounding_mode="floor"))
        state = _merge_round(*state, left_K.to(device), merges_K.to(device), int((left_K - merges_K).max()))
        left_K = left_K - merges_K
    cells_KMD, where_KM, _ = state
    is_left_KM = torch.arange(cells_KMD.shape[1]) < left_K[:, None]
    left_R = is_left_KM.flatten().nonzero().squeeze(1).to(device)
    index_R, order_R = torch.cat([other_X, where_KM.flatten()[left_R]]).sort()
    return torch.cat([tokens_VD[other_X], cells_KMD.flatten(0, 1)[left_R]])[order_R], index_R


def _merge_round(
    cells_KMD: Tensor, where_KM: Tensor, count_KM: Tensor, left_K: Tensor, merges_K: Tensor, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One round for all clips: `merges_K` cells of each disappear; survivors are moved to the front, in order.

    Args:
        cells_KMD, where_KM, count_KM: the cells of each clip, `left_K` of them, with their original index and mass.
        most: cells that remain in the largest clip.
    """
    columns_M = torch.arange(cells_KMD.shape[1], device=cells_KMD.device)
    left_KM = columns_M < left_K[:, None]
    unit_KMD = F.normalize(cells_KMD.float(), dim=2)
    even, odd = slice(0, None, 2), slice(1, None, 2)
    score_KAB = unit_KMD[:, even] @ unit_KMD[:, odd].transpose(1, 2)
    score_KAB = score_KAB.masked_fill(~left_KM[:, even, None] | ~left_KM[:, None, odd], -torch.inf)
    best_KA, partner_KA = score_KAB.max(2)
    # An odd number of cells has one more even place than odd ones; it ranks with the others.
    rank_KA = best_KA.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    merges_KA = rank_KA < merges_K[:, None]
    weight_KA = count_KM[:, even] * merges_KA
    total_KB = count_KM[:, odd].scatter_add(1, partner_KA, weight_KA)
    given_KAD = cells_KMD[:, even] * weight_KA[..., None]
    sum_KBD = (cells_KMD[:, odd] * count_KM[:, odd, None]).scatter_add(
        1, partner_KA[..., None].expand_as(given_KAD), given_KAD
    )
    merged_KBD = torch.where(total_KB[..., None] > 0, sum_KBD / total_KB.clamp(min=1)[..., None], 0)
    cells_KMD = cells_KMD.index_copy(1, columns_M[odd], merged_KBD)
    count_KM = count_KM.index_copy(1, columns_M[odd], total_KB)
    gone_KM = torch.zeros_like(left_KM)
    gone_KM[:, even] = merges_KA
    order_KM = (~left_KM | gone_KM).long().argsort(dim=1, stable=True)[:, :most]
    return (
        cells_KMD.gather(1, order_KM[..., None].expand(-1, -1, cells_KMD.shape[2])),
        where_KM.gather(1, order_KM),
        count_KM.gather(1, order_KM),
    )
