"""Protects explanations and searches over HTTP: those of the library, about any turn, with progress, within the limits,
and given up with the client.
"""

import http.client
import json
import time
import urllib.error
import urllib.request

import pytest
from fastapi.testclient import TestClient
from live import PATIENCE, run_async
from PIL import Image
from test_api import ASKED, DEMO, data_url, file, video

from videopanda.inference.engine_thread import EngineThread
from videopanda.inference.explain import explain
from videopanda.serving.analyses import _lines
from videopanda.serving.api import ServerSettings, create_app
from videopanda.serving.decoder_pool import DecoderPool
from videopanda.serving.errors import BusyError

pytestmark = pytest.mark.timeout(600)  # a server has to start
QUESTION = ASKED[1]


def post(server, body, path="/v1/explain"):
    """Status and body."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.url}{path}", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def streamed(server, path, body):
    """The events of a stream, up to its end."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.url}{path}", json.dumps({**body, "stream": True}).encode(), headers)
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        *lines, last = answer.read().decode().split("\n\n")[:-1]
    assert last == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def turn(*parts, text=QUESTION):
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def test_it_is_the_explanation_of_the_library(server, uploaded, nano):
    choices = ({}, {"num_frames": 4, "start": 1.0})
    for choice, regions in zip(choices, (True, False)):
        status, found = post(server, {"messages": [turn({**file(uploaded), **choice})], "regions": regions})
        wanted = explain(*nano, DEMO, QUESTION, regions=regions, **choice).as_dict()
        assert (status, found["object"], found["answer"]) == (200, "explanation", wanted["answer"])
        for name in ("probability", "empty"):
            assert found[name] == pytest.approx(wanted[name], abs=1e-4)
        for mine, theirs in zip(found["frames"], wanted["frames"], strict=True):
            assert mine == pytest.approx(theirs, abs=1e-3)
        for mine, theirs in zip(found["regions"], wanted["regions"], strict=True):
            assert mine == pytest.approx(theirs, abs=1e-4)
        # measured worst difference of each: 0.0
    assert found["requests"] == 2 + 2 * 4
    assert found["visual_tokens"] > 50
    assert found["seconds"] > 0


def test_a_later_turn_a_sampled_answer_and_an_image(server, client, uploaded, tmp_path):
    earlier = [turn(file(uploaded)), {"role": "assistant", "content": "red"}]
    fields = {"messages": [*earlier, turn(text=ASKED[0])], "temperature": 0.8, "seed": 3}
    reply = client.chat.completions.create(model="nano", **fields)
    status, found = post(server, {**fields, "regions": False})
    assert (status, found["answer"]) == (200, reply.choices[0].message.content)
    path = tmp_path / "red.png"
    Image.new("RGB", (120, 80), (220, 30, 30)).save(path)
    image = {"type": "image_url", "image_url": {"url": data_url(path, "image/png")}}
    status, found = post(server, {"messages": [turn(image)]})
    assert (status, len(found["frames"])) == (200, 1)
    assert found["probability"] == pytest.approx(found["empty"], abs=1e-4)  # it is of one color itself
    assert {region["frame"] for region in found["regions"]} == {0}


def test_a_stream_tells_the_progress_and_ends_with_the_same(server, uploaded):
    explanation = {"messages": [turn(file(uploaded))]}
    search = {"video": file(uploaded), "description": "the circle is white"}
    for path, body in (("/v1/explain", explanation), ("/v1/find", search)):
        *progress, found = streamed(server, path, body)
        assert {event["object"] for event in progress} == {found["object"] + ".progress"}
        done, totals = [event["done"] for event in progress], [event["total"] for event in progress]
        assert done[0] == 0
        assert done == sorted(set(done))
        assert done[-1] == totals[-1] == found.get("requests", done[-1])
        if path == "/v1/explain":
            assert set(totals) == {totals[0]}  # known from the start
        else:
            assert totals[0] == pytest.approx(totals[-1], rel=0.5)
        whole = post(server, body, path)[1]
        assert {**whole, "seconds": 0} == {**found, "seconds": 0}


def test_an_error_in_a_stream_ends_it():
    """Too late for a status: the last event says it, and there is no [DONE]."""

    async def events():
        yield {"object": "find.progress", "done": 8, "total": 16}
        raise BusyError("the queue is full: retry later")

    async def lines():
        return [json.loads(line.removeprefix("data: ")) async for line in _lines({"done": 0}, events())]

    *_, progress, last = run_async(lines())
    assert progress["done"] == 8
    assert last["error"]["message"] == "the queue is full: retry later"


def test_frames_are_decoded_once_for_answers_baselines_and_explanations(nano, tmp_path, monkeypatch):
    reads = []
    read = DecoderPool.read

    async def counted(self, path, **choice):
        reads.append(choice)
        return await read(self, path, **choice)

    monkeypatch.setattr(DecoderPool, "read", counted)
    app = create_app(EngineThread(*nano), ServerSettings("nano", tmp_path / "files"))
    with TestClient(app, base_url="http://localhost") as client:
        stored = client.post("/v1/files", files={"file": DEMO.read_bytes()}, data={"purpose": "user_data"}).json()
        part = {"type": "file", "file": {"file_id": stored["id"]}}

        def ask(path, shown, **fields):
            body = {"messages": [turn(shown)], **fields}
            assert client.post(path, json=body).status_code == 200

        ask("/v1/chat/completions", part)
        ask("/v1/chat/completions", {**part, "baseline": "shuffled"})
        ask("/v1/explain", part, regions=False)
        assert len(reads) == 1
        app.state.service.media.max_recent_bytes = 0
        ask("/v1/chat/completions", {**part, "num_frames": 2})
        ask("/v1/explain", part, regions=False)
        assert len(reads) == 3  # what does not fit is not kept


def test_what_cannot_be_explained_is_refused_in_one_line(server, uploaded):
    part = file(uploaded)
    for body, status, said in (
        ({"messages": [turn()]}, 400, "about one video or image: the messages contain 0"),
        ({"messages": [turn(part, part)]}, 400, "the messages contain 2"),
        ({"messages": [turn({**part, "baseline": "shuffled"})]}, 400, "omit baseline"),
        ({"messages": [turn(part)], "stream_options": {"include_usage": True}, "stream": True}, 400, "stream_options"),
        ({"messages": [turn(video("file-none"))], "stream": True}, 404, "file"),
        ({"messages": [turn(part)], "model": "other"}, 404, "unknown model"),
        ({"messages": [turn(video("file-none"))]}, 404, "file"),
        ({"messages": [turn(part)], "logprobs": True}, 400, "logprobs"),
    ):
        found, answer = post(server, body)
        assert (found, said in answer["error"]["message"]) == (status, True), answer


def test_it_ends_with_its_client(server, uploaded):
    """The engine does no more than what it was asked before the client left."""
    body = json.dumps({"messages": [turn({**file(uploaded), "num_frames": 32})]}).encode()
    line = 'videopanda_requests_total{path="/v1/explain",status="499"}'
    gone, tokens = server.metric(line), server.metric('videopanda_tokens_total{kind="prompt"}')
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    connection.request("POST", "/v1/explain", body, {"Content-Type": "application/json"})
    while server.metric('videopanda_tokens_total{kind="prompt"}') == tokens:
        time.sleep(0.02)
    connection.close()
    while server.metric(line) == gone:
        time.sleep(0.02)
    server.idle()
    tokens = server.metric('videopanda_tokens_total{kind="prompt"}')
    time.sleep(0.5)
    assert server.metric('videopanda_tokens_total{kind="prompt"}') == tokens
