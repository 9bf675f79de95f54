"""Tasks: what one training step computes. A task returns named losses; `loss` is the one to minimize.

A teacher for distillation belongs here, never to the model: frozen, in eval mode, absent from checkpoints.

    task.prepare(batches, device)     # all batches of one optimizer step on this rank
    losses = [task.step(model, batch) for batch in batches]

Each loss is then a mean over all tokens (frames, cells) of the step: its mean over these batches and all ranks weighs
every token alike, wherever it is. Without `prepare` it is the mean over its batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from videopanda.data.collate import IGNORE
from videopanda.models.visual import CELL, VISUAL_INPUTS, EncodedVisual

UNWEIGHTED: Mapping[str, float] = {}  # of batches that are not prepared


class Task(Protocol):
    """Turns a batch into named losses. `head` is a module trained together with the model, or None."""

    @property
    def head(self) -> nn.Module | None:
        """A module with its own parameters."""

    def prepare(self, batches: Sequence[dict[str, Any]], device: torch.device) -> None:
        """Let the losses of these batches, all of one optimizer step on this rank, be means over the whole step."""

    def step(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scalars: `loss`, and its parts as `*_loss`."""


class TextTask:
    """A task whose batches may have answers."""

    def prepare(self, batches: Sequence[dict[str, Any]], device: torch.device) -> None:
        """Add `weights` to the batches: by name, the factor between the mean of a batch and its part of the mean over
        the step. All ranks call this together. At the end of an epoch there are none.
        """
        if not batches:
            return
        counts = [{"text": answer_tokens(batch), **self.counts(batch)} for batch in batches]
        own_KB = torch.tensor([[count[name] for count in counts] for name in counts[0]])
        total_K1, ranks = own_KB.sum(1, keepdim=True).to(device), 1
        if dist.is_initialized():
            dist.all_reduce(total_K1)
            ranks = dist.get_world_size()
        weights_KB = own_KB.double() * len(batches) * ranks / total_K1.cpu().clamp(min=1)
        for batch, weights in zip(batches, weights_KB.T.tolist()):
            batch["weights"] = dict(zip(counts[0], weights))

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """How many things the other losses of a batch are means over, by the name of their weight."""
        return {}


def answer_tokens(batch: Mapping[str, Tensor]) -> int:
    """Number of supervised tokens."""
    return int((batch["labels"][:, 1:] != IGNORE).sum()) if "labels" in batch else 0


class VideoLanguage(TextTask):
    """Next-token cross-entropy on the answers (Video-Panda paper, Eq. 20), and alignment of the visual tokens.

    If a batch describes every visual token in words (as Scenes does), the projected token is pulled towards the
    language model's own embeddings of these words. This replaces the paper's distillation of a video teacher (Eq. 19):
    the teacher is the ground truth of the generated world, and it acts before the language model, not after it.

    Args:
        text_weight: weight of the cross-entropy; at 0 the language model does not run at all.
        align_weight: weight of the alignment.
        nothing: token id of the word for cells that show nothing, where batches do not tell what each cell shows but
            what each frame does (`alignment_to_phrases`).
    """

    head = None
    temperature = 0.05  # of the cosine between token and word
    longest = 5.0  # token length, in lengths of a mean word embedding, above which alignment pulls back

    def __init__(self, text_weight: float = 1.0, align_weight: float = 0.0, nothing: int | None = None):
        self.text_weight, self.align_weight, self.nothing = text_weight, align_weight, nothing

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """Cells with a thing, empty ones, and all; or phrases and cells."""
        if self.align_weight == 0:
            return {}
        if self.nothing is not None:
            return {"phrases": len(batch["phrases"]), "cells": int(batch["frame_grids"].prod(-1).sum())}
        known_V2 = batch["cell_words"][:, :2] >= 0
        known, things = known_V2.sum(0).tolist()
        return {"things": things, "empty": known - things, "cells": known}

    def step(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Mean over the supervised tokens of the batch, or their part of the mean over the step."""
        batch = dict(batch)
        weights = batch.pop("weights", {})
        text_weight = weights.get("text", 1.0)
        if self.align_weight == 0:
            loss = text_weight * model(**batch).loss
            return {"loss": self.text_weight * loss, "text_loss": loss.detach()}
        batch.pop("frame_grids", None)
        words = batch.pop("cell_words" if self.nothing is None else "phrases")
        visuals = model.encode(batch)
        tokens = [visual.tokens for visual in visuals]
        for name in VISUAL_INPUTS["video"]:
            del batch[name]
        vocabulary_WE = model.get_input_embeddings().weight
        if self.nothing is None:
            align = self.alignment(torch.cat(tokens), words, vocabulary_WE, weights)
        else:
            align = self.alignment_to_phrases(visuals, words, vocabulary_WE, weights)
        losses = {"loss": self.align_weight * align, "align_loss": align.detach()}
        if self.text_weight:
            text = text_weight * model(**batch, mm_encoder_outputs={"video": visuals}).loss
            losses["loss"] = losses["loss"] + self.text_weight * text
            losses["text_loss"] = text.detach()
        return losses

    def alignment(
        self, tokens_VE: Tensor, words_VK: Tensor, vocabulary_WE: Tensor, weights: Mapping[str, float] = UNWEIGHTED
    ) -> Tensor:
        """Cross-entropy of each visual token against its words. Cells with an object and empty ones have equal weight.
        The cosine does not constrain the length, which would grow until the layers of the language model could no
        longer change a visual token; so length is penalized.
        """
        known_V = words_VK[:, 0] >= 0
        if not known_V.any():  # only clips of other worlds: means over nothing would be NaN
            return tokens_VE.sum() * 0
        tokens_VE, words_VK = tokens_VE[known_V], words_VK[known_V]
        logs_VK = self.log_words(tokens_VE, vocabulary_WE).gather(1, words_VK.clamp(min=0))
        given_VK = words_VK >= 0
        per_token_V = -(logs_VK * given_VK).sum(1) / given_VK.sum(1)
        thing_V = given_VK[:, 1]  # an empty cell has one word
        # A batch may show nothing at all, or things in every cell.
        kinds = {"things": thing_V, "empty": ~thing_V}
        halves = [weights.get(name, 1.0) * per_token_V[V].sum() / V.sum().clamp(min=1) for name, V in kinds.items()]
        return halves[0] + halves[1] + weights.get("cells", 1.0) * self.excess(tokens_VE, vocabulary_WE)

    def alignment_to_phrases(
        self,
        visuals: Sequence[EncodedVisual],
        phrases_JX: Tensor,
        vocabulary_WE: Tensor,
        weights: Mapping[str, float] = UNWEIGHTED,
    ) -> Tensor:
        """Alignment where only captions of frames are known, not what each cell shows: every phrase is shown by at
        least one cell of its frame, and every cell shows something that a phrase names, or nothing. Which cells are
        meant is for the model to find (multiple-instance learning).

        Args:
            phrases_JX: number of the video, number of the frame and K words per phrase, (J, 2 + K); -100 where there
                are fewer words.
        """
        cells, frames = [], []
        for tokens_VE, layout_V4 in visuals:
            assert layout_V4 is not None
            is_cell_V = layout_V4[:, 3] == CELL
            cells.append(tokens_VE[is_cell_V])
            frames.append(layout_V4[is_cell_V, 0])
        tokens_CE, device = torch.cat(cells), phrases_JX.device
        video_C = torch.repeat_interleave(torch.tensor([len(each) for each in frames], device=device))
        frame_C = torch.cat(frames).to(device)
        words_JK = phrases_JX[:, 2:]
        given_JK = words_JK >= 0
        count_J = given_JK.sum(1)
        logs_CW = self.log_words(tokens_CE, vocabulary_WE)
        # Log-probability of a phrase, 0 if its words share all of it evenly; -inf where it is of another frame.
        logs_CJ = (logs_CW[:, words_JK.clamp(min=0)] * given_JK).sum(2) + count_J * count_J.log()
        apart_CJ = (video_C[:, None] != phrases_JX[:, 0]) | (frame_C[:, None] != phrases_JX[:, 1])
        logs_CJ = logs_CJ.masked_fill(apart_CJ, -torch.inf)
        shown = -(logs_CJ.logsumexp(0) - (~apart_CJ).sum(0).log()) / count_J
        explained_C = torch.cat([logs_CW[:, self.nothing, None], logs_CJ / count_J], 1).logsumexp(1)
        per_cell = self.excess(tokens_CE, vocabulary_WE) - explained_C.mean()
        return weights.get("phrases", 1.0) * shown.sum() / max(len(shown), 1) + weights.get("cells", 1.0) * per_cell

    def log_words(self, tokens_VE: Tensor, vocabulary_WE: Tensor) -> Tensor:
        """Log-probability of every word for every token by their cosine, (V, W)."""
        directions_WE = F.normalize(vocabulary_WE.detach().float(), dim=-1)
        return (F.normalize(tokens_VE.float(), dim=-1) @ directions_WE.T / self.temperature).log_softmax(-1)

    def excess(self, tokens_VE: Tensor, vocabulary_WE: Tensor) -> Tensor:
        """Penalty on tokens that are `longest` times longer than words."""
        length_V = tokens_VE.float().norm(dim=-1) / vocabulary_WE.detach().float().norm(dim=-1).mean()
        return F.relu(torch.log(length_V / self.longest)).square().mean()
