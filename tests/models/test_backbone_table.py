"""Protects the table of language models in docs/backbones.md: every cell is what a tiny member of the family does."""

import json

import pytest
import torch
from backbone_table import BEGIN, COLUMNS, END, FIELDS, PAGE, examine, line
from transformers import AutoConfig

from chat_templates import QWEN3
from language_models import MEMBERS, NAMES, text_tokenizer, write
from tiny import clip, tiny_processor
from videopanda.data.collate import IGNORE, Collator
from videopanda.data.sample import Sample, Turn
from videopanda.models.videopanda import VideoPandaProcessor
from videopanda.training.build import build_model
from videopanda.training.chat_template import visual_chat_template

TABLE = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].splitlines(keepends=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_what_its_model_does(name, tmp_path):
    """If it fails though the code is right: python tests/models/backbone_table.py"""
    assert line(examine(name, tmp_path)) in TABLE


def test_the_table_has_no_other_rows():
    assert TABLE[0] == line(list(COLUMNS))
    assert [row.split(" | ")[0].removeprefix("| ") for row in TABLE[2:]] == list(MEMBERS)


# -- refused by name ---------------------------------------------------------------------------------------------------
def test_a_model_whose_layers_need_token_ids_is_refused(tmp_path):
    """Per-layer embeddings, as of the smaller Gemma 4: visual tokens have none."""
    folder = write(tmp_path, MEMBERS["Gemma 4"], hidden_size_per_layer_input=8, vocab_size_per_layer_input=301)
    with pytest.raises(ValueError, match="Gemma4ForCausalLM needs token ids in its layers too"):
        build_model(folder, seed=0, fields=FIELDS)


def test_a_vision_language_model_without_all_its_weights_is_refused(tmp_path):
    folder = write(tmp_path, MEMBERS["Gemma 3"], published=True)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 3
    config["text_config"]["layer_types"].append("full_attention")
    (folder / "config.json").write_text(json.dumps(config))
    assert AutoConfig.from_pretrained(folder).get_text_config().num_hidden_layers == 3
    with pytest.raises(ValueError, match=r"is incomplete: it lacks model.language_model.layers.2"):
        build_model(folder, seed=0, fields=FIELDS)


def test_a_template_that_always_thinks_is_refused():
    always = QWEN3.replace("{%- if enable_thinking is defined and enable_thinking is false -%}", "{%- if false -%}")
    always = always.replace("{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\n<think>\nI ' }}")
    with pytest.raises(ValueError, match="opens a thought before the answer"):
        visual_chat_template(text_tokenizer(QWEN3), always)


# -- templates that rewrite earlier turns ------------------------------------------------------------------------------
def test_every_answer_of_a_chat_is_trained_after_what_the_model_is_asked_with():
    tokenizer = text_tokenizer(QWEN3)
    tokenizer.add_tokens(["<video>", "<image>"], special_tokens=True)
    template = visual_chat_template(tokenizer)
    processor = VideoPandaProcessor(tiny_processor().video_processor, tokenizer, template)
    chat = (Turn("What moves?", "A red circle."), Turn("And where?", "left", is_trained=False), Turn("Sure?", "Yes."))
    collator = Collator(processor, 4096)
    batch = collator([Sample("x", (clip(4),), (chat,))])
    row, labels, positions = (batch[name][0] for name in ("input_ids", "labels", "position_ids"))
    said = tokenizer.decode(labels[labels != IGNORE])
    empty = "<think>\n\n</think>\n\n"
    assert said == f"{chat[0].answer}<|im_end|>\n{chat[2].answer}<|im_end|>\n"
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": chat[0].question}]}]
    for turn, following in zip(chat, (*chat[1:], None)):
        prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
        assert prompt.endswith(f"<|im_start|>assistant\n{empty}")
        assert prompt.count(empty) == 1
        if turn.is_trained:
            start = int((labels == tokenizer(turn.answer)["input_ids"][0]).nonzero()[0])
            place = int(positions[start])
            shown = tokenizer(prompt.replace("<video>", "<video>" * int((row == processor.video_token_id).sum())))
            assert place == len(shown["input_ids"])
        if following is not None:
            messages += [{"role": "assistant", "content": turn.answer}, {"role": "user", "content": following.question}]
    once = collator([Sample("x", (clip(4),), (chat[:1],))])
    assert torch.equal(
        once["labels"][once["labels"] != IGNORE],
        labels[labels != IGNORE][: len(tokenizer(chat[0].answer + "<|im_end|>\n")["input_ids"])],
    )
