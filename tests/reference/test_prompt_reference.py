"""Prompts and label masks equal the slow ones, token for token, on random conversations."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_reference import place_visuals, question_row, training_row

from golden_checks.data import load_tokenizer, question_prompt, training_prompt

TOKENIZER = Path(__file__).parent.parent / "golden" / "tiny_tokenizer"
WORDS = (
    "What",
    "is",
    "the man",
    "doing?",
    "Yes,",
    "It's",
    "(a)",
    "42",
    "×",
    "日本",
    "USER:",
    " ",
    "\n",
    "\t",
    "'",
    ".",
)
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
LAYOUTS = (  # of a first question; `ASSISTANT:` in a text is a case of its own
    *("{}", "<video>\n{}", "{}\n<video>", "<video>{}", "See <video> {}", "See<video>{}", "<video><video>\n{}"),
    *("<image>\n{}", "{}<image><image>", "<image> or <image> {}", "<image>" * 11 + "\n{}", "{}" + "<image>" * 4),
)


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("sentencepiece").SentencePieceProcessor(str(TOKENIZER / "tokenizer.model"))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TOKENIZER)


@settings(max_examples=100)
@given(
    layout=st.sampled_from(LAYOUTS),
    turns=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3),
    frames=st.sampled_from((4, 8)),
)
def test_training_rows(library, tokenizer, layout, turns, frames):
    texts = [text for turn in turns for text in turn]
    texts[0] = layout.format(texts[0])
    prompt, ids, labels = training_row(library, texts, frames)
    conversation = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    found_ids, found_labels, found_prompt = training_prompt(tokenizer, conversation, frames)
    assert found_prompt == prompt
    assert found_ids == ids
    assert found_labels == labels


@settings(max_examples=50)
@given(question=TEXTS, frames=st.sampled_from((1, 4, 8, 16)))
def test_questions(library, tokenizer, question, frames):
    prompt, ids = question_row(library, question, frames)
    assert question_prompt(tokenizer, question, frames) == (ids, prompt)


def test_where_the_official_code_gives_up(library, tokenizer):
    """An answer that looks like another round: the official code masks everything, ours still finds the answer."""
    texts = ["What does it say?", "It says ASSISTANT: hello"]
    assert training_row(library, texts, 8)[2] is None
    _, labels, _ = training_prompt(tokenizer, [{"value": text} for text in texts], 8)
    assert labels[-1] == tokenizer.eos_token_id
    answer = [token for token in labels if token >= 0]
    assert tokenizer.decode(answer, skip_special_tokens=True).strip() == texts[1]


def test_markers_are_placed():
    assert place_visuals("Why?<image><image>", 8) == "<image><image>\nWhy?"
    assert place_visuals("Why?\n<video>", 2) == "<image><image>\nWhy?"
    assert place_visuals("<image>" * 9 + "\nWhy?", 8) == "<image>" * 8 + "\nWhy?"
