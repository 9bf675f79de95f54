"""One live server for all tests that leave it as it was."""

import pytest
from live import Server


@pytest.fixture(scope="package")
def server(tmp_path_factory):
    hosts = [word for host in ("localhost", "*.localhost", "127.0.0.1") for word in ("--allow-host", host)]
    folder = tmp_path_factory.mktemp("server") / "files"
    server = Server(folder, "--max-upload", "24", "--max-frames", "32", *hosts)
    yield server
    server.stop()
