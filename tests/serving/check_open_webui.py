"""Open WebUI, unmodified, gets answers from a live server with its default settings. `make test-clients` runs this.

It runs in an environment of its own, without the packages of its own embeddings and speech. The test does what its
page does: it opens a chat, sends a message with the id of a session, and reads the answer from the stored chat.
"""

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import pytest
from live import PATIENCE, free_port
from PIL import Image
from test_api import ASKED, DEMO, data_url, video

import videopanda

PROGRAM = Path(__file__).parents[2] / ".venv-open-webui" / "bin" / "open-webui"
pytestmark = [
    pytest.mark.timeout(900),  # two servers have to start
    pytest.mark.skipif(not PROGRAM.exists(), reason="Open WebUI is not installed here: make test-clients"),
]


@pytest.fixture(scope="module")
def call(server, tmp_path_factory):
    """A function that sends JSON to Open WebUI, as its only user."""
    folder, port = tmp_path_factory.mktemp("open-webui"), free_port()
    env = {
        **os.environ,
        "DATA_DIR": str(folder / "data"),
        "WEBUI_AUTH": "False",
        "WEBUI_SECRET_KEY": "none",
        "OPENAI_API_BASE_URLS": f"{server.url}/v1",
        "OPENAI_API_KEYS": "none",
        "ENABLE_OLLAMA_API": "False",
        "OFFLINE_MODE": "True",
        "RAG_EMBEDDING_ENGINE": "openai",
        "ANONYMIZED_TELEMETRY": "False",
    }
    headers = {"Content-Type": "application/json"}

    def send(path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
            return json.load(reply)

    with (folder / "log").open("wb") as log:
        command = [PROGRAM, "serve", "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + PATIENCE
            while True:
                is_starting = process.poll() is None and time.monotonic() < deadline
                assert is_starting, (folder / "log").read_text()[-3000:]
                try:
                    send("/health")
                    break
                except (urllib.error.URLError, ConnectionError):
                    time.sleep(0.5)
            headers["Authorization"] = f"Bearer {send('/api/v1/auths/signin', {'email': '', 'password': ''})['token']}"
            yield send
        finally:
            process.terminate()
            process.wait(PATIENCE)


def test_the_page_of_open_webui(call, client, tmp_path):
    """Its chats offer the model the tools of Open WebUI, unless the list of models says that it takes none."""
    (model,) = [one for one in call("/api/models")["data"] if one["id"] == "nano"]
    Image.new("RGB", (120, 90), "red").save(tmp_path / "a.png")
    picture = {"type": "image_url", "image_url": {"url": data_url(tmp_path / "a.png", "image/png")}}
    for content in (ASKED[0], [{"type": "text", "text": ASKED[0]}, picture]):
        asked, reply = str(uuid.uuid4()), str(uuid.uuid4())
        files = [] if content is ASKED[0] else [{"type": "image", "url": picture["image_url"]["url"]}]
        user = {"id": asked, "parentId": None, "childrenIds": [reply], "role": "user", "content": ASKED[0]}
        user |= {"files": files, "models": ["nano"], "timestamp": int(time.time())}
        empty = {"id": reply, "parentId": asked, "childrenIds": [], "role": "assistant", "content": "", "model": "nano"}
        history = {"messages": {asked: user, reply: empty}, "currentId": reply}
        opened = {"title": "New Chat", "models": ["nano"], "history": history, "messages": [user, empty]}
        chat = call("/api/v1/chats/new", {"chat": opened})["id"]
        messages = [{"role": "user", "content": content}]
        session = {"session_id": str(uuid.uuid4()), "chat_id": chat, "id": reply, "parent_id": asked}
        more = {"user_message": user, "model_item": model, "features": {}, "background_tasks": {}, **session}
        call("/api/chat/completions", {"stream": True, "model": "nano", "messages": messages, **more})
        deadline = time.monotonic() + PATIENCE
        while not (found := call(f"/api/v1/chats/{chat}")["chat"]["history"]["messages"][reply]).get("done"):
            assert time.monotonic() < deadline, found
            time.sleep(0.2)
        assert found.get("error") is None
        direct = client.chat.completions.create(model="nano", messages=messages)
        assert found["content"] == direct.choices[0].message.content
        assert found["usage"]["completion_tokens"] == direct.usage.completion_tokens


def test_the_api_of_open_webui_passes_a_video_on(call):
    content = [video(data_url()), {"type": "text", "text": ASKED[0]}]
    body = {"model": "nano", "stream": False, "messages": [{"role": "user", "content": content}]}
    reply = call("/api/chat/completions", body)
    assert reply["choices"][0]["message"]["content"] == str(videopanda.answer(DEMO, ASKED[0]))
