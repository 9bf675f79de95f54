"""What it takes to read the attention of a language model: all visual tokens, and layers that tell their weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .merge_schedule import MergeSchedule


@contextmanager
def unmerged(model: Any) -> Iterator[None]:
    """Within it, no visual tokens merge in the language model."""
    schedule = model.model.merge_schedule
    model.model.merge_schedule = MergeSchedule(())
    try:
        yield
    finally:
        model.model.merge_schedule = schedule


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Within it, the language model computes attention eagerly, the only way that tells its weights."""
    decoder = model.get_decoder()
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation("eager")
    try:
        yield
    finally:
        decoder.set_attn_implementation(before)
