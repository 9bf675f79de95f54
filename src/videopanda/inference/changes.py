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
    """Change settings of a loaded model, and note them for `changes_of`.

    Args:
        settings: `merge.` and a field of `MergeSchedule`; or a setting of the video processor that leaves the weights
            valid (`changeable`), with a dot or an underscore: `hybrid.every`.

    Raises:
        ValueError: an unknown setting, a wrong value, one without effect, or a language model that cannot merge.
    """
    rules = processor.video_processor
    known = {f"merge.{field.name}": field.name for field in fields(MergeSchedule)}
    of_rules = {name.replace("hybrid_", "hybrid."): name for name in rules.changeable}
    merge: dict[str, Any] = {}
    pixels: dict[str, Any] = {}
    read: dict[str, Any] = {}
    types = argument_types(type(rules))
    for key, value in settings.items():
        if key in known:
            read[key] = convert(key, value, MERGE_TYPES[known[key]])
            merge[known[key]] = tuple(read[key]) if isinstance(read[key], list) else read[key]
        elif key in of_rules:
            read[key] = pixels[of_rules[key]] = convert(key, value, types[of_rules[key]])
        else:
            message = unknown(key, [*known, *of_rules])
            if "did you mean" not in message:
                message += f": without training, only {', '.join([*known, *of_rules])} can be changed"
            raise ValueError(message)
    if merge:
        schedule = replace(model.model.schedule() or MergeSchedule(()), **merge)
        schedule.check(model.config.text_config.num_hidden_layers)
        _check_effect(schedule, merge)
        if schedule.layers:
            check_layers(model.get_decoder())
        model.model.merge_schedule = schedule
    if pixels:
        kept = {name: getattr(rules, name) for name in types if hasattr(rules, name)}
        processor.video_processor = type(rules)(**{**kept, **pixels})
        for name in ("hybrid_policy", "hybrid_scale"):
            if name in pixels and not processor.video_processor.hybrid_every:
                key = name.replace("_", ".")
                raise ValueError(f"{key} has no effect while hybrid.every is 0: set hybrid.every, to 3 for example")
    model.changes = {**changes_of(model), **read}


def _check_effect(schedule: MergeSchedule, given: Mapping[str, Any]) -> None:
    """Raise ValueError for a field that was given and changes nothing."""
    if not schedule.layers:
        idle, needed = given.keys() - {"layers"}, "merge.layers"
    elif schedule.mode != "threshold":
        idle, needed = given.keys() & {"threshold", "deep_layers"}, "merge.mode=threshold"
    else:
        idle, needed = given.keys() & {"keep"} if not schedule.deep_layers else set(), "merge.deep_layers"
    if idle:
        raise ValueError(f"merge.{min(idle)} has no effect without {needed}: set that, too")


def changes_of(model: Any) -> dict[str, Any]:
    """What `change` has changed, by name: {"merge.keep": 0.5}. Its weights alone do not tell how a model answers."""
    return dict(sorted(getattr(model, "changes", {}).items()))
