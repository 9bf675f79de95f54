"""Protects the forms in which clients of other servers send videos, roles and fields."""

import base64
import io

import numpy as np
import openai
import pydantic
import pytest
from PIL import Image
from test_api import ASKED, DEMO, ask, data_url, file, video

from videopanda.serving.protocol import ChatRequest

pytestmark = pytest.mark.timeout(600)
TEXT = {"type": "text", "text": ASKED[0]}


def said(reply):
    """Answer, and times of the frames that were seen."""
    return reply.choices[0].message.content, reply.model_extra["videopanda"]["frame_times"]


RAW = base64.b64encode(DEMO.read_bytes()).decode()
LINES = "\n".join(RAW[i : i + 76] for i in range(0, len(RAW), 76))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "video_url", "video_url": data_url()},
        {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{LINES}\r\n"}},
        {"type": "video_url", "video_url": {"url": data_url()}, "uuid": "a", "cache_control": {"type": "ephemeral"}},
        {"type": "input_video", "input_video": {"data": RAW}},
        {"type": "input_video", "input_video": {"url": data_url()}},
        {"type": "input_video", "input_video": data_url()},
        {"type": "video", "video": data_url()},
        {"type": "file", "file": {"filename": "demo.mp4", "file_data": data_url()}},
        {"type": "file", "file": {"file_data": RAW}},
        {"type": "video_url", "video_url": {"url": data_url(), "detail": "low"}},  # LiteLLM
        {"type": "input_file", "file_data": RAW, "prompt_cache_breakpoint": {"mode": "explicit"}},  # Responses
        {"type": "input_video", "video_url": data_url()},
    ],
    ids=lambda part: f"{part['type']}-{len(str(part))}",
)
def test_a_video_in_the_form_of_another_server(client, uploaded, part):
    assert said(ask(client, part, TEXT)) == said(ask(client, file(uploaded), TEXT))


@pytest.mark.parametrize(
    ("part", "fields"),
    [
        ({"fps": 2.0}, {}),
        ({"video_url": {"fps": 2.0}}, {}),
        ({"video_url": {"fps": 2.0}, "fps": 2.0}, {"video": {"num_frames": 4}}),  # a part is nearer than the request
        ({}, {"media_io_kwargs": {"video": {"fps": 2.0}}}),
        ({}, {"mm_processor_kwargs": {"fps": 2.0, "do_sample_frames": True}}),
    ],
)
def test_frames_chosen_in_the_form_of_another_server(client, uploaded, part, fields):
    wanted = said(ask(client, file(uploaded), TEXT, extra_body={"video": {"fps": 2.0}}))
    assert len(wanted[1][0]) == 8
    url = {"url": uploaded.id, **part.get("video_url", {})}
    found = ask(client, {"type": "video_url", **part, "video_url": url}, TEXT, extra_body=fields)
    assert said(found) == wanted
    four = ask(client, file(uploaded), TEXT, extra_body={"media_io_kwargs": {"video": {"num_frames": 4}}})
    assert said(four) == said(ask(client, file(uploaded), TEXT, extra_body={"video": {"num_frames": 4}}))


def test_a_list_of_frames_is_a_video(client):
    """DashScope's form. Frames that were taken twice a second from the clip, losslessly, are that clip at 2 fps."""
    from videopanda.video.read import read_video

    frames = read_video(DEMO, fps=2.0).frames
    urls = []
    for frame in frames:
        content = io.BytesIO()
        Image.fromarray(frame).save(content, "PNG")
        urls.append(f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}")
    found = said(ask(client, {"type": "video", "video": urls, "fps": 2.0}, TEXT))
    wanted = said(ask(client, video(data_url()), TEXT, extra_body={"video": {"fps": 2.0}}))
    assert found[0] == wanted[0]
    assert np.allclose(found[1], [np.arange(len(frames)) / 2])
    with pytest.raises(openai.BadRequestError, match="omit the fields that choose frames"):
        ask(client, {"type": "video", "video": urls}, TEXT, extra_body={"video": {"num_frames": 4}})
    with pytest.raises(openai.UnprocessableEntityError, match="images only"):
        ask(client, {"type": "video", "video": [urls[0], data_url()]}, TEXT)
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "PNG")
    odd = f"data:image/png;base64,{base64.b64encode(small.getvalue()).decode()}"
    with pytest.raises(openai.UnprocessableEntityError, match="same size"):
        ask(client, {"type": "video", "video": [urls[0], odd]}, TEXT)


@pytest.mark.parametrize(
    "url",
    [
        f"data:video/mp4;codecs=avc1,mp4a;base64,{RAW}",  # as a browser writes a recording
        f'data:video/mp4;codecs="avc1.42E01E, mp4a.40.2";base64,{RAW}',
        f"DATA:Video/MP4;Base64,{RAW}",
        f"data:video/mp4;base64,{RAW.rstrip('=')}",
        f"data:video/mp4;base64,{RAW.replace('+', '%2B').replace('=', '%3D')}",
        f"data:video/mp4;base64,{RAW.replace('+', '-').replace('/', '_')}",
    ],
    ids=lambda url: url[:40],
)
def test_data_urls_as_browsers_and_python_write_them(client, uploaded, url):
    assert said(ask(client, video(url), TEXT)) == said(ask(client, file(uploaded), TEXT))


def test_frames_in_one_data_url_are_refused_with_the_form_to_use(client):
    with pytest.raises(openai.BadRequestError, match="video/jpeg, a list of frames, is not supported"):
        ask(client, video("data:video/jpeg;base64,AAAA,AAAA"), TEXT)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_an_animation_is_a_video_and_a_still_gif_an_image(client, tmp_path, suffix):
    images = [Image.new("RGB", (80, 60), color) for color in ("red", "blue")]
    for name, more in (("still", {}), ("moving", {"save_all": True, "append_images": images[1:], "duration": 500})):
        images[0].save(tmp_path / f"{name}.{suffix}", **more)
    image, moving = (data_url(tmp_path / f"{name}.{suffix}", f"image/{suffix}") for name in ("still", "moving"))
    ask(client, {"type": "image_url", "image_url": image}, TEXT)
    ask(client, video(moving), TEXT)
    with pytest.raises(openai.UnprocessableEntityError, match="an animation is not an image: send it as video_url"):
        ask(client, {"type": "image_url", "image_url": moving}, TEXT)


def test_an_image_as_a_plain_string(client, tmp_path):
    Image.new("RGB", (120, 90), "red").save(tmp_path / "a.png")
    url = data_url(tmp_path / "a.png", "image/png")
    plain = ask(client, {"type": "image_url", "image_url": url}, TEXT)
    for address in ({"url": url, "detail": "low"}, {"url": url, "detail": "original"}):
        for kind in ("image_url", "input_image"):
            assert said(plain) == said(ask(client, {"type": kind, "image_url": address}, TEXT))


# -- messages ----------------------------------------------------------------------------------------------------------
def test_a_reply_comes_back_as_a_message(client, uploaded):
    """As the client returns it, whole; and without text, as other servers' replies may be."""
    first = ask(client, file(uploaded), TEXT).choices[0].message
    messages = [{"role": "user", "content": [file(uploaded), TEXT]}, first.model_dump()]
    messages.append({"role": "user", "content": ASKED[1]})
    plain = [messages[0], {"role": "assistant", "content": first.content}, messages[2]]
    replies = [client.chat.completions.create(model="nano", messages=one) for one in (messages, plain)]
    assert said(replies[0]) == said(replies[1])
    empty = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [], "annotations": []}
    client.chat.completions.create(model="nano", messages=[messages[0], empty, messages[2]])
    called = {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "type": "function"}]}
    with pytest.raises(openai.BadRequestError, match=r"messages\[1\]\.tool_calls: tool calling"):
        client.chat.completions.create(model="nano", messages=[messages[0], called, messages[2]])


@pytest.mark.parametrize("role", ["system", "developer"])
def test_instructions_are_folded_into_the_question(client, role):
    """nano's template has no system role, and would write one as a turn of the model."""
    told = [{"role": role, "content": "Be brief."}, {"role": "user", "content": "What is this?"}]
    plain = [{"role": "user", "content": "Be brief.\n\nWhat is this?"}]
    usage, wanted = (client.chat.completions.create(model="nano", messages=one).usage for one in (told, plain))
    assert usage.prompt_tokens == wanted.prompt_tokens


def test_fields_without_effect_are_accepted(client):
    fields = {"tools": [], "tool_choice": "none", "parallel_tool_calls": True, "logit_bias": {}, "n": 1}
    more = {"top_logprobs": 0, "modalities": ["text"], "prompt_cache_key": "a", "safety_identifier": "b"}
    ask(client, "Hello?", max_tokens=2, **fields, extra_body=more)


def test_the_coldest_temperature_is_greedy(client, uploaded):
    """1e-300 was an internal error: logits divided by it are infinite."""
    wanted = ask(client, file(uploaded), TEXT).choices[0].message.content
    for temperature in (1e-300, 5e-324, 1e-9):
        assert ask(client, file(uploaded), TEXT, temperature=temperature).choices[0].message.content == wanted


@pytest.mark.parametrize(
    ("part", "place"),
    [
        ({"type": "video_url", "video_url": {"url": ""}}, "messages[0].content[1].video_url.url"),
        ({"type": "video_url", "video_url": {"url": data_url(), "fps": 0}}, "messages[0].content[1].video_url.fps"),
        ({"type": "audio", "audio": {}}, "messages[0].content[1]"),
        ({"type": "video_url", "video_url": {"url": "data:video/mp4;base64,!!"}}, "messages[0].content[1]"),
        ({"type": "video_url", "video_url": {"url": "file-none"}}, "messages[0].content[1]"),
        ({"type": "video_url", "video_url": {"url": "file:///etc/passwd"}}, "messages[0].content[1]"),
        ({"type": "image_url", "image_url": {"url": data_url()}}, "messages[0].content[1]"),
        ({"type": "video_url", "video_url": {"url": data_url(), "start": 99}}, "messages[0].content[1]"),
        ({"type": "input_video", "input_video": {}}, "messages[0].content[1].input_video"),
    ],
)
def test_a_bad_part_is_named(client, uploaded, part, place):
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, file(uploaded), part, TEXT)
    assert caught.value.body["param"] == place
    assert caught.value.body["message"].startswith(place)


# -- templates ---------------------------------------------------------------------------------------------------------
SYSTEM = "{% for m in messages %}[{{ m.role }}]{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}"
LOUD = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}x"
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def rules(template):
    from tiny import tiny_processor
    from videopanda.serving.prompt import PromptRules

    processor = tiny_processor()
    processor.chat_template = template
    return PromptRules(processor, 256)


def message(role, *texts):
    return {"role": role, "content": [{"type": "text", "text": text} for text in texts]}


def test_a_template_with_a_system_role_gets_one_system_message():
    known, unknown = rules(SYSTEM), rules(LOUD)
    assert (known.has_system_role, unknown.has_system_role) == (True, False)
    turns = [message("system", "a"), message("developer", "b"), message("user", "c"), message("system", "d")]
    turns += [message("user", "e")]
    assert known.fold(turns) == [message("system", "a\n\nb"), message("user", "c"), message("user", "d\n\ne")]
    assert unknown.fold(turns) == [message("user", "a\n\nb\n\nc"), message("user", "d\n\ne")]


def test_a_template_that_loops_or_refuses_is_a_bad_request(monkeypatch):
    from videopanda.serving import prompt
    from videopanda.serving.errors import ServeError

    monkeypatch.setattr(prompt, "TEMPLATE_SECONDS", 0.5)
    with pytest.raises(ServeError, match="takes too much time"):
        rules(LOOP).check([message("user", "a")])
    with pytest.raises(ServeError, match="refuses this conversation: no system"):
        rules(LOUD).check([message("system", "a"), message("user", "b")])


def test_a_giant_text_is_refused_after_its_first_slices():
    """Tokenizing all of nine million characters took half a minute and gigabytes, in the engine's thread."""
    from videopanda.serving.errors import ContextLengthError

    one, seen = rules(SYSTEM), []
    tokenizer = one.processor.tokenizer

    class Counting:
        def __call__(self, texts, **options):
            seen.append(len(texts[0]))
            return tokenizer(texts, **options)

        def __getattr__(self, name):
            return getattr(tokenizer, name)

    one.processor.tokenizer = Counting()
    with pytest.raises(ContextLengthError, match="256"):
        one.check([message("user", "word " * 1_800_000)])
    assert sum(seen) < 100_000


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"stop": [""]}, ("stop", 0)),
        ({"stop": ["a"] * 5}, ("stop",)),
        ({"stop": 5}, ("stop",)),
        ({"tool_choice": "required"}, ("tool_choice",)),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "http://a/b"}}]}]}, None),
    ],
)
def test_an_error_names_the_field_as_the_client_wrote_it(fields, place):
    with pytest.raises(pydantic.ValidationError) as error:
        ChatRequest.model_validate({"messages": [{"role": "user", "content": "x"}], **fields})
    found = error.value.errors()[0]["loc"]
    assert found == place if place else found[-1] == "file_id"  # an id is no URL to fetch


NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "ignore_eos": False, "min_tokens": 0, "best_of": 1}
NEUTRAL |= {"skip_special_tokens": True, "chat_template_kwargs": {"enable_thinking": False}, "functions": []}


@pytest.mark.parametrize(
    ("fields", "is_refused"),
    [
        (NEUTRAL, False),
        ({"stream": None, "prediction": None, "audio": None, "anything": None}, False),  # not set, as clients say it
        *(({name: value}, True) for name, value in {"top_k": 1, "min_tokens": 5, "repetition_penalty": 1.1}.items()),
        ({"chat_template_kwargs": {"enable_thinking": True}}, True),
        ({"messages": None}, True),
    ],
    ids=str,
)
def test_fields_of_other_servers(fields, is_refused):
    request = {"messages": [{"role": "user", "content": "x", "name": None}], **fields}
    if is_refused:
        with pytest.raises(pydantic.ValidationError):
            ChatRequest.model_validate(request)
    else:
        assert ChatRequest.model_validate(request).max_new_tokens is None


def test_a_body_that_is_not_json_is_named(server):
    import urllib.error
    import urllib.request

    cases = (
        (b'{"messages": []}', "application/x-www-form-urlencoded", "Content-Type: application/json"),  # curl's own
        (b'{"messages": []} x', "application/json", "not valid JSON, at character 17"),
        (b'{"messages": "\xe9"}', "application/json", "not valid JSON in UTF-8"),
        (b"[" * 100_000, "application/json", "not valid JSON"),
        (b"", "application/json", "the body must be a JSON object"),
        (b"[]", "application/json", "the body must be a JSON object"),
    )
    for body, kind, words in cases:
        request = urllib.request.Request(f"{server.url}/v1/chat/completions", body, {"Content-Type": kind})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        assert caught.value.code == 400
        assert words in caught.value.read().decode(), body[:20]


@pytest.mark.parametrize(("stop", "read"), [(None, []), ("a", ["a"]), (["a", "b"], ["a", "b"])])
def test_stop_strings_are_a_list(stop, read):
    assert ChatRequest.model_validate({"messages": [{"role": "user", "content": "x"}], "stop": stop}).stop == read
