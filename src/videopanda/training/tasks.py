"""Tasks: what one training step computes. A task returns named losses; `loss` is the one to minimise.

A teacher for distillation belongs here, never to the model: frozen, in eval mode, absent from checkpoints.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling


class Task(Protocol):
    """Turns a batch into named losses. `head` is what it trains beside the model, or None."""

    @property
    def head(self) -> nn.Module | None:
        """Has parameters of its own."""

    def step(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scalars: `loss`, and its parts as `*_loss`."""


class VideoLanguage:
    """Next-token cross-entropy on the answers (paper Eq. 18), and alignment of the visual tokens.

    Where a batch says in words what every visual token shows (Scenes do), the projected token is drawn towards the
    language model's own embeddings of these words. This stands where the paper distils a video teacher into the tokens
    (Eq. 19): same place, but the teacher is the ground truth of the generated world.

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
        for name in model.visual_inputs["video"]:
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
        """Cross-entropy of each visual token against its words. Cells with a thing and empty ones weigh the same.

        The cosine leaves the length free, and it would grow until the language model's layers could no longer change a
        visual token by what they add to it; so length is held back.
        """
        known_V = words_VK[:, 0] >= 0
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
