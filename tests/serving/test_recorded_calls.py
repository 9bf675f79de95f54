"""Protects the calls of two programs that are not installed here, as their code makes them.

Open WebUI 0.12.4 (`routers/openai.py`, `routers/tasks.py` of its wheel) lists the models, streams an answer with its
usage, and then asks for a title of the chat without a stream. It attaches pictures; it has no part for a video.
VLMEvalKit's model for OpenAI-compatible servers (`vlmeval/api/lmdeploy.py`; it is not on PyPI) takes the first model of
the list, and sends the frames of a video as JPEG pictures beside the text.
"""

import base64
import io
import json
import urllib.request

import pytest
from live import PATIENCE
from PIL import Image
from test_api import ASKED, DEMO

from videopanda.video.read import read_video

pytestmark = pytest.mark.timeout(600)  # a server has to start
HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer none"}


def call(server, path, body=None, **headers):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{server.url}/v1{path}", data, {**HEADERS, **headers})
    with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
        return reply.headers["Content-Type"], reply.read().decode()


@pytest.fixture(scope="module")
def pictures():
    """Parts with four frames of the clip."""
    parts = []
    for frame in read_video(DEMO, num_frames=4).frames:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG")
        url = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return parts


def test_open_webui(server, pictures):
    _, text = call(server, "/models")
    (model,) = json.loads(text)["data"]
    assert {"id": "nano", "object": "model"}.items() <= model.items()
    assert model["info"]["meta"]["capabilities"]["builtin_tools"] is False  # else its page sends tools in every chat
    content = [{"type": "text", "text": ASKED[0]}, pictures[0]]
    body = {
        "stream": True,
        "model": model["id"],
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}],
        "stream_options": {"include_usage": True},
        "temperature": 0.7,  # what a user may set for a model
        "top_p": 0.9,
        "seed": 1,
        "max_tokens": 16,
        "stop": ["\n"],
    }
    kind, text = call(server, "/chat/completions", body, **{"X-OpenWebUI-User-Name": "Ann"})
    assert kind.startswith("text/event-stream")
    lines = [line for line in text.split("\n") if line]
    assert lines.pop() == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks[:-1])
    assert chunks[-1]["usage"]["completion_tokens"] > 0
    title = {
        "model": "nano",
        "messages": [{"role": "user", "content": "### Task:\nGenerate a title."}],
        "stream": False,
    }
    _, text = call(server, "/chat/completions", {**title, "max_tokens": 1000})
    assert json.loads(text)["choices"][0]["message"]["content"]


def test_vlmevalkit(server, pictures):
    _, text = call(server, "/models")
    model = json.loads(text)["data"][0]["id"]
    content = [*pictures, {"type": "text", "text": ASKED[0]}]
    messages = [{"role": "user", "content": content}]
    body = {"model": model, "messages": messages, "max_tokens": 1024, "n": 1, "temperature": 0.0}
    _, text = call(server, "/chat/completions", body)
    reply = json.loads(text)
    assert reply["choices"][0]["message"]["content"].strip()
    assert reply["videopanda"]["visual_tokens"] == 4 * 19  # of four pictures
