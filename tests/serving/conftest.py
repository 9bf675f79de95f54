"""One live server for all tests that leave it as it was, and a browser."""

import shutil
from pathlib import Path

import pytest
from live import PATIENCE, Server

from videopanda.inference.load import BUNDLED_MODEL


@pytest.fixture(scope="package")
def server(tmp_path_factory):
    hosts = [word for host in ("localhost", "*.localhost", "127.0.0.1") for word in ("--allow-host", host)]
    folder = tmp_path_factory.mktemp("server") / "files"
    server = Server(folder, "--max-upload", "24", "--max-frames", "32", *hosts)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def client(server):
    """The official client of that server."""
    openai = pytest.importorskip("openai", reason="no openai: pip install 'videopanda[dev]'")
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=PATIENCE, max_retries=0)


@pytest.fixture(scope="module")
def uploaded(client):
    """The demo clip on that server."""
    return client.files.create(file=BUNDLED_MODEL.parent / "demo.mp4", purpose="user_data")


# Newer browsers ask their user before a page may reach this machine. Others do not, so the server must not rely on it.
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # Chromium's own test picture
UNHELPED = ["--disable-features=LocalNetworkAccessChecks,BlockInsecurePrivateNetworkRequests"]


@pytest.fixture(scope="package")
def browser():
    """Chromium of the system or of playwright. For it, evil.example is this machine."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'videopanda[dev]'")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_api.sync_playwright() as playwright:
        path = found or playwright.chromium.executable_path
        if not Path(path).exists():
            pytest.skip("no browser: apt-get install chromium, or python -m playwright install chromium")
        rules = "--host-resolver-rules=MAP evil.example 127.0.0.1"
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", rules, *UNHELPED, *CAMERA])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server):
    """The page in a new context of the browser; no error in it, and no request to elsewhere."""
    from browser_page import Page

    page = Page(browser, server, viewport={"width": 1280, "height": 860})
    yield page
    assert page.errors == []
    assert page.elsewhere == []
    page.context.close()


@pytest.fixture(scope="package")
def nano():
    """The bundled model and its processor."""
    from videopanda.inference.load import load

    return load(None, device="cpu")


@pytest.fixture(scope="package")
def wanted(nano):
    """The library's answers to the first two questions of the example."""
    from test_api import ASKED

    from videopanda.inference.answer import Chat

    chat = Chat(*nano, BUNDLED_MODEL.parent / "demo.mp4")
    return [chat.ask(question).answer for question in ASKED[:2]]
