"""Protects the server where things meet: requests that are given up while files are decoded, numbers that are read
while another thread writes, and fields in places that disagree."""

import asyncio
import base64
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

import coroutines
from compressed import compressed
from media import write_video
from videopanda.inference.clip import ClipMemoryCache, EncodedClip
from videopanda.inference.engine_thread import EngineThread
from videopanda.serving.api import ServerSettings, create_app
from videopanda.serving.decoder_pool import DecodeLimits, DecoderPool
from videopanda.serving.errors import UnfitError
from videopanda.serving.fetch import FetchPolicy
from videopanda.serving.media import MediaLoader
from videopanda.serving.prompt import PromptRules
from videopanda.serving.protocol import ChatRequest
from videopanda.serving.uploads import FileLimits, FileStore, StoredFile

TEXT = {"type": "text", "text": "What colour is the circle?"}


@pytest.fixture(scope="module")
def loaded():
    return compressed("elva", {"kind": "pool", "pool_time": 2})


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    video = write_video(tmp_path_factory.mktemp("video") / "a.mp4", range(10), fps=10)
    return f"data:video/mp4;base64,{base64.b64encode(video.read_bytes()).decode()}"


@pytest.fixture(scope="module")
def client(loaded, tmp_path_factory):
    settings = ServerSettings("owner/name", tmp_path_factory.mktemp("files"), decode=DecodeLimits(workers=1))
    with TestClient(create_app(EngineThread(*loaded), settings)) as client:
        yield client


def refused(client, part):
    reply = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": [part, TEXT]}]})
    return reply.status_code, reply.json()["error"]["message"]


def test_a_model_with_the_name_of_a_repository_is_found(client):
    (model,) = client.get("/v1/models").json()["data"]
    assert client.get(f"/v1/models/{model['id']}").json() == model
    assert client.get("/v1/models/owner%2Fname").json() == model
    assert client.get("/v1/models/").json() == client.get("/v1/models").json()
    assert "unknown model 'owner'" in client.get("/v1/models/owner").json()["error"]["message"]


def test_a_rate_beside_an_address_and_a_number_in_it_disagree(client, url):
    part = {"type": "video_url", "fps": 1.0, "video_url": {"url": url, "num_frames": 3}}
    assert "choose different frames" in refused(client, part)[1]


def test_an_id_that_is_none_is_not_taken_for_an_address(client):
    status, said = refused(client, {"type": "file", "file": {"file_id": "file_abc"}})
    assert (status, "no file with the id 'file_abc'" in said) == (404, True)


def test_the_message_of_a_cut_response_is_incomplete(client):
    body = {"input": TEXT["text"], "max_output_tokens": 2, "stream_options": {"include_obfuscation": False}}
    reply = client.post("/v1/responses", json=body).json()
    assert (reply["status"], reply["output"][0]["status"]) == ("incomplete", "incomplete")


def test_an_upload_that_is_broken_off_is_no_error_of_the_server(client):
    """It was logged with a traceback."""
    name = client.post("/v1/streaming/sessions", json={}).json()["id"]
    sent = []

    async def push() -> None:
        messages = iter([{"type": "http.request", "body": b"abc", "more_body": True}, {"type": "http.disconnect"}])

        async def receive():
            return next(messages)

        async def send(message):
            sent.append(message)

        path = f"/v1/streaming/sessions/{name}/frame"
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
                 "headers": [], "http_version": "1.1", "scheme": "http", "server": ("testserver", 80),
                 "root_path": "", "app": client.app}  # fmt: skip
        await client.app(scope, receive, send)

    coroutines.run(push())
    assert sent[0]["status"] == 499


def test_requests_that_are_given_up_decode_no_more_than_there_are_slots(loaded, url, tmp_path):
    running, most = 0, 0

    class Pool:
        limits = DecodeLimits(workers=2)

        async def read(self, path, **choice):
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.5)
            running -= 1
            raise UnfitError("slow")

    async def ask_and_go() -> None:
        rules = PromptRules(loaded[1], 2048)
        media = MediaLoader(rules, ClipMemoryCache(0), Pool(), FileStore(tmp_path, FileLimits()), FetchPolicy())
        asked = []
        for number in range(6):
            part = {"type": "video_url", "video_url": {"url": url, "end": 0.5 + number / 100}}
            request = ChatRequest.model_validate({"messages": [{"role": "user", "content": [part, TEXT]}]})
            asked.append(asyncio.create_task(media.conversation(request, "")))
            await asyncio.sleep(0.05)
            asked[-1].cancel()
        assert all(
            isinstance(one, asyncio.CancelledError) for one in await asyncio.gather(*asked, return_exceptions=True)
        )
        assert not list((tmp_path / "parts").iterdir())

    coroutines.run(ask_and_go())
    assert 1 <= most <= 2


def test_a_worker_is_never_lost_however_often_a_request_is_cancelled(tmp_path):
    async def cancel_twice() -> None:
        pool = DecoderPool(DecodeLimits(workers=1))
        (worker,) = pool._workers
        never, begun = asyncio.Event(), asyncio.Event()

        async def hang(*_: object) -> None:
            begun.set()
            await never.wait()

        async def started() -> None:
            return None

        worker.start, worker.ask, worker.kill = started, hang, hang
        pool._free.put_nowait(worker)
        reading = asyncio.create_task(pool.read(tmp_path, num_frames=1))
        for _ in range(2):
            await begun.wait()
            begun.clear()
            reading.cancel()
        await asyncio.wait([reading])
        assert pool._free.qsize() == 1

    coroutines.run(cancel_twice())


@pytest.mark.parametrize("what", ["clips", "files"])
def test_bytes_are_counted_while_another_thread_adds(what, tmp_path):
    """Uploads and /metrics ended in status 500: "mutated during iteration"."""
    clip, cache, store = EncodedClip("a", "video", ""), ClipMemoryCache(1 << 30), FileStore(tmp_path, FileLimits())
    cache.put(clip)
    files = [StoredFile(f"{n}", "", "", "", 1, "", "", "", 0, 1e12, tmp_path / "none") for n in range(200)]
    store._known = {file.id: file for file in files}
    stopped = False

    def write() -> None:
        number = 0
        while not stopped:
            number += 1
            if what == "clips":
                clip.keep_prefix((("a",), (number,)), SimpleNamespace(num_bytes=1))
            else:
                store._known.pop(f"{number % 200}")
                store._known[f"{number % 200}"] = files[number % 200]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    writer = threading.Thread(target=write)
    writer.start()
    try:
        end = time.monotonic() + 1
        while time.monotonic() < end:
            assert cache.num_bytes >= 0
            assert store.num_bytes >= 0
    finally:
        stopped = True
        writer.join()
        sys.setswitchinterval(interval)


def test_an_upload_is_not_closed_while_a_thread_writes_it(tmp_path):
    """Its descriptor could by then belong to another file."""
    store, begun, was_open = FileStore(tmp_path, FileLimits()), threading.Event(), []
    with store.new("a.mp4", "me") as upload:
        opened = upload._opened

        class Slow:
            close = opened.close

            def write(self, content: bytes) -> int:
                begun.set()
                time.sleep(0.1)
                was_open.append(not opened.closed)
                return opened.write(content)

        upload._opened = Slow()
        writer = threading.Thread(target=upload.write, args=(b"abc",))
        writer.start()
        assert begun.wait(10)
    writer.join()
    assert was_open == [True]
    assert not list((tmp_path / "parts").iterdir())
    with pytest.raises(ValueError, match="closed"):
        opened.write(b"d")
