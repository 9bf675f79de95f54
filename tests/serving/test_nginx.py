"""Protects the way through nginx, with the configuration of docs/serving.md and the nginx of the system."""

import http.client
import json
import os
import re
import shutil
import ssl
import subprocess
import time
from pathlib import Path

import pytest
from live import PATIENCE, free_port
from test_api import DEMO
from test_gate import CHAT, Here

from tiny import tiny_model, tiny_processor
from videopanda.cli.serve import _names
from videopanda.inference.engine_thread import EngineThread
from videopanda.serving.api import ServerSettings, create_app
from videopanda.serving.decoder_pool import DecodeLimits

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(not NGINX or not shutil.which("openssl"), reason="needs nginx and openssl"),
]
NAME = "video.example.org"
PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


@pytest.fixture(scope="module")
def documented():
    """The block of configuration that the documentation shows."""
    (block,) = re.findall(r"```nginx\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return block


@pytest.fixture
def proxy(documented, tmp_path, request):
    """nginx in front of a server: port of nginx. The parameter is the server's --public-url."""
    hosts, origins = _names("127.0.0.1", request.param, [], False)
    settings = ServerSettings("tiny", tmp_path / "f", decode=DecodeLimits(workers=1), hosts=hosts, origins=origins)
    certificate, key, port = tmp_path / "a.pem", tmp_path / "a.key", free_port()
    making = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={NAME}"]
    subprocess.run([*making, "-out", certificate, "-keyout", key], check=True, capture_output=True)
    with Here(create_app(EngineThread(tiny_model(), tiny_processor()), settings)) as here:
        block = documented
        for old, new in (
            ("127.0.0.1:8000", f"127.0.0.1:{here.port}"),
            ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
            (f"/etc/ssl/{NAME}.pem", str(certificate)),
            (f"/etc/ssl/{NAME}.key", str(key)),
        ):
            assert old in block
            block = block.replace(old, new)
        folders = "".join(
            f"{kind}_temp_path {tmp_path}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        user = "user root;\n" if os.getuid() == 0 else ""
        conf = tmp_path / "nginx.conf"
        conf.write_text(
            f"daemon off;\n{user}pid {tmp_path}/pid;\nerror_log {tmp_path}/error.log;\nevents {{}}\n"
            f"http {{\naccess_log off;\n{folders}{block}}}\n"
        )
        nginx = subprocess.Popen([NGINX, "-p", tmp_path, "-e", tmp_path / "error.log", "-c", conf])
        try:
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                try:
                    send(port, "GET", "/health")
                    break
                except OSError:
                    assert nginx.poll() is None, (tmp_path / "error.log").read_text()
                    time.sleep(0.1)
            yield port
        finally:
            nginx.terminate()
            nginx.wait(PATIENCE)


def send(port, method, path, body=None, **headers):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=PATIENCE, context=context)
    given = {"Host": NAME, **{name.replace("_", "-"): value for name, value in headers.items()}}
    try:
        connection.request(method, path, body, given)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("proxy", [f"https://{NAME}"], indirect=True)
def test_page_uploads_and_streams_go_through_nginx(proxy):
    own = {"Origin": f"https://{NAME}"}
    assert send(proxy, "GET", "/")[0] == 200
    head = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n'
    content = DEMO.read_bytes() + bytes(3 << 20)  # more than nginx takes unless it is told to
    form = {"Content_Type": "multipart/form-data; boundary=edge", **own}
    status, body = send(proxy, "POST", "/v1/files", head + content + b"\r\n--edge--\r\n", **form)
    assert status == 200
    part = {"type": "file", "file": {"file_id": json.loads(body)["id"]}}
    asked = {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}], "max_tokens": 8}
    plain = {"Content_Type": "application/json", **own}
    status, whole = send(proxy, "POST", CHAT, json.dumps(asked).encode(), **plain)
    assert status == 200
    status, body = send(proxy, "POST", CHAT, json.dumps({**asked, "stream": True}).encode(), **plain)
    pieces = [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: {")]
    text = "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces)
    assert text == json.loads(whole)["choices"][0]["message"]["content"]
    assert send(proxy, "GET", "/v1/files", Origin="https://evil.example")[0] == 403
    assert send(proxy, "GET", "/v1/files", Origin="null")[0] == 403


@pytest.mark.parametrize("proxy", [None], indirect=True)
def test_without_the_public_url_the_refusal_names_it(proxy):
    status, body = send(proxy, "GET", "/v1/models")
    assert status == 403
    assert "--public-url" in json.loads(body)["error"]["message"]
