"""Fewer visual tokens before the language model: pooling, Mamba and pooling (STORM), pooled queries (BIMBA), ToMe.

    compressor = Compressor(CompressionConfig(mixer="mamba", pool_time=4), width=1024)
    tokens_VD, layout_V4, visual_V, state = compressor(tokens_VD, layout_V4, visual_V)
    compressor.layout(layout_V4, visual_V)                # the same layout, counted before any pixel is touched

A compressor needs to know only where tokens come from (see `EncodedVisual.layout`), so it serves every family and
frames of any size. It runs between the vision part and its projection; a new one starts as plain pooling.

Dimensions: V tokens of B visuals; D width; L tokens of the longest visual; G groups that become one token; Q queries.
"""

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig

from .state_space import Mamba, Mamba2, MixerState
from .visual import CELL, CONTEXT, ROW_END

LAST_COLUMN = 1 << 20  # reading order: the end of a row comes after its cells


class CompressionConfig(PreTrainedConfig):
    """How to reduce visual tokens. With all defaults nothing changes.

    Args:
        mixer: "mamba" or "mamba2" lets tokens exchange information in reading order before they are reduced (STORM,
            arXiv 2503.04130); "none" does not.
        mixer_layers: number of mixers, each residual, with output weights that start at zero.
        bidirectional: mix in both directions; such a compressor needs the whole clip and cannot stream.
        state_size: N of the mixers.
        pool_time: average this many consecutive frames.
        pool_space: average squares of this many cells per side.
        queries: pooled tokens are put between the others before mixing and are all that is kept (BIMBA, arXiv
            2503.09590).
        keep_every: keep every n-th pooled frame, outside of training only (test-time sampling, STORM).
        merge_tokens: merge the most similar cells of every `merge_frames` frames until this many remain (ToMe); 0
            for none.
        merge_frames: frames of a clip within which cells merge.
    """

    model_type = "videopanda_compression"

    def __init__(
        self,
        mixer: Literal["none", "mamba", "mamba2"] = "none",
        mixer_layers: int = 1,
        bidirectional: bool = False,
        state_size: int = 16,
        pool_time: int = 1,
        pool_space: int = 1,
        queries: bool = False,
        keep_every: int = 1,
        merge_tokens: int = 0,
        merge_frames: int = 4,
        **kwargs: Any,
    ):
        self.mixer = mixer
        self.mixer_layers = mixer_layers
        self.bidirectional = bidirectional
        self.state_size = state_size
        self.pool_time = pool_time
        self.pool_space = pool_space
        self.queries = queries
        self.keep_every = keep_every
        self.merge_tokens = merge_tokens
        self.merge_frames = merge_frames
        if mixer not in ("none", "mamba", "mamba2"):
            raise ValueError(f"compression.mixer must be none, mamba or mamba2, got {mixer!r}")
        for name in ("mixer_layers", "state_size", "pool_time", "pool_space", "keep_every", "merge_frames"):
            value = vars(self)[name]
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"compression.{name} must be a positive integer, got {value!r}")
        if isinstance(merge_tokens, bool) or not isinstance(merge_tokens, int) or merge_tokens < 0:
            raise ValueError(f"compression.merge_tokens must be 0 or a positive integer, got {merge_tokens!r}")
        if queries and mixer == "none":
            raise ValueError("compression.queries needs a mixer: without one, queries read nothing")
        super().__init__(**kwargs)

    @property
    def changes_nothing(self) -> bool:
        """Whether all tokens pass unchanged."""
        fewer = (self.pool_time, self.pool_space, self.keep_every, self.merge_tokens) != (1, 1, 1, 0)
        return self.mixer == "none" and not fewer

    @property
    def segment_frames(self) -> int:
        """A stream may be cut at multiples of this many frames: whole pooled frames, kept frames and clips of ToMe."""
        frames = self.pool_time * self.keep_every
        return frames * self.merge_frames if self.merge_tokens else frames


class Groups(NamedTuple):
    """Which tokens are averaged. group: (V,) number of each token's group; layout (G, 4) and visual (G,) of groups."""

    group: Tensor
    layout: Tensor
    visual: Tensor


class CompressorState(NamedTuple):
    """The state of a compressor between chunks of one clip: a state per mixer, and the frames so far."""

    mixers: tuple[MixerState, ...]
    frames: int


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
    total_GD = tokens_VD.new_zeros(count, tokens_VD.shape[1], dtype=torch.float32)
    total_GD = total_GD.index_add(0, groups.group, tokens_VD.float())
    return (total_GD / torch.bincount(groups.group, minlength=count)[:, None]).to(tokens_VD.dtype)


class ResidualMixer(nn.Module):
    """x + mixer(norm(x)) over each visual's tokens in reading order, in one direction or as a sum of two."""

    def __init__(self, config: CompressionConfig, width: int):
        super().__init__()
        kind = Mamba if config.mixer == "mamba" else Mamba2
        self.norm = nn.LayerNorm(width)
        self.forwards = kind(width, state_size=config.state_size)
        self.backwards = kind(width, state_size=config.state_size) if config.bidirectional else None
        self.reset_output()

    def reset_output(self) -> None:
        """Start as the identity: the residual is zero (as in BIMBA)."""
        for mixer in (self.forwards, self.backwards):
            if mixer is not None:
                nn.init.zeros_(mixer.out_proj.weight)

    def forward(self, tokens_BLD: Tensor, length_B: Tensor, state: MixerState | None) -> tuple[Tensor, MixerState]:
        """Mix (B, L, D), padded at the end."""
        normed_BLD = self.norm(tokens_BLD)
        added_BLD, state = self.forwards(normed_BLD, state)
        if self.backwards is not None:
            step_L = torch.arange(tokens_BLD.shape[1], device=tokens_BLD.device)
            flipped_BL = torch.where(step_L < length_B[:, None], length_B[:, None] - 1 - step_L, step_L)
            index_BLD = flipped_BL[:, :, None].expand_as(tokens_BLD)
            reversed_BLD, _ = self.backwards(normed_BLD.gather(1, index_BLD))
            added_BLD = added_BLD + reversed_BLD.gather(1, index_BLD)
        return tokens_BLD + added_BLD, state


class Compressor(nn.Module):
    """Mixers, then pooling or queries, then sampling and merging, as the configuration says."""

    def __init__(self, config: CompressionConfig, width: int):
        super().__init__()
        self.config = config
        layers = config.mixer_layers if config.mixer != "none" else 0
        self.mixers = nn.ModuleList(ResidualMixer(config, width) for _ in range(layers))

    def forward(
        self, tokens_VD: Tensor, layout_V4: Tensor, visual_V: Tensor, state: CompressorState | None = None
    ) -> tuple[Tensor, Tensor, Tensor, CompressorState]:
        """Compress the tokens of B visuals, or the next chunk of one clip.

        Args:
            layout_V4: frame, row, column and kind of each token; frames of a chunk are numbered from 0.
            visual_V: number of the visual of each token, ascending.
            state: of the earlier chunks, which must have ended on `segment_frames`; None at the start.

        Returns: tokens, their layout and visuals, and the state after them.

        Raises:
            ValueError: a state is given to a compressor that needs the whole clip.
        """
        config = self.config
        if state is not None and (config.bidirectional or config.queries):
            raise ValueError("this compressor needs the whole clip: bidirectional mixing and queries cannot stream")
        groups = pooled_groups(layout_V4, visual_V, config.pool_time, config.pool_space)
        mixed_VD, states = self._mix(tokens_VD, visual_V, groups, state)
        pooled_GD = mixed_VD if config.queries else group_means(mixed_VD, groups)
        layout_G4, visual_G = groups.layout, groups.visual
        if config.keep_every > 1 and not self.training:
            kept_G = layout_G4[:, 0] % config.keep_every == 0
            pooled_GD, layout_G4, visual_G = pooled_GD[kept_G], layout_G4[kept_G], visual_G[kept_G]
        if config.merge_tokens:
            pooled_GD, kept_G = merge_similar(pooled_GD, layout_G4, visual_G, config.merge_tokens, config.merge_frames)
            layout_G4, visual_G = layout_G4[kept_G], visual_G[kept_G]
        frames = (0 if state is None else state.frames) + int(layout_V4[:, 0].max()) + 1
        return pooled_GD, layout_G4, visual_G, CompressorState(states, frames)

    def count(self, layout_V4: Tensor, visual_V: Tensor) -> int:
        """Number of tokens that `forward` returns outside of training, without computing any."""
        config = self.config
        groups = pooled_groups(layout_V4, visual_V, config.pool_time, config.pool_space)
        kept_G = groups.layout[:, 0] % config.keep_every == 0
        layout_G4, visual_G = groups.layout[kept_G], groups.visual[kept_G]
        if not config.merge_tokens:
            return len(layout_G4)
        clip_C = _clips(layout_G4, visual_G, config.merge_frames)
        cells_K = torch.bincount(clip_C)
        return len(layout_G4) - int((cells_K - cells_K.clamp(max=config.merge_tokens)).sum())

    def _mix(
        self, tokens_VD: Tensor, visual_V: Tensor, groups: Groups, state: CompressorState | None
    ) -> tuple[Tensor, tuple[MixerState, ...]]:
        """All tokens mixed, (V, D); with queries only those, (G, D)."""
        if not self.mixers:
            return tokens_VD, ()
        if not self.config.queries:
            slot_V, tokens_UD, of_U = torch.arange(len(tokens_VD), device=tokens_VD.device), tokens_VD, visual_V
        else:
            slot_V, tokens_UD, of_U = interleaved(tokens_VD, visual_V, group_means(tokens_VD, groups), groups.visual)
        length_B = torch.bincount(of_U)
        place_U = torch.arange(len(of_U), device=of_U.device) - (length_B.cumsum(0) - length_B)[of_U]
        tokens_BLD = tokens_UD.new_zeros(len(length_B), int(length_B.max()), tokens_UD.shape[1])
        tokens_BLD = tokens_BLD.index_put((of_U, place_U), tokens_UD)
        states = []
        for number, mixer in enumerate(self.mixers):
            tokens_BLD, after = mixer(tokens_BLD, length_B, None if state is None else state.mixers[number])
            states.append(after)
        return tokens_BLD[of_U, place_U][slot_V], tuple(states)


def interleaved(
    tokens_VD: Tensor, visual_V: Tensor, queries_QD: Tensor, visual_Q: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Put each visual's queries at evenly spaced slots among its tokens, the last slot included (BIMBA).

    Returns: slots of the queries (Q,), the joint sequence (V + Q, D), and the visual of each of its tokens.
    """
    tokens_B, queries_B = torch.bincount(visual_V), torch.bincount(visual_Q, minlength=int(visual_V.max()) + 1)
    joint_B = tokens_B + queries_B
    first_B = joint_B.cumsum(0) - joint_B
    number_Q = torch.arange(len(visual_Q), device=visual_Q.device) - (queries_B.cumsum(0) - queries_B)[visual_Q]
    slot_Q = first_B[visual_Q] + (number_Q + 1) * joint_B[visual_Q] // queries_B[visual_Q] - 1
    total = len(tokens_VD) + len(queries_QD)
    is_query = torch.zeros(total, dtype=torch.bool, device=tokens_VD.device)
    is_query[slot_Q] = True
    joint_UD = tokens_VD.new_zeros(total, tokens_VD.shape[1])
    joint_UD = joint_UD.index_put((slot_Q,), queries_QD).index_put(((~is_query).nonzero().squeeze(1),), tokens_VD)
    return slot_Q, joint_UD, torch.repeat_interleave(torch.arange(len(joint_B), device=slot_Q.device), joint_B)


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

    Returns: the remaining tokens and their original indices, both in the old order.
    """
    cell_C = (layout_V4[:, 3] == CELL).nonzero().squeeze(1)
    clip_C = _clips(layout_V4, visual_V, frames)
    size_K = torch.bincount(clip_C)
    place_C = torch.arange(len(clip_C), device=clip_C.device) - (size_K.cumsum(0) - size_K)[clip_C]
    shape = (len(size_K), int(size_K.max()) if len(size_K) else 0)
    cells_KMD = tokens_VD.new_zeros(*shape, tokens_VD.shape[1]).index_put((clip_C, place_C), tokens_VD[cell_C])
    where_KM = cell_C.new_full(shape, -1).index_put((clip_C, place_C), cell_C)
    count_KM = (where_KM >= 0).to(tokens_VD.dtype)
    while where_KM.shape[1] and bool(((where_KM >= 0).sum(1) > keep).any()):
        cells_KMD, where_KM, count_KM = _merge_round(cells_KMD, where_KM, count_KM, keep)
    is_left_V = layout_V4[:, 3] != CELL
    left_KM = where_KM >= 0
    is_left_V[where_KM[left_KM]] = True
    tokens_VD = tokens_VD.index_put((where_KM[left_KM],), cells_KMD[left_KM])
    return tokens_VD[is_left_V], is_left_V


def _merge_round(cells_KMD: Tensor, where_KM: Tensor, count_KM: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """One round for all clips; survivors are moved to the front, in order."""
    left_KM = where_KM >= 0
    surplus_K = (left_KM.sum(1) - keep).clamp(min=0)
    unit_KMD = F.normalize(cells_KMD.float(), dim=2)
    even, odd = slice(0, None, 2), slice(1, None, 2)
    score_KAB = unit_KMD[:, even] @ unit_KMD[:, odd].transpose(1, 2)
    score_KAB = score_KAB.masked_fill(~left_KM[:, even, None] | ~left_KM[:, None, odd], -torch.inf)
    best_KA, partner_KA = score_KAB.max(2)
    rank_KA = best_KA.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    merges_KA = (rank_KA < surplus_K[:, None]) & (best_KA > -torch.inf)
    weight_KA = count_KM[:, even] * merges_KA
    total_KB = count_KM[:, odd].scatter_add(1, partner_KA, weight_KA)
    given_KAD = cells_KMD[:, even] * weight_KA[..., None]
    sum_KBD = (cells_KMD[:, odd] * count_KM[:, odd, None]).scatter_add(
        1, partner_KA[..., None].expand_as(given_KAD), given_KAD
    )
    merged_KBD = torch.where(total_KB[..., None] > 0, sum_KBD / total_KB.clamp(min=1)[..., None], 0)
    columns = torch.arange(cells_KMD.shape[1], device=cells_KMD.device)
    cells_KMD = cells_KMD.index_copy(1, columns[odd], merged_KBD)
    count_KM = count_KM.index_copy(1, columns[odd], total_KB)
    gone_KM = torch.zeros_like(left_KM)
    gone_KM[:, even] = merges_KA
    left_KM = left_KM & ~gone_KM
    order_KM = (~left_KM).long().argsort(dim=1, stable=True)[:, : int(left_KM.sum(1).max())]
    kept_KM = left_KM.gather(1, order_KM)
    where_KM = where_KM.gather(1, order_KM).masked_fill(~kept_KM, -1)
    count_KM = count_KM.gather(1, order_KM).masked_fill(~kept_KM, 0)
    return cells_KMD.gather(1, order_KM[..., None].expand(-1, -1, cells_KMD.shape[2])), where_KM, count_KM


__all__ = [
    "CompressionConfig",
    "Compressor",
    "CompressorState",
    "Groups",
    "group_means",
    "interleaved",
    "merge_similar",
    "pooled_groups",
]
