"""Protects the gate: who may come in by host and origin, and that slow, half-sent or huge requests delay nobody."""

import asyncio
import gzip
import http.client
import json
import resource
import socket
import threading
import time

import pytest
import uvicorn
from live import PATIENCE, Server, free_port, run_async
from PIL import Image
from test_api import DEMO

from tiny import tiny_model, tiny_processor
from videopanda.cli import serve as cli
from videopanda.inference.engine_thread import EngineThread
from videopanda.serving import run
from videopanda.serving.api import ServerSettings, create_app
from videopanda.serving.decoder_pool import DecodeLimits, DecoderPool
from videopanda.serving.fetch import FetchPolicy
from videopanda.serving.media import MediaLoader
from videopanda.serving.metrics import Metrics
from videopanda.serving.middleware import GateLimits, RequestGate
from videopanda.serving.prompt import PromptRules
from videopanda.serving.protocol import ChatRequest
from videopanda.serving.uploads import FileLimits, FileStore

pytestmark = pytest.mark.timeout(600)
CHAT = "/v1/chat/completions"
HELLO = json.dumps({"messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 1}).encode()


def send(server, method="POST", path=CHAT, body=HELLO, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    try:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, {"Content-Type": "application/json", **given})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


# -- hosts and origins -------------------------------------------------------------------------------------------------
def test_only_its_own_names_are_answered_on_loopback(server):
    """A page of evil.example whose name was made to mean 127.0.0.1 is, for its browser, of one origin with the API."""
    own = f"127.0.0.1:{server.port}"
    for host in (own, f"localhost:{server.port}", f"[::1]:{server.port}", "localhost"):
        assert send(server, Host=host)[0] == 200
    for host in ("evil.example", f"evil.example:{server.port}", "127.0.0.1.evil.example", "", "localhost@evil.example"):
        for path in ("/", "/v1/files", "/v1/models", "/health"):
            status, _, body = send(server, "GET", path, None, Host=host)
            assert (status, json.loads(body)["error"]["code"]) == (403, "foreign_host"), (host, path)
        assert send(server, Host=host, Origin=f"http://{host}")[0] == 403


@pytest.mark.parametrize(
    "origin", ["null", "http://evil.example", "https://127.0.0.1", "http://localhost:1", "file://"]
)
def test_pages_of_other_origins_are_refused(server, origin):
    status, headers, body = send(server, Origin=origin)
    assert (status, json.loads(body)["error"]["code"]) == (403, "foreign_origin")
    assert "access-control-allow-origin" not in headers
    assert send(server, Origin=server.url)[0] == 200


def test_a_request_that_another_site_caused_is_refused(server):
    """Images and scripts of other sites come without an origin; links to the page do, too, and are fine."""
    assert send(server, "GET", "/v1/files", None, Sec_Fetch_Site="cross-site")[0] == 403
    assert send(server, "GET", "/", None, Sec_Fetch_Site="cross-site")[0] == 200
    assert send(server, "GET", "/v1/files", None, Sec_Fetch_Site="same-origin")[0] == 200


def test_names_from_the_command_line():
    own = ("localhost", "127.0.0.1", "::1", "127.0.0.1")
    assert cli._names("127.0.0.1", None, [], False) == (own, ())
    assert cli._names("0.0.0.0", None, ["https://a.example"], False) == ((), ("https://a.example",))
    hosts, origins = cli._names("127.0.0.1", "https://v.example:8443/", [], False)
    assert hosts == (*own, "v.example")
    assert origins == ("https://v.example:8443",)
    for url in ("v.example", "https://v.example/below", "ftp://v.example"):
        with pytest.raises(ValueError, match="--public-url must be scheme and host"):
            cli._names("127.0.0.1", url, [], False)
    for origin in ("a.example", "https://a.example/"):
        with pytest.raises(ValueError, match="--allow-origin must be scheme and host"):
            cli._names("127.0.0.1", None, [origin], False)
    with pytest.raises(ValueError, match="requires --api-keys"):
        cli._names("127.0.0.1", None, ["*"], False)
    assert cli._names("127.0.0.1", None, ["*"], True)[1] == ("*",)


class Here:
    """An application served in a thread of this process, by the protocol that `videopanda serve` uses."""

    def __init__(self, app):
        self.port = free_port()
        config = uvicorn.Config(
            app,
            port=self.port,
            http=run.HeaderLimits,
            log_level="critical",
            timeout_keep_alive=run.KEEP_ALIVE_SECONDS,
            h11_max_incomplete_event_size=run.HEADER_BYTES,
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)

    def __enter__(self):
        self.thread.start()
        deadline = time.monotonic() + PATIENCE
        while not self.server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(PATIENCE)

    def raw(self, *pieces):
        """What comes back until the server closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as one:
            for piece in pieces:
                one.sendall(piece)
            found = b""
            while chunk := one.recv(1 << 16):
                found += chunk
            return found


def test_pages_of_allowed_origins_get_what_browsers_ask_for(tmp_path):
    engine = EngineThread(tiny_model(), tiny_processor())
    page = "https://app.example"
    settings = ServerSettings("tiny", tmp_path / "f", decode=DecodeLimits(workers=1), origins=(page,), keys=("k",))
    with Here(create_app(engine, settings)) as here:
        asked = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization,x-a"}
        status, headers, _ = send(here, "OPTIONS", CHAT, None, Origin=page, **asked)
        assert (status, headers["access-control-allow-origin"]) == (200, page)
        assert "x-a" in headers["access-control-allow-headers"]
        status, headers, _ = send(here, Origin=page, Authorization="Bearer k")
        assert (status, headers["access-control-allow-origin"]) == (200, page)
        status, headers, _ = send(here, Origin=page)  # errors, too, can be read by the page
        assert (status, headers["access-control-allow-origin"]) == (401, page)
        for origin in ("https://evil.example", "null"):
            status, headers, _ = send(here, Origin=origin, Authorization="Bearer k")
            assert status == 403
            assert "access-control-allow-origin" not in headers
            assert send(here, "OPTIONS", CHAT, None, Origin=origin, **asked)[0] == 400


def test_a_compressed_body_is_refused_by_name(server):
    for path in (CHAT, "/v1/files"):
        status, _, body = send(server, path=path, body=gzip.compress(HELLO), Content_Encoding="gzip")
        assert (status, json.loads(body)["error"]["code"]) == (415, "unsupported_encoding")
        assert b"Content-Encoding: gzip" in body
    assert send(server, Content_Encoding="identity")[0] == 200


def test_head_is_get_without_a_body(server):
    """Monitors ask so."""
    for path, status in (("/", 200), ("/health", 200), ("/v1/models", 200), ("/none", 404), (CHAT, 405)):
        found, headers, body = send(server, "HEAD", path, None)
        assert (found, body) == (status, b"")
        assert int(headers["content-length"]) > 0


# -- slow and half-sent requests ---------------------------------------------------------------------------------------
def test_half_sent_bodies_lock_nobody_out(server):
    """More of them than chats that may run and wait: 32 + 256."""
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"
    half = []
    try:
        for _ in range(300):
            half.append(socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE))
            half[-1].sendall(head.encode())
        assert send(server, "GET", "/health", None)[0] == 200
        assert [send(server)[0] for _ in range(3)] == [200] * 3
    finally:
        for one in half:
            one.close()
    server.idle()


def test_headers_and_bodies_have_time_limits(monkeypatch):
    monkeypatch.setattr(run, "HEADER_SECONDS", 0.3)

    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    limits = GateLimits(body_seconds=0.3, body_rate=1 << 40, json_bytes=1 << 20, receiving_bytes=3 << 20)
    gate = RequestGate(app, limits, Metrics(EngineThread(tiny_model(), tiny_processor())))
    with Here(gate) as here:
        assert here.raw() == b""  # says nothing
        assert here.raw(b"GET / HTTP/1.1\r\nHost: local") == b""
        first = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        assert here.raw(first + b"GET / HTTP/1.1\r\nHost: local").startswith(b"HTTP/1.1 200")  # the second never ends
        head = b"HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
        assert here.raw(f"POST {CHAT} ".encode() + head).startswith(b"HTTP/1.1 408")
        assert here.raw(b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 400")
        monkeypatch.setattr(run, "HEADER_SECONDS", 60)
        object.__setattr__(limits, "body_seconds", 60.0)
        # Bodies that are not complete may hold three megabytes in all; small ones still get in.
        big = b"HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1048576\r\n\r\n" + b"x" * ((1 << 20) - 1)
        held = [socket.create_connection(("127.0.0.1", here.port)) for _ in range(3)]
        for one in held:
            one.sendall(f"POST {CHAT} ".encode() + big)
        deadline = time.monotonic() + PATIENCE
        while gate._receiving < 3 * ((1 << 20) - 1) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert send(here, body=b"x" * 1000)[0] == 200
        for one in held:
            one.close()
        while gate._receiving and time.monotonic() < deadline:
            time.sleep(0.02)
        assert gate._receiving == 0
    assert run.KEEP_ALIVE_SECONDS >= 75


# -- room --------------------------------------------------------------------------------------------------------------
def test_decoded_frames_that_wait_are_bounded(tmp_path):
    """The second clip is decoded once the first is not held any more."""
    processor = tiny_processor()
    engine = EngineThread(tiny_model(), processor)
    for i in range(2):
        Image.new("RGB", (64, 64), (i, i, i)).save(tmp_path / f"{i}.png")

    def asked(name):
        part = {"type": "image_url", "image_url": {"url": f"file://{tmp_path}/{name}"}}
        message = {"role": "user", "content": [part, {"type": "text", "text": "What?"}]}
        return ChatRequest.model_validate({"messages": [message]})

    async def use():
        pool = DecoderPool(DecodeLimits(workers=1))
        await pool.start()
        store = FileStore(tmp_path / "s", FileLimits())
        rules = PromptRules(processor, engine.context)
        media = MediaLoader(rules, engine.clips, pool, store, FetchPolicy(), tmp_path, max_frame_bytes=1)
        held = await media.conversation(asked("0.png"), "")
        assert media.frame_bytes > 0
        again = await media.conversation(asked("0.png"), "")  # is there already
        later = asyncio.create_task(media.conversation(asked("1.png"), ""))
        done, _ = await asyncio.wait({later}, timeout=0.5)
        assert not done
        del held, again
        await asyncio.wait_for(later, PATIENCE)
        await pool.close()
        store.close()

    run_async(use())
    engine.close()


def test_a_full_disk_is_said_to_be_full(tmp_path):
    """Files may not grow beyond 100 kB here, which writing finds out as it finds out a full disk."""

    def bounded():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    server = Server(tmp_path / "files", prepare=bounded)
    head = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n'
    form = {"Content_Type": "multipart/form-data; boundary=edge"}
    for content in (DEMO.read_bytes(), DEMO.read_bytes() + bytes(2 << 20)):  # in memory first, or in a file at once
        status, _, body = send(server, "POST", "/v1/files", head + content + b"\r\n--edge--\r\n", **form)
        assert (status, json.loads(body)["error"]["code"]) == (507, "insufficient_storage")
    assert list((tmp_path / "files" / "parts").iterdir()) == []
    assert send(server)[0] == 200
    assert server.stop() in (0, -15)
    assert "Traceback" not in server.said()


def test_local_files_are_read_below_the_media_root_only(tmp_path):
    root = tmp_path / "media"
    root.mkdir()
    (root / "a clip.mp4").write_bytes(DEMO.read_bytes())
    (root / "link.mp4").symlink_to(DEMO)
    (tmp_path / "outside.mp4").write_bytes(DEMO.read_bytes())
    settings = ServerSettings("tiny", tmp_path / "f", decode=DecodeLimits(workers=1), media_root=root)
    here = Here(create_app(EngineThread(tiny_model(), tiny_processor()), settings))

    def show(url):
        part = {"type": "video_url", "video_url": {"url": url}}
        message = {"role": "user", "content": [part, {"type": "text", "text": "What?"}]}
        return send(here, body=json.dumps({"messages": [message], "max_tokens": 1}).encode())[0]

    with here:
        assert show(f"file://{root}/a%20clip.mp4") == 200
        assert show(f"file://localhost{root}/a%20clip.mp4") == 200
        assert show(f"file://{root}/none.mp4") == 404
        for url in (
            f"file://{root}/../outside.mp4",
            f"file://{root}/link.mp4",
            "file:///etc/passwd",
            "file://x/etc/passwd",
        ):
            assert show(url) == 403
        assert sorted(one.name for one in root.iterdir()) == ["a clip.mp4", "link.mp4"]
