"""The model families, and new models of them. No code outside `models/` names a family.

A family is a folder here whose configuration file says in `AUTO_MAP` what transformers' Auto classes find. Classes that
are registered with the Auto classes elsewhere count as well.

    config = fresh_config("videopanda", "paper", {"stab.row_tokens": "false"}, text_config=..., video_token_id=...)
    model, processor = model_class(config)(config), processor_class(config).for_config(config, tokenizer)
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, PROCESSOR_MAPPING, PreTrainedConfig

from . import folders
from .fields import argument_types, registered_config, unknown, with_fields

DEFAULT = "videopanda"


def converter() -> ModuleType:
    """The part of the default family that converts official checkpoints; see its `__init__.py`."""
    return import_module(f".{DEFAULT}.convert", __package__)


def config_class(family: str) -> Any:
    """The configuration class of a family, which has `presets`.

    Raises:
        ValueError: there is no such family; the message names the nearest.
    """
    found = registered_config(family)
    if not hasattr(found, "presets"):
        raise ValueError(unknown(family, folders()).replace("setting", "family"))
    return found


def model_class(config: PreTrainedConfig) -> Any:
    """The model class of a family; None if the configuration belongs to no family, such as that of a language model."""
    return MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)] if hasattr(config, "presets") else None


def processor_class(config: PreTrainedConfig) -> Any:
    """The class of a family's processors."""
    return PROCESSOR_MAPPING[type(config)]


def fresh_config(family: str, preset: str, fields: Mapping[str, Any], **given: Any) -> Any:
    """The configuration of a new model: a preset of the family, some fields of it changed.

    Args:
        preset: a name in the `presets` of the configuration class; "" is the first one.
        fields: by their dotted names, see `with_fields`.
        given: arguments of the configuration that belong to the language model: `text_config`, ids of placeholders.

    Raises:
        ValueError: unknown family, preset or field, or a wrong value.
    """
    kind, values = config_class(family), fresh_fields(family, preset, fields, **given)
    return kind.for_new_model(**values) if hasattr(kind, "for_new_model") else kind(**values)


def fresh_fields(family: str, preset: str, fields: Mapping[str, Any], **given: Any) -> dict[str, Any]:
    """The arguments of that configuration, whose values are not checked together.

    Raises:
        ValueError: unknown family, preset or field, or a value of the wrong type.
    """
    kind = config_class(family)
    name = preset or next(iter(kind.presets))
    if name not in kind.presets:
        raise ValueError(f"preset must be one of {', '.join(kind.presets)}, got {name!r}")
    try:
        return with_fields(kind, {**kind.presets[name], **given}, fields)
    except ValueError as error:
        if other := next((other for other in folders() if other != family and _takes(other, fields)), None):
            raise ValueError(f"{str(error).partition(': ')[0]} in family {family}: family {other} has it") from None
        raise


def _takes(family: str, fields: Mapping[str, Any]) -> bool:
    kind = config_class(family)
    try:
        with_fields(kind, next(iter(kind.presets.values())), fields)
    except ValueError:
        return False
    return True


def vision_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """The arguments of a configuration that describe its vision part, which any language model may follow."""
    of_language = {"text_config", "video_token_id", "image_token_id", "tie_word_embeddings"}
    names = argument_types(type(config)).keys() - of_language
    return {name: value for name, value in config.to_dict().items() if name in names}


def changed_config(config: PreTrainedConfig, fields: Mapping[str, Any]) -> Any:
    """A configuration with some fields changed, by their dotted names."""
    return type(config)(**with_fields(type(config), config.to_dict(), fields)) if fields else config


def adjusted_config(config: PreTrainedConfig, fields: Mapping[str, Any], folder: Path) -> Any:
    """As `changed_config`, for the trained model in `folder`: only fields that change none of its weights.

    Raises:
        ValueError: a field that only a new model can have, or a wrong value.
    """
    if fixed := fixed_fields(config, fields):
        raise ValueError(f"{fixed[0]} can only be set when a model is created, and {folder} already exists: use init")
    return changed_config(config, fields)


def fixed_fields(config: PreTrainedConfig, fields: Mapping[str, Any]) -> list[str]:
    """Those of `fields` that only a new model can have."""
    adjustable = getattr(type(config), "adjustable", ())
    return [name for name in fields if name.partition(".")[0] not in adjustable]
