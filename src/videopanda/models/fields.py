"""Every field of a configuration by a dotted name, as `--set` takes it: `stab.row_tokens=false`, `text.hidden_size=64`.

    values = with_fields(VideoPandaConfig, config.to_dict(), {"stab.row_tokens": "false"})
    config = VideoPandaConfig(**values)

A name without a dot is a field of the configuration itself; the part before a dot names a sub-configuration, without
its ending `_config`.
"""

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, is_typeddict

from transformers import CONFIG_MAPPING, PreTrainedConfig

_OF_EVERY_CONFIG = inspect.signature(PreTrainedConfig.__init__).parameters  # also `self`
_WORDS = {"true": True, "yes": True, "false": False, "no": False, "none": None, "null": None}


def parse_settings(items: Sequence[str]) -> dict[str, str]:
    """`--set KEY=VALUE` options as a dictionary; a later one replaces an earlier one.

    Raises:
        ValueError: an option does not have this form.
    """
    found = {}
    for item in items:
        key, separator, text = item.partition("=")
        if not separator or not key.strip():
            raise ValueError(f"--set {item}: write it as key=value")
        found[key.strip()] = text.strip()
    return found


def with_fields(
    config: type[PreTrainedConfig], values: Mapping[str, Any], fields: Mapping[str, Any], prefix: str = ""
) -> dict[str, Any]:
    """A copy of the plain `values` of a configuration with some fields changed; text is converted to the field's type.

    All names begin with `prefix`.

    Raises:
        ValueError: an unknown field, with the nearest name, or a value of the wrong type.
    """
    changed = deepcopy(dict(values))
    known: dict[str, tuple[str, str, Any]] = {}  # sub-configuration, field and its type
    for name, kind in argument_types(config).items():
        part = config.sub_configs.get(name)
        if part is None:
            known[prefix + name] = "", name, kind
            continue
        given = changed.get(name) or {}
        model_type = given.get("model_type") if isinstance(given, Mapping) else given.model_type
        of: Any = registered_config(model_type) or part
        for inner, inner_kind in argument_types(of).items():
            known[f"{prefix}{name.removesuffix('_config')}.{inner}"] = name, inner, inner_kind
    for key, value in fields.items():
        if key not in known:
            raise ValueError(unknown(key, known))
        name, inner, kind = known[key]
        if name:
            given = changed.get(name) or {}
            changed[name] = {
                **(given if isinstance(given, Mapping) else given.to_dict()),
                inner: convert(key, value, kind),
            }
        else:
            changed[inner] = convert(key, value, kind)
    return changed


def registered_config(model_type: str | None) -> Any:
    """The configuration class of a type of model; None if transformers has none."""
    try:
        return CONFIG_MAPPING[model_type]  # type: ignore[index]
    except KeyError:
        return None


def unknown(key: str, known: Iterable[str]) -> str:
    """The message about a name that is not in `known`."""
    known = list(known)
    if near := get_close_matches(key, known, n=1):
        return f"unknown setting {key!r}: did you mean {near[0]!r}?"
    groups = sorted({name.partition(".")[0] + ".*" * ("." in name) for name in known})
    return (
        f"unknown setting {key!r}: choose from {', '.join(groups)}" if len(groups) <= 20 else f"unknown setting {key!r}"
    )


def argument_types(config: Any) -> dict[str, Any]:
    """Name and annotation, `Any` if there is none, of every argument of a class; not those of all configurations."""
    found = {}
    for name, parameter in inspect.signature(config.__init__).parameters.items():
        is_named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if is_named and name not in _OF_EVERY_CONFIG:
            written = parameter.annotation
            found[name] = Any if written is parameter.empty or isinstance(written, str) else written
    return found


def convert(key: str, value: Any, kind: Any) -> Any:
    """A value, or its text, converted to the type `kind`.

    Raises:
        ValueError: it cannot be converted; the message names `key`.
    """
    if get_origin(kind) in (Union, UnionType):
        options = get_args(kind)
        if NoneType in options and (value is None or str(value).lower() in ("none", "null")):
            return None
        for option in (option for option in options if option is not NoneType):
            try:
                return convert(key, value, option)
            except ValueError:
                continue
        raise ValueError(f"{key} must be {' or '.join(map(_name, options))}, got {value!r}")
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{key} must be one of {', '.join(map(str, get_args(kind)))}, got {value!r}")
        return value
    if kind is str:
        return str(value)
    if (get_origin(kind) or kind) is list and isinstance(value, str) and not value.startswith("["):
        value = f"[{value}]"
    read = _read(value)
    if kind is float and isinstance(read, int) and not isinstance(read, bool):
        return float(read)
    if kind is int and isinstance(read, float) and read == int(read):
        return int(read)
    wanted = dict if is_typeddict(kind) else get_origin(kind) or kind
    if wanted is bool and read in (0, 1):
        return bool(read)
    if isinstance(wanted, type) and (not isinstance(read, wanted) or (isinstance(read, bool) and wanted is not bool)):
        raise ValueError(f"{key} must be {_name(kind)}, got {value!r}")
    return read


def _read(value: Any) -> Any:
    """The value of a text: a number, true or false, none, a JSON list or object; or the text itself."""
    if not isinstance(value, str):
        return value
    if value.lower() in _WORDS:
        return _WORDS[value.lower()]
    try:
        return json.loads(value)
    except ValueError:
        pass
    try:
        return float(value)  # as in 3e-4, 1. and inf
    except ValueError:
        return value


def _name(kind: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "none"}
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    return names.get(kind) or f"a {getattr(get_origin(kind) or kind, '__name__', kind)}"
