"""Protects constrained replies: always of their schema, whatever the model prefers, alone and in any batch."""

import json

import pytest

pytest.importorskip("llguidance", reason="no llguidance: pip install 'videopanda[serve]'")

from videopanda.inference.answer import Chat, build_prompt, question_messages
from videopanda.inference.engine import Engine, Limits
from videopanda.inference.grammar import SCHEMA_CHARACTERS, Grammars, _closed
from videopanda.inference.load import BUNDLED_MODEL, load
from videopanda.inference.request import Failed, GenerateRequest
from videopanda.inference.sampling import Sampling

QUESTION = "Which colour does the circle become?"
COLORS = ["blue", "green", "red", "white", "yellow"]


def object_of(**properties):
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMAS = [
    object_of(color={"enum": COLORS}),
    object_of(count={"type": "integer", "minimum": 1, "maximum": 12}, moving={"type": "boolean"}),
    object_of(word={"type": "string", "pattern": "^[a-zé☃]{1,8}$"}),
    {"type": "array", "items": {"enum": ["left", "right"]}, "minItems": 1, "maxItems": 3},
    {"anyOf": [{"const": "Ærøskøbing"}, {"const": "żółw ☃"}]},
]


@pytest.fixture(scope="module")
def nano():
    return load(None, device="cpu")


@pytest.fixture(scope="module")
def grammars(nano):
    model, processor = nano
    return Grammars(processor.tokenizer, model.config.text_config.vocab_size, [model.generation_config.eos_token_id])


@pytest.fixture(scope="module")
def asked(nano):
    """A request with and without a constraint."""
    chat = Chat(*nano, BUNDLED_MODEL.parent / "demo.mp4")
    prompt = build_prompt(chat.processor, question_messages(chat.processor, QUESTION), [chat.clip])
    return lambda **fields: GenerateRequest(prompt, [chat.clip], **fields)


def matches(schema, text):
    value = json.loads(text)
    if "anyOf" in schema:
        return value in [one["const"] for one in schema["anyOf"]]
    if schema["type"] == "array":
        return 1 <= len(value) <= 3 and set(value) <= {"left", "right"}
    if "count" in schema["properties"]:
        return list(value) == ["count", "moving"] and 1 <= value["count"] <= 12 and isinstance(value["moving"], bool)
    if "word" in schema["properties"]:
        return list(value) == ["word"] and 1 <= len(value["word"]) <= 8
    return value["color"] in COLORS


def test_replies_are_of_their_schema_alone_and_in_a_batch(nano, grammars, asked):
    """Greedy and sampled; the plain replies of the same batch stay what they are."""
    samplings = [Sampling(), Sampling(temperature=1.5, seed=1)]
    plain = asked(max_new_tokens=20)
    (wanted,) = Engine(*nano).generate([plain])
    requests = [
        asked(constraint=grammars.of(schema), sampling=sampling, max_new_tokens=60)
        for schema in SCHEMAS
        for sampling in samplings
    ]
    together = Engine(*nano, Limits(max_num_seqs=4)).generate([plain, *requests, plain])
    assert [together[0].text, together[-1].text] == [wanted.text] * 2
    for place, (request, reply) in enumerate(zip(requests, together[1:])):
        if place % 4 == 1:
            (alone,) = Engine(*nano).generate([request])
            assert alone.text == reply.text
        assert reply.finish_reason == "stop"
        assert matches(SCHEMAS[place // 2], reply.text), reply.text


def test_a_reply_that_is_cut_off_says_so(nano, grammars, asked):
    (reply,) = Engine(*nano).generate([asked(constraint=grammars.of(SCHEMAS[1]), max_new_tokens=5)])
    assert reply.finish_reason == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(reply.text)


def test_objects_have_no_properties_that_nothing_names(nano, grammars, asked):
    """Otherwise nano, which may then write any key, does not end."""
    inner = {"type": "object", "properties": {"right": {"type": "boolean"}}, "required": ["right"]}
    schema = {
        "$defs": {"Inner": inner},
        "type": "object",
        "properties": {"one": {"$ref": "#/$defs/Inner"}, "many": {"type": "array", "items": inner, "maxItems": 1}},
        "required": ["one", "many"],
    }
    (reply,) = Engine(*nano).generate([asked(constraint=grammars.of(schema), max_new_tokens=80)])
    value = json.loads(reply.text)
    assert list(value) == ["one", "many"]
    assert list(value["one"]) == ["right"]
    parts = {"allOf": [{"type": "object", "properties": {name: {"const": 1}}} for name in "ab"]}
    assert _closed(parts) == parts  # each part would exclude the property of the other


def test_bad_schemas_end_in_one_line(grammars):
    deep = {"type": "string", "description": "x" * SCHEMA_CHARACTERS}
    for schema, said in (
        ({"type": "objekt"}, "Invalid type: objekt"),
        ({"type": "object", "properties": 5}, "properties must be an object"),
        ({"$ref": "#/nowhere"}, "does not exist"),
        ({"$ref": "https://example.org/schema"}, "not fetch"),
        ({"type": "string", "pattern": "("}, "regex"),
        ({"not": {"type": "string"}}, "not"),
        (deep, "at most 65,536"),
    ):
        with pytest.raises(ValueError, match="schema") as caught:
            grammars.of(schema)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_grammar_that_becomes_too_much_work_ends_its_own_request_only(nano, grammars, asked):
    """As after an error of the matcher, which it never leaves."""
    from llguidance import LLMatcher

    plain, broken = asked(max_new_tokens=20), grammars.of(SCHEMAS[0])
    broken._matcher = LLMatcher(grammars._tokenizer, "start: nothing")
    wanted, failed, other = Engine(*nano).generate([plain, asked(constraint=broken), plain])
    assert isinstance(failed, Failed)
    assert "too complex" in str(failed.error)
    assert wanted.text == other.text != ""
