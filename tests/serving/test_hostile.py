"""Protects the server from its users: five hundred malformed and hostile requests, and none of them leaves a mark.

None is answered with status 500, none hangs, no file stays behind, and no address is contacted.
"""

import base64
import http.client
import io
import json
import socket
import threading
import time
from contextlib import suppress

import hypothesis
import psutil
import pytest
import schemathesis
from live import PATIENCE
from PIL import Image
from schemathesis import GenerationMode
from test_api import ASKED, DEMO

pytestmark = pytest.mark.timeout(600)
CHAT = "/v1/chat/completions"
FUZZED_PER_OPERATION = 20  # for each of the two ways: requests that fit the schema, and requests that do not


class Wire:
    """Sends requests that no proper client sends, and keeps the statuses."""

    def __init__(self, server):
        self.server, self.statuses = server, []

    def send(self, method, path, body=b"", headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        self.statuses.append(answer.status)
        assert answer.status < 500, (method, path, body[:200], content)
        if answer.status >= 400:
            assert set(json.loads(content)["error"]) == {"message", "type", "param", "code"}
        return answer.status

    def chat(self, body):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.send("POST", CHAT, data, {"Content-Type": "application/json"})

    def show(self, url, kind="video_url", **fields):
        part = {"type": kind, kind: {"url": url}}
        content = [part, {"type": "text", "text": "What?"}]
        return self.chat({"messages": [{"role": "user", "content": content}], "max_tokens": 2, **fields})

    def upload(self, content, disposition='name="file"; filename="a.mp4"', edge="edge", head=None):
        body = f"--{edge}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + content
        kind = f"multipart/form-data; boundary={edge}" if head is None else head
        return self.send("POST", "/v1/files", body + f"\r\n--{edge}--\r\n".encode(), {"Content-Type": kind})

    def raw(self, *pieces):
        """Bytes to the socket; returns when the server closed it or stays silent for a moment."""
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=0.2) as one:
            try:
                for piece in pieces:
                    one.sendall(piece)
                while one.recv(1 << 16):
                    pass
            except OSError:
                pass
        self.statuses.append(0)


@pytest.fixture
def wire(server):
    """Afterwards the server is as it was: same processes, same files, nothing running."""
    server.idle()
    process = psutil.Process(server.process.pid)
    children, files = len(process.children()), set(server.folder.rglob("*"))
    yield Wire(server)
    server.idle()
    assert server.health()["status"] == "ok"
    deadline = time.monotonic() + PATIENCE  # readers that were killed may still be on their way back
    while time.monotonic() < deadline and (
        len(process.children()) != children or set(server.folder.rglob("*")) != files
    ):
        time.sleep(0.1)
    assert len(process.children()) <= children
    assert set(server.folder.rglob("*")) == files
    assert "Traceback" not in server.said()


def data_url(content, mime="video/mp4"):
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def picture(kind, size=(8, 8)):
    content = io.BytesIO()
    Image.new("L", size).save(content, kind)
    return content.getvalue()


def gif(frames):
    """A GIF of so many frames, 23 bytes each."""
    head = b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff"
    return head + b"\x21\xf9\4\0\1\0\0\0\x2c\0\0\0\0\1\0\1\0\0\2\2\x44\1\0" * frames + b"\x3b"


# -- made-up requests --------------------------------------------------------------------------------------------------
def test_requests_from_the_schema(wire, server):
    """What schemathesis makes of the OpenAPI page: valid and invalid values for every operation."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 10
    uploads = []
    for operation in operations:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @hypothesis.settings(
                max_examples=FUZZED_PER_OPERATION,
                database=None,
                derandomize=True,
                deadline=None,
                phases=[hypothesis.Phase.generate],
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            def check(case):
                answer = case.call(timeout=PATIENCE)
                wire.statuses.append(answer.status_code)
                assert answer.status_code < 500, (case.as_curl_command(), answer.text)
                if case.path == "/v1/files" and answer.status_code == 200 and case.method == "POST":
                    uploads.append(answer.json()["id"])

            with suppress(hypothesis.errors.Unsatisfiable):  # an operation without parameters has no wrong ones
                check()
    for id_ in uploads:
        wire.send("DELETE", f"/v1/files/{id_}")
    assert len(wire.statuses) >= 150  # with the other tests more than five hundred (measured: 556)
    assert {200, 400, 404} <= set(wire.statuses)


GOOD = {"messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 1}


MALFORMED = {
    "temperature": ["NaN", "Infinity", "-1", '"hot"', "[]", "1e400"],
    "top_p": ["0", "1.1", "NaN"],
    "seed": ["1e40", "9" * 50, '"one"', "1.5"],
    "max_tokens": ["0", "-1", "9" * 400, "1.5"],
    "stop": ['""', "[1]", '["a","b","c","d","e"]', "{}", '[""]'],
    "stream": ['"perhaps"', "2"],
    "model": ["1", '"' + "a" * 1000 + '"', '"../../etc/passwd"'],
    "video": ["[]", '{"fps": 0}', '{"fps": 1e300}', '{"num_frames": 0}', '{"num_frames": 1e9}'],
    "video ": ['{"start": -1}', '{"start": NaN}', '{"start": 2, "end": 1}', '{"max_side": 0}', '{"path": "/etc"}'],
    "messages": [
        "[]",
        "{}",
        "[[]]",
        '[{"role": "user"}]',
        '[{"role": "root", "content": "x"}]',
        '[{"role": "user", "content": []}]',
        '[{"role": "user", "content": [{"type": "audio"}]}]',
        '[{"role": "user", "content": "\\ud800"}]',
        '[{"role": "user", "content": [{"type": "video"}]}]',
        '[{"role": "user", "content": "<video><video>"}]',
        '[{"role": "user", "content": "<image>"}]',
        '[{"role": "user", "content": [{"type": "video_url", "video_url": []}]}]',
    ],
}


def test_malformed_requests(wire):
    bodies = [b"", b"{", b"null", b"[]", b'"text"', b"\xff\xfe", b"{" * 100_000, b"[" * 100_000 + b"]" * 100_000]
    bodies += [json.dumps(GOOD).encode()[:-1], json.dumps(GOOD).encode() + b"x", b'{"messages": ' + b"9" * 5000 + b"}"]
    for field, values in MALFORMED.items():
        for value in values:
            others = {name: good for name, good in GOOD.items() if name != field}
            bodies.append(json.dumps(others).encode()[:-1] + f', "{field.strip()}": {value}}}'.encode())
    for body in bodies:
        assert 400 <= wire.chat(body) < 500, body[:200]
    odd = ["\0", "\u202e", "🐼" * 100, "a\r\nb", "</s>" * 20, "{{ 7 * 7 }}", "%s%n", "' OR 1=1 --", "<script>"]
    for text in odd:
        assert wire.chat({**GOOD, "messages": [{"role": "user", "content": text}]}) in (200, 400)
    for kind in ("", "text/plain", "application/xml", "multipart/form-data", "application/json; charset=utf-7"):
        wire.send("POST", CHAT, json.dumps(GOOD).encode(), {"Content-Type": kind} if kind else {})
    for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "BREW"):
        for path in (CHAT, "/v1/files", "/"):
            if (method, path) not in (("GET", "/v1/files"), ("GET", "/"), ("HEAD", CHAT), ("HEAD", "/v1/files")):
                connection = http.client.HTTPConnection("127.0.0.1", wire.server.port, timeout=PATIENCE)
                connection.request(method, path)
                wire.statuses.append(connection.getresponse().status)
                connection.close()
    assert max(wire.statuses) < 500
    foreign = {"Content-Type": "application/json", "Origin": "http://evil.example"}
    assert wire.send("POST", CHAT, json.dumps(GOOD).encode(), foreign) == 403


def test_paths_that_lead_elsewhere(wire):
    ups = ["../", "..%2f", "%2e%2e/", "..\\", "....//", "%252e%252e%252f"]
    for up in ups:
        for place in ("/static/", "/examples/", "/v1/files/", "/v1/models/", "/"):
            assert wire.send("GET", f"{place}{up * 6}etc/passwd") in (400, 404)
    for id_ in ("file-", "file-../../lock", "%00", "a" * 5000, "file-" + "0" * 24, "*"):
        assert wire.send("GET", f"/v1/files/{id_}") in (400, 404)
        assert wire.send("GET", f"/v1/files/{id_}/frames") in (400, 404)
        assert wire.send("DELETE", f"/v1/files/{id_}") in (400, 404)
    assert wire.send("GET", "/examples/nano") == 404
    assert wire.send("GET", "/static/") == 404


# -- what is shown -----------------------------------------------------------------------------------------------------
def test_addresses_are_never_contacted(wire, server):
    """A listener stands where the addresses lead; the server may fetch from hosts of these names, were they public."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("::1", 0), family=10) as sixth:
        contacted = []

        def accept(one):
            try:
                while True:
                    contacted.append(one.accept()[1])
            except OSError:
                pass  # closed

        threads = [threading.Thread(target=accept, args=(one,), daemon=True) for one in (listener, sixth)]
        for thread in threads:
            thread.start()
        port = listener.getsockname()[1]
        hosts = ["127.0.0.1", "localhost", "0.0.0.0", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.0.0.1."]
        hosts += ["[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "a.localhost", "user@127.0.0.1", "evil.example"]
        hosts += ["169.254.169.254", "10.0.0.1", "[fd00::1]", "[64:ff9b::7f00:1]", "localhost%00.example.org"]
        for host in hosts:
            for url in (f"http://{host}:{port}/clip.mp4", f"http://{host}/clip.mp4", f"https://{host}/clip.mp4"):
                assert wire.show(url) in (403, 422)
        port = sixth.getsockname()[1]
        for scheme in ("file", "ftp", "gopher", "dict", "ldap", "smb", "concat", "subfile", "tcp", "rtmp", "HTTP"):
            assert wire.show(f"{scheme}://localhost:{port}/clip.mp4") in (400, 403)
        for path in ("/etc/passwd", "file:///etc/passwd", "file:/etc/passwd", "~/x", str(DEMO), "C:\\x", "pipe:0", "x"):
            assert wire.show(path) in (400, 403, 404)
            assert wire.show(path, "image_url") in (400, 403, 404)
        # Files that name others: what is inside is not followed either.
        inside = f"http://127.0.0.1:{port}/part.ts"
        for text in (
            f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{inside}\n#EXT-X-ENDLIST\n",
            f"ffconcat version 1.0\nfile '{inside}'\n",
            f"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video {port} RTP/AVP 96\n",
            f"<MPD><Period><BaseURL>{inside}</BaseURL></Period></MPD>\n",
            "\0\0\0\x18ftypmp42" + f"#EXTM3U\n{inside}\n" * 20,
        ):
            assert wire.show(data_url(text.encode())) == 422
        assert contacted == []


def test_files_that_are_none(wire):
    demo = DEMO.read_bytes()
    assert wire.show(data_url(demo)) == 200
    broken = [b"", b"x", demo[:100], demo[: len(demo) // 2], demo[:40] + b"\0" * 5000, demo[::-1], b"\0" * 10_000]
    broken += [demo[:i] + bytes([demo[i] ^ 255]) * 64 + demo[i + 64 :] for i in range(40, 4000, 400)]
    broken += [
        b"\x1a\x45\xdf\xa3" + b"\xff" * 1000,
        b"RIFF\xff\xff\xff\xffAVI " + b"\xff" * 1000,
        b"GIF89a" + b"\xff" * 99,
    ]
    broken += [
        b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
        b"\xff\xd8\xff" * 30,
        b"OggS" + b"\0" * 99,
        (b"\x47" + b"\0" * 187) * 30,
    ]
    for content in broken:
        assert wire.show(data_url(content)) in (200, 422)  # a flipped byte may hit what is not needed
        assert wire.show(data_url(content), "image_url") in (200, 422)
        status = wire.upload(content)
        assert status in (200, 422)
        if status == 200:
            delete_all(wire)
    for url in (
        "data:",
        "data:,",
        "data:video/mp4,abc",
        "data:;base64,",
        "data:video/mp4;base64,!!!!",
        "DATA:;BASE64,=",
    ):
        assert wire.show(url) in (400, 422)


def delete_all(wire):
    connection = http.client.HTTPConnection("127.0.0.1", wire.server.port, timeout=PATIENCE)
    connection.request("GET", "/v1/files")
    listed = json.load(connection.getresponse())["data"]
    connection.close()
    for file in listed:
        if file["filename"] == "a.mp4":
            wire.send("DELETE", f"/v1/files/{file['id']}")


def test_bombs(wire):
    """Few bytes, much work: a million frames, a hundred million pixels, times and bodies beyond all limits."""
    assert wire.show(data_url(gif(1_000_000))) == 422
    assert wire.show(data_url(picture("PNG", (12_000, 12_000))), "image_url") == 422
    assert wire.show(data_url(picture("PNG", (60_000, 1_000)))) == 422
    demo = data_url(DEMO.read_bytes())
    for choice in ({"fps": 240}, {"num_frames": 100_000}, {"start": 1e6}, {"start": 3.9999, "fps": 240}):
        assert wire.show(demo, video=choice) in (200, 422)
    assert wire.show(demo, video={"max_side": 100_000}) == 200
    assert wire.upload(b"\0" * (26 << 20)) == 413
    part = {"type": "video_url", "video_url": {"url": demo}}
    assert wire.chat({"messages": [{"role": "user", "content": [part] * 65}]}) == 400
    many = [part] * 20 + [{"type": "text", "text": "?"}]
    assert wire.chat({"messages": [{"role": "user", "content": many}]}) == 400


def test_forms(wire):
    names = ["../../../etc/cron.d/x", "a" * 10_000, "\0", "a/b\\c", "x\r\nSet-Cookie: a=b", "🐼.mp4", ""]
    for name in names:
        assert wire.upload(b"no video", f'name="file"; filename="{name}"') in (400, 422)
    assert wire.upload(b"x", 'name="other"; filename="a"') == 400
    assert wire.upload(b"x", 'name="file"') == 400
    for head in (
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=other",
        "text/plain",
    ):
        assert wire.upload(DEMO.read_bytes(), head=head) == 400
    fields = b"x\r\n" + b'--edge\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' * 2000
    assert wire.upload(fields) == 400


def test_connections_that_break_or_crawl(wire):
    body = json.dumps(GOOD).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    for pieces in (
        [b"\0\1\2\3" * 100],
        [b"GET / HTTP/9.9\r\n\r\n"],
        [b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n"],
        [b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000 + b"\r\n\r\n"],
        [b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n"],
        [b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 10_000],
        [(head + f"{len(body) + 50}\r\n\r\n").encode(), body],
        [(head + "-5\r\n\r\n").encode(), body],
        [(head + "abc\r\n\r\n").encode(), body],
        [(head + "999999999999\r\n\r\n").encode(), body],
        [(head + "5\r\nTransfer-Encoding: chunked\r\n\r\n").encode(), b"ffffffffff\r\n", body],
        [
            b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=a\r\n",
            b"Content-Length: 9\r\n\r\n",
        ],
    ):
        wire.raw(*pieces)
    demo = {"type": "video_url", "video_url": {"url": data_url(DEMO.read_bytes())}}
    asked = {"messages": [{"role": "user", "content": [demo, {"type": "text", "text": ASKED[0]}]}], "max_tokens": 900}
    for stream in (True, False):
        body = json.dumps({**asked, "stream": stream, "temperature": 2, "seed": 1}).encode()
        wire.raw((head + f"{len(body)}\r\n\r\n").encode(), body)  # goes away while it is being answered
