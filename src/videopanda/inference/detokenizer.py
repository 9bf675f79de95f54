"""Turns tokens into text as they arrive: the deltas add up to the stripped text of all tokens."""

import re
from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream

_BYTE = re.compile("<0x[0-9A-F]{2}>")  # tokens of models with byte fallback
_LAST_WORD = re.compile(r"\S*$")
_INCOMPLETE = "\ufffd"  # what tokenizers write for incomplete characters


class IncrementalDetokenizer:
    """The text of one reply.

    White space at the end is held back (the whole text is stripped), and so are incomplete characters and anything that
    may be the beginning of a stop string. `text` is everything emitted, `stopped` whether a stop string was found.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()):
        self._tokenizer, self._stop = tokenizer, [text for text in stop if text]
        self._ids: list[int] = []
        self._decoded = ""
        self.text = ""
        self.stopped = False
        # Tokenizers without a backend, and those that remove spaces from its text, are decoded from the start.
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        probe = tokenizer("it 's it .", add_special_tokens=False)["input_ids"]
        if self._backend is not None and self._backend.decode(probe) != tokenizer.decode(probe):
            self._backend = None
        self._stream = DecodeStream(skip_special_tokens=True)
        self._bytes: list[int] = []  # tokens of single bytes, which mean nothing before their run has ended

    def push(self, token: int) -> str:
        """Add a token; returns the text that is now certain. Sets `stopped` at a stop string."""
        self._ids.append(token)
        self._decoded = self._whole() if self._backend is None else self._decoded + self._next(token)
        if self._cut():
            return ""
        certain = self._decoded.rstrip(_INCOMPLETE)
        if self._backend is None:
            certain = certain[: len(certain) - len(_LAST_WORD.search(certain)[0])]  # type: ignore[index]
        for stop in self._stop:
            held = max((n for n in range(1, len(stop)) if certain.endswith(stop[:n])), default=0)
            certain = certain[: len(certain) - held]
        return self._give(certain.strip())

    def finish(self) -> str:
        """The rest of the text."""
        if not self.stopped:
            self._decoded = self._whole()
            self._cut()
        return self._give(self._decoded.strip())

    def _next(self, token: int) -> str:
        is_byte = _BYTE.fullmatch(str(self._tokenizer.convert_ids_to_tokens(token)))
        if is_byte or (self._bytes and not self._decode([token])):  # special tokens are left out before runs are joined
            self._bytes.append(token)
            return ""
        if not self._bytes:
            return self._stream.step(self._backend, token) or ""  # type: ignore[arg-type]
        # A run of bytes is text as a whole or not at all, so it is decoded together with its neighbors.
        known = self._ids[: -len(self._bytes) - 1]
        first = next((i for i in reversed(range(len(known))) if self._decode(known[i:])), 0)
        before, after = self._decode(known[first:]), self._decode(self._ids[first:])
        self._stream, self._bytes = DecodeStream([token], skip_special_tokens=True), []
        return after[len(before) :]

    def _whole(self) -> str:
        return self._decode(self._ids)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _cut(self) -> bool:
        """End the text before the first stop string in it."""
        places = [place for place in map(self._decoded.find, self._stop) if place >= 0]
        if places:
            self.stopped = True
            self._decoded = self._decoded[: min(places)]
        return self.stopped

    def _give(self, text: str) -> str:
        if not text.startswith(self.text):  # a tokenizer that rewrites its text: wait until it is longer
            return ""
        delta = text[len(self.text) :]
        self.text = text
        return delta
