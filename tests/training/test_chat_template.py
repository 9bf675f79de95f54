"""Protects that answers are learned with an end: templates from which a model would never learn to stop are refused."""

import pytest

from tiny import clip, tiny_processor, tiny_tokenizer
from videopanda.data.collate import Collator
from videopanda.data.sample import Sample, Turn
from videopanda.training.chat_template import end_tokens, visual_chat_template

TURN = "{% for m in messages %}{{ m.role ~ ': ' ~ ANSWER ~ END }}{% endfor %}"
ASKED = "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"


def template(answer: str = "m.content", end: str = "eos_token", asked: str = ASKED) -> str:
    return TURN.replace("ANSWER", answer).replace("END", end) + asked


def ends(tokenizer, text: str) -> set[str]:
    found = end_tokens(tokenizer, visual_chat_template(tokenizer, text), {tokenizer.eos_token_id})
    return set(tokenizer.convert_ids_to_tokens(sorted(found)))


def test_a_base_model_stops_where_its_chat_template_ends_a_turn():
    """The tokenizer of Qwen2.5's base model ends texts with one token, its template ends turns with another."""
    tokenizer = tiny_tokenizer()
    assert ends(tokenizer, template()) == {"</s>"}
    tokenizer.add_special_tokens({"additional_special_tokens": ["<video>", "<image>", "<|im_end|>"]})
    assert ends(tokenizer, template(end="'<|im_end|>\n'")) == {"</s>", "<|im_end|>"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (template(end="'\n'"), "ends an answer with '', which is no end token"),
        (template(end="'<|im_end|>\n'"), r"ends an answer with '<\|im_end\|>', which is no end token"),
        (template(asked=""), "does not write an answer unchanged, right after its prompt"),
        (template(answer="(m.content if m.role == 'user' else m.content | upper)"), "does not write an answer"),
        ("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}", "does not write"),
    ],
)
def test_a_template_that_teaches_something_else_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        ends(tiny_tokenizer(), text)


def test_a_sample_without_anything_to_learn_is_refused():
    processor = tiny_processor()
    processor.chat_template = "{% for m in messages if m.role == 'user' %}<video>{{ m.content[-1].text }}{% endfor %}"
    with pytest.raises(ValueError, match="sample 'x': the chat template leaves out its answers"):
        Collator(processor, 1000)([Sample("x", (clip(),), ((Turn("<video>\nQ", "A"),),))])
