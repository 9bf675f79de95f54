"""Tasks: what one training step computes. A task returns named losses; `loss` is the one to minimize.

A teacher for distillation belongs here, never to the model: frozen, in eval mode, absent from checkpoints.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from videopanda.models.visual import VISUAL_INPUTS


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
    """

    head = None
    temperature = 0.05  # of the cosine between token and word
    longest = 5.0  # token length, in lengths of a mean word embedding, above which alignment pulls back

    def __init__(self, text_weight: float = 1.0, align_weight: float = 0.0):
        self.text_weight, self.align_weight = text_weight, align_weight

    def step(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Mean over the supervised tokens of the batch."""
        if self.align_weight == 0:
            loss = model(**batch).loss
            return {"loss": loss, "text_loss": loss.detach()}
        batch = dict(batch)
        words = batch.pop("cell_words")
        tokens = [visual.tokens for visual in model.encode(batch)]
        for name in VISUAL_INPUTS["video"]:
            del batch[name]
        align = self.alignment(torch.cat(tokens), words, model.get_input_embeddings().weight)
        losses = {"loss": self.align_weight * align, "align_loss": align.detach()}
        if self.text_weight:
            features = BaseModelOutputWithPooling(pooler_output=tokens)  # type: ignore[arg-type]
            text = model(**batch, mm_encoder_outputs={"video": features}).loss
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
        directions_WE = F.normalize(vocabulary_WE.detach().float(), dim=-1)
        scores_VW = F.normalize(tokens_VE.float(), dim=-1) @ directions_WE.T / self.temperature
        logs_VK = scores_VW.log_softmax(-1).gather(1, words_VK.clamp(min=0))
        given_VK = words_VK >= 0
        per_token_V = -(logs_VK * given_VK).sum(1) / given_VK.sum(1)
        thing_V = given_VK[:, 1]  # an empty cell has one word
        length_V = tokens_VE.float().norm(dim=-1) / vocabulary_WE.detach().float().norm(dim=-1).mean()
        excess = F.relu(torch.log(length_V / self.longest)).square().mean()
        # A batch may show nothing at all, or things in every cell.
        halves = [per_token_V[kind_V].sum() / kind_V.sum().clamp(min=1) for kind_V in (thing_V, ~thing_V)]
        return halves[0] + halves[1] + excess
