"""Tasks: what one training step computes. A task returns named losses; `loss` is the one to minimize.

A teacher for distillation belongs here, never to the model: frozen, in eval mode, absent from checkpoints.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videopanda.models.visual import CELL, VISUAL_INPUTS, EncodedVisual


class Task(Protocol):
    """Turns a batch into named losses. `head` is a module trained together with the model, or None."""

    @property
    def head(self) -> nn.Module | None:
        """A module with its own parameters."""

    def step(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scalars: `loss`, and its parts as `*_loss`."""


class VideoLanguage:
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

    def step(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Mean over the supervised tokens of the batch."""
        if self.align_weight == 0:
            loss = model(**batch).loss
            return {"loss": self.text_weight * loss, "text_loss": loss.detach()}
        batch = dict(batch)
        words = batch.pop("cell_words" if self.nothing is None else "phrases")
        visuals = model.encode(batch)
        tokens = [visual.tokens for visual in visuals]
        for name in VISUAL_INPUTS["video"]:
            del batch[name]
        vocabulary_WE = model.get_input_embeddings().weight
        if self.nothing is None:
            align = self.alignment(torch.cat(tokens), words, vocabulary_WE)
        else:
            align = self.alignment_to_phrases(visuals, words, vocabulary_WE)
        losses = {"loss": self.align_weight * align, "align_loss": align.detach()}
        if self.text_weight:
            text = model(**batch, mm_encoder_outputs={"video": visuals}).loss
            losses["loss"] = losses["loss"] + self.text_weight * text
            losses["text_loss"] = text.detach()
        return losses

    def alignment(self, tokens_VE: Tensor, words_VK: Tensor, vocabulary_WE: Tensor) -> Tensor:
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
        halves = [per_token_V[kind_V].sum() / kind_V.sum().clamp(min=1) for kind_V in (thing_V, ~thing_V)]
        return halves[0] + halves[1] + self.excess(tokens_VE, vocabulary_WE)

    def alignment_to_phrases(
        self, visuals: Sequence[EncodedVisual], phrases_JX: Tensor, vocabulary_WE: Tensor
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
        return shown.sum() / max(len(shown), 1) - explained_C.mean() + self.excess(tokens_CE, vocabulary_WE)

    def log_words(self, tokens_VE: Tensor, vocabulary_WE: Tensor) -> Tensor:
        """Log-probability of every word for every token by their cosine, (V, W)."""
        directions_WE = F.normalize(vocabulary_WE.detach().float(), dim=-1)
        return (F.normalize(tokens_VE.float(), dim=-1) @ directions_WE.T / self.temperature).log_softmax(-1)

    def excess(self, tokens_VE: Tensor, vocabulary_WE: Tensor) -> Tensor:
        """Penalty on tokens that are `longest` times longer than words."""
        length_V = tokens_VE.float().norm(dim=-1) / vocabulary_WE.detach().float().norm(dim=-1).mean()
        return F.relu(torch.log(length_V / self.longest)).square().mean()
