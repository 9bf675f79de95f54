"""Distillation of a frozen video teacher into the visual tokens (Video-Panda paper, Eq. 19).

    head = FusedHead(4096, 1024, num_states=9)
    distillation = Distillation(head, processor.video_processor.max_cells)
    task = DistillVideoLanguage(distillation, StoredFeatures(), layers=every_fourth_layer(32))

Head and teacher belong to the task and are not part of the model's checkpoints.

Dimensions: B videos of T frames; V visual tokens of the batch, in the order of the videos; Q cells of real frames among
them; S × S cells of the canvas; G × G patches of the teacher's canvas; E width of the language model; D width of the
teacher; J hidden states; N heads; K = D / N.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videopanda.models.visual import CELL, VISUAL_INPUTS
from videopanda.training.tasks import TextTask


def every_fourth_layer(num_layers: int) -> tuple[int, ...]:
    """The hidden states of the released head, last one first: 32, 28, ..., 0. State 0 is the language model's input."""
    return tuple(range(num_layers, -1, -4))


class FusedHead(nn.Module):
    """The released head: the last hidden state attends over the earlier ones; the result is added to its projection.

    Parameters are named as in official checkpoints, below `video_tower_compressor`.

    Args:
        language_size, teacher_size: widths E and D.
        num_states: J, at least 2.
        num_heads: of the attention over states; its scale is 1 / √D, from the full width.
    """

    def __init__(self, language_size: int, teacher_size: int, num_states: int = 9, num_heads: int = 8):
        super().__init__()
        if num_states < 2 or teacher_size % num_heads:
            raise ValueError(
                "A fused head needs at least two states and a teacher width divisible by its number of "
                f"heads, got {num_states} "
                f"states and width {teacher_size} for {num_heads} heads."
            )
        self.num_states, self.num_heads = num_states, num_heads
        self.scale = teacher_size**-0.5
        self.norm_layer = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(language_size), nn.Linear(language_size, teacher_size, bias=False))
            for _ in range(num_states)
        )
        self.input_layer = nn.Linear(language_size, teacher_size)
        self.output_layer = nn.Linear(teacher_size, teacher_size)

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """Map J states (Q, E), last layer first, to predictions (Q, D)."""
        projected = [layer(state) for layer, state in zip(self.norm_layer, states, strict=True)]
        query_QNK = projected[0].unflatten(-1, (self.num_heads, -1))
        earlier_QJNK = torch.stack(projected[1:], dim=1).unflatten(-1, (self.num_heads, -1))
        scores_QJN = (query_QNK[:, None] * earlier_QJNK).sum(-1) * self.scale
        weights_QJN = scores_QJN.softmax(dim=1).to(earlier_QJNK.dtype)
        fused_QD = (weights_QJN[..., None] * earlier_QJNK).sum(1).flatten(1)
        return self.input_layer(states[0]) + self.output_layer(fused_QD)


class LastLayerHead(nn.Module):
    """The head as the paper describes it (Eqs. 18, 19): one linear map from the language model's output."""

    num_states = 1

    def __init__(self, language_size: int, teacher_size: int):
        super().__init__()
        self.input_layer = nn.Linear(language_size, teacher_size)

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """Map one state (Q, E) to predictions (Q, D)."""
        return self.input_layer(states[0])


class Cells(NamedTuple):
    """Where the cells of all real frames are, frame by frame and row by row."""

    token: Tensor  # (Q,) among the V visual tokens
    frame: Tensor  # (Q,) among the B · T frames
    row: Tensor  # (Q,) on the canvas
    column: Tensor  # (Q,)
    weight: Tensor  # (Q,) share of a cell in a loss that weighs all real frames alike; their sum is 1


def real_cells(layouts: Sequence[Tensor], num_frames: int, origins_B2: Tensor | None = None) -> Cells:
    """Find the tokens of cells of real frames among all visual tokens.

    Args:
        layouts: of the videos, (V_i, 4); see `EncodedVisual`.
        num_frames: T.
        origins_B2: row and column of each picture on the teacher's canvas, if it differs from the student's.
    """
    parts, first = [], 0
    for video, layout_V4 in enumerate(layouts):
        token_K = (layout_V4[:, 3] == CELL).nonzero().squeeze(1)
        place_K2 = layout_V4[token_K, 1:3]
        if origins_B2 is not None and len(place_K2):
            place_K2 = place_K2 - place_K2[0] + origins_B2[video].to(place_K2.device)
        frame_K = video * num_frames + layout_V4[token_K, 0]
        parts.append(torch.cat([torch.stack([first + token_K, frame_K], dim=1), place_K2], dim=1))
        first += len(layout_V4)
    token_Q, frame_Q, row_Q, column_Q = torch.cat(parts).unbind(1)
    cells_F = frame_Q.bincount(minlength=1)
    weight_Q = 1.0 / (cells_F[frame_Q] * (cells_F > 0).sum())
    return Cells(token_Q, frame_Q, row_Q, column_Q, weight_Q)


class Distillation(nn.Module):
    """Head and loss: mean over real frames of the mean over their cells of the distance to the teacher.

    A frame with few cells has the same weight as one with many. Context tokens, row tokens and padding frames are
    excluded. If the teacher's grid is finer than the cells, its features are averaged over each cell; if it is coarser,
    the hidden states are.

    Args:
        head: `FusedHead` or `LastLayerHead`.
        side: S, cells per side of the student's square canvas.
        distance: "cosine" is 1 - cosine, the released loss; "mse" the squared difference, averaged over D.
    """

    def __init__(
        self,
        head: FusedHead | LastLayerHead,
        side: int,
        distance: Literal["cosine", "mse"] = "cosine",
    ):
        super().__init__()
        if distance not in ("cosine", "mse"):
            raise ValueError(f"`distance` must be cosine or mse, got {distance!r}.")
        self.head, self.side, self.distance = head, side, distance

    def forward(
        self,
        states: Sequence[Tensor],
        layouts: Sequence[Tensor],
        teacher_BTGGD: Tensor,
        origins_B2: Tensor | None = None,
    ) -> Tensor:
        """Return the loss, a scalar.

        Args:
            states: hidden states at all visual tokens of the batch, J tensors (V, E), last layer first.
            layouts, origins_B2: see `real_cells`.
            teacher_BTGGD: the teacher's patch features, without class token, on the whole canvas.

        Raises:
            ValueError: neither grid divides the other.
        """
        distance_Q, cells = self.distances(states, layouts, teacher_BTGGD, origins_B2)
        return (cells.weight * distance_Q).sum()

    def distances(
        self,
        states: Sequence[Tensor],
        layouts: Sequence[Tensor],
        teacher_BTGGD: Tensor,
        origins_B2: Tensor | None = None,
    ) -> tuple[Tensor, Cells]:
        """Distance of every cell (or, with a coarser teacher, of every teacher patch) to the teacher."""
        cells = real_cells(layouts, teacher_BTGGD.shape[1], origins_B2)
        cells = Cells(*(part.to(teacher_BTGGD.device) for part in cells))
        states = [state_VE[cells.token] for state_VE in states]
        s, g = self.side, teacher_BTGGD.shape[2]
        if max(s, g) % min(s, g):
            raise ValueError(f"A teacher of {g} × {g} patches does not fit {s} × {s} cells: neither divides the other.")
        teacher_FGGD = teacher_BTGGD.flatten(0, 1)
        if g > s:
            teacher_FGGD = F.avg_pool2d(teacher_FGGD.permute(0, 3, 1, 2), g // s).permute(0, 2, 3, 1)
        elif g < s:
            states, cells = average_states(states, cells, s, s // g)
        prediction_QD = self.head(states).float()
        target_QD = teacher_FGGD[cells.frame, cells.row, cells.column].float()
        if self.distance == "mse":
            return F.mse_loss(prediction_QD, target_QD, reduction="none").mean(-1), cells
        return 1.0 - F.cosine_similarity(prediction_QD, target_QD, dim=-1, eps=1e-8), cells


def average_states(states: Sequence[Tensor], cells: Cells, side: int, factor: int) -> tuple[list[Tensor], Cells]:
    """Average states over blocks of `factor` × `factor` cells, which must not extend beyond the picture."""
    coarse = side // factor
    block_Q = (cells.frame * coarse + cells.row // factor) * coarse + cells.column // factor
    place_P, index_Q, count_P = block_Q.unique(return_inverse=True, return_counts=True)
    if (count_P != factor**2).any():
        raise ValueError(f"A teacher patch spans {factor} × {factor} cells, but the picture boundary cuts through one.")
    averaged = [
        state_QE.new_zeros(len(place_P), state_QE.shape[1]).index_add(0, index_Q, state_QE) / factor**2
        for state_QE in states
    ]
    weight_P = cells.weight.new_zeros(len(place_P)).index_add(0, index_Q, cells.weight)
    frame_P, row_P, column_P = place_P // coarse**2, place_P // coarse % coarse, place_P % coarse
    return averaged, Cells(place_P, frame_P, row_P, column_P, weight_P)


def frame_count(batch: Mapping[str, Tensor]) -> int:
    """Number of real frames of the clips of a batch."""
    return int((batch["frame_grids"][..., 0] > 0).sum()) if "frame_grids" in batch else 0


class FeatureSource(Protocol):
    """A frozen source of features."""

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        """Remove the teacher's inputs from the batch; return patch features (B, T, G, G, D)."""


class StoredFeatures:
    """Precomputed features that come with the batch as `teacher_features`."""

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        """Return them."""
        return batch.pop("teacher_features")


class DistillVideoLanguage(TextTask):
    """Next-token cross-entropy on the answers plus the distillation of a teacher.

    Args:
        distillation: head and loss; its parameters are trained together with the model's.
        teacher: is called without gradients.
        layers: hidden states used by the head, last layer first; see `every_fourth_layer`.
        weight, text_weight: of the distillation and of the cross-entropy.
    """

    def __init__(
        self,
        distillation: Distillation,
        teacher: FeatureSource,
        layers: Sequence[int],
        weight: float = 1.0,
        text_weight: float = 1.0,
    ):
        if len(layers) != distillation.head.num_states:
            raise ValueError(
                f"The head reads {distillation.head.num_states} states, but {len(layers)} layers were given."
            )
        self.distillation, self.teacher, self.layers = distillation, teacher, tuple(layers)
        self.weight, self.text_weight = weight, text_weight
        self.head = distillation.head

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """Frames of clips."""
        return {"frames": frame_count(batch)}

    def step(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Losses of a batch with `pixel_values_videos` and the teacher's inputs; without clips, of its text. If only
        other processes have clips, an empty clip without teacher inputs takes their place.
        """
        batch = dict(batch)
        weights = batch.pop("weights", {})
        if "pixel_values_videos" not in batch:
            loss = weights.get("text", 1.0) * model(**batch).loss
            zero = torch.zeros_like(loss.detach())
            return {"loss": self.text_weight * loss, "text_loss": loss.detach(), "distill_loss": zero}
        batch.pop("frame_grids", None)
        is_taught = not batch.keys().isdisjoint(("teacher_pixels", "teacher_features"))
        if is_taught:
            with torch.no_grad():
                teacher_BTGGD = self.teacher(batch)
        origins_B2 = batch.pop("teacher_origin", None)
        visuals = model.encode(batch)
        for name in VISUAL_INPUTS["video"]:
            del batch[name]
        tokens = [visual.tokens for visual in visuals]
        with hidden_states(model.get_decoder(), self.layers) as states:
            text_loss = weights.get("text", 1.0) * model(**batch, mm_encoder_outputs={"video": visuals}).loss
        visual_BN = batch["input_ids"] == model.config.video_token_id
        at_tokens = [states[i][visual_BN] if i else torch.cat(tokens) for i in self.layers]
        if is_taught:
            layouts = [visual.layout for visual in visuals]
            distill_loss = self.distillation(at_tokens, layouts, teacher_BTGGD, origins_B2)
            distill_loss = weights.get("frames", 1.0) * distill_loss
        else:
            distill_loss = self.head(at_tokens).sum()  # 0, of no token
        return {
            "loss": self.text_weight * text_loss + self.weight * distill_loss,
            "text_loss": text_loss.detach(),
            "distill_loss": distill_loss.detach(),
        }


@contextmanager
def hidden_states(decoder: Any, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Collect only the given hidden states (B, N, E) of the next forward pass.

    State i > 0 is the output of the i-th layer, that of the last layer after the final norm. State 0 is not collected.
    """
    states: dict[int, Tensor] = {}
    handles = []
    for i in layers:
        if i == len(decoder.layers):
            handles.append(
                decoder.register_forward_hook(lambda _, __, out, i=i: states.update({i: out.last_hidden_state}))
            )
        elif i:
            handles.append(decoder.layers[i - 1].register_forward_hook(lambda _, __, out, i=i: states.update({i: out})))
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()
