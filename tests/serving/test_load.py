"""Protects a server under load, from a process of its own: nobody is lost, nothing grows, a killed one starts again."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import openai
import psutil
import pytest
from live import PATIENCE, Server
from test_api import ASKED, DEMO, ask

pytestmark = pytest.mark.timeout(900)
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serve_load.py"


def test_many_clients_at_once(server):
    """Four rounds of 64 clients against the shared server; the figures in benchmarks/ are of 200 and one by one."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--url", server.url, "--requests", "64", "--clips", "6", "--rounds", "4"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    rounds = json.loads(done.stdout)["batched"]
    assert [one["status"] for one in rounds] == [{"200": 64}] * 4
    assert len({tuple(one["answers"]) for one in rounds}) == 1  # the same answers in whatever company
    _, second, *_, last = (one["memory_mib"] for one in rounds)
    # Measured: 829 to 830 MiB in six rounds; on a busy machine batches differ, and round three had 139 more than one.
    assert last <= 1.1 * second + 60
    server.idle()


def test_too_many_clients_are_told_so(tmp_path):
    """With room for two, the others get 429 and a reason. Keys part files. SIGKILL, a clean start, a clean end."""
    (tmp_path / "keys").write_text("first\nsecond\n")
    options = ["--max-num-seqs", "1", "--max-queue", "1", "--api-keys", str(tmp_path / "keys")]
    server = Server(tmp_path / "files", *options)
    first, second, wrong = (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, timeout=PATIENCE, max_retries=0)
        for key in ("first", "second", "firs")
    )
    with pytest.raises(openai.AuthenticationError, match="API key"):
        wrong.models.list()
    assert server.health()["needs_key"]
    file = first.files.create(file=DEMO, purpose="user_data")
    assert [entry.id for entry in first.files.list()] == [file.id]
    assert list(second.files.list()) == []
    part = {"type": "file", "file": {"file_id": file.id}}
    with pytest.raises(openai.NotFoundError):
        ask(second, part, "What?")
    wanted = ask(first, part, ASKED[0]).choices[0].message.content

    ends = []

    def client(number):
        try:
            ask(first, part, "Tell me all.", temperature=2.0, seed=number, max_tokens=1000, stream=False)
            ends.append("answered")
        except openai.RateLimitError as error:
            ends.append(error.body["code"])
        except openai.APIConnectionError:
            ends.append("broken")

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PATIENCE
    while ends.count("queue_full") < 6 and len(ends) < 8 and time.monotonic() < deadline:
        time.sleep(0.02)
    family = [server.process.pid, *(child.pid for child in psutil.Process(server.process.pid).children())]
    (tmp_path / "files" / "parts" / ("0" * 32)).write_bytes(b"a file that was being sent")
    server.stop(signal.SIGKILL)
    for thread in threads:
        thread.join(PATIENCE)
    assert "queue_full" in ends
    assert set(ends) <= {"answered", "broken", "queue_full"}  # a short reply may end before the server is killed
    assert len(ends) == 8
    while any(map(psutil.pid_exists, family)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(psutil.pid_exists, family))  # readers end with their server

    server = Server(tmp_path / "files", *options)
    first = openai.OpenAI(base_url=f"{server.url}/v1", api_key="first", timeout=PATIENCE, max_retries=0)
    assert list((tmp_path / "files" / "parts").iterdir()) == []
    assert [entry.id for entry in first.files.list()] == [file.id]
    assert ask(first, part, ASKED[0]).choices[0].message.content == wanted
    stream = ask(first, part, "Tell me all.", temperature=2.0, seed=1, max_tokens=400, stream=True)
    next(stream)
    server.process.send_signal(signal.SIGTERM)  # what is under way is finished
    assert [chunk.choices[0].finish_reason for chunk in stream][-1] in ("stop", "length")
    assert server.stop() in (0, -signal.SIGTERM)
    assert "Traceback" not in server.said()
