"""Protects the API: the official client against a live server, with the answers of the command line."""

import base64
import io
import json
import threading
import time
import urllib.error
import urllib.request

import openai
import pytest
import uvicorn
from live import PATIENCE, free_port
from PIL import Image

from command import run
from tiny import tiny_model, tiny_processor
from videopanda.inference.engine_thread import EngineThread
from videopanda.inference.load import BUNDLED_MODEL
from videopanda.serving.api import ServerSettings, create_app
from videopanda.serving.decoder_pool import DecodeLimits

pytestmark = pytest.mark.timeout(600)  # a server has to start
DEMO = BUNDLED_MODEL.parent / "demo.mp4"
ASKED = [item["question"] for item in json.loads(DEMO.with_suffix(".json").read_text(encoding="utf-8"))["questions"]]


def data_url(path=DEMO, mime="video/mp4"):
    return f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode()}"


def video(url):
    return {"type": "video_url", "video_url": {"url": url}}


def file(uploaded):
    return {"type": "file", "file": {"file_id": uploaded.id}}


def split_placeholder():
    return [{"type": "text", "text": "a <vid"}, {"type": "text", "text": "eo> b"}]


def ask(client, *parts, **fields):
    content = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in parts]
    return client.chat.completions.create(model="nano", messages=[{"role": "user", "content": content}], **fields)


@pytest.fixture(scope="module")
def wanted():
    """What the command line answers."""
    answers = {}
    for question in ASKED[:3]:
        code, out, _ = run("answer", DEMO, question)
        assert code == 0
        answers[question] = out.strip()
    return answers


# -- answers -----------------------------------------------------------------------------------------------------------
def test_answers_equal_those_of_the_command_line(client, uploaded, wanted):
    for question, answer in wanted.items():
        for part in (file(uploaded), video(data_url()), video(uploaded.id)):
            reply = ask(client, part, question)
            assert reply.choices[0].message.content == answer
            assert reply.choices[0].finish_reason == "stop"
        swapped = ask(client, question, file(uploaded))  # the order of the parts says nothing
        assert swapped.choices[0].message.content == answer
    usage = reply.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    about = reply.model_extra["videopanda"]
    assert usage.prompt_tokens > usage.prompt_tokens_details.cached_tokens > about["visual_tokens"] > 100
    assert len(about["frame_times"][0]) == 8


def test_streams_add_up_to_the_answer(client, uploaded, wanted):
    for question, answer in wanted.items():
        chunks = list(ask(client, file(uploaded), question, stream=True, stream_options={"include_usage": True}))
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == answer
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
        assert chunks[-1].usage.completion_tokens > 0
        assert chunks[-1].choices == []
        assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_is_server_sent_events(server, uploaded):
    body = {"messages": [{"role": "user", "content": "Hello?"}], "stream": True, "max_tokens": 3}
    request = urllib.request.Request(
        f"{server.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        events = answer.read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: "))["object"] == "chat.completion.chunk" for event in events[:-2])


def test_a_conversation_goes_on(client, uploaded):
    """Several turns are answered as the library's chat answers them."""
    from videopanda.inference.answer import Chat
    from videopanda.inference.load import load

    chat = Chat(*load(None, device="cpu"), DEMO)
    messages = []
    for question in ASKED[:3]:
        parts = [file(uploaded)] if not messages else []
        messages.append({"role": "user", "content": [*parts, {"type": "text", "text": question}]})
        reply = client.chat.completions.create(model="nano", messages=messages)
        assert reply.choices[0].message.content == chat.ask(question).answer
        messages.append({"role": "assistant", "content": reply.choices[0].message.content})


def test_frames_are_chosen_by_the_request(client, uploaded):
    from videopanda.inference.answer import ask as library
    from videopanda.inference.load import load

    loaded = load(None, device="cpu")
    for choice in ({"num_frames": 4}, {"start": 1.0, "end": 3.0}, {"num_frames": 12, "start": 0.5}):
        reply = ask(client, file(uploaded), ASKED[0], extra_body={"video": choice})
        (answer,) = library(*loaded, DEMO, [ASKED[0]], **choice)
        assert reply.choices[0].message.content == answer.answer
        assert tuple(reply.model_extra["videopanda"]["frame_times"][0]) == answer.frame_times
        assert reply.model_extra["videopanda"]["visual_tokens"] == answer.visual_tokens
    reply = ask(client, file(uploaded), ASKED[0], extra_body={"video": {"fps": 2.0, "end": 3.0, "max_side": 64}})
    assert len(reply.model_extra["videopanda"]["frame_times"][0]) == 6


def test_sampling_length_and_stop_strings(client, uploaded):
    def text(**fields):
        reply = ask(client, file(uploaded), "Describe the video.", max_tokens=30, **fields)
        return reply.choices[0].message.content, reply.choices[0].finish_reason

    drawn = [text(temperature=2.0, seed=seed)[0] for seed in (1, 2, 1)]
    assert drawn[0] == drawn[2] != drawn[1]
    assert text(temperature=2.0, seed=5, top_p=1e-6) == text()
    whole = text(temperature=2.0, seed=1)[0]
    stop = whole[3:5]
    assert text(temperature=2.0, seed=1, stop=[stop, "never said"]) == (whole[: whole.index(stop)].strip(), "stop")
    reply = ask(client, file(uploaded), ASKED[0], max_completion_tokens=1)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 1


def test_images_and_several_videos(client, uploaded, tmp_path):
    Image.new("RGB", (120, 90), "red").save(tmp_path / "a.png")
    picture = {"type": "image_url", "image_url": {"url": data_url(tmp_path / "a.png", "image/png")}}
    reply = ask(client, picture, file(uploaded), "Which of them is red?", max_tokens=5)
    assert [len(times) for times in reply.model_extra["videopanda"]["frame_times"]] == [1, 8]


# -- files, models, health ---------------------------------------------------------------------------------------------
def test_files_are_kept_listed_and_deleted(client):
    one = client.files.create(file=("my clip.mp4", DEMO.read_bytes()), purpose="user_data")
    assert (one.filename, one.bytes) == ("my clip.mp4", DEMO.stat().st_size)
    assert one.id in [entry.id for entry in client.files.list()]
    assert client.files.content(one.id).read() == DEMO.read_bytes()
    assert client.files.retrieve(one.id).id == one.id
    assert client.files.delete(one.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(one.id)
    with pytest.raises(openai.NotFoundError, match="upload it first"):
        ask(client, file(one), "What?")


def test_files_are_listed_in_pages_and_expire_when_asked(client, server):
    """`limit`, `after`, `order` and `purpose` as in OpenAI's API; the client follows the pages by itself."""
    sent = [client.files.create(file=(f"{i}.mp4", DEMO.read_bytes()), purpose="vision").id for i in range(3)]
    pages = list(client.files.list(limit=2, purpose="vision", order="asc").iter_pages())
    assert [len(page.data) for page in pages if page.data] == [2, 1]
    assert [one.id for page in pages for one in page.data] == sent
    assert [one.id for one in client.files.list(limit=1, purpose="vision").data] == sent[-1:]
    assert client.files.list(purpose="batch").data == []
    with pytest.raises(openai.BadRequestError, match="limit"):
        client.files.list(limit=0)
    with pytest.raises(openai.NotFoundError):
        client.files.list(after="file-none")
    short = client.files.create(
        file=("b.mp4", DEMO.read_bytes()),
        purpose="vision",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert 3599 <= short.expires_at - short.created_at <= 3601
    with pytest.raises(openai.BadRequestError, match="at most 86400 seconds"):
        client.files.create(
            file=("b.mp4", DEMO.read_bytes()),
            purpose="vision",
            expires_after={"anchor": "created_at", "seconds": 86_401},
        )
    for id_ in [*sent, short.id]:
        client.files.delete(id_)


def test_frames_with_times_are_shown(server, uploaded):
    with urllib.request.urlopen(f"{server.url}/v1/files/{uploaded.id}/frames?num_frames=5", timeout=PATIENCE) as answer:
        shown = json.load(answer)
    assert len(shown["data"]) == 5
    for frame in shown["data"]:
        picture = Image.open(io.BytesIO(base64.b64decode(frame["image"].partition(",")[2])))
        assert max(picture.size) == 160
        assert 0 <= frame["time"] < shown["duration"]
    for query, reason in (("frames=5", "frames: this server does not know this field"), ("start=3&end=1", "end must")):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{server.url}/v1/files/{uploaded.id}/frames?{query}", timeout=PATIENCE)
        assert json.load(refused.value)["error"]["message"].startswith(reason)


def test_the_model_is_told(client, server):
    (model,) = client.models.list()
    assert client.models.retrieve(model.id).id == model.id == "nano"
    assert model.model_extra["architecture"]["input_modalities"] == ["text", "image", "video"]
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt")
    assert caught.value.code == "model_not_found"
    assert f"nano is at {server.url}, its API at {server.url}/v1" in server.said()
    health = server.health()
    assert health == {"status": "ok", "model": "nano", "needs_key": False, "running": 0, "waiting": 0}
    before = server.metric('videopanda_tokens_total{kind="completion"}')
    usage = ask(client, "Hello?", max_tokens=3).usage
    assert server.metric('videopanda_tokens_total{kind="completion"}') == before + usage.completion_tokens


def test_fields_that_are_null_or_change_nothing_are_accepted(client, uploaded, wanted):
    neutral = {"top_k": -1, "min_p": 0, "repetition_penalty": 1.0, "stream": None, "a_later_field": None}
    part = {**file(uploaded), "num_frames": None}
    assert (
        ask(client, part, ASKED[0], verbosity="low", extra_body=neutral).choices[0].message.content == wanted[ASKED[0]]
    )


# -- errors ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"model": "gpt"}, 404, "unknown model 'gpt'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "audio_url"}]}]},
            400,
            "type 'audio_url' is not supported",
        ),
        ({"messages": [{"role": "user", "content": [{"video_url": "file-1"}]}]}, 400, r"content\[0\]: type is missing"),
        ({"messages": [{"role": "user", "content": ["What?"]}]}, 400, r"content\[0\]: must be an object"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, 400, "disagree"),
        ({"temperature": 3}, 400, "temperature"),
        ({"n": 2}, 400, "n: "),
        ({"extra_body": {"top_q": 1}}, 400, "top_q: this server does not know this field: omit it"),
        ({"extra_body": {"top_k": 5}}, 400, "top_k: Input should be -1 or 0"),
        ({"extra_body": {"video": {"fps": 1, "num_frames": 3}}}, 400, "not both"),
        ({"extra_body": {"video": {"num_frames": 33}}}, 422, "more than 32 frames"),
        ({"extra_body": {"video": {"start": 1000}}}, 422, "lasts only"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": " "}]}, 400, "has no text"),
        ({"messages": [{"role": "user", "content": "a <video> b"}]}, 400, "must not contain <video>"),
        ({"messages": [{"role": "assistant", "content": "?"}]}, 400, "last message"),
        ({"messages": [{"role": "user", "content": None}]}, 400, r"messages\[0\]: content is empty"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tool calling is not supported"),
        ({"messages": [{"role": "user", "content": split_placeholder()}]}, 400, "must not contain <video>"),
    ],
)
def test_mistakes_are_told_in_openais_words(client, uploaded, fields, status, message):
    messages = [{"role": "user", "content": [file(uploaded), {"type": "text", "text": "What?"}]}]
    with pytest.raises(openai.APIStatusError, match=message) as caught:
        client.chat.completions.create(**{"model": "nano", "messages": messages, **fields})
    assert caught.value.status_code == status
    assert set(caught.value.body) == {"message", "type", "param", "code"}


def test_what_is_too_long_for_the_context_is_told_with_openais_code(client, uploaded):
    """In the text alone, in the frames, or in both together."""
    for parts in (["word " * 3000], [file(uploaded), "word " * 1900], [*[file(uploaded)] * 20, "What?"]):
        with pytest.raises(openai.BadRequestError, match=r"longer than the model's context length.*2,?048") as caught:
            ask(client, *parts)
        assert caught.value.body["code"] == "context_length_exceeded"


def test_a_longer_reply_than_there_is_room_for_is_shortened(client, uploaded):
    """max_tokens above the server's limit, and above what the context has left."""
    reply = ask(client, "Tell me all.", temperature=2.0, seed=1, max_tokens=100_000)
    assert reply.usage.completion_tokens <= 1024
    long = ask(client, file(uploaded), "word " * 200, temperature=2.0, seed=2, max_tokens=1024)
    assert long.usage.total_tokens <= 2048


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v2", 404), ("PUT", "/v1/files", 405)])
def test_wrong_paths_and_methods_have_the_same_errors(server, method, path, status):
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(server.url + path, method=method), timeout=PATIENCE)
    with caught.value as answer:
        assert answer.status == status
        error = json.load(answer)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert ("the API is below /v1" in error["message"]) == (path == "/v2")


def test_a_client_that_goes_away_is_not_answered_on(tmp_path):
    """A model that never ends by itself; what was asked of it would take minutes."""
    model = tiny_model()
    model.generation_config.eos_token_id = None
    model.config.text_config.max_position_embeddings = 1 << 16
    engine = EngineThread(model, tiny_processor())
    settings = ServerSettings("tiny", tmp_path / "files", max_tokens=50_000, decode=DecodeLimits(workers=1))
    app, port = create_app(engine, settings), free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + PATIENCE
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.05)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=PATIENCE, max_retries=0)
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "Tell me."}], "max_tokens": 50_000}
    stream = client.chat.completions.create(**asked, stream=True)
    next(stream)
    next(stream)
    stream.close()
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=1.0).chat.completions.create(**asked)
    while engine.load != (0, 0) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert b'tokens_total{kind="completion"}' not in app.state.service.metrics.text()  # nothing was answered to its end
    server.should_exit = True
    thread.join(PATIENCE)
    assert not engine.is_alive
