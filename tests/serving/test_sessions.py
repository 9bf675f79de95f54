"""Protects streaming sessions of the server: frames, chunks and questions over HTTP and WebSocket give the answers of
the library; keys, owners and hosts hold; idle sessions are freed and their number is bounded."""

import base64
import io
import socket
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient, WebSocketDisconnect

from compressed import compressed
from media import write_video
from tiny import clip
from videopanda.inference.engine_thread import EngineThread
from videopanda.inference.session import VideoSession
from videopanda.serving import run
from videopanda.serving.api import ServerSettings, create_app
from videopanda.serving.decoder_pool import DecodeLimits
from videopanda.serving.sessions import SessionLimits
from videopanda.video.read import read_video

PATH, QUESTION = "/v1/streaming/sessions", "What colour is the circle?"
HEADERS = {"Authorization": "Bearer one"}


def png(image) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


@pytest.fixture(scope="module")
def loaded():
    return compressed("elva", {"kind": "pool", "pool_time": 2})


@pytest.fixture(scope="module")
def client(loaded, tmp_path_factory):
    settings = ServerSettings(
        "tiny",
        tmp_path_factory.mktemp("files"),
        keys=("one", "two"),
        hosts=("testserver",),
        decode=DecodeLimits(workers=1),
        sessions=SessionLimits(max_sessions=3, idle_seconds=1000),
    )
    with TestClient(create_app(EngineThread(*loaded), settings), headers=HEADERS) as client:
        yield client


def opened(client, **fields) -> str:
    reply = client.post(PATH, json=fields)
    assert reply.status_code == 200, reply.text
    return reply.json()["id"]


def test_frames_chunks_and_questions_give_the_answers_of_the_library(client, loaded, tmp_path):
    frames, video = clip(5), write_video(tmp_path / "a.mp4", range(30), fps=10, size=(40, 30))
    name = opened(client, max_visual_tokens=100)
    local = VideoSession(*loaded, max_visual_tokens=100, max_new_tokens=6)
    for second, image in enumerate(frames[:3]):
        reply = client.post(f"{PATH}/{name}/frame?timestamp={second}", content=png(image))
        assert reply.json()["frames"] == second + 1, reply.text
        local.push(image, float(second))
    data = f"data:image/png;base64,{base64.b64encode(png(frames[3])).decode()}"
    client.post(f"{PATH}/{name}/frame", json={"image": data, "timestamp": 3.0})
    local.push(frames[3], 3.0)
    reply = client.post(f"{PATH}/{name}/chunk?fps=2", content=video.read_bytes())
    assert reply.json() == {"id": name, "object": "streaming.frame", "frames": 10, "timestamp": 4.0}
    read = read_video(video, fps=2)
    for image, moment in zip(read.frames, read.times):
        local.push(image, 4.0 + moment)
    asked = client.post(f"{PATH}/{name}/ask", json={"question": QUESTION, "max_tokens": 6}).json()
    expected = local.ask(QUESTION)
    assert (asked["answer"], asked["visual_tokens"]) == (expected.answer, expected.visual_tokens)
    assert (asked["timestamp"], asked["frames"]) == (7.0, 10)
    state = client.get(f"{PATH}/{name}").json()
    assert sum(count for *_, count in state["log"]["steps"]) == 10
    with client.websocket_connect(f"{PATH}/{name}/ws") as connection:
        connection.send_bytes(png(frames[4]))
        assert connection.receive_json()["frames"] == 11
        connection.send_json({"type": "ask", "question": QUESTION, "max_tokens": 6})
        local.push(frames[4], 7.0)
        assert connection.receive_json()["answer"] == local.ask(QUESTION).answer
        connection.send_json({"type": "sing"})
        assert "frame, chunk or ask" in connection.receive_json()["error"]["message"]
        connection.send_json({"type": "chunk", "video": base64.b64encode(video.read_bytes()).decode(), "fps": 2})
        assert connection.receive_json()["frames"] == 17
        assert client.delete(f"{PATH}/{name}").json()["deleted"]
        connection.send_bytes(png(frames[4]))  # the session is gone, and so is the connection
        assert "no session" in connection.receive_json()["error"]["message"]
        with pytest.raises(WebSocketDisconnect):
            connection.receive_json()
    assert client.get(f"{PATH}/{name}").status_code == 404


def test_the_server_that_is_run_accepts_websockets(monkeypatch):
    """Not only the application in these tests."""
    made = []

    class Server:
        def __init__(self, config):
            made.append(config)

        def run(self, sockets):
            made[0].load()

    monkeypatch.setattr(run.uvicorn, "Server", Server)
    monkeypatch.setattr(run, "load", lambda *args, **kwargs: (None, None))
    monkeypatch.setattr(run, "EngineThread", lambda *args, **kwargs: None)
    monkeypatch.setattr(run, "create_app", lambda *args: None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        run.serve(None, None, listener, run.Limits(), ServerSettings("tiny", Path()))
    (config,) = made
    assert config.ws == "auto"
    assert config.ws_protocol_class is not None


def test_keys_owners_and_hosts_hold(client):
    name = opened(client)
    assert client.post(PATH, json={}, headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get(f"{PATH}/{name}", headers={"Authorization": "Bearer two"}).status_code == 404
    for headers in ({"Authorization": "Bearer wrong"}, {"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        with pytest.raises(WebSocketDisconnect), client.websocket_connect(f"{PATH}/{name}/ws", headers=headers):
            pass
    client.delete(f"{PATH}/{name}")


def test_sessions_are_bounded_and_freed_when_idle(client, monkeypatch):
    names = [opened(client) for _ in range(3)]
    refused = client.post(PATH, json={})
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    store = client.app.state.service.sessions
    store._open[names[0]].used -= 2000
    assert client.post(PATH, json={}).status_code == 200
    assert client.get(f"{PATH}/{names[0]}").status_code == 404
    for name in list(store._open):
        client.delete(f"{PATH}/{name}")
    assert len(store) == 0


def test_what_makes_no_sense_is_refused_in_a_line(client):
    name = opened(client, last_frames=2)
    for path, arguments, part in (
        (f"/{name}/frame", {"content": b""}, "body is empty"),
        (f"/{name}/frame", {"content": b"no picture"}, "cannot read this video"),
        (f"/{name}/frame", {"json": {"image": "%%%"}}, "data URL, or base64"),
        (f"/{name}/ask", {"json": {"question": QUESTION}}, "no frame has been pushed yet"),
        (f"/{name}/ask", {"json": {"question": ""}}, "question"),
        ("", {"json": {"frames": 1}}, "frames"),
        ("", {"json": {"max_visual_tokens": 10**6}}, "at most 8192"),
        ("", {"json": {"model": "other"}}, "unknown model"),
    ):
        reply = client.post(PATH + path, **arguments)
        assert 400 <= reply.status_code < 500, reply.text
        assert part in reply.json()["error"]["message"]
    client.post(f"{PATH}/{name}/frame?timestamp=5", content=png(clip(1)[0]))
    late = client.post(f"{PATH}/{name}/frame?timestamp=2", content=png(clip(1)[0]))
    assert "must not decrease" in late.json()["error"]["message"]
    client.delete(f"{PATH}/{name}")


def test_what_is_pushed_without_a_time_follows_what_was_pushed_last(client, tmp_path):
    """Chunks of half a second counted as a second each, and nothing could follow a first time."""
    half, more = (write_video(tmp_path / f"{count}.mp4", range(count), fps=10).read_bytes() for count in (5, 25))
    name = opened(client)
    times = [client.post(f"{PATH}/{name}/frame?timestamp=12.5", content=png(clip(1)[0])).json()["timestamp"]]
    for path, content in (
        ("frame", png(clip(1)[0])),
        ("chunk", half),
        ("chunk", half),
        ("chunk", more),
        ("chunk", half),
    ):
        times.append(client.post(f"{PATH}/{name}/{path}", content=content).json()["timestamp"])
    assert times == [12.5, 13.5, 14.5, 15.0, 15.5, 18.0]
    asked = client.post(f"{PATH}/{name}/ask", json={"question": QUESTION, "max_tokens": 2})
    assert asked.json()["timestamp"] == 18.5
    data = {"image": base64.b64encode(png(clip(1)[0])).decode()}
    assert client.post(f"{PATH}/{name}/frame?timestamp=20", json=data).json()["timestamp"] == 20
    client.delete(f"{PATH}/{name}")


def test_a_frame_is_a_picture_and_a_chunk_a_video(client, tmp_path):
    """Of a video, the picture in its middle was taken."""
    name, video = opened(client), write_video(tmp_path / "a.mp4", range(25), fps=10).read_bytes()
    for path, content, said in (
        ("frame", video, "push it as a chunk"),
        ("chunk", png(clip(1)[0]), "push it as a frame"),
    ):
        reply = client.post(f"{PATH}/{name}/{path}", content=content)
        assert reply.status_code == 400
        assert said in reply.json()["error"]["message"]
    assert client.get(f"{PATH}/{name}").json()["frames"] == 0
    client.delete(f"{PATH}/{name}")


def test_a_session_is_not_idle_while_it_is_asked(client):
    name = opened(client)
    store = client.app.state.service.sessions
    session = store._open[name]
    with session.in_use():
        session.used -= 2000
        store.free_idle()
        assert name in store._open
    store.free_idle()
    assert name in store._open  # not used for long only from here on
    client.delete(f"{PATH}/{name}")
