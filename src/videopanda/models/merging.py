"""Temporal token merging inside a language model (ELVA, ICCV 2025, hierarchical token merging; see docs/elva.md).

    merger = Merger(MergeSchedule(layers=(3, 9, 17), keep=0.5), visual_places(ids, layouts))
    add_layer_hooks(language_model)                                  # once per model
    output = language_model(inputs_embeds=..., token_merger=merger)  # deeper layers run on fewer tokens
    hidden = merger.unmerge(output.last_hidden_state)                # (B, N, E) again, merged tokens as copies

Tokens at the same place of consecutive frames are compared by cosine; a run of similar ones collapses into its
earliest member, as the mean weighted by the number of tokens each represents. The survivor keeps its rotary position.
Text and the tokens of frames and rows never merge. With mode "drop", tokens are dropped at even distances instead. The
language model's own layers run unchanged: hooks shorten the sequence between them and gather masks and rotary
embeddings alike.

Dimensions: B sequences; N tokens before merging, M after; E width; X = B·N flattened; P mergeable tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicLayer

from .merge_schedule import MergeSchedule
from .visual import CELL

ARGUMENT = "token_merger"  # keyword argument of the language model
MASKS = "layer_attention_masks"  # the same: one mask per layer, for caches whose layers differ in length
FRAMES = "frame_numbers"  # the same: (B, N), frames within which attention goes in both directions, PADDING for none
VISUAL = "is_visual"  # the same: (B, N), tokens that take the visual parameters of `modality.py`
PADDING = -1  # position of a column that holds nothing


@dataclass
class VisualPlaces:
    """Which tokens may merge with which: those of one place.

    place: (B, N) number of the visual, grid and cell, PADDING for tokens that never merge.
    visual: (P,) number of the visual of each mergeable token, in the order of the flattened batch.
    """

    place: Tensor
    visual: Tensor

    @classmethod
    def of(cls, is_visual_BN: Tensor, layouts: Sequence[Tensor]) -> "VisualPlaces":
        """Places of a batch.

        Args:
            is_visual_BN: where the visual tokens are.
            layouts: (V_i, 4) frame, row, column and kind of the tokens of each visual, in the order of the batch.
        """
        place_BN = torch.full(is_visual_BN.shape, PADDING, dtype=torch.long, device=is_visual_BN.device)
        if not layouts:
            return cls(place_BN, place_BN.new_zeros(0))
        layout_V4 = torch.cat([layout.to(place_BN.device) for layout in layouts])
        sizes = torch.tensor([len(layout) for layout in layouts], device=place_BN.device)
        visual_V = torch.repeat_interleave(torch.arange(len(layouts), device=place_BN.device), sizes)
        frame_V, row_V, column_V, kind_V = layout_V4.unbind(1)
        # Frames merge only where their grids agree, so the grid of a frame is part of a place.
        _, frame_id_V = torch.unique(torch.stack([visual_V, frame_V], 1), dim=0, return_inverse=True)
        grid_F2 = layout_V4.new_zeros(int(frame_id_V.max()) + 1, 2)
        grid_F2.scatter_reduce_(0, frame_id_V[:, None].expand(-1, 2), layout_V4[:, 1:3], "amax")
        key_V5 = torch.cat([torch.stack([visual_V, row_V, column_V], 1), grid_F2[frame_id_V]], 1)
        _, place_V = torch.unique(key_V5, dim=0, return_inverse=True)
        mergeable_V = kind_V == CELL
        place_BN[is_visual_BN] = torch.where(mergeable_V, place_V, PADDING)
        return cls(place_BN, visual_V[mergeable_V])


@dataclass
class Merge:
    """One merge: which tokens go where.

    members: (P,) flat places of the mergeable tokens, place by place in the order of frames.
    run: (P,) number of the run that each belongs to; the first of a run survives.
    source: (B, M) column before the merge of each column after it; 0 where `is_padding`.
    target: (B, N) column after the merge of each column before it; for merged tokens that of the survivor.
    is_padding: (B, M) columns that hold nothing: shorter rows are padded on the left.
    is_drop: survivors keep their values, and the others are gone.
    """

    members: Tensor
    run: Tensor
    source: Tensor
    target: Tensor
    is_padding: Tensor
    is_drop: bool = False


def plan_merge(
    hidden_BNE: Tensor, place_BN: Tensor, visual_P: Tensor, targets: Tensor | None, threshold: float | None,
    is_padding_BN: Tensor,
) -> Merge | None:  # fmt: skip
    """Decide which tokens merge. Returns None where none do.

    Args:
        place_BN: see `VisualPlaces`; -1 for tokens that never merge.
        visual_P: visual of each token with a place, in flat order.
        targets: patch tokens to keep per visual, (visuals,); None for no target.
        threshold: cosine from which consecutive tokens merge; None for no threshold.
        is_padding_BN: columns that hold nothing.
    """
    flat_P = (place_BN.flatten() != PADDING).nonzero().squeeze(1)
    order_P = torch.argsort(place_BN.flatten()[flat_P], stable=True)
    members_P, visual_P = flat_P[order_P], visual_P[order_P]
    place_P = place_BN.flatten()[members_P]
    follows_P = F.pad(place_P[1:] == place_P[:-1], (1, 0), value=False)  # has a predecessor at its place
    if not bool(follows_P.any()):
        return None
    tokens_PE = hidden_BNE.detach().flatten(0, 1)[members_P].float()
    cosine_P = F.pad(F.cosine_similarity(tokens_PE[1:], tokens_PE[:-1], dim=1), (1, 0), value=-2.0)
    joins_P = torch.zeros_like(follows_P) if threshold is None else follows_P & (cosine_P >= threshold)
    if targets is not None:
        # Rank the pairs of each visual: those above the threshold first, then by similarity, then by place and time.
        sizes_V = torch.bincount(visual_P, minlength=len(targets))
        score_P = torch.where(joins_P, 3.0, cosine_P).masked_fill(~follows_P, -torch.inf)
        by_score_P = torch.argsort(score_P, descending=True, stable=True)
        ranked_P = by_score_P[torch.argsort(visual_P[by_score_P], stable=True)]
        rank_P = torch.empty_like(ranked_P)
        rank_P[ranked_P] = _rank_in_visual(visual_P[ranked_P], sizes_V)
        joins_P = follows_P & (joins_P | (rank_P < (sizes_V - targets)[visual_P]))
    return _merge_of(members_P, joins_P, is_padding_BN) if bool(joins_P.any()) else None


def plan_drop(place_BN: Tensor, visual_P: Tensor, targets: Tensor, is_padding_BN: Tensor) -> Merge | None:
    """Keep `targets` patch tokens per visual, at even distances in the sequence. Returns None where all stay.

    Args: as of `plan_merge`. A token that is dropped counts as part of the one before it that is kept.
    """
    members_P = (place_BN.flatten() != PADDING).nonzero().squeeze(1)
    sizes_V = torch.bincount(visual_P, minlength=len(targets))
    slot_P = _rank_in_visual(visual_P, sizes_V) * targets[visual_P] // sizes_V[visual_P]
    joins_P = F.pad((slot_P[1:] == slot_P[:-1]) & (visual_P[1:] == visual_P[:-1]), (1, 0), value=False)
    return _merge_of(members_P, joins_P, is_padding_BN, is_drop=True) if bool(joins_P.any()) else None


def _rank_in_visual(visual_P: Tensor, sizes_V: Tensor) -> Tensor:
    """0, 1, … within each visual, for tokens that come visual by visual."""
    return torch.arange(len(visual_P), device=visual_P.device) - (sizes_V.cumsum(0) - sizes_V)[visual_P]


def _merge_of(members_P: Tensor, joins_P: Tensor, is_padding_BN: Tensor, is_drop: bool = False) -> Merge:
    """The merge in which each member that joins goes into the one before it."""
    B, N = is_padding_BN.shape
    run_P = (~joins_P).cumsum(0) - 1
    kept_X = ~is_padding_BN.flatten()
    kept_X[members_P[joins_P]] = False
    kept_BN = kept_X.view(B, N)
    counts_B = kept_BN.sum(1)
    M = int(counts_B.max())
    column_BN = kept_BN.cumsum(1) - 1 + (M - counts_B)[:, None]  # padded on the left
    target_BN = torch.where(kept_BN, column_BN, 0)
    survivors_R = members_P[~joins_P]
    target_X = target_BN.flatten()
    target_X = target_X.index_copy(0, members_P, target_X[survivors_R][run_P])
    source_BM = target_BN.new_zeros(B, M)
    rows_BN = torch.arange(B, device=kept_BN.device)[:, None].expand(B, N)
    columns_BN = torch.arange(N, device=kept_BN.device).expand(B, N)
    source_BM[rows_BN[kept_BN], column_BN[kept_BN]] = columns_BN[kept_BN]
    is_padding_BM = torch.arange(M, device=kept_BN.device) < (M - counts_B)[:, None]
    return Merge(members_P, run_P, source_BM, target_X.view(B, N), is_padding_BM, is_drop)


def merge_tokens(hidden_BNE: Tensor, counts_BN: Tensor, merge: Merge) -> tuple[Tensor, Tensor]:
    """Apply a merge: tokens (B, M, E) and how many original tokens each represents, (B, M)."""
    flat_XE, counts_X = hidden_BNE.flatten(0, 1), counts_BN.flatten()
    runs = int(merge.run[-1]) + 1
    weight_P = counts_X[merge.members]
    total_R = weight_P.new_zeros(runs).index_add(0, merge.run, weight_P)
    survivors_R = merge.members[F.pad(merge.run[1:] != merge.run[:-1], (1, 0), value=True)]
    if not merge.is_drop:
        several_R = torch.bincount(merge.run, minlength=runs) > 1  # tokens that stay alone keep their bits
        merged_P = several_R[merge.run]
        run_P, members_P = merge.run[merged_P], merge.members[merged_P]
        share_P1 = (weight_P[merged_P] / total_R[run_P])[:, None]
        mean_RE = flat_XE.new_zeros(runs, flat_XE.shape[1], dtype=torch.float32)
        mean_RE = mean_RE.index_add(0, run_P, share_P1 * flat_XE[members_P].float())
        flat_XE = flat_XE.index_copy(0, survivors_R[several_R], mean_RE[several_R].to(flat_XE.dtype))
    counts_X = counts_X.index_copy(0, survivors_R, total_R)
    tokens_BME = gather_columns(flat_XE.view_as(hidden_BNE), merge.source)
    return tokens_BME, gather_columns(counts_X.view_as(counts_BN), merge.source)


def gather_columns(values_BN: Tensor, source_BM: Tensor, dim: int = 1) -> Tensor:
    """Take columns `source` (B, M) of dimension `dim`; values of one row serve all rows."""
    if values_BN.shape[0] == 1 != source_BM.shape[0]:
        values_BN = values_BN.expand(len(source_BM), *values_BN.shape[1:])
    shape = [len(source_BM), *(1,) * (values_BN.ndim - 1)]
    shape[dim] = source_BM.shape[1]
    wanted = list(values_BN.shape)
    wanted[dim] = source_BM.shape[1]
    return values_BN.gather(dim, source_BM.view(shape).expand(wanted))


class Merger:
    """Merges the tokens of one forward pass, and remembers how, so that recomputed activations merge the same way.

    Args:
        schedule: when and how far.
        places: what may merge.
        is_padding_BN: columns of the batch that hold nothing; None for none.
    """

    def __init__(self, schedule: MergeSchedule, places: VisualPlaces, is_padding_BN: Tensor | None = None):
        self.schedule = schedule
        self.place, self.visual = [places.place], [places.visual]
        none_BN = torch.zeros_like(places.place, dtype=torch.bool)
        self.is_padding = [none_BN if is_padding_BN is None else is_padding_BN]
        self.counts = [torch.ones(places.place.shape, device=places.place.device)]
        self.merges: list[Merge | None] = []
        visuals = int(places.visual.max()) + 1 if len(places.visual) else 0
        flat = places.place.flatten()
        pairs = torch.unique(torch.stack([flat[flat != PADDING], places.visual], 1), dim=0)
        counts = (torch.bincount(visual, minlength=visuals).tolist() for visual in (places.visual, pairs[:, 1]))
        self._sizes = list(zip(*counts))  # patch tokens and places of each visual

    def stage_of(self, layer: int) -> int:
        """How many merges happen before layer number `layer` (from 0)."""
        return sum(k <= layer for k in self.schedule.layers)

    def source(self, stage: int) -> Tensor | None:
        """(B, M) original column of each column after `stage` merges; None where nothing has merged."""
        columns = None
        for merge in self.merges[:stage]:
            if merge is not None:
                columns = merge.source if columns is None else gather_columns(columns, merge.source)
        return columns

    def after_layer(self, number: int, hidden_BNE: Tensor) -> Tensor:
        """Merge the output of the `number`-th layer (1, 2, …; 0: the embeddings), if the schedule says so."""
        if number not in self.schedule.layers or not len(self.visual[0]):
            return hidden_BNE
        stage = self.schedule.layers.index(number)
        if stage == len(self.merges):
            self._decide(stage, number, hidden_BNE)
        merge = self.merges[stage]
        return hidden_BNE if merge is None else merge_tokens(hidden_BNE, self.counts[stage], merge)[0]

    @torch.no_grad()
    def _decide(self, stage: int, number: int, hidden_BNE: Tensor) -> None:
        schedule, place_BN, visual_P = self.schedule, self.place[-1], self.visual[-1]
        targets = None
        if schedule.mode != "threshold" or number in schedule.deep_layers:
            targets = visual_P.new_tensor([schedule.patches_after(stage + 1, *size) for size in self._sizes])
        if targets is not None and schedule.mode == "drop":
            merge = plan_drop(place_BN, visual_P, targets, self.is_padding[-1])
        else:
            threshold = schedule.threshold if schedule.mode == "threshold" else None
            merge = plan_merge(hidden_BNE, place_BN, visual_P, targets, threshold, self.is_padding[-1])
        self.merges.append(merge)
        if merge is None:
            for history in (self.place, self.visual, self.is_padding, self.counts):
                history.append(history[-1])
            return
        _, counts_BM = merge_tokens(hidden_BNE[..., :1], self.counts[-1], merge)
        place_BM = gather_columns(place_BN, merge.source).masked_fill(merge.is_padding, PADDING)
        of_column_X = torch.full_like(place_BN.flatten(), PADDING)
        of_column_X[(place_BN.flatten() != PADDING).nonzero().squeeze(1)] = visual_P
        visual_BM = gather_columns(of_column_X.view_as(place_BN), merge.source)
        self.place.append(place_BM)
        self.visual.append(visual_BM[place_BM != PADDING])
        self.is_padding.append(merge.is_padding)
        self.counts.append(counts_BM)

    @property
    def planned_columns(self) -> list[int]:
        """Columns of one row after each merge in the modes "ratio" and "drop", known before anything runs."""
        others = self.place[0].shape[1] - sum(patches for patches, _ in self._sizes)
        stages = range(1, len(self.schedule.layers) + 1)
        return [others + sum(self.schedule.patches_after(s, *size) for size in self._sizes) for s in stages]

    def unmerge(self, hidden_BME: Tensor) -> Tensor:
        """Give every original column its surviving token, (B, N, E)."""
        for merge in reversed(self.merges):
            if merge is not None:
                hidden_BME = gather_columns(hidden_BME, merge.target)
        return hidden_BME


# -- hooks on the decoder layers ---------------------------------------------------------------------------------------
def add_layer_hooks(language_model: nn.Module) -> None:
    """Let the decoder layers take the keyword arguments named above. Idempotent."""
    layers: Any = language_model.layers
    if getattr(language_model, "has_layer_hooks", False):
        return
    for i, layer in enumerate(layers):
        layer.register_forward_pre_hook(_before(i), with_kwargs=True)
        layer.register_forward_hook(_after(i), with_kwargs=True)
    language_model.has_layer_hooks = True  # type: ignore[assignment]


def _before(i: int) -> Any:
    def gather(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        masks, merger = kwargs.pop(MASKS, None), kwargs.get(ARGUMENT)
        frames_BN, visual_BN = kwargs.pop(FRAMES, None), kwargs.pop(VISUAL, None)
        if masks is not None:
            kwargs["attention_mask"] = masks[i]
        if frames_BN is not None:
            kwargs["attention_mask"] = open_frames(kwargs.get("attention_mask"), frames_BN)
        vars(layer)[VISUAL] = visual_BN  # read by the hooks on parts of this layer
        if merger is None:
            return args, kwargs
        if i == 0:
            args = (merger.after_layer(0, args[0]), *args[1:])
        source_BM = merger.source(merger.stage_of(i))
        if source_BM is not None:
            is_padding_BM = merger.is_padding[merger.stage_of(i)]
            kwargs["attention_mask"] = _merged_mask(kwargs.get("attention_mask"), source_BM, is_padding_BM)
            kwargs["position_ids"] = gather_columns(kwargs["position_ids"], source_BM)
            cos, sin = kwargs["position_embeddings"]
            kwargs["position_embeddings"] = gather_columns(cos, source_BM), gather_columns(sin, source_BM)
            vars(layer)[VISUAL] = None if visual_BN is None else gather_columns(visual_BN, source_BM)
        return args, kwargs

    return gather


def _after(i: int) -> Any:
    def merge(_: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        merger = kwargs.get(ARGUMENT)
        if merger is None:
            return output
        cache = kwargs.get("cache", kwargs.get("past_key_values"))  # before transformers 5.24
        if cache is not None:
            _note_positions(cache.layers[i], kwargs["position_ids"], merger.is_padding[merger.stage_of(i)])
        if isinstance(output, tuple):
            return (merger.after_layer(i + 1, output[0]), *output[1:])
        return merger.after_layer(i + 1, output)

    return merge


def open_frames(mask: Tensor | None, frames_BN: Tensor) -> Tensor:
    """A mask (B, 1, N, L + N), or None for causal, in which tokens also see the later ones of their own frame."""
    same_BNN = (frames_BN[:, :, None] == frames_BN[:, None]) & (frames_BN != PADDING)[:, None]
    if mask is None:
        N = frames_BN.shape[1]
        mask = torch.ones(N, N, dtype=torch.bool, device=frames_BN.device).tril()[None, None]
    same_B1NK = F.pad(same_BNN, (mask.shape[3] - mask.shape[2], 0), value=False)[:, None]
    return mask | same_B1NK if mask.dtype == torch.bool else mask.masked_fill(same_B1NK, 0.0)


def _note_positions(layer: DynamicLayer, positions_BM: Tensor, is_padding_BM: Tensor | None) -> None:
    """Remember which positions the columns of a cache layer hold."""
    new_BM = positions_BM
    if is_padding_BM is not None:
        new_BM = positions_BM.expand_as(is_padding_BM).masked_fill(is_padding_BM, PADDING)
    old_BL = getattr(layer, "positions", None)
    layer.positions = new_BM if old_BL is None else torch.cat([old_BL, new_BM], 1)  # type: ignore[attr-defined]


def _merged_mask(mask: Tensor | None, source_BM: Tensor, is_padding_BM: Tensor | None) -> Tensor | None:
    """The mask of the whole sequence, (B, 1, N, L + N) or None for causal, for the columns that are left."""
    if is_padding_BM is None or (mask is None and not bool(is_padding_BM.any())):
        return None
    if mask is None:
        M = source_BM.shape[1]
        seen_MM = torch.ones(M, M, dtype=torch.bool, device=source_BM.device).tril()
        seen_B1MM = (seen_MM & ~is_padding_BM[:, None, :])[:, None]
        return seen_B1MM | is_padding_BM[:, None, :, None]  # a row of padding must see something
    L = mask.shape[3] - mask.shape[2]
    past_BL = torch.arange(L, device=source_BM.device).expand(len(source_BM), L)
    rows = gather_columns(mask, source_BM, dim=2)
    mask = gather_columns(rows, torch.cat([past_BL, source_BM + L], 1), dim=3)
    seen, unseen = (True, False) if mask.dtype == torch.bool else (0.0, torch.finfo(mask.dtype).min)
    mask = mask.masked_fill(F.pad(is_padding_BM, (L, 0), value=False)[:, None, None, :], unseen)
    return mask.masked_fill(is_padding_BM[:, None, :, None], seen)
