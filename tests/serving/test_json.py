"""Protects JSON modes over HTTP: replies of their schema, whole and streamed, in both APIs; bad schemas in one line."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from fastapi.testclient import TestClient
from test_api import ASKED, ask, file

from tiny import tiny_model, tiny_processor
from videopanda.inference.engine_thread import EngineThread
from videopanda.serving.api import ServerSettings, create_app

pytestmark = pytest.mark.timeout(600)  # a server has to start
COLORS = ["blue", "green", "red", "white", "yellow"]
SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": COLORS}, "moves": {"type": "boolean"}},
    "required": ["color", "moves"],
    "additionalProperties": False,
}


def of(schema):
    return {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema, "strict": True}}


def test_replies_are_of_their_schema(client, uploaded):
    pytest.importorskip("llguidance", reason="no llguidance: pip install 'videopanda[serve]'")

    def reply(seed):
        choice = {} if seed is None else {"temperature": 1.5, "seed": seed}
        return ask(client, file(uploaded), ASKED[1], response_format=of(SCHEMA), **choice).choices[0]

    with ThreadPoolExecutor(6) as pool:
        choices = list(pool.map(reply, [None, None, 1, 2, 3, 4]))
    for choice in choices:
        value = json.loads(choice.message.content)
        assert choice.finish_reason == "stop"
        assert list(value) == ["color", "moves"]
        assert value["color"] in COLORS
        assert isinstance(value["moves"], bool)
    text = choices[0].message.content
    assert choices[1].message.content == text
    chunks = list(ask(client, file(uploaded), ASKED[1], response_format=of(SCHEMA), stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    parts = [{"type": "input_file", "file_id": uploaded.id}, {"type": "input_text", "text": ASKED[1]}]
    asked = {"model": "nano", "input": [{"role": "user", "content": parts}]}
    format_ = {"type": "json_schema", "name": "thing", "schema": SCHEMA}
    assert client.responses.create(**asked, text={"format": format_}).output_text == text
    some = ask(client, file(uploaded), ASKED[1], response_format={"type": "json_object"}, max_tokens=12).choices[0]
    assert some.message.content.startswith("{")  # which nano, with any key allowed, does not end
    assert some.finish_reason == "length" or isinstance(json.loads(some.message.content), dict)
    cut = ask(client, file(uploaded), ASKED[1], response_format=of(SCHEMA), max_tokens=3).choices[0]
    assert (cut.finish_reason, text.startswith(cut.message.content)) == ("length", True)


@pytest.mark.parametrize(
    ("format_", "said"),
    [
        (of({"type": "colour"}), "response_format: the schema cannot be enforced: Invalid type: colour"),
        (of({"$ref": "https://example.org/schema.json"}), "does not fetch"),
        (of({"type": "string", "description": "x" * 70_000}), "at most 65,536 are accepted"),
        (of([]), "response_format.json_schema.schema"),
        ({"type": "json_schema"}, "json_schema belongs to the type json_schema"),
        ({"type": "text", "json_schema": {"name": "x", "schema": {}}}, "json_schema belongs to the type json_schema"),
        ({"type": "grammar"}, "response_format.type"),
    ],
)
def test_bad_formats_get_one_line(client, format_, said):
    pytest.importorskip("llguidance", reason="no llguidance: pip install 'videopanda[serve]'")
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "Hello?", response_format=format_)
    message = caught.value.body["message"]
    assert said in message
    assert "\n" not in message
    assert caught.value.body["param"].startswith("response_format")


def test_a_server_without_the_library_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance.hf", None)
    monkeypatch.setitem(sys.modules, "llguidance", None)
    engine = EngineThread(tiny_model(), tiny_processor())
    with TestClient(create_app(engine, ServerSettings("tiny", tmp_path / "files"))) as client:
        body = {"messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_object"}}
        answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].endswith("pip install llguidance")
