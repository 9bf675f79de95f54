"""Protects `/v1/responses`: OpenAI's own client gets the answers of chat completions, whole and as a stream."""

import openai
import pytest
from test_api import ASKED, ask, data_url, file


@pytest.fixture(scope="module")
def wanted(client, uploaded):
    return ask(client, file(uploaded), ASKED[0]).choices[0].message.content


def message(part, question=ASKED[0]):
    return [{"role": "user", "content": [part, {"type": "input_text", "text": question}]}]


def test_every_form_of_a_clip_gets_the_answer_of_chat_completions(client, uploaded, wanted):
    parts = [
        {"type": "input_file", "file_id": uploaded.id},
        {"type": "input_file", "file_data": data_url(), "filename": "demo.mp4"},
        {"type": "video_url", "video_url": {"url": uploaded.id}},
    ]
    for part in parts:
        reply = client.responses.create(model="nano", input=message(part))
        assert (reply.output_text, reply.status) == (wanted, "completed")
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens
    assert len(reply.model_extra["videopanda"]["frame_times"][0]) == 8


def test_frames_are_chosen_in_every_form_of_a_part(client, uploaded):
    for address in ({"file_id": uploaded.id}, {"file_url": uploaded.id}):
        part = {"type": "input_file", **address, "num_frames": 3}
        reply = client.responses.create(model="nano", input=message(part))
        assert len(reply.model_extra["videopanda"]["frame_times"][0]) == 3


def test_a_stream_has_the_events_of_openai(client, uploaded, wanted):
    part = {"type": "input_file", "file_id": uploaded.id}
    with client.responses.stream(model="nano", input=message(part)) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text == wanted
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert kinds.count("response.output_text.done") == 1


def test_a_conversation_is_sent_whole(client, uploaded):
    part = {"type": "input_file", "file_id": uploaded.id}
    first = client.responses.create(model="nano", input=message(part))
    turns = [*message(part), *first.output, {"role": "user", "content": ASKED[1]}]
    chat = [
        {"role": "user", "content": [file(uploaded), {"type": "text", "text": ASKED[0]}]},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": ASKED[1]},
    ]
    expected = client.chat.completions.create(model="nano", messages=chat).choices[0].message.content
    sent = [turn if isinstance(turn, dict) else turn.model_dump(exclude_none=True) for turn in turns]
    assert client.responses.create(model="nano", input=sent).output_text == expected


def test_fields_that_are_null_or_change_nothing_are_accepted(client, uploaded, wanted):
    neutral = {
        "reasoning": {"effort": "none"},
        "prompt_cache_options": {},
        "conversation": None,
        "include": ["reasoning.encrypted_content"],
        "top_logprobs": 0,
    }
    part = {"type": "input_file", "file_id": uploaded.id}
    assert client.responses.create(model="nano", input=message(part), extra_body=neutral).output_text == wanted


def test_a_response_repeats_the_request(client):
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False}
    fields = {"instructions": "Be brief.", "metadata": {"a": "b"}, "max_output_tokens": 9, "user": "Ann", "top_p": 0.5}
    wanted = {"type": "json_schema", "name": "x", "schema": schema, "strict": True}
    reply = client.responses.create(model="nano", input="Hi", text={"format": wanted}, **fields)
    found = reply.model_dump(mode="json", by_alias=True)
    assert {name: found[name] for name in fields} == fields
    assert (found["temperature"], found["store"]) == (0, False)
    assert found["text"]["format"].items() >= wanted.items()
    plain = client.responses.create(model="nano", input="Hi", max_output_tokens=1)
    assert (plain.text.format.type, plain.instructions, plain.metadata) == ("text", None, {})


def test_an_error_names_the_input_as_it_was_sent(client):
    """A system message made of `instructions` does not shift the items."""
    parts = {
        "input[1].content[0].image_url.url": {"type": "input_image", "image_url": ""},
        "input[1].content[0]": {"type": "input_file", "file_id": "file-none"},
    }
    for place, part in parts.items():
        turns = [{"role": "user", "content": "Hi"}, {"role": "user", "content": [part]}]
        for instructions in (None, "Be brief."):
            with pytest.raises(openai.APIStatusError) as caught:
                client.responses.create(model="nano", input=turns, instructions=instructions)
            assert caught.value.body["param"] == place
            assert caught.value.body["message"].startswith(place)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="nano", input="Hi", max_output_tokens=2_000_000_000)
    assert caught.value.body["param"] == "max_output_tokens"


def test_a_cut_answer_is_incomplete(client):
    reply = client.responses.create(model="nano", input="Tell me everything.", max_output_tokens=1)
    assert reply.usage.output_tokens == 1
    assert reply.status in ("completed", "incomplete")
    if reply.status == "incomplete":
        assert reply.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]}, "not supported"),
        ({"input": "Hi", "previous_response_id": "resp_1"}, "previous_response_id: responses are not stored: send the"),
        ({"input": "Hi", "conversation": "conv_1"}, "conversation: responses are not stored: send the whole"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, r"input\[0\]: responses are not stored: send the mes"),
        ({"input": "Hi", "reasoning": {"effort": "low"}}, "reasoning.effort"),
        ({"input": [{"role": "user", "content": [{"type": "input_audio", "data": "x"}]}]}, r"input\[0\].content\[0\]"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi", "start": 1}]}]},
            "start.*omit it",
        ),
        ({"input": [{"role": "assistant", "content": "Hi"}]}, r"(- |['\"])the last message must have role"),
        ({"input": []}, "input: Value should have at least 1 item"),
        ({"input": "Hi", "include": ["file_search_call.results"]}, "include"),
        ({"input": "Hi", "extra_body": {"top_q": 1}}, "top_q: this server does not know this field: omit it"),
        ({"input": "Hi", "text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.json_schema.schema"),
    ],
)
def test_what_is_not_supported_is_refused(client, fields, said):
    with pytest.raises(openai.BadRequestError, match=said):
        client.responses.create(model="nano", **fields)
