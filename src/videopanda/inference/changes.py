"""Settings of a loaded model that need no training: token merging of any family, and the resolution of frames.

change(model, processor, {"merge.layers": "3,9,17", "merge.keep": "0.5", "hybrid.every": "3"})
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from videopanda.models.fields import argument_types, convert, unknown
from videopanda.models.layer_cache import check_layers
from videopanda.models.merge_schedule import MergeSchedule

MERGE_TYPES: dict[str, Any] = {
    "layers": list[int],
    "keep": float,
    "threshold": float,
    "mode": str,
    "deep_layers": list[int],
}


def change(model: Any, processor: Any, settings: Mapping[str, Any]) -> None:
    """Change settings of a loaded model.

    Args:
        settings: `merge.` and a field of `MergeSchedule`; or a setting of the video processor that leaves the weights
            valid (`changeable`), with a dot or an underscore: `hybrid.every`.

    Raises:
        ValueError: an unknown setting, a wrong value, or a language model that cannot merge.
    """
    rules = processor.video_processor
    known = {f"merge.{field.name}": field.name for field in fields(MergeSchedule)}
    of_rules = {name.replace("hybrid_", "hybrid."): name for name in rules.changeable}
    merge: dict[str, Any] = {}
    pixels: dict[str, Any] = {}
    types = argument_types(type(rules))
    for key, value in settings.items():
        if key in known:
            read = convert(key, value, MERGE_TYPES[known[key]])
            merge[known[key]] = tuple(read) if isinstance(read, list) else read
        elif key in of_rules:
            pixels[of_rules[key]] = convert(key, value, types[of_rules[key]])
        else:
            message = unknown(key, [*known, *of_rules])
            if "did you mean" not in message:
                message += f": without training, only {', '.join([*known, *of_rules])} can be changed"
            raise ValueError(message)
    if merge:
        schedule = replace(model.model.schedule() or MergeSchedule(()), **merge)
        schedule.check(model.config.text_config.num_hidden_layers)
        if schedule.layers:
            check_layers(model.get_decoder())
        model.model.merge_schedule = schedule
    if pixels:
        kept = {name: getattr(rules, name) for name in types if hasattr(rules, name)}
        processor.video_processor = type(rules)(**{**kept, **pixels})
