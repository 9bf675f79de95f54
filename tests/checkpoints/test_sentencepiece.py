"""Protects the reading of SentencePiece models: the same tokens as the released tokenizer, damage is noticed."""

import json
import random

import pytest
from transformers import LlamaTokenizer

from official import GOLDEN, write_vocabulary
from videopanda.checkpoints.tensors import CheckpointError
from videopanda.models.videopanda.convert.settings import read_sentencepiece, read_tokenizer

MODEL = GOLDEN / "tiny_tokenizer" / "tokenizer.model"
TEXTS = [
    "What is the man doing?",
    "two  spaces,\ttabs and\n\nlines ",
    "Übergrößenträger, naïve café — 日本語, привет, 🐼!",
    "the the The THE 12345 0x7f <0x0A>",
    "a" * 100,
    "",
]


@pytest.fixture(scope="module")
def tokenizer():
    return read_tokenizer(MODEL.parent)


def test_tokens_are_those_of_the_sentencepiece_library(tokenizer):
    library = pytest.importorskip("sentencepiece").SentencePieceProcessor(str(MODEL))
    letters = random.Random(0)
    texts = TEXTS + ["x" + "".join(letters.choices("the an is ing o?é\n▁☃ER", k=40)) for _ in range(300)]
    for text in texts:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == library.encode(text), text


def test_tokens_are_those_of_transformers(tokenizer):
    pytest.importorskip("sentencepiece")
    transformers = LlamaTokenizer.from_pretrained(MODEL.parent)
    for text in [*TEXTS, "  blanks at the start", "in <s> between</s> words", "<s> as in a prompt </s>and on"]:
        assert tokenizer(text)["input_ids"] == transformers(text)["input_ids"], text


def test_tokens_are_those_of_the_released_code(tokenizer):
    """The start of a golden prompt; behind a placeholder the chat template has its say."""
    golden = json.loads((GOLDEN / "full_small_train_and_generate.json").read_text())
    ids = tokenizer(golden["question"])["input_ids"]
    assert ids == [1, 368, 413, 295, 275, 262, 310, 307, 296, 400]  # prompts_and_labels.json holds these ids


def test_texts_come_back(tokenizer):
    for text in TEXTS:
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_special_tokens(tokenizer):
    assert tokenizer("a</s>b")["input_ids"].count(2) == 1
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert (tokenizer.unk_token_id, tokenizer.pad_token_id) == (0, 0)
    assert len(tokenizer) == 416
    assert tokenizer("a", "b")["input_ids"].count(1) == 2


def test_a_larger_vocabulary(tmp_path):
    write_vocabulary(tmp_path / "tokenizer.model", 500)
    assert read_sentencepiece(tmp_path / "tokenizer.model").get_vocab_size() == 500


def test_damaged_and_other_models_are_refused(tmp_path):
    path, data = tmp_path / "tokenizer.model", MODEL.read_bytes()
    others = {
        "cut": data[:-3],
        "noise": bytes(range(256)) * 4,
        "text": b"this is no model",
        "unigram": data.replace(b"\x18\x02", b"\x18\x01"),
        "empty": b"",
    }
    assert others["unigram"] != data
    for content in others.values():
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"tokenizer\.model is not a"):
            read_sentencepiece(path)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        read_tokenizer(tmp_path)


def test_a_fast_tokenizer_and_added_tokens_are_taken_too(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes((MODEL.parent / "tokenizer_config.json").read_bytes())
    fast = read_tokenizer(tmp_path)
    assert [fast(text)["input_ids"] for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]
    assert fast.pad_token == "<unk>"
    (tmp_path / "tokenizer.model").write_bytes(MODEL.read_bytes())
    (tmp_path / "added_tokens.json").write_text('{"<second>": 417, "<first>": 416}')
    assert read_tokenizer(tmp_path).convert_tokens_to_ids(["<first>", "<second>"]) == [416, 417]
