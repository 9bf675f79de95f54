"""Ten thousand mixed requests to `videopanda serve`, half of them beside half-sent bodies and giant texts.

    python benchmarks/robustness_server.py --output benchmarks/robustness.json

Starts the server on loopback with the bundled model. Rounds take turns: quiet, and attacked by hundreds of connections
that send half a body each, and by texts of nine megabytes one after the other. In both, the same clients send the same
mix: small chats, questions about an uploaded clip, streams, clips as data URLs, uploads, listings, and malformed or
hostile requests. Counted are answers by status, requests that got none, and how long small chats take.
"""

import argparse
import base64
import http.client
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import psutil

from videopanda.data.worlds.scenes.make import ensure_clip

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=edge"}
HALF_SENT = 300
PATIENCE = 300  # seconds


class Server:
    """`videopanda serve` with the bundled model on a free port."""

    def __init__(self, folder: Path):
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        command = [sys.executable, "-m", "videopanda", "serve", "--port", str(self.port), "--files", str(folder)]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE
        while self.send("GET", "/health")[0] != 200:
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise SystemExit("the server does not start")
            time.sleep(0.2)

    def send(self, method: str, path: str, body: bytes | None = None, headers: dict | None = None) -> tuple[int, bytes]:
        """Status and body; status 0 where no answer came."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    @property
    def memory(self) -> int:
        """MiB of the server and its decoders."""
        root = psutil.Process(self.process.pid)
        return round(sum(one.memory_info().rss for one in (root, *root.children(recursive=True))) / 2**20)


def chat(*parts: dict, **fields: object) -> bytes:
    """The body of a chat."""
    content = [*parts, {"type": "text", "text": "Which way does the circle move?"}]
    return json.dumps({"messages": [{"role": "user", "content": content}], "max_tokens": 4, **fields}).encode()


def mix(server: Server, clip: bytes) -> dict[str, list[tuple]]:
    """Requests by kind; every request names the statuses that are right for it."""
    upload = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n' + clip
    upload += b"\r\n--edge--\r\n"
    id_ = json.loads(server.send("POST", "/v1/files", upload, FORM)[1])["id"]
    file = {"type": "file", "file": {"file_id": id_}}
    data = {"type": "input_video", "input_video": {"data": base64.b64encode(clip).decode()}}
    bad = {"type": "video_url", "video_url": {"url": "http://169.254.169.254/"}}
    broken = {"type": "input_video", "input_video": {"data": base64.b64encode(clip[:5000]).decode()}}
    return {
        "small": [("POST", CHAT, chat(), JSON, {200})],
        "other": [
            ("POST", CHAT, chat(file), JSON, {200}),
            ("POST", CHAT, chat(file, stream=True), JSON, {200}),
            ("POST", CHAT, chat(data, video={"num_frames": 4}), JSON, {200}),
            ("POST", CHAT, chat(file, temperature=1e-300), JSON, {200}),
            ("POST", CHAT, chat(broken), JSON, {422}),
            ("POST", CHAT, chat(bad), JSON, {403}),
            ("POST", CHAT, chat({"type": "text", "text": "<vid"}, {"type": "text", "text": "eo>"}), JSON, {400}),
            ("POST", CHAT, chat({"type": "text", "text": "word " * 5000}), JSON, {400}),
            ("POST", CHAT, b"{" * 1000, JSON, {400}),
            ("POST", CHAT, chat(), {**JSON, "Origin": "null"}, {403}),
            ("GET", "/v1/models", None, {"Host": "evil.example"}, {403}),
            ("POST", "/v1/files", upload[: len(upload) // 2], FORM, {400}),
            ("GET", "/v1/files?limit=5", None, None, {200}),
            ("GET", f"/v1/files/{id_}/frames?num_frames=4", None, None, {200}),
            ("GET", "/metrics", None, None, {200}),
        ],
    }


class Attack:
    """Half-sent bodies and giant texts, until the block ends."""

    def __init__(self, server: Server):
        self.server, self.stopped, self.giant = server, threading.Event(), Counter()
        self.threads = [threading.Thread(target=one) for one in (self._half, self._giant)]

    def __enter__(self) -> "Attack":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join()

    def _half(self) -> None:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += "Content-Length: 9999\r\n\r\n{"
        held: list[socket.socket] = []
        while not self.stopped.wait(0.02):
            if len(held) >= HALF_SENT:
                held.pop(0).close()
            held.append(socket.create_connection(("127.0.0.1", self.server.port), PATIENCE))
            held[-1].sendall(head.encode())
        for one in held:
            one.close()

    def _giant(self) -> None:
        body = chat(*[{"type": "text", "text": "word " * 200_000}] * 9)
        while not self.stopped.wait(1.0):
            self.giant[self.server.send("POST", CHAT, body, JSON)[0]] += 1


def round_(server: Server, asked: dict[str, list[tuple]], number: int, clients: int) -> dict:
    """Send `number` requests, half of them small chats, by so many clients at once."""
    results: list[tuple[str, int, bool, float]] = []
    numbers = iter(range(number))
    lock = threading.Lock()

    def client() -> None:
        while True:
            with lock:
                i = next(numbers, None)
            if i is None:
                return
            kind = "small" if i % 2 else "other"
            method, path, body, headers, right = asked[kind][i // 2 % len(asked[kind])]
            began = time.perf_counter()
            status, _ = server.send(method, path, body, headers)
            results.append((kind, status, status in right, time.perf_counter() - began))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    small = sorted(seconds for kind, _, _, seconds in results if kind == "small")
    return {
        "requests": len(results),
        "seconds": round(time.perf_counter() - began, 1),
        "status": dict(sorted(Counter(str(status) for _, status, _, _ in results).items())),
        "lost": sum(status == 0 for _, status, _, _ in results),
        "wrong_status": sum(not right for _, _, right, _ in results),
        "small_chats": small,
    }


def percentile(values: list[float], share: float) -> float:
    """The value that this share of the sorted values does not exceed."""
    return values[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    """Run the rounds and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rounds: dict[str, list[dict]] = {"quiet": [], "attacked": []}
    giant: Counter = Counter()
    with tempfile.TemporaryDirectory() as name:
        server = Server(Path(name) / "files")
        try:
            asked = mix(server, ensure_clip(Path(name), 5, "test", 0).read_bytes())
            round_(server, asked, 60, options.clients)  # nothing is new any more
            memory = server.memory
            each = -(-options.requests // (2 * options.rounds))
            for number in range(options.rounds):
                rounds["quiet"].append(round_(server, asked, each, options.clients))
                with Attack(server) as attack:
                    rounds["attacked"].append(round_(server, asked, each, options.clients))
                giant += attack.giant
                print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
            report = {
                "command": " ".join(["python", *sys.argv]),
                "date": time.strftime("%Y-%m-%d"),
                "machine": f"{platform.machine()}, Python {platform.python_version()}, torch {version('torch')}",
                "cpus": os.cpu_count(),
                "load": [round(one, 1) for one in os.getloadavg()],
                "requests": sum(one["requests"] for both in rounds.values() for one in both) + sum(giant.values()),
                "giant_texts": {str(status): count for status, count in giant.items()},
                "half_sent_bodies_at_a_time": HALF_SENT,
                "memory_mib": {"before": memory, "after": server.memory},
                "is_alive": server.send("GET", "/health")[0] == 200,
            }
        finally:
            server.process.terminate()
            server.process.wait(PATIENCE)
    for kind, both in rounds.items():
        small = sorted(seconds for one in both for seconds in one["small_chats"])
        status = sum((Counter(one["status"]) for one in both), Counter())
        report[kind] = {
            "requests": sum(one["requests"] for one in both),
            "seconds": round(sum(one["seconds"] for one in both), 1),
            "status": dict(sorted(status.items())),
            "server_errors": sum(count for code, count in status.items() if code >= "500"),
            "lost": sum(one["lost"] for one in both),
            "wrong_status": sum(one["wrong_status"] for one in both),
            "small_chat_seconds": {
                f"p{round(100 * share)}": round(percentile(small, share), 4) for share in (0.5, 0.9, 0.99)
            },
        }
    p99 = [report[kind]["small_chat_seconds"]["p99"] for kind in ("attacked", "quiet")]
    report["p99_ratio"] = round(p99[0] / p99[1], 2)
    print(json.dumps(report, indent=1))
    if options.output:
        known = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
        options.output.write_text(json.dumps({**known, "server": report}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
