"""Protects a grown tokenizer: old ids and answers stay, new words are single tokens, and their embeddings are means."""

import json

import pytest
import torch

from videopanda.inference.load import BUNDLED_MODEL
from videopanda.models.load import load_checkpoint
from videopanda.training.nano import _reworded_texts, grow_vocabulary


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    model, processor = load_checkpoint(BUNDLED_MODEL, torch.float32)
    before = (
        model.get_input_embeddings().weight.detach().clone(),
        json.loads(processor.tokenizer.backend_tokenizer.to_str()),
    )
    size = len(processor.tokenizer) + 90
    grow_vocabulary(model, processor, size, num_scenes=40)
    folder = tmp_path_factory.mktemp("grown")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, model, processor, before, size


def test_old_ids_and_embeddings_stay(grown):
    _, model, processor, (weight, state), size = grown
    new = json.loads(processor.tokenizer.backend_tokenizer.to_str())["model"]
    assert len(processor.tokenizer) == size
    assert {k: new["vocab"][k] for k in state["model"]["vocab"]} == state["model"]["vocab"]
    assert new["merges"][: len(state["model"]["merges"])] == state["model"]["merges"]
    embeddings = model.get_input_embeddings().weight
    assert torch.equal(embeddings[: size - 90], weight[: size - 90])
    assert len(embeddings) == model.config.get_text_config().vocab_size == -(-size // 64) * 64


def test_a_new_embedding_is_the_mean_of_its_parts(grown):
    _, model, processor, (_, state), _ = grown
    new = json.loads(processor.tokenizer.backend_tokenizer.to_str())["model"]
    merges = new["merges"][len(state["model"]["merges"]) :]
    weight = model.get_input_embeddings().weight
    for first, second in merges[-20:]:
        ids = [new["vocab"][part] for part in (first + second, first, second)]
        assert torch.equal(weight[ids[0]], (weight[ids[1]] + weight[ids[2]]) / 2)


def test_the_folder_reads_words_as_it_was_left(grown):
    folder, _, processor, _, _ = grown
    _, again = load_checkpoint(folder, torch.float32)
    text = "USER: could you tell me which color the thing has? ASSISTANT: red</s>"
    assert again.tokenizer(text)["input_ids"] == processor.tokenizer(text)["input_ids"]
    assert again.tokenizer.decode(again.tokenizer(text)["input_ids"]) == text
    _, bundled = load_checkpoint(BUNDLED_MODEL, torch.float32)
    lengths = [
        sum(len(tokenizer(text)["input_ids"]) for text in _reworded_texts(40, 0))
        for tokenizer in (again.tokenizer, bundled.tokenizer)
    ]
    assert lengths[0] < lengths[1]


def test_spare_rows_stay():
    model, processor = load_checkpoint(BUNDLED_MODEL, torch.float32)
    rows = len(model.get_input_embeddings().weight) + 256
    model.resize_token_embeddings(rows, mean_resizing=False)
    grow_vocabulary(model, processor, len(processor.tokenizer) + 8, num_scenes=4)
    assert len(model.get_input_embeddings().weight) == rows


def test_growing_to_a_size_that_is_reached_changes_nothing(grown):
    folder, *_ = grown
    model, processor = load_checkpoint(folder, torch.float32)
    weight, tokens = model.get_input_embeddings().weight.detach().clone(), processor.tokenizer.get_vocab()
    grow_vocabulary(model, processor, 100, num_scenes=2)
    assert processor.tokenizer.get_vocab() == tokens
    assert torch.equal(model.get_input_embeddings().weight[: len(tokens)], weight[: len(tokens)])
