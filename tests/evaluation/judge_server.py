"""A stand-in for a judge behind the OpenAI protocol that can behave badly.

with StandIn(lambda text, nth: '{"pred": "yes", "score": 5}') as server:
    RemoteJudge("judge-2026-01-01", server.url)
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class BusyError(Exception):
    """Answer with an HTTP error instead."""

    def __init__(self, status: int):
        self.status = status


class RefusedError(Exception):
    """Answer that a setting is not supported."""

    def __init__(self, setting: str, names_it: bool = True):
        self.setting, self.names_it = setting, names_it


class RawError(Exception):
    """Answer with a body that is no chat completion."""

    def __init__(self, body: str, kind: str = "application/json"):
        self.body, self.kind = body, kind


class DieError(Exception):
    """Stop serving, without an answer."""


class StandIn:
    """Serves `answer(user message, how often it was asked before)`; `asked` counts completed answers by message."""

    def __init__(self, answer: Callable[[str, int], str | list | dict], model: str = "judge-2026-01-01"):
        self.answer, self.model = answer, model
        self.calls: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.requests: list[dict] = []
        self.most_at_once = self._at_once = 0
        self.is_dead = False
        self._lock = threading.Lock()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                stand_in.handle(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> "StandIn":
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        with self._lock:
            nth = self.calls[text]
            self.calls[text] += 1
            self.requests.append(body)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        status, kind, headers = 200, "application/json", {}
        try:
            if self.is_dead:
                raise DieError
            content = self.answer(text, nth)
            usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
            message = {"role": "assistant", **(content if isinstance(content, dict) else {"content": content})}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            reply = {"id": "x", "object": "chat.completion", "created": 0, "model": self.model, "choices": choices}
            out = json.dumps({**reply, "usage": usage})
        except BusyError as busy:
            status, out, headers = busy.status, json.dumps({"error": {"message": "busy"}}), {"Retry-After": "0"}
        except RefusedError as refused:
            error = {"message": f"Unsupported parameter: '{refused.setting}' is not supported with this model."}
            status, out = 400, json.dumps({"error": error | ({"param": refused.setting} if refused.names_it else {})})
        except RawError as raw:
            out, kind = raw.body, raw.kind
        except DieError:
            self.is_dead = True
            request.connection.close()
            return
        finally:
            with self._lock:
                self._at_once -= 1
        data = out.encode()
        with self._lock:
            self.asked[text] += status == 200
        request.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(data)


def slowly(seconds: float, text: str) -> str:
    """An answer that takes its time."""
    time.sleep(seconds)
    return text
