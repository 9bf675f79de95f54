"""Protects `videopanda answer` and `chat`: several questions, streams, sampling, and a running server that is asked."""

import json
import os
import subprocess
import sys
from functools import partial

import pytest

from command import run
from videopanda.inference.load import BUNDLED_MODEL
from videopanda.serving import fetch

CLIP = BUNDLED_MODEL.parent / "demo.mp4"
QUESTIONS = ["What shape is the red object?", "Which way does the blue cross move?"]
MODEL = ("--model", BUNDLED_MODEL)


@pytest.fixture(scope="module")
def wanted():
    code, out, err = run("answer", CLIP, *QUESTIONS, *MODEL)
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 2
    return out


def test_several_questions_stream_and_json_agree(wanted):
    assert run("answer", CLIP, *QUESTIONS, *MODEL, "--stream") == (0, wanted, "")
    report = json.loads(run("answer", CLIP, *QUESTIONS, *MODEL, "--json")[1])
    assert [one["answer"] for one in report["answers"]] == wanted.splitlines()
    assert run("answer", CLIP, QUESTIONS[0], *MODEL, "--stream", "--json")[0] == 2


def test_a_running_server_gives_the_same_answers(server, wanted):
    assert run("answer", CLIP, *QUESTIONS, "--server", server.url) == (0, wanted, "")
    assert run("answer", CLIP, *QUESTIONS, "--server", f"{server.url}/v1/", "--stream") == (0, wanted, "")
    options = ("--fps", "2", "--end", "0:03", "--temperature", "2", "--seed", "3", "--max-new-tokens", "6", "--json")
    places = (MODEL, ("--server", server.url))
    here, there = (json.loads(run("answer", CLIP, "All?", *where, *options)[1]) for where in places)
    for name in ("answer", "frame_times", "visual_tokens", "prompt_tokens", "completion_tokens", "finish_reason"):
        assert here[name] == there[name], name


def test_asking_a_server_loads_no_torch(server):
    code = "import sys; from videopanda.cli.app import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "answer", str(CLIP), QUESTIONS[0], "--server", server.url]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_what_a_server_refuses_is_one_line(server, tmp_path):
    code, _, err = run("answer", CLIP, "What?", "--server", server.url, "--num-frames", "5000")
    assert code == 2
    assert err.count("\n") == 1
    assert "the server says: " in err
    (tmp_path / "frames").mkdir()
    asked = ("answer", CLIP, "What?")
    assert "model" in run(*asked, *MODEL, "--server", server.url)[2]
    assert "requires --server" in run(*asked, "--api-key", "x")[2]
    assert "must be a URL such as" in run(*asked, "--server", "localhost:8000")[2]


def test_a_seed_repeats_a_drawn_answer():
    drawn = [run("answer", CLIP, "All?", *MODEL, "--temperature", "9", "--seed", seed)[1] for seed in ("1", "1", "2")]
    assert drawn[0] == drawn[1] != drawn[2]


def test_dtypes():
    import torch

    from videopanda.inference.load import load
    from videopanda.models.load import multiplies_bfloat16

    types = {name: load(None, "cpu", name)[0].dtype for name in (None, "float32", "bfloat16", "auto")}
    native = torch.bfloat16 if multiplies_bfloat16("cpu") else torch.float32
    assert types == {None: torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16, "auto": native}
    code, _, err = run("answer", CLIP, "What?", *MODEL, "--dtype", "float8")
    assert (code, err) == (
        2,
        "videopanda: error: --dtype must be float32, bfloat16, float16 or auto, got 'float8'\n",
    )
    assert run("answer", CLIP, *QUESTIONS, *MODEL, "--dtype", "bfloat16")[0] == 0


def test_a_url_of_an_allowed_host_is_fetched(monkeypatch, wanted):
    """The clip comes from this process: the name resolves to a public address, and the connection leads here."""
    import http.server
    import socket
    import threading

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(CLIP.read_bytes())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.handle_request, daemon=True).start()
        here = web.server_address
        resolve = lambda host, port, type: [(0, 0, 0, "", ("93.184.216.34", port))]  # noqa: E731
        connect = lambda address, timeout: socket.create_connection(here, timeout)  # noqa: E731
        monkeypatch.setattr(fetch, "FetchPolicy", partial(fetch.FetchPolicy, look_up=resolve, connect=connect))
        url = "http://videos.example.org/a/clip.mp4?x=1"
        assert "cannot fetch" in run("answer", url, QUESTIONS[0], *MODEL, "--allow-host", "example.org")[2]
        answer = run("answer", url, QUESTIONS[0], *MODEL, "--allow-host", "*.example.org")
    assert answer == (0, wanted.splitlines()[0] + "\n", "")


def test_a_chat_streams_remembers_and_survives_a_bad_question(monkeypatch):
    from videopanda.inference.answer import Chat
    from videopanda.inference.load import load

    chat = Chat(*load(None, "cpu"), CLIP)
    said = [chat.ask(question).answer for question in QUESTIONS]
    lines = iter([QUESTIONS[0], "Is <video> ok?", QUESTIONS[1], ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    code, out, err = run("chat", CLIP, *MODEL)
    assert (code, out.splitlines()) == (0, said)
    assert err.count("\n") == 1
    assert "must not contain <video>" in err


def test_the_arrow_keys_bring_a_question_back():
    pty = pytest.importorskip("pty", reason="no pseudo-terminals on this system")
    main, side = pty.openpty()
    command = [sys.executable, "-m", "videopanda", "chat", str(CLIP), *map(str, MODEL)]
    chat = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env={**os.environ, "TERM": "xterm"})
    os.close(side)
    shown = ""

    def type_at_prompt(number, keys):
        nonlocal shown
        while shown.count("> ") < number:
            shown += os.read(main, 1000).decode()
        os.write(main, keys.encode())

    up = "\x1b[A"
    try:
        type_at_prompt(1, f"{QUESTIONS[0]}\n")
        type_at_prompt(2, f"{up}\n")
        type_at_prompt(3, "\x04")
        assert chat.wait(60) == 0
        shown += os.read(main, 1000).decode()
    finally:
        chat.kill()
        os.close(main)
    assert shown.count(QUESTIONS[0]) == 2
    assert shown.endswith("> \r\n")


def test_completion_is_offered_for_the_usual_shells():
    script = subprocess.run(
        [sys.executable, "-c", "from videopanda.cli.app import main; main()"],
        env={**os.environ, "_VIDEOPANDA_COMPLETE": "source_bash"},
        capture_output=True,
        text=True,
    )
    assert "complete -o default -F" in script.stdout
