"""Loss and accuracy on clips held out of training, with and without the video.

Answers are teacher-forced: `validation_accuracy` is the share of answers whose every token is the most likely one, that
is, which greedy decoding reproduces exactly; `validation_token_accuracy` is the share of single tokens. The suffix
`_no_video` marks the same for questions without the video: what a model knows without looking.
`validation_attention_to_video` is the share of attention that the text after a clip pays to it: it rises when a model
begins to look.
"""

import copy
import gc
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from videopanda.data.collate import IGNORE, Collator
from videopanda.data.loader import without_traces
from videopanda.data.sample import Sample, Turn
from videopanda.models.attention import eager_attention, unmerged

MAX_SAMPLES = 256  # per evaluation
ATTENTION_SAMPLES = 8  # per evaluation, one question each
CONDITIONS = {"": "with the video", "_no_video": "without"}


class ValidationBatches(Dataset):
    """Batches of held-out samples for one process, by condition (the suffixes of the metrics).

    Every process gets the same number; one that has no samples left repeats its first, which is excluded from the sums.

    Args:
        samples: held-out samples, the same on all processes; the first `MAX_SAMPLES` are used.
        collator: of the training; parts of its batches used only in training are dropped.
        batch_size: samples per process.
        rank, world_size: which of the processes this is.
    """

    def __init__(self, samples: Sequence[Sample], collator: Collator, batch_size: int, rank: int, world_size: int):
        self.samples, self.count = samples, min(len(samples), MAX_SAMPLES)
        self.collator = copy.copy(collator)
        self.collator.teacher_processor = self.collator.teacher_features = self.collator.flip_seed = None
        self.collator.cell_words = self.collator.frame_phrases = False
        self.collator.frame_times, self.collator.pad_to, self.collator.resolution = False, None, None
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.kept: dict[int, Sample] = {}  # what `single` has read; workers that start later have it, too

    def __len__(self) -> int:
        return -(-self.count // (self.batch_size * self.world_size))

    def __getitem__(self, step: int) -> tuple[bool, dict[str, Any]]:
        """Whether the batches of a step count, and the batches."""
        start = (step * self.world_size + self.rank) * self.batch_size
        places = range(start, min(start + self.batch_size, self.count))
        samples = [self.kept[i] if i in self.kept else self.samples[i] for i in places or [0]]
        batches = {"": self.collator(samples)}
        if hasattr(self.collator.processor, "video_processor"):
            batches["_no_video"] = self.collator([without_videos(sample) for sample in samples])
        return bool(places), batches

    def read(self, num_workers: int) -> Iterator[tuple[bool, dict[str, Any]]]:
        """All steps, read by some workers."""
        gc.freeze()  # workers are forks, see `data.loader.Loader`
        try:
            return without_traces(iter(DataLoader(self, batch_size=None, num_workers=num_workers)))
        finally:
            gc.unfreeze()

    def single(self) -> Iterator[tuple[bool, dict[str, Any]]]:
        """As `__getitem__`, of the first clips, each alone with one question; as many for every process.

        `read` afterwards does not read these clips again.
        """
        collator = copy.copy(self.collator)
        collator.fill_rows = collator.by_clip = False
        for i in range(self.count):
            sample = self.samples[i]  # drawn or read
            if sample.videos:
                self.kept[i] = sample
            if len(self.kept) == ATTENTION_SAMPLES:
                break
        chosen = list(self.kept.values())
        for place in range(self.rank, -(-len(chosen) // self.world_size) * self.world_size, self.world_size):
            sample = chosen[place] if place < len(chosen) else chosen[0]
            yield place < len(chosen), collator([replace(sample, conversations=sample.conversations[:1])])


def without_videos(sample: Sample) -> Sample:
    """The sample as text alone: no clips, and no `<video>` or `<image>` where they were."""
    turns = [
        tuple(Turn(re.sub(r"<(video|image)>\n?", "", turn[0]), *turn[1:]) for turn in conversation)
        for conversation in sample.conversations
    ]
    return replace(sample, videos=(), images=(), conversations=tuple(turns))


def answer_sums(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """Sums over the supervised answers of a batch, float (5,): loss, tokens, right tokens, answers, right answers."""
    batch = dict(batch)
    targets = batch.pop("labels")[:, 1:]
    known = targets != IGNORE
    kept = known.any(0).nonzero().squeeze(1)  # the head runs on these positions only
    logits = model(**batch, logits_to_keep=kept, use_cache=False).logits.float()
    never = model.generation_config.suppress_tokens or []  # placeholders, as in the training loss
    logits[..., never] = float("-inf")
    targets_kept, known_kept = targets[:, kept], known[:, kept]
    right = (logits.argmax(-1) == targets_kept)[known_kept]
    loss = F.cross_entropy(logits[known_kept], targets_kept[known_kept], reduction="sum")
    starts = known & ~F.pad(known, (1, 0))[:, :-1]
    answer = starts.flatten().cumsum(0)[known.flatten()] - 1  # of each supervised token
    count = int(starts.sum())
    # `answer` and `right` are in the same order: the columns that `kept` drops hold no supervised token.
    wrong = torch.zeros(count, device=right.device).index_add(0, answer, (~right).float())
    return torch.stack([loss, loss.new_tensor(right.numel()), right.sum(), loss.new_tensor(count), (wrong == 0).sum()])


@contextmanager
def attention_shares(model: Any) -> Iterator[Callable[[Mapping[str, Any], Callable[[], Any]], Tensor | None]]:
    """A function that measures one clip while another runs the model on it: the attention that the text after the clip
    pays to its tokens, mean over layers, heads and text tokens, a scalar; None if no layer has attention. Nothing
    merges meanwhile.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # below a LoRA adapter

    def measure(batch: Mapping[str, Any], run: Callable[[], Any]) -> Tensor | None:
        is_visual = batch["input_ids"][0] == base.config.video_token_id
        is_after = torch.arange(len(is_visual), device=is_visual.device) > is_visual.nonzero().max()
        found: list[Tensor] = []

        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            found.append(output[1][0].float().mean(0)[is_after][:, is_visual].sum(1).mean())

        layers = [layer.self_attn for layer in base.get_decoder().layers if hasattr(layer, "self_attn")]
        handles = [layer.register_forward_hook(keep) for layer in layers]
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack(found).mean() if found else None

    with unmerged(base), eager_attention(base):
        yield measure


def named(sums: Tensor, suffix: str) -> dict[str, float]:
    """Metrics of one condition from its sums."""
    loss, tokens, right_tokens, answers, right_answers = sums.tolist()
    values = {"loss": loss / tokens, "accuracy": right_answers / answers, "token_accuracy": right_tokens / tokens}
    return {f"validation_{name}{suffix}": value for name, value in values.items()}


def line_of(metrics: Mapping[str, float]) -> str:
    """The metrics in words, for the log."""
    parts = [
        f"{words}: loss {metrics[f'validation_loss{suffix}']:.4f}, "
        f"answers right {metrics[f'validation_accuracy{suffix}']:.1%}, "
        f"tokens right {metrics[f'validation_token_accuracy{suffix}']:.1%}"
        for suffix, words in CONDITIONS.items()
        if f"validation_loss{suffix}" in metrics
    ]
    return f"{'validation':<16}{'; '.join(parts)}"
