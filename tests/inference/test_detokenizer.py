"""Protects text that comes in pieces: joined, they are the stripped text of all tokens, for every kind of tokenizer."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tiny import tiny_tokenizer
from videopanda.inference import detokenizer as module
from videopanda.inference.detokenizer import IncrementalDetokenizer

TEXTS = [
    "  A blue 🐼, naïve. \n ",
    "日本語 and 한국어, ελληνικά: עברית!",
    "one  two\n\n three\tfour   ",
    "x" * 40,
    "👩‍👩‍👧‍👦 family",
    "",
    " ",
]


def byte_fallback():
    """As SentencePiece models with byte fallback are converted: Llama 2, Mistral, Gemma."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyzAB.,:!", "▁b", "lu", "▁blu", "an", "▁an", "d", "on", "▁on"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    merges = [("▁", "b"), ("l", "u"), ("▁b", "lu"), ("a", "n"), ("▁", "an"), ("o", "n"), ("▁", "on")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def metaspace():
    """As Unigram models are converted: T5 and others."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=["<unk>", "</s>"], unk_token="<unk>")
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


class Slow:
    """A tokenizer without a backend."""

    def __init__(self, tokenizer):
        self.tokenizer, self.decode = tokenizer, tokenizer.decode

    def __call__(self, text, **kwargs):
        return self.tokenizer(text, **kwargs)

    def __len__(self):
        return len(self.tokenizer)


def cleaning():
    """One that takes blanks away again in front of a full stop."""
    tokenizer = tiny_tokenizer()
    tokenizer.clean_up_tokenization_spaces = True
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    return tokenizer


TOKENIZERS = {
    "byte level": tiny_tokenizer,
    "byte fallback": byte_fallback,
    "metaspace": metaspace,
    "slow": lambda: Slow(tiny_tokenizer()),
    "cleaning": cleaning,
}


def deltas(tokenizer, ids, *stop):
    stream = IncrementalDetokenizer(tokenizer, stop)
    found = []
    for token in ids:
        found.append(stream.push(token))
        if stream.stopped:
            break
    return [*found, stream.finish()], stream


@pytest.mark.parametrize("name", TOKENIZERS)
def test_deltas_add_up_to_the_stripped_text(name):
    tokenizer = TOKENIZERS[name]()
    chosen = random.Random(0)
    cases = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    cases += [[chosen.randrange(len(tokenizer)) for _ in range(40)] for _ in range(60)]  # specials and broken bytes too
    for ids in cases:
        found, stream = deltas(tokenizer, ids)
        assert "".join(found) == stream.text == tokenizer.decode(ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_stop_strings_never_show(name):
    tokenizer = TOKENIZERS[name]()
    chosen = random.Random(1)
    for _ in range(60):
        ids = [chosen.randrange(len(tokenizer)) for _ in range(30)]
        whole = tokenizer.decode(ids, skip_special_tokens=True)
        if "\ufffd" in whole or len(whole) < 6:
            continue
        start = chosen.randrange(len(whole) - 3)
        stop = whole[start : start + 3]
        found, stream = deltas(tokenizer, ids, stop, "never")
        assert stream.stopped
        assert "".join(found) == stream.text == whole[: whole.index(stop)].strip()


def test_words_that_are_rewritten_come_when_they_are_complete():
    tokenizer = cleaning()
    ids = tokenizer("I do n't know , it 's a bird .", add_special_tokens=False)["input_ids"]
    whole = tokenizer.decode(ids)
    assert whole != tokenizer.backend_tokenizer.decode(ids)
    found, stream = deltas(tokenizer, ids)
    assert "".join(found) == stream.text == whole
    assert sum(map(bool, found)) > 3


def test_characters_are_whole_and_come_early():
    found, stream = deltas(tiny_tokenizer(), tiny_tokenizer()(TEXTS[0], add_special_tokens=False)["input_ids"])
    assert stream.text == "A blue 🐼, naïve."
    assert all("\ufffd" not in delta for delta in found)
    assert sum(delta != "" for delta in found) > 5


@pytest.mark.parametrize(
    ("text", "stop", "wanted", "stopped"),
    [
        ("one two three four", ["e tw", "four"], "on", True),
        ("one two", ["two three"], "one two", False),
        ("\nx", ["\n"], "", True),
        ("one", [""], "one", False),
    ],
)
def test_the_first_stop_string_counts(text, stop, wanted, stopped):
    tokenizer = tiny_tokenizer()
    found, stream = deltas(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"], *stop)
    assert "".join(found) == wanted
    assert stream.stopped == stopped


def test_a_token_is_decoded_once(monkeypatch):
    """The whole reply is decoded at its end, not at every token: that took seconds for 2,048 of them."""
    tokenizer = tiny_tokenizer()
    calls = []
    monkeypatch.setattr(module.IncrementalDetokenizer, "_whole", lambda self: calls.append(1) or "abc" * 100)
    deltas(tokenizer, tokenizer("abc" * 100, add_special_tokens=False)["input_ids"])
    assert len(calls) == 1
