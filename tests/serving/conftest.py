"""One live server for all tests that leave it as it was, and a browser."""

import shutil
from pathlib import Path

import pytest
from live import Server


@pytest.fixture(scope="package")
def server(tmp_path_factory):
    hosts = [word for host in ("localhost", "*.localhost", "127.0.0.1") for word in ("--allow-host", host)]
    folder = tmp_path_factory.mktemp("server") / "files"
    server = Server(folder, "--max-upload", "24", "--max-frames", "32", *hosts)
    yield server
    server.stop()


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
