"""A SentencePiece model file as a fast tokenizer, without the sentencepiece and protobuf packages.

Reads the features used by LLaMA's `tokenizer.model`: byte-pair encoding with byte fallback, no normalization, a space
put in front of a text. Anything else is refused rather than approximated. The file is a protocol buffer of three
messages that matter here: pieces (1), trainer (2) and normalizer (3); `_fields` reads the wire format, the numbers are
those of SentencePiece's `sentencepiece_model.proto`.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from videopanda.checkpoints.tensors import CheckpointError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # kinds of pieces
BPE = 2  # kind of model
SPACE = "▁"


def read_sentencepiece(path: Path) -> Tokenizer:
    """The tokenizer of a SentencePiece file; it prepends `<s>` to every text, as LLaMA does.

    Tokens equal those of the library, except for texts that start with a space: like the tokenizers of transformers,
        this one does not add a second space.

    Raises:
        CheckpointError: the file is damaged, or not of LLaMA's kind.
    """
    try:
        pieces, settings = _parse(path.read_bytes())
    except (IndexError, struct.error, UnicodeDecodeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a SentencePiece model, or it is damaged") from error
    if settings["model_type"] != BPE or settings["normalized"] or not pieces:
        raise CheckpointError(f"{path} is not a byte-pair model without normalisation, as that of LLaMA is")
    vocabulary = {piece: number for number, (piece, _) in enumerate(pieces)}
    unknown = next((piece for piece, kind in pieces if kind == UNKNOWN), None)
    has_bytes = any(kind == BYTE for _, kind in pieces)
    tokenizer = Tokenizer(
        models.BPE(vocabulary, _merges(pieces), unk_token=unknown, fuse_unk=True, byte_fallback=has_bytes)
    )
    # As SentencePiece does: the space goes before the text, not after every special token in it.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    for piece, kind in pieces:
        if kind in (UNKNOWN, CONTROL):
            tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True)])
        elif kind == USER_DEFINED:
            tokenizer.add_tokens([AddedToken(piece, normalized=False)])
    if "<s>" in vocabulary:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", vocabulary["<s>"])]
        )
    return tokenizer


def _merges(pieces: list[tuple[str, int]]) -> list[tuple[str, str]]:
    """Every way to join two pieces to a third one; pieces come in the order in which they are to be joined."""
    normal = {piece for piece, kind in pieces if kind == NORMAL}
    merges = []
    for piece, kind in pieces:
        if kind == NORMAL:
            halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
            merges += [(left, right) for left, right in halves if left in normal and right in normal]
    return merges


def _parse(data: bytes) -> tuple[list[tuple[str, int]], dict[str, int]]:
    """Pieces with their kinds, and the settings of the trainer and the normalizer."""
    pieces = []
    settings = {"model_type": 1, "normalized": 0}
    for number, message in _fields(data):
        if number == 1 and isinstance(message, bytes):
            piece = dict(_fields(message))
            text = piece[1]
            if not isinstance(text, bytes):
                raise ValueError("a piece without text")
            pieces.append((text.decode("utf-8"), int(piece.get(3, NORMAL))))
        elif number == 2 and isinstance(message, bytes):
            settings["model_type"] = int(dict(_fields(message)).get(3, 1))
        elif number == 3 and isinstance(message, bytes):
            normalizer = dict(_fields(message))
            plain = not normalizer.get(2) and normalizer.get(3, 1) and not normalizer.get(4, 1)
            settings["normalized"] = int(not plain)
    return pieces, settings


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of the fields of a message; fixed-width numbers are skipped, because none is needed here."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == 0:
            value, position = _varint(data, position)
            yield tag >> 3, value
        elif kind == 2:
            length, position = _varint(data, position)
            if position + length > len(data):
                raise ValueError("the file ends inside a field")
            yield tag >> 3, data[position : position + length]
            position += length
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        else:
            raise ValueError(f"no field has the kind {kind}")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
