"""Turns samples into one padded batch: visual tensors, token ids, a loss on answers only.

Conversations of one sample share the visual prefix. They are packed into one row after it and masked from each other,
so every question is answered exactly as if it were alone, but the clip is encoded and prefilled once:

    position   0 … P-1      P … P+a      P … P+b
    content    <video>…     question 1   question 2      (question 2 does not see question 1)

With `fill_rows` a row holds several samples, one after the other: positions start again at 0 with each of them, and
none sees another. A language model whose layers cannot be masked like this gets one conversation per row
(`training/packing.py`).
"""

import logging
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from jinja2 import TemplateError

from videopanda.data.row_masks import FULL_ATTENTION, clip_masks, row_masks
from videopanda.data.sample import Sample, Turn, to_messages
from videopanda.models.visual import CELL

logger = logging.getLogger(__name__)

IGNORE = -100
MAX_CELL_WORDS = 5


class RewritesTurnsError(ValueError):
    """A chat template writes an answer in another way once another question follows."""


def render(
    template: Any, turns: Sequence[Turn], num_videos: int, system_prompt: str = "", num_images: int = 0
) -> tuple[str, list[tuple[int, int]]]:
    """The chat text of a conversation and the character spans of its answers, end marker included.

    `template` is a processor or tokenizer with a chat template; without `system_prompt` its own default applies.

    Raises:
        RewritesTurnsError: the template changes earlier text when a message is added, so that answers cannot be found.
        ValueError: it has no place for a system prompt, or refuses the roles.
    """
    messages = to_messages(turns, num_videos, system_prompt, num_images)
    try:
        text = template.apply_chat_template(messages, tokenize=False)
    except TemplateError as error:
        raise ValueError(
            f"the chat template refuses the roles {' '.join(m['role'] for m in messages)}: {error}"
        ) from error
    if system_prompt not in text:
        raise ValueError(
            "the chat template drops the system prompt of a row: use another template, or remove the system prompt"
        )
    spans = []
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for i in (i for i, turn in zip(answers, turns) if Turn(*turn).is_trained):
        before = template.apply_chat_template(messages[:i], tokenize=False, add_generation_prompt=True)
        after = template.apply_chat_template(messages[: i + 1], tokenize=False)
        if not text.startswith(after) or not after.startswith(before):
            raise RewritesTurnsError("this chat template rewrites earlier turns: use one that only appends")
        spans.append((len(before), len(after)))
    return text, spans


def flipped(pixels: torch.Tensor) -> torch.Tensor:
    """Mirror whole canvases (..., height, width) left to right, padding included."""
    return pixels.flip(-1)


def is_flipped(sample_id: str, video: int, seed: int) -> bool:
    """Whether a clip belongs to the mirrored half: the same in every process and epoch."""
    return bool(np.random.default_rng([seed, zlib.crc32(sample_id.encode()), video]).random() < 0.5)


def frame_scales(sample_id: str, video: int, frames: int, least: float, seed: int) -> np.ndarray:
    """Sides of the frames of a clip relative to full ones, drawn in [least, 1]: the same in every process and epoch."""
    return np.random.default_rng([seed, zlib.crc32(sample_id.encode()), video, 1]).uniform(least, 1, frames)


@dataclass
class Packed:
    """Token ids of one sample: a shared prefix, then one segment per conversation."""

    ids: list[int]
    labels: list[int]
    positions: list[int]
    segments: list[int]  # 0 in the prefix, 1, 2, ... in the conversations

    def __len__(self) -> int:
        return len(self.ids)


class Collator:
    """Batches samples for a video-language model (or, without videos, for any causal LM).

    Args:
        processor: the processor of a model, or a tokenizer with a chat template for samples without videos.
        max_length: longest row in tokens. Conversations that no longer fit are skipped (at least one must fit).
        context: tokens for which the language model has positions; a row may have more, no conversation of it.
        supervise: "answers" puts the loss on answers and their end marker; "all" on every token that is not visual.
        windows: attention window in tokens (None: unlimited) of each layer type of the language model, or of
            `ALL_LAYERS` where it takes one mask for all. None puts every conversation in its own row.
        fill_rows: put samples into the same row, in their order, as long as `max_length` allows.
        by_clip: put all samples of a batch into one row without padding, for `training/clip_attention.py`.
        pad_to: rows are padded to this length (static shapes for compilation); default: the longest row.
        text: if false, only the visual tensors are made.
        cell_words: also return words for every visual token, for videos that know them (`Clip.cell_words`).
        frame_phrases: also return what each frame shows in words, for videos that know it (`Clip.frame_phrases`).
        additive_mask: additive float mask (eager attention) instead of a boolean mask.
        flip_seed: mirror half of the clips, chosen by this seed and the sample's id, as the official transform does:
            the whole canvas, after padding. Needs a square canvas.
        teacher_processor: also makes `teacher_pixels` (B, T, 3, S, S), mirrored like the student's, and
            `teacher_origin` (B, 2), row and column of each picture on the teacher's canvas, if it has one.
        teacher_features: returns precomputed teacher features instead.
        frame_times: also return `frame_times` (B, T), the second at which each frame is shown.
        resolution: least side of a frame relative to a full one, and a seed: each frame of a video gets a size of its
            own (`frame_scales`). The teacher sees full frames. Needs a family whose frames may differ in size.
    """

    def __init__(
        self,
        processor: Any,
        max_length: int,
        supervise: Literal["answers", "all"] = "answers",
        windows: Mapping[str, int | None] | None = FULL_ATTENTION,
        fill_rows: bool = False,
        by_clip: bool = False,
        pad_to: int | None = None,
        text: bool = True,
        cell_words: bool = False,
        frame_phrases: bool = False,
        additive_mask: bool = False,
        flip_seed: int | None = None,
        teacher_processor: Any = None,
        teacher_features: Callable[[Sequence[Sample]], dict[str, torch.Tensor]] | None = None,
        frame_times: bool = False,
        resolution: tuple[float, int] | None = None,
        context: int = sys.maxsize,
    ):
        self.processor = processor
        self.tokenizer = processor if not hasattr(processor, "video_processor") else processor.tokenizer
        self.max_length, self.context = max_length, context
        self.supervise = supervise
        self.windows = windows
        self.fill_rows, self.by_clip = fill_rows, by_clip
        self.pad_to = pad_to
        self.text = text
        self.cell_words, self.frame_phrases = cell_words, frame_phrases
        self.additive_mask = additive_mask
        self.flip_seed = flip_seed
        self.teacher_processor, self.teacher_features = teacher_processor, teacher_features
        self.frame_times, self.resolution = frame_times, resolution
        if resolution is not None and not getattr(getattr(processor, "video_processor", None), "mixed_sizes", False):
            raise ValueError("random_resolution needs a model whose frames may differ in size: set random_resolution=0")
        if flip_seed is not None and getattr(processor.video_processor, "canvas", "") != "square":
            raise ValueError(
                "Mirroring needs a square canvas: on a tight one the picture would move within the canvas."
            )
        self._word_ids: dict[str, int] = {}
        self._told = False  # that conversations are left out
        markers = self.tokenizer.convert_tokens_to_ids(["<video>", "<image>"])
        self.visual_ids = frozenset(token for token in markers if token is not None)

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """Keys: input_ids, labels, position_ids (B, L), attention_mask and, with videos or images, the outputs of the
        video processor.

        The attention mask is (B, L) where every row holds one conversation, else (B, 1, L, L), one for each layer type
        if `windows` has several; with `by_clip` it is that of `clip_masks`, and `clips` is returned too. `cell_words`
        (V, K) holds up to K token ids for each visual token of the batch, -100 where there is none. `phrases`
        (J, 2 + K) holds the number of the video, that of the frame and up to K token ids for every thing that a frame
        shows. With phrases or a teacher, `frame_grids` (B, T, 2) holds rows and columns of cells of each frame, 0 where
        there is none.
        """
        samples = [self._separated(sample) for sample in samples]
        if self.windows is None:
            samples = [replace(sample, conversations=(turns,)) for sample in samples for turns in sample.conversations]
        batch: dict[str, Any] = {}
        expansions: list[str] = []
        videos = [video for sample in samples for video in sample.videos]
        if videos:
            scales = (
                None
                if self.resolution is None
                else [
                    frame_scales(sample.id, i, len(getattr(video, "frames", video)), *self.resolution)
                    for sample in samples
                    for i, video in enumerate(sample.videos)
                ]
            )
            visual = self.processor.video_processor(
                videos=videos, return_tensors="pt", return_metadata=True, frame_scales=scales
            )
            expansions = [self.processor.placeholder_text(visual, i) for i in range(len(videos))]
            batch.update({k: v for k, v in visual.items() if k in self.processor.video_processor.model_input_names})
            if self.teacher_processor is not None:
                seen = self.teacher_processor(videos=videos, return_tensors="pt")
                batch["teacher_pixels"] = seen["pixel_values_videos"]
                if hasattr(self.teacher_processor, "token_layout"):
                    layouts = [self.teacher_processor.token_layout(seen, i) for i in range(len(videos))]
                    batch["teacher_origin"] = torch.stack([layout[layout[:, 3] == CELL][0, 1:3] for layout in layouts])
            if self.teacher_features is not None:
                batch.update(self.teacher_features(samples))
            if self.frame_times:
                times = [torch.tensor(video.timestamps, dtype=torch.float32) for video in videos]
                batch["frame_times"] = torch.nn.utils.rnn.pad_sequence(times, batch_first=True)
            if self.flip_seed is not None:
                chosen = [
                    is_flipped(sample.id, i, self.flip_seed) for sample in samples for i in range(len(sample.videos))
                ]
                for name in {"pixel_values_videos", "teacher_pixels"} & batch.keys():
                    batch[name][chosen] = flipped(batch[name][chosen])
            layouts = [self.processor.video_processor.token_layout(batch, i) for i in range(len(videos))]
            if self.frame_phrases or self.teacher_processor or self.teacher_features:
                grids = [frame_grids(layout) for layout in layouts]
                batch["frame_grids"] = torch.nn.utils.rnn.pad_sequence(grids, batch_first=True)
            if self.cell_words:
                batch["cell_words"] = torch.cat([self._words(*pair) for pair in zip(videos, layouts)])
            if self.frame_phrases:
                batch["phrases"] = torch.cat([self._phrases(i, video) for i, video in enumerate(videos)])
        images = [getattr(image, "frames", [image])[0] for sample in samples for image in sample.images]
        of_images: list[str] = []
        if images:
            visual = self.processor.video_processor.preprocess_images(images, return_tensors="pt")
            of_images = [self.processor.placeholder_text(visual, i, "image") for i in range(len(images))]
            batch.update({name: visual[name] for name in self.processor.video_processor.image_input_names})
        if not self.text:
            return batch
        left, left_images = iter(expansions), iter(of_images)
        packed = [
            self.pack(sample, [*islice(left, len(sample.videos)), *islice(left_images, len(sample.images))])
            for sample in samples
        ]
        batch.update(self._rows(packed))
        return batch

    @cached_property
    def _rewrites_turns(self) -> bool:
        """Whether the chat template rewrites earlier turns. Those of thinking models do: they drop the thought of an
        answer, even an empty one, as soon as the next question follows.
        """
        try:
            render(self.processor, [Turn("What moves?", "A cat."), Turn("Where?", "On the left.")], 0)
        except ValueError as error:
            return isinstance(error, RewritesTurnsError)
        return False

    def _separated(self, sample: Sample) -> Sample:
        """The sample with a conversation for each answer of a longer one, where the template rewrites earlier turns:
        every answer is trained after the text that precedes it when the model is asked.
        """
        if all(len(turns) == 1 for turns in sample.conversations) or not self._rewrites_turns:
            return sample
        conversations = []
        for turns in sample.conversations:
            read = [Turn(turn[0], turn[1], is_trained=False) for turn in turns]
            for count, turn in enumerate(turns):
                if Turn(*turn).is_trained:
                    conversations.append((*read[:count], Turn(*turn)))
        return replace(sample, conversations=tuple(conversations))

    def pack(self, sample: Sample, expansions: Sequence[str]) -> Packed:
        """Tokenize every conversation and join those that fit after their common visual prefix.

        Args:
            expansions: what replaces the marker of each video, then of each image.

        Raises:
            ValueError: not even the first conversation fits; conversations are never truncated.
        """
        texts, all_spans = [], []
        for turns in sample.conversations:
            try:
                text, spans = render(self.processor, turns, len(sample.videos), sample.system, len(sample.images))
            except ValueError as error:
                raise ValueError(f"sample {sample.id!r}: {error}") from error
            at = 0
            for i, expansion in enumerate(expansions):
                marker = self.processor.video_token if i < len(sample.videos) else self.processor.image_token
                at = text.index(marker, 0 if i == len(sample.videos) else at)
                grown = len(expansion) - len(marker)
                text = text[:at] + expansion + text[at + len(marker) :]
                spans = [(a + grown, b + grown) if a > at else (a, b) for a, b in spans]
                at += len(expansion)  # past the placeholders of this visual
            texts.append(text)
            all_spans.append(spans)
        encoded = self.tokenizer(texts, return_offsets_mapping=True, add_special_tokens=False)
        shared = _common_prefix(encoded["input_ids"])
        for offsets, spans in zip(encoded["offset_mapping"], all_spans):
            # The token before an answer stays beside it, to predict it: rows that ask the same have it once each.
            before = sum(start < spans[0][0] for start, _ in offsets) - 1 if spans else shared
            shared = max(0, min(shared, before))
        packed, left_out = Packed([], [], [], []), 0
        for ids, offsets, spans in zip(encoded["input_ids"], encoded["offset_mapping"], all_spans):
            wanted = [self.supervise == "all" or any(a <= start < b for a, b in spans) for start, _ in offsets]
            labels = [token if keep and token not in self.visual_ids else IGNORE for token, keep in zip(ids, wanted)]
            if wanted and not any(wanted):
                raise ValueError(f"sample {sample.id!r}: the chat template leaves out its answers: nothing is learned")
            if not len(packed):
                if len(ids) > self.context:
                    raise ValueError(
                        f"sample {sample.id!r} needs {len(ids)} tokens but the language model has positions for "
                        f"{self.context}: use fewer frames or shorter conversations"
                    )
                if len(ids) > self.max_length:
                    raise ValueError(
                        f"sample {sample.id!r} needs {len(ids)} tokens but max_length is {self.max_length}: "
                        "raise max_length, or use fewer frames"
                    )
                packed = Packed(ids, labels, list(range(len(ids))), [0] * shared + [1] * (len(ids) - shared))
            elif len(ids) <= self.context and len(packed) + len(ids) - shared <= self.max_length:
                packed.ids += ids[shared:]
                # The previous token in the row belongs to another conversation: it must not predict this one.
                packed.labels += [IGNORE, *labels[shared + 1 :]]
                packed.positions += range(shared, len(ids))
                packed.segments += [packed.segments[-1] + 1] * (len(ids) - shared)
            else:
                left_out += 1
        if left_out and not self._told:
            self._told = True
            logger.warning(
                "sample %r: %d of its %d conversations do not fit into max_length=%d and are not trained (said of the "
                "first such sample only): raise max_length, or set group_by_clip=false",
                *(sample.id, left_out, len(texts), self.max_length),
            )
        return packed

    def _words(self, video: Any, layout: torch.Tensor) -> torch.Tensor:
        """Token ids of the words for each visual token of one video, (V, K); none for tokens that show no cell."""
        ids = torch.full((len(layout), MAX_CELL_WORDS), IGNORE)
        shown = (layout[:, 3] == CELL).nonzero().squeeze(1)
        words: dict[tuple[int, int], list] = {}  # by rows and columns, which frames of one clip need not share
        for number, frame in enumerate(layout[shown, 0].unique()):
            places = shown[layout[shown, 0] == frame]
            rows, columns = (layout[places].amax(0) - layout[places].amin(0) + 1)[1:3].tolist()
            if (rows, columns) not in words:
                words[rows, columns] = video.cell_words(rows, columns)
            cells = words[rows, columns][number * rows * columns :][: rows * columns]
            for place, cell in zip(places.tolist(), cells, strict=True):
                ids[place, : len(cell)] = torch.tensor([self._word_id(word) for word in cell])
        return ids

    def _phrases(self, number: int, video: Any) -> torch.Tensor:
        """Video, frame and words of every thing in every frame, (J, 2 + K)."""
        named = [(t, phrase.split()) for t, frame in enumerate(video.frame_phrases()) for phrase in frame]
        rows = torch.full((len(named), 2 + MAX_CELL_WORDS), IGNORE)
        for row, (t, words) in zip(rows, named):
            row[: 2 + len(words)] = torch.tensor([number, t, *map(self._word_id, words)])
        return rows

    def _word_id(self, word: str) -> int:
        if word not in self._word_ids:
            self._word_ids[word] = self.tokenizer.encode(f" {word}", add_special_tokens=False)[0]
        return self._word_ids[word]

    def _rows(self, packed: Sequence[Packed]) -> dict[str, Any]:
        """Put packed samples into rows, padded to the longest one."""
        rows = [list(packed)] if self.by_clip else filled(packed, self.max_length if self.fill_rows else 0)
        counts = [sum(map(len, row)) for row in rows]
        length = self.pad_to or max(counts)
        columns: dict[str, Any] = {}
        for name, fill in (("ids", self.tokenizer.pad_token_id), ("labels", IGNORE), ("positions", 0)):
            joined = [[value for part in row for value in getattr(part, name)] for row in rows]
            columns[name] = torch.tensor([row + [fill] * (length - len(row)) for row in joined])
        for labels, row in zip(columns["labels"], rows):
            starts = np.cumsum([len(part) for part in row[:-1]], dtype=np.int64)
            labels[starts] = IGNORE  # the token before belongs to another sample: it must not predict this one
        batch = {"input_ids": columns["ids"], "labels": columns["labels"], "position_ids": columns["positions"]}
        if self.by_clip:
            assert self.windows is not None
            masks, clips = clip_masks([(part.segments, part.positions) for part in packed], self.windows)
            return {**batch, "attention_mask": masks, "clips": clips}
        # Rows of one conversation need no mask but that of padding, under which a model masks as it does in `generate`.
        attention_mask: Any = (torch.arange(length) < torch.tensor(counts)[:, None]).long()
        if self.windows is not None and any(len(row) > 1 or row[0].segments[-1] > 1 for row in rows):
            parts = [[(part.segments, part.positions) for part in row] for row in rows]
            attention_mask = row_masks(parts, length, self.windows, self.additive_mask)
        return {**batch, "attention_mask": attention_mask}


def frame_grids(layout: torch.Tensor) -> torch.Tensor:
    """Rows and columns of cells of each frame of a video, (T, 2); 0 for a frame without cells."""
    cells = layout[layout[:, 3] == CELL]
    frame, place = cells[:, :1].expand(-1, 2), cells[:, 1:3]
    first = layout.new_zeros(int(layout[:, 0].max()) + 1, 2)
    last = (first - 1).scatter_reduce(0, frame, place, "amax", include_self=False)
    return last + 1 - first.scatter_reduce(0, frame, place, "amin", include_self=False)


def filled(packed: Sequence[Packed], room: int) -> list[list[Packed]]:
    """Samples in rows of at most `room` tokens, in their order; a longer one has a row to itself."""
    rows: list[list[Packed]] = []
    left = 0
    for sample in packed:
        if not rows or len(sample) > left:
            rows.append([])
            left = room
        rows[-1].append(sample)
        left -= len(sample)
    return rows


def _common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens that all conversations of a sample share; 0 when there is only one."""
    if len(rows) < 2:
        return 0
    columns = enumerate(zip(*rows))
    return next((i for i, column in columns if len(set(column)) > 1), min(len(row) for row in rows) - 1)
