"""A real server in a process of its own, with the command that users type."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PATIENCE = 280  # seconds; the machine may be busy


def run_async(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in a thread: a browser that is open in this process holds the main thread's loop."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Server:
    """`videopanda serve` on loopback."""

    def __init__(self, folder: Path, *options: str, wait: bool = True, prepare: Callable[[], None] | None = None):
        self.folder, self.options, self.prepare = folder, options, prepare
        self.start(wait)

    def start(self, wait: bool = True) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "videopanda", "serve", "--port", str(self.port), "--files", str(self.folder)]
        self.log = (self.folder.parent / f"{self.folder.name}.log").open("ab")
        self.process = subprocess.Popen(
            [*command, *self.options],
            stderr=self.log,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            start_new_session=True,
            preexec_fn=self.prepare,
        )
        if wait:
            self.wait()

    def wait(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.said()
            try:
                if self.health()["status"] == "ok":
                    return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        raise AssertionError(f"the server does not start: {self.said()}")

    def health(self) -> dict:
        with urllib.request.urlopen(f"{self.url}/health", timeout=PATIENCE) as answer:
            return json.load(answer)

    def said(self) -> str:
        return Path(self.log.name).read_text(encoding="utf-8")

    def metric(self, line: str) -> float:
        """The value of one line of /metrics."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=PATIENCE) as answer:
            lines = answer.read().decode().splitlines()
        return next((float(one.rpartition(" ")[2]) for one in lines if one.startswith(line + " ")), 0.0)

    def stop(self, how: int = signal.SIGTERM) -> int:
        """End it by a signal; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        code = self.process.wait(PATIENCE)
        self.log.close()
        return code

    def idle(self) -> None:
        """Wait until nothing is running or waiting."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            health = self.health()
            if health["running"] == health["waiting"] == 0:
                return
            time.sleep(0.05)
        raise AssertionError("the server is never idle")
