"""One live server for all tests that leave it as it was."""

import pytest
from live import Server

from videopanda.inference import BUNDLED_MODEL


@pytest.fixture(scope="package")
def server(tmp_path_factory):
    if not (BUNDLED_MODEL / "model.safetensors").exists():
        pytest.skip("this checkout has no bundled model")
    server = Server(tmp_path_factory.mktemp("server") / "files", "--max-upload", "4", "--max-frames", "32")
    yield server
    server.stop()
