"""Replies that are JSON: tokens that would leave a schema are ruled out before the next one is chosen.

    grammars = Grammars(processor.tokenizer, vocabulary=len(logits), eos_token_ids={2})
    constraint = grammars.of({"type": "object", "properties": {"color": {"enum": ["red", "blue"]}}})

llguidance does it (the extra `serve`), by the bytes of each token, so that it works with any tokenizer of the Rust
library. White space is fixed, ", " between items and ": " after keys, because a model that may always write another
space sometimes does nothing else. For the same reason, an object that names its properties has no others unless the
schema mentions `additionalProperties`.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from videopanda.inference.errors import ConstraintError

SCHEMA_CHARACTERS = 1 << 16
_SPACES: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

# Keywords that say something about other properties. Parts of `allOf` are not closed: each would exclude the others'.
_OPEN = {"additionalProperties", "patternProperties", "unevaluatedProperties", "allOf", "anyOf", "oneOf", "$ref"}


class Constraint:
    """What a reply must be: the state of one reply."""

    def __init__(self, matcher: Any):
        self._matcher = matcher

    def fresh(self) -> "Constraint":
        """The same constraint at the beginning of another reply."""
        return Constraint(self._matcher.deep_copy())

    def restrict(self, logits_V: Tensor) -> None:
        """Rule out the tokens that must not come next. Raises ConstraintError."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        allowed_V = torch.from_numpy(np.unpackbits(bits, count=len(logits_V), bitorder="little")).bool()
        logits_V.masked_fill_(~allowed_V.to(logits_V.device), -torch.inf)

    def accept(self, token: int) -> None:
        """Add a token that was chosen. Raises ConstraintError."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ConstraintError(f"the schema is too complex: {_first_line(self._matcher.get_error())}")


class Grammars:
    """Makes constraints for one tokenizer.

    Raises:
        ValueError: the tokenizer is not one of the Rust library.
        ImportError: no llguidance.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, eos_token_ids: Iterable[int]):
        from llguidance.hf import from_tokenizer

        self._tokenizer = from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=sorted(eos_token_ids))

    def of(self, schema: Mapping[str, Any]) -> Constraint:
        """JSON of a schema. Raises ValueError for one that is wrong, too large, or uses what cannot be enforced."""
        from llguidance import LLMatcher

        text = json.dumps(_closed(schema))
        if len(text) > SCHEMA_CHARACTERS:
            raise ValueError(f"the schema has {len(text):,} characters; at most {SCHEMA_CHARACTERS:,} are accepted")
        matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_json_schema(text, overrides=_SPACES), log_level=0)
        if matcher.is_error():
            raise ValueError(f"the schema cannot be enforced: {_first_line(matcher.get_error())}")
        return Constraint(matcher)


def _closed(schema: Any) -> Any:
    """The same schema without properties that no part of it names."""
    if not isinstance(schema, Mapping):
        return schema
    closed = dict(schema)
    for name in ("properties", "$defs", "definitions"):
        if isinstance(schema.get(name), Mapping):
            closed[name] = {key: _closed(value) for key, value in schema[name].items()}
    for name in ("anyOf", "oneOf", "prefixItems"):
        if isinstance(schema.get(name), list):
            closed[name] = [_closed(value) for value in schema[name]]
    for name in ("items", "additionalProperties"):
        closed |= {name: _closed(schema[name])} if name in schema else {}
    if "properties" in schema and not schema.keys() & _OPEN:
        closed["additionalProperties"] = False
    return closed


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:300]
