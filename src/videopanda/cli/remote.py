"""Asks a running `videopanda serve`, so that a question does not wait for a model to load."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen
from uuid import uuid4

_TIMEOUT = 600.0  # seconds without a byte


def ask_server(
    server: str,
    video: Path,
    questions: Sequence[str],
    choice: Mapping[str, Any],
    sampling: Mapping[str, Any],
    api_key: str | None,
) -> Iterator[str | dict[str, Any]]:
    """For each question, the pieces of its answer as they arrive, then the report that `answer --json` prints.

    Args:
        choice: which frames: `num_frames`, `fps`, `start`, `end`.
        sampling: `max_new_tokens`, `temperature`, `seed`.

    Raises:
        ValueError: the server does not answer, or returns an error, whose message is passed on.
    """
    if video.is_dir():
        raise ValueError(
            f"--server needs a single file, but {video} is a folder: omit --server, or encode it as a video"
        )
    if not server.startswith(("http://", "https://")):
        raise ValueError(f"--server must be a URL such as http://127.0.0.1:8000, got {server!r}")
    caller = _Caller(server.rstrip("/").removesuffix("/v1"), {"Authorization": f"Bearer {api_key}"} if api_key else {})
    with caller.uploaded(video) as file:
        for question in questions:
            parts = [{"type": "file", "file": {"file_id": file}}, {"type": "text", "text": question}]
            body = {
                "messages": [{"role": "user", "content": parts}],
                "max_tokens": sampling["max_new_tokens"],
                "temperature": sampling["temperature"],
                **({} if sampling["seed"] is None else {"seed": sampling["seed"]}),
                "video": {name: value for name, value in choice.items() if value is not None},
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            yield from _answer(caller, body, question)


def _answer(caller: "_Caller", body: Mapping[str, Any], question: str) -> Iterator[str | dict[str, Any]]:
    text, report = "", {"question": question}
    headers = {"Content-Type": "application/json"}
    with caller.call("POST", "/v1/chat/completions", json.dumps(body).encode(), headers) as lines:
        for line in lines:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise ValueError(f"the server says: {event['error']['message']}")
            for part in event["choices"]:
                if piece := part["delta"].get("content"):
                    text += piece
                    yield piece
                if part["finish_reason"]:
                    report |= {"finish_reason": part["finish_reason"], "model": event["model"]}
            if about := event.get("videopanda"):
                (times,) = about["frame_times"]
                report |= {"frame_times": times, "visual_tokens": about["visual_tokens"], "timings": about["seconds"]}
            if usage := event.get("usage"):
                report |= {name: usage[name] for name in ("prompt_tokens", "completion_tokens")}
    if "finish_reason" not in report:
        raise ValueError(f"the connection to {caller.server} broke before the answer was complete")
    yield {**report, "answer": text}


class _Caller:
    """Sends requests to one server; every failure becomes a one-line ValueError."""

    def __init__(self, server: str, headers: Mapping[str, str]):
        self.server, self.headers = server, headers

    @contextmanager
    def call(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Iterator[Any]:
        """The response to a request."""
        request = Request(self.server + path, body, {**self.headers, **(headers or {})}, method=method)
        try:
            with urlopen(request, timeout=_TIMEOUT) as response:
                yield response
        except HTTPError as error:
            raise ValueError(f"the server says: {_reason(error)}") from error
        except (URLError, OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ConnectionRefusedError):
                raise ValueError(f"no server at {self.server}: start one with  videopanda serve") from error
            raise ValueError(f"no answer from {self.server}: {reason}") from error

    @contextmanager
    def uploaded(self, video: Path) -> Iterator[str]:
        """Upload a file and yield its id; it is deleted from the server afterwards."""
        mark = uuid4().hex
        name = video.name.replace("\\", "_").replace('"', "_")
        head = (
            f'--{mark}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n--{mark}\r\n'
            f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
        ).encode()
        tail = f"\r\n--{mark}--\r\n".encode()
        with video.open("rb") as file:
            body = chain([head], iter(lambda: file.read(1 << 20), b""), [tail])
            size = len(head) + video.stat().st_size + len(tail)
            headers = {"Content-Type": f"multipart/form-data; boundary={mark}", "Content-Length": str(size)}
            with self.call("POST", "/v1/files", body, headers) as response:
                uploaded = json.loads(response.read())["id"]
        try:
            yield uploaded
        finally:
            with self.call("DELETE", f"/v1/files/{uploaded}"):
                pass


def _reason(error: HTTPError) -> str:
    try:
        return str(json.loads(error.read())["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {error.code}"
