"""Many clients at once against `videopanda serve`, next to the same server answering one by one.

    python benchmarks/serve_load.py --output benchmarks/serve-load.json

Starts both servers on this machine, with the bundled model, and asks them from this process: every client is a thread
that sends one question about one of several clips, all at the same moment. "One by one" is the server without a batch
and without memory of clips (`--max-num-seqs 1 --clip-cache 0 --decoders 1`), asked the same by one client, question
after question: what a simple loop around the library does. The two take turns; CPU seconds are those of
server and readers.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import psutil

from videopanda.data.worlds.scenes.make import ensure_clip

QUESTIONS = [
    "What colour is the largest object?",
    "How many objects does the video show in total?",
    "Which way does the circle move?",
    "What shape is the red object?",
]
PATIENCE = 600  # seconds


def post(url: str, body: dict) -> tuple[int, dict]:
    """Status and answer; status 0 for a connection that broke."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
    except OSError as error:
        return 0, {"error": {"message": str(error)}}


def upload(url: str, path: Path) -> str:
    """The id of an uploaded clip."""
    edge = "----edge"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="{path.name}"\r\n\r\n'.encode()
    body = head + path.read_bytes() + f"\r\n--{edge}--\r\n".encode()
    request = urllib.request.Request(f"{url}/v1/files", body, {"Content-Type": f"multipart/form-data; boundary={edge}"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer)["id"]


def bodies(ids: list[str], number: int) -> list[dict]:
    """Questions about the clips in turn; every eighth is about none."""
    found = []
    for i in range(number):
        shown = [] if i % 8 == 7 else [{"type": "file", "file": {"file_id": ids[i % len(ids)]}}]
        text = {"type": "text", "text": QUESTIONS[i // len(ids) % len(QUESTIONS)]}
        found.append({"messages": [{"role": "user", "content": [*shown, text]}], "max_tokens": 16})
    return found


def round_(url: str, pid: int, asked: list[dict], clients: int) -> dict:
    """Send everything, by so many clients at once. Returns counts, seconds, memory, and the answers in order."""
    results: list[tuple[int, dict, float] | None] = [None] * len(asked)
    start = threading.Barrier(clients + 1)

    def client(first: int) -> None:
        start.wait()
        for number in range(first, len(asked), clients):
            began = time.perf_counter()
            results[number] = (*post(f"{url}/v1/chat/completions", asked[number]), time.perf_counter() - began)

    spent = cpu_seconds(pid)
    threads = [threading.Thread(target=client, args=(first,)) for first in range(clients)]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - began
    done = [result for result in results if result is not None]
    times = sorted(seconds for status, _, seconds in done if status == 200)
    return {
        "requests": len(asked),
        "status": dict(Counter(str(status) for status, _, _ in done)),
        "seconds": round(wall, 2),
        "cpu_seconds": round(cpu_seconds(pid) - spent, 2),
        "memory_mib": round(memory(pid) / 2**20),
        "answers_per_second": round(len(times) / wall, 2),
        "median_seconds": round(statistics.median(times), 2) if times else None,
        "last_seconds": round(times[-1], 2) if times else None,
        "answers": [
            body["choices"][0]["message"]["content"] if status == 200 else body["error"]["message"]
            for status, body, _ in done
        ],
    }


class Server:
    """`videopanda serve` with the bundled model on a free port."""

    def __init__(self, folder: Path, *options: str):
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "videopanda", "serve", "--port", str(port), "--files", str(folder), *options]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=PATIENCE).close()
                return
            except OSError:
                time.sleep(0.1)
        raise SystemExit("the server does not start")

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(PATIENCE)


def memory(pid: int) -> int:
    """Bytes of memory of a server and its readers."""
    root = psutil.Process(pid)
    return sum(one.memory_info().rss for one in (root, *root.children(recursive=True)))


def cpu_seconds(pid: int) -> float:
    """CPU time that a server and its readers have taken."""
    root = psutil.Process(pid)
    return sum(sum(one.cpu_times()[:2]) for one in (root, *root.children(recursive=True)))


def _listener(port: int) -> int:
    """The process that listens on a port."""
    found = psutil.net_connections("tcp")
    return next(one.pid for one in found if one.status == psutil.CONN_LISTEN and one.laddr.port == port and one.pid)


def main() -> None:
    """Ask both servers in turns and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--url", help="ask this server on this machine, and no other; answers are kept")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "clips").mkdir()
        clips = [ensure_clip(folder / "clips", 5, "test", number) for number in range(options.clips)]
        if options.url:
            pid = _listener(int(options.url.rpartition(":")[2]))
            asked = bodies([upload(options.url, clip) for clip in clips], options.requests)
            rounds = [round_(options.url, pid, asked, len(asked)) for _ in range(options.rounds)]
            print(json.dumps({"batched": rounds}))
            return
        report: dict = {"command": " ".join(sys.argv), "cpus": os.cpu_count(), "load_before": os.getloadavg()}
        servers = {
            "batched": Server(folder / "batched"),
            "one_by_one": Server(folder / "single", "--max-num-seqs", "1", "--clip-cache", "0", "--decoders", "1"),
        }
        try:
            asked = {
                kind: bodies([upload(server.url, clip) for clip in clips], options.requests)
                for kind, server in servers.items()
            }
            for _ in range(options.rounds):
                for kind, server in servers.items():
                    clients = 1 if kind == "one_by_one" else options.requests
                    done = round_(server.url, server.process.pid, asked[kind], clients)
                    report.setdefault(kind, []).append(done)
        finally:
            for server in servers.values():
                server.stop()
    pairs = list(zip(report["batched"], report["one_by_one"]))
    report["same_answers"] = len({tuple(one.pop("answers")) for pair in pairs for one in pair}) == 1
    report["ratio"] = [round(one["answers_per_second"] / single["answers_per_second"], 2) for one, single in pairs]
    report["cpu_ratio"] = [round(single["cpu_seconds"] / one["cpu_seconds"], 2) for one, single in pairs]
    print(json.dumps(report, indent=1))
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
