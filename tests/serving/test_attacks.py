"""Protects a server on loopback from pages in the browser of its user: two attacks, in a real Chromium.

Both reached the files and the model at a time when the server looked at neither the host name nor the origin "null".
"""

import http.server
import threading

import pytest
from test_api import DEMO

pytestmark = pytest.mark.timeout(600)

TRY_ALL = """async (base) => {
    const form = new FormData();
    form.append("file", new File([new Uint8Array(DATA)], "stolen.mp4"));
    const body = JSON.stringify({ messages: [{ role: "user", content: "Hello?" }], max_tokens: 1 });
    const json = { "Content-Type": "application/json" };
    const found = [];
    for (const [path, options] of [
        ["/v1/files", { method: "POST", body: form }],
        ["/v1/files", {}],
        ["/v1/chat/completions", { method: "POST", body, headers: json }],
        ["/v1/chat/completions", { method: "POST", body }],
        ["/v1/models", {}],
    ]) {
        try { found.push((await fetch(base + path, options)).status); } catch { found.push("no answer"); }
    }
    return found;
}""".replace("DATA", str(list(DEMO.read_bytes()[:3000])))


@pytest.fixture
def page(browser):
    context = browser.new_context()
    yield context.new_page()
    context.close()


def refused(server):
    return sum(server.metric(f'videopanda_requests_total{{path="{path}",status="403"}}') for path in PATHS)


PATHS = ("/v1/files", "/v1/chat/completions", "/v1/models")


def uploads(server):
    return sorted(path.name for path in (server.folder / "files").iterdir())


def test_a_page_whose_name_was_rebound_gets_nothing(page, server):
    """evil.example first meant the attacker's machine, from which the page comes, and means this one by now."""
    base = f"http://evil.example:{server.port}"
    page.route(f"{base}/attack", lambda route: route.fulfill(body="<h1>Nice clips</h1>", content_type="text/html"))
    page.goto(f"{base}/attack")
    before, files = refused(server), uploads(server)
    assert page.evaluate("location.origin") == base  # of one origin with what it asks, so that it may read answers
    assert page.evaluate(TRY_ALL, "") == [403] * 5
    assert refused(server) == before + 5
    assert uploads(server) == files


def test_a_page_without_an_origin_gets_nothing(page, server):
    """A sandboxed frame sends `Origin: null`; its requests arrive whether or not it may read what comes back."""

    class Attacker(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            script = f"<script>attack = {TRY_ALL}</script>".replace('"', "&quot;")
            content = f'<!doctype html><iframe sandbox="allow-scripts" srcdoc="{script}"></iframe>'.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Attacker) as attacker:
        threading.Thread(target=attacker.serve_forever, args=(0.01,), daemon=True).start()
        page.goto(f"http://127.0.0.1:{attacker.server_address[1]}/")
        frame = page.frames[1]
        frame.wait_for_function("typeof attack === 'function'")
        assert frame.evaluate("origin") == "null"
        before, files = refused(server), uploads(server)
        answered = server.metric('videopanda_requests_total{path="/v1/chat/completions",status="200"}')
        assert frame.evaluate(f"attack('http://127.0.0.1:{server.port}')") == ["no answer"] * 5  # none it may read
        attacker.shutdown()
    assert refused(server) > before  # they did arrive
    assert uploads(server) == files
    assert server.metric('videopanda_requests_total{path="/v1/chat/completions",status="200"}') == answered
