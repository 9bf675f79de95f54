"""The cost of training on the same data in three kinds of rows: same weights, losses and optimizer step, in turns.

    report = measure(None, clips=4, rounds=5)

- *one row per question*: the clip is encoded and prefilled for every question, and rows are padded to the longest of
  their batch, as the Hugging Face Trainer does.
- *one row per clip*: its questions share the clip; rows are padded.
- *packed*: rows are filled with several clips, without padding, and every clip has attention to itself.

A step is one optimizer step on all of the data, in batches of a few rows. Useful tokens are counted once for all ways:
those of each clip and of each question.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from videopanda.bench.timing import in_turns, interval, machine, peak_bytes, ratios, seconds, synchronize
from videopanda.data.collate import Collator
from videopanda.data.rows import filled_rows
from videopanda.data.sample import Sample
from videopanda.data.worlds.scenes.dataset import ScenesDataset
from videopanda.inference.load import load
from videopanda.training.packing import attends_by_clip, checked_windows

PER_QUESTION, PER_CLIP, PACKED = "one row per question", "one row per clip", "packed"
ROWS = 4  # of a padded batch
QUESTIONS = 6  # about each clip
MIXED = 4  # times as many clips of mixed lengths
_NO_LIMIT = 1 << 20


def same_clips(count: int) -> list[Sample]:
    """`count` clips of eight frames with `QUESTIONS` questions each."""
    scenes = ScenesDataset(count, captions=0)
    samples = [scenes[number] for number in range(count)]
    return [replace(sample, conversations=sample.conversations[:QUESTIONS]) for sample in samples]


def mixed_clips(count: int) -> list[Sample]:
    """Clips of 4 to 64 frames: a caption of one turn, a chat of two to ten, or several questions."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(count):
        frames = int(2 ** rng.uniform(2, 6.01))
        sample = ScenesDataset(count, num_frames=frames, captions=1, chats=0.0)[number]
        turns = [turn for conversation in sample.conversations for turn in conversation]
        chat = tuple(turns[: int(rng.integers(2, 11))])
        said = [(tuple(turns[:1]),), (chat,), sample.conversations[:QUESTIONS]][number % 3]
        samples.append(replace(sample, conversations=said))
    return samples


def batches_of(samples: Sequence[Sample], way: str, processor: Any, windows: Any) -> list[dict[str, Any]]:
    """The batches of a step, collated."""
    collate = Collator(processor, _NO_LIMIT, windows=windows)
    if way == PACKED:
        alone = Collator(processor, _NO_LIMIT)
        collate.fill_rows = collate.by_clip = True
        lengths = np.array([alone([sample])["input_ids"].shape[1] for sample in samples])
        rows = filled_rows(lengths, int(lengths.max()))
        return [collate([samples[i] for i in rows[row]]) for row in range(len(rows))]
    if way == PER_QUESTION:
        samples = [replace(sample, conversations=(turns,)) for sample in samples for turns in sample.conversations]
    order = np.random.default_rng(0).permutation(len(samples))
    return [collate([samples[i] for i in order[start : start + ROWS]]) for start in range(0, len(order), ROWS)]


def measure(model: Path | None, clips: int, rounds: int, device: str | None = None) -> dict[str, Any]:
    """Compare the three ways on `clips` clips with `QUESTIONS` questions each, and on `MIXED` times as many of mixed
    lengths.

    Returns {"machine", "settings", "rows"}; a row has data, way, rows and padding (share of all tokens), loss,
    step_seconds, speedup over one row per question, useful_tokens_per_second, and peak_bytes beyond weights, optimizer
    states and batches.

    Raises:
        ValueError: the language model needs one conversation per row.
    """
    network, processor = load(model, device)
    network.float().train()
    windows = checked_windows(network)
    if windows is None or not attends_by_clip(network, windows):
        raise ValueError(f"{network.config.get_text_config().model_type} cannot keep several clips apart in one row")
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0)  # all ways see the same weights
    place, found = network.device, []
    for data, samples in (("questions", same_clips(clips)), ("mixed", mixed_clips(MIXED * clips))):
        made = {way: batches_of(samples, way, processor, windows) for way in (PER_QUESTION, PER_CLIP, PACKED)}
        useful = sum(batch["input_ids"].numel() for batch in made[PACKED])
        losses: dict[str, float] = {}
        calls = {way: _step(network, optimizer, batches, losses, way) for way, batches in made.items()}
        calls[PACKED]()  # makes the optimizer's states
        peaks = {way: peak_bytes(call, place) for way, call in calls.items()}
        taken = in_turns({way: partial(seconds, call) for way, call in calls.items()}, rounds)
        for way, values in taken.items():
            tokens = sum(batch["input_ids"].numel() for batch in made[way])
            real = sum(int(batch["attention_mask"].sum()) for batch in made[way]) if way == PER_QUESTION else useful
            found.append(
                {
                    "data": data,
                    "way": way,
                    "rows": sum(len(batch["input_ids"]) for batch in made[way]),
                    "padding": round(1 - real / tokens, 3),
                    "loss": round(losses[way], 5),
                    "step_seconds": interval(values),
                    "speedup": ratios(taken[PER_QUESTION], values),
                    "speedup_over_clips": ratios(taken[PER_CLIP], values),
                    "useful_tokens_per_second": round(useful / interval(values)["median"]),
                    "peak_bytes": peaks[way],
                }
            )
    settings = {"model": Path(network.name_or_path).name, "clips": clips, "rounds": rounds, "device": place.type}
    return {"machine": machine(place.type), "settings": {**settings, "rows_per_batch": ROWS}, "rows": found}


def _step(
    network: Any, optimizer: torch.optim.Optimizer, batches: list[dict[str, Any]], losses: dict[str, float], way: str
) -> Callable[[], None]:
    count = sum(int((batch["labels"][:, 1:] >= 0).sum()) for batch in batches)

    def run() -> None:
        total = 0.0
        for batch in batches:
            given = {name: x.to(network.device) if isinstance(x, Tensor) else x for name, x in batch.items()}
            loss = network(**given, num_items_in_batch=count, use_cache=False).loss
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize(network.device)
        losses[way] = total

    return run
