"""Protects `runs/ray_serve.py` on a Ray of this machine: two replicas, the same answers, streams, keys.

`make test-ray` runs this; `make test` does not: a cluster and two models take their time to start.
"""

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from live import PATIENCE, free_port
from test_api import ASKED, DEMO, ask, data_url, video

from videopanda.inference.answer import ask as library
from videopanda.inference.load import load

pytestmark = pytest.mark.timeout(900)
SCRIPT = Path(__file__).parents[2] / "runs" / "ray_serve.py"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder, port = tmp_path_factory.mktemp("ray"), free_port()
    (folder / "keys").write_text("secret\n")
    words = ["--replicas", "2", "--cpus", "0.1", "--port", str(port), "--api-keys", str(folder / "keys")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *words],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_raylet_start_wait_time_s": "240",
            },
        )
        line = process.stdout.readline()
        assert line.startswith("2 replicas"), (folder / "log").read_text()
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        process.stdout.close()


def test_replicas_answer_as_the_library(url):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="secret", timeout=PATIENCE, max_retries=0)
    loaded = load(None, device="cpu")
    wanted = [library(*loaded, DEMO, [question])[0].answer for question in ASKED[:3]]
    with ThreadPoolExecutor(6) as clients:
        replies = list(clients.map(lambda question: ask(client, video(data_url()), question), ASKED[:3] * 4))
    assert [reply.choices[0].message.content for reply in replies] == wanted * 4
    chunks = list(ask(client, video(data_url()), ASKED[0], stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == wanted[0]
    with pytest.raises(openai.AuthenticationError):
        ask(client.with_options(api_key="other"), "What?")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{url}/v1/models", timeout=PATIENCE)
    caught.value.close()
    assert caught.value.status == 401
