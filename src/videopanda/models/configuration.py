"""What the configurations of all families share. Part of exported folders; needs no torch."""

import sys
from typing import Any, TypeVar

from transformers import CONFIG_MAPPING, PreTrainedConfig

SectionT = TypeVar("SectionT", bound=PreTrainedConfig)

TIMESTAMPS = ("none", "frame")


def text_config_of(given: PreTrainedConfig | dict[str, Any] | None, default: str) -> PreTrainedConfig:
    """The configuration of the language model; None makes one of the kind `default` with the two placeholders.

    Raises:
        ValueError: a dictionary without a known `model_type`.
    """
    if given is None:
        given = {"model_type": default, "vocab_size": 32002}
    if not isinstance(given, dict):
        return given
    if given.get("model_type") not in CONFIG_MAPPING:
        raise ValueError("`text_config` needs a `model_type`, such as 'llama' or 'qwen3'.")
    return CONFIG_MAPPING[given["model_type"]](**given)


def section_of(kind: type[SectionT], given: SectionT | dict[str, Any] | None) -> SectionT:
    """A section of a configuration, from its fields where it is given as a dictionary."""
    return given if isinstance(given, kind) else kind(**(given or {}))


def check_placeholders(video_token_id: int, image_token_id: int, vocab_size: int) -> None:
    """Check that `<video>` and `<image>` are two entries of the vocabulary. Raises ValueError."""
    for name, token_id in (("video_token_id", video_token_id), ("image_token_id", image_token_id)):
        if not 0 <= token_id < vocab_size:
            raise ValueError(f"{name} {token_id} is outside the vocabulary of {vocab_size} entries.")
    if video_token_id == image_token_id:
        raise ValueError(f"`<video>` and `<image>` need different ids, both are {video_token_id}.")


def check_counts(least: int = 1, **fields: Any) -> None:
    """Check that fields are integers of at least `least`. Raises ValueError."""
    wanted = "a positive integer" if least == 1 else f"an integer of at least {least}"
    for name, value in fields.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"`{name}` must be {wanted}, got {value!r}.")


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Check that a field has one of the values that it may have. Raises ValueError."""
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {value!r}.")


def context_length(text: Any) -> int:
    """The most tokens of a sequence, of prompts as of training: positions that a text configuration declares, which is
    after any scaling of RoPE. `sys.maxsize` if it declares none, as for models without positions.

    "longrope" and "dynamic" end at the length before scaling: beyond it they switch all sequences of a batch at once
    when one of them becomes long, so that none would be what it is alone.
    """
    if not hasattr(text, "max_position_embeddings"):
        return sys.maxsize
    limits = [int(text.max_position_embeddings)]
    for part in _switching(text):
        original = part.get("original_max_position_embeddings") or 0
        limits.append(int(original) or int(getattr(text, "original_max_position_embeddings", limits[0])))
    return min(limits)


def fix_rope(text: Any) -> None:
    """Take the branch out of "longrope" and "dynamic", which a trace without data cannot decide; FLOPs are the same."""
    for part in _switching(text):
        part["rope_type"] = "default"


def _switching(text: Any) -> list[dict[str, Any]]:
    """The parts of the rotary embedding whose frequencies depend on the longest sequence of a batch."""
    rope = getattr(text, "rope_parameters", None) or {}
    found = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    return [part for part in found if part.get("rope_type") in ("longrope", "dynamic")]
