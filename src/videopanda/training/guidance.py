"""The video guidance supervisor of ELVA (ICCV 2025; docs/elva.md): two losses on the visual features of the last layer.

    guidance = VideoGuidance(language_size=3584, teacher_size=1152)
    losses = guidance(hidden_VE, layout_V4, video_V, teacher_BTGGD, times_BT)      # {"tube_loss": …, "frame_loss": …}
    task = GuidedVideoLanguage(guidance, teacher)                                  # both, beside the text's

*Tube*: each place of the picture, averaged over time, is pulled toward the teacher's (squared distance of unit
vectors). *Frame*: each frame, averaged over its places, must find its own teacher frame among all frames of the
optimizer step, on all ranks.

Dimensions: V visual tokens of the batch, un-merged; E width of the language model; B videos of T frames; G × G patches
of the teacher; D width of the teacher; P places of the teacher; F frames; N frames of all ranks.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from videopanda.models.frames import FrameProcessor
from videopanda.models.pictures import WHITE
from videopanda.models.visual import CELL, VISUAL_INPUTS
from videopanda.training.distill import FeatureSource, frame_count
from videopanda.training.tasks import TextTask

TEMPERATURE = 0.07  # default; no source states one
_TEACHER = ("teacher_pixels", "teacher_features")
NEAR_SECONDS = 1.0  # frames of one video closer than this are near duplicates, not negatives


@dataclass(frozen=True)
class Bank:
    """The teacher's frames that those of a batch are contrasted with. Trainers cast the tensors of a batch to bfloat16,
    which cannot tell frames by their seconds; not those in here.

    Args:
        vectors: unit vectors of the frames of all batches of the step and all ranks (N, D).
        identity: batch, video and second of each, in float64 (N, 3).
        number: which of these batches this is.
    """

    vectors: Tensor
    identity: Tensor
    number: int = 0


class VideoGuidance(nn.Module):
    """Heads and losses; they belong to the task, so no checkpoint of the model holds them.

    Args:
        language_size, teacher_size: widths E and D.
        tube_weight, frame_weight: of the two losses; the paper weights all losses equally.
    """

    def __init__(self, language_size: int, teacher_size: int, tube_weight: float = 1.0, frame_weight: float = 1.0):
        super().__init__()
        self.teacher_size, self.tube_weight, self.frame_weight = teacher_size, tube_weight, frame_weight
        self.tube_head = nn.Sequential(nn.LayerNorm(language_size), nn.Linear(language_size, teacher_size))
        self.frame_head = nn.Sequential(nn.LayerNorm(language_size), nn.Linear(language_size, teacher_size))

    def forward(
        self,
        hidden_VE: Tensor,
        layout_V4: Tensor,
        video_V: Tensor,
        teacher_BTGGD: Tensor,
        times_BT: Tensor,
        bank: Bank | None = None,
    ) -> Mapping[str, Tensor]:
        """Return both losses, unweighted.

        Args:
            hidden_VE: last-layer features of all visual tokens; merged tokens as copies of their survivor.
            layout_V4: frame, row, column and kind of each token; see `EncodedVisual`.
            video_V: number of the video of each token, below B.
            teacher_BTGGD: the teacher's patch features.
            times_BT: seconds at which each frame is shown.
            bank: of all batches of the step and all ranks; default: of this batch alone.
        """
        cells_V = layout_V4[:, 3] == CELL
        hidden_CE, video_C, layout_C4 = hidden_VE[cells_V], video_V[cells_V], layout_V4[cells_V]
        frame_C = video_C * teacher_BTGGD.shape[1] + layout_C4[:, 0]
        return {
            "tube_loss": self._tubes(hidden_CE, video_C, layout_C4, teacher_BTGGD),
            "frame_loss": self._frames(hidden_CE, frame_C, teacher_BTGGD, times_BT, bank),
        }

    def _tubes(self, hidden_CE: Tensor, video_C: Tensor, layout_C4: Tensor, teacher_BTGGD: Tensor) -> Tensor:
        """Sum over channels of the squared difference of unit vectors (2 - 2 cos), mean over the teacher's places."""
        _, frames, side = teacher_BTGGD.shape[:3]
        frame_C = video_C * frames + layout_C4[:, 0]
        grid_F2 = layout_C4.new_full((len(teacher_BTGGD) * frames, 2), -1)
        grid_F2.scatter_reduce_(0, frame_C[:, None].expand(-1, 2), layout_C4[:, 1:3], "amax")
        grids_G2, grid_C = torch.unique(grid_F2[frame_C] + 1, dim=0, return_inverse=True)
        tubes, targets = [hidden_CE[:0]], [teacher_BTGGD.new_zeros(0, self.teacher_size, dtype=torch.float32)]
        for number, (rows, columns) in enumerate(grids_G2.tolist()):  # frames of one size together
            mine_C = grid_C == number
            videos_K, video_M = torch.unique(video_C[mine_C], return_inverse=True)
            place_M = (video_M * rows + layout_C4[mine_C, 1]) * columns + layout_C4[mine_C, 2]
            places = len(videos_K) * rows * columns
            sums = hidden_CE.new_zeros(places, hidden_CE.shape[1], dtype=torch.float32)
            sums = sums.index_add(0, place_M, hidden_CE[mine_C].float())
            seen = sums.new_zeros(places).index_add(0, place_M, sums.new_ones(len(place_M)))
            tubes_KERC = (sums / seen[:, None]).view(len(videos_K), rows, columns, -1).permute(0, 3, 1, 2)
            tubes.append(resized(tubes_KERC, side).permute(0, 2, 3, 1).flatten(0, 2).to(hidden_CE.dtype))
            taught_F = (grid_F2 + 1 == grids_G2[number]).all(1).view(len(teacher_BTGGD), frames)[videos_K]
            weight_KT = taught_F.float() / taught_F.sum(1, keepdim=True)
            targets.append(torch.einsum("ktxyd,kt->kxyd", teacher_BTGGD[videos_K].float(), weight_KT).flatten(0, 2))
        # Once, also without any video: ranks gather its weights and reduce its gradients together.
        student_PD, target_PD = self.tube_head(torch.cat(tubes)).float(), torch.cat(targets)
        distance_PD = F.normalize(student_PD, dim=-1) - F.normalize(target_PD, dim=-1)
        return distance_PD.square().sum() / max(len(target_PD), 1)

    def _frames(
        self, hidden_CE: Tensor, frame_C: Tensor, teacher_BTGGD: Tensor, times_BT: Tensor, bank: Bank | None
    ) -> Tensor:
        """InfoNCE of each frame against the teacher's frames of the global batch, mean over the frames of this one."""
        frames_F, frame_C = torch.unique(frame_C, return_inverse=True)
        sums = hidden_CE.new_zeros(len(frames_F), hidden_CE.shape[1], dtype=torch.float32)
        sums = sums.index_add(0, frame_C, hidden_CE.float())
        mean_FE = sums / torch.bincount(frame_C, minlength=len(frames_F))[:, None]
        student_FD = F.normalize(self.frame_head(mean_FE.to(hidden_CE.dtype)).float(), dim=-1)
        bank = bank or Bank(*described(frames_F, teacher_BTGGD, times_BT, 0))
        identity_N3 = bank.identity
        own_F = (identity_N3[:, 0] == bank.number).nonzero().squeeze(1)
        identity_F3 = identity_N3[own_F]
        same_FN = (identity_F3[:, None, :2] == identity_N3[:, :2]).all(2)
        apart_FN = (identity_F3[:, None, 2] - identity_N3[:, 2]).abs()
        is_self_FN = same_FN & (apart_FN == 0)
        logits_FN = student_FD @ bank.vectors.T / TEMPERATURE
        logits_FN = logits_FN.masked_fill(same_FN & (apart_FN < NEAR_SECONDS) & ~is_self_FN, -torch.inf)
        return F.cross_entropy(logits_FN, own_F, reduction="sum") / max(len(own_F), 1)


def described(frames_F: Tensor, teacher_BTGGD: Tensor, times_BT: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Unit vectors (F, D) of some of the B · T frames of a batch, and number of the batch, video and second (F, 3)."""
    teacher_FD = F.normalize(teacher_BTGGD.float().mean((2, 3)).flatten(0, 1)[frames_F], dim=-1)
    parts = torch.full_like(frames_F, number), frames_F // times_BT.shape[1], times_BT.flatten()[frames_F]
    return teacher_FD, torch.stack([part.double() for part in parts], 1)


class GuidedVideoLanguage(TextTask):
    """Next-token cross-entropy on the answers plus both guidance losses, on videos; images have no guidance.

    Args:
        guidance: heads and losses; its parameters are trained together with the model's.
        teacher: is called without gradients; it sees `WholeFrames`.
        text_weight: of the cross-entropy.
    """

    def __init__(self, guidance: VideoGuidance, teacher: FeatureSource, text_weight: float = 1.0):
        self.guidance, self.teacher, self.text_weight = guidance, teacher, text_weight
        self.head = guidance

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """Frames, and their sizes within each clip: the teacher has as many places for each."""
        if "frame_grids" not in batch:
            return {"tubes": 0, "frames": 0}
        sizes = [grids_T2[grids_T2[:, 0] > 0].unique(dim=0) for grids_T2 in batch["frame_grids"]]
        return {"tubes": sum(map(len, sizes)), "frames": frame_count(batch)}

    @torch.no_grad()
    def prepare(self, batches: Sequence[dict[str, Any]], device: torch.device) -> None:
        """See `TextTask`. The teacher runs here: each frame is contrasted with those of all batches on all ranks."""
        super().prepare(batches, device)
        first = len(batches) * (dist.get_rank() if dist.is_initialized() else 0)
        found = [(torch.zeros(0, self.guidance.teacher_size), torch.zeros(0, 3, dtype=torch.double))]
        for number, batch in enumerate(batches, first):
            seen = {name: batch.pop(name).to(device) for name in _TEACHER if name in batch}
            if seen:
                times_BT = batch["frame_times"].to(device)
                teacher_BTGGD = self.teacher(seen)[:, : times_BT.shape[1]]
                video_F, frame_F = (batch["frame_grids"][..., 0] > 0).nonzero().to(device).unbind(1)
                frames_F = video_F * times_BT.shape[1] + frame_F
                found.append(described(frames_F, teacher_BTGGD, times_BT, number))
                batch["teacher_features"] = teacher_BTGGD.to(batch["frame_times"].device)
        teacher_ND, identity_N3 = (gathered(torch.cat([x.to(device) for x in parts])) for parts in zip(*found))
        for number, batch in enumerate(batches, first):
            batch["bank"] = Bank(teacher_ND, identity_N3, number)

    def step(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Losses of a batch with `pixel_values_videos`, the teacher's inputs and `frame_times` (B, T); without clips,
        of its text. If only other processes have clips, an empty clip without teacher inputs takes their place.
        """
        guidance, batch = self.guidance, dict(batch)
        if "bank" not in batch:
            self.prepare([batch], batch["input_ids"].device)
        weights, bank = batch.pop("weights"), batch.pop("bank")
        if "pixel_values_videos" not in batch:
            loss = weights["text"] * model(**batch).loss
            zero = torch.zeros_like(loss.detach())
            parts = {"text_loss": loss.detach(), "tube_loss": zero, "frame_loss": zero}
            return {"loss": self.text_weight * loss, **parts}
        batch.pop("frame_grids", None)
        if "teacher_features" not in batch:
            teacher_BTGGD = batch["pixel_values_videos"].new_zeros(0, 1, 1, 1, guidance.teacher_size)
            times_BT = teacher_BTGGD.new_zeros(0, 1)
        else:
            times_BT, teacher_BTGGD = batch.pop("frame_times"), batch.pop("teacher_features")
        visuals = model.encode(batch)
        for name in VISUAL_INPUTS["video"]:
            del batch[name]
        with last_hidden_state(model) as found:
            text_loss = weights["text"] * model(**batch, mm_encoder_outputs={"video": visuals}).loss
        hidden_VE = found[0][batch["input_ids"] == model.config.video_token_id]
        layouts = [visual.layout for visual in visuals]
        sizes = torch.tensor([len(layout) for layout in layouts], dtype=torch.long)
        video_V = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        layout_V4 = torch.cat(layouts) if layouts else torch.zeros(0, 4, dtype=torch.long)
        device = hidden_VE.device
        places = layout_V4.to(device), video_V.to(device)
        losses = guidance(hidden_VE, *places, teacher_BTGGD.to(device), times_BT, bank)
        losses = {name: weights[name.replace("_loss", "s")] * loss for name, loss in losses.items()}
        weighted = guidance.tube_weight * losses["tube_loss"] + guidance.frame_weight * losses["frame_loss"]
        return {
            "loss": self.text_weight * text_loss + weighted,
            "text_loss": text_loss.detach(),
            **{name: loss.detach() for name, loss in losses.items()},
        }


@contextmanager
def last_hidden_state(model: Any) -> Iterator[list[Tensor]]:
    """Keep the output (B, N, E) of the last layer of the next forward pass, and no other; merged tokens are copies of
    their survivor, as the family's base model returns them.
    """
    found: list[Tensor] = []
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # below a LoRA adapter
    handle = base.model.register_forward_hook(lambda _, __, output: found.append(output.last_hidden_state))
    try:
        yield found
    finally:
        handle.remove()


def resized(maps_BEHW: Tensor, side: int) -> Tensor:
    """Resize maps to `side` × `side`: averaging finer ones, bilinear for coarser ones."""
    height, width = maps_BEHW.shape[2:]
    if height >= side and width >= side:
        return F.adaptive_avg_pool2d(maps_BEHW, side)
    return F.interpolate(maps_BEHW, size=(side, side), mode="bilinear", align_corners=False)


class WholeFrames(FrameProcessor):
    """Resizes every frame to a square of `side` pixels, whatever its aspect, as image towers are trained.

    A clip of fewer than `num_frames` frames repeats its last one: what a video teacher says of a clip must not depend
    on those beside it.
    """

    def __init__(self, side: int, mean: Sequence[float], std: Sequence[float], num_frames: int):
        super().__init__(do_sample_frames=False)
        self.side, self.image_mean, self.image_std, self.num_frames = side, list(mean), list(std), num_frames
        self.do_sample_frames, self.background = False, list(WHITE)

    def place(self, clips: list[np.ndarray], is_image: bool = False) -> dict[str, Tensor]:
        """Frames (B, T, 3, S, S), T being `num_frames`, or the frames of the longest clip if it has more."""
        mean, std = np.array(self.image_mean, np.float32), np.array(self.image_std, np.float32)
        pixels = [(self.resize(clip, self.side, self.side) / np.float32(255) - mean) / std for clip in clips]
        clips_TCSS = [torch.from_numpy(clip).permute(0, 3, 1, 2).float() for clip in pixels]
        longest = max(self.num_frames, *map(len, clips_TCSS))
        filled = [torch.cat([clip, *[clip[-1:]] * (longest - len(clip))]) for clip in clips_TCSS]
        return {"pixel_values_videos": torch.stack(filled)}


@torch.no_grad()
def gathered(rows_FD: Tensor) -> Tensor:
    """The rows of all ranks, in the order of ranks; ranks may have different numbers of them. Without gradients."""
    if not dist.is_initialized():
        return rows_FD
    counts = [torch.zeros(1, dtype=torch.long, device=rows_FD.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(rows_FD)], device=rows_FD.device))
    most = max(int(count) for count in counts)
    padded = F.pad(rows_FD, (0, 0, 0, most - len(rows_FD))).contiguous()
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts)])
