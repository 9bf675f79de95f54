"""Protects judging: a server that misbehaves in every way, resuming, the cache, denominators, official outputs."""

import json
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest
from benchmark_files import WRITERS, question, write_json, write_lines
from judge_server import BusyError, DieError, RawError, RefusedError, StandIn, slowly

from command import run
from videopanda.data.growing_file import only_writer
from videopanda.evaluation.judging.clients import JudgeError, RemoteJudge
from videopanda.evaluation.judging.judge import ATTEMPTS
from videopanda.evaluation.judging.protocols import PROMPTS, parse, read_prompts
from videopanda.evaluation.judging.run import judge_file, prepare
from videopanda.evaluation.reporting.report import report
from videopanda.evaluation.reporting.write import markdown, write

YES = '{"pred": "yes", "score": 4}'
NUM = 24


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.fixture
def asked(tmp_path) -> Path:
    folder = tmp_path / "asked"
    write_json(folder / "test_q.json", [question(f"c{i}", f"what {i}?", i) for i in range(NUM)])
    write_json(folder / "test_a.json", [{"answer": "dog", "question_id": i} for i in range(NUM)])
    return folder


@pytest.fixture
def predictions(tmp_path) -> Path:
    return write_lines(tmp_path / "p.jsonl", *({"id": i, "pred": f"a dog {i}"} for i in range(NUM)))


def number(text: str) -> int:
    """Which question a message is about."""
    return int(text.partition("Question: what ")[2].partition("?")[0])


def judge(asked: Path, predictions: Path, out: Path, server: StandIn, retries: int = 3, concurrency: int = 4) -> dict:
    work = prepare("msvd-qa", asked, predictions, out)
    client = RemoteJudge("judge-2026-01-01", server.url, retries, timeout=20.0)
    return judge_file(work, out, client, PROMPTS, concurrency)


def wrong(summary: dict) -> dict[str, list[str]]:
    return summary["wrong_without_being_read"]


# -- verdicts ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ('{"pred": "yes", "score": 5}', {"accuracy": 1.0, "score": 5.0}),
        ("{'pred': 'No', 'score': 2}", {"accuracy": 0.0, "score": 2.0}),
        ("{'pred': 'yes', 'score': 4.8}", {"accuracy": 1.0, "score": 4.0}),
        ('```json\n{"pred": "yes", "score": "3"}\n```', {"accuracy": 1.0, "score": 3.0}),
        ('{"pred": "unknown", "score": 3}', None),
        ('{"pred": "yes"}', None),
        ('{"pred": "yes", "score": 6}', None),
        ('{"pred": "yes", "score": true}', None),
        ('{"pred": "yes", "score": 1} {"pred": "no", "score": 1}', None),
        (
            '<think>Perhaps {"pred": "no", "score": 0}?</think>{"pred": "yes", "score": 5}',
            {"accuracy": 1.0, "score": 5.0},
        ),
        ('The set {a, b} is right, so: {"pred": "yes", "score": 5}. Done.', {"accuracy": 1.0, "score": 5.0}),
        ('{"pred": "yes", "score": "4.5"}', {"accuracy": 1.0, "score": 4.0}),
        ('{"pred": "yes", "score": "4/5"}', {"accuracy": 1.0, "score": 4.0}),
        ('{"Pred": "Yes", "Score": 4}', {"accuracy": 1.0, "score": 4.0}),
        ('{"pred": "yes", "score": 1} or again {"pred": "yes", "score": 1}', {"accuracy": 1.0, "score": 1.0}),
        ('{"pred": "yes", "score": "many"}', None),
        ('<think>{"pred": "yes", "score": 5}', None),  # thoughts without an end
        ("yes", None),
        ("", None),
        ("{" * 5000, None),
        ("{__import__('os').getcwd(): 1}", None),
    ],
)
def test_verdicts_are_read_strictly(reply, expected):
    assert parse("answer", reply) == expected


def test_aspects_need_points_only():
    assert parse("detail", '{"score": 3}') == {"detail": 3.0}
    assert parse("detail", '{"score": -1}') is None


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("A", (1.0, 0.0)),
        ("B.", (0.0, 0.0)),
        ("C: NOT_ATTEMPTED", (0.0, 1.0)),
        ("The reply is INCORRECT", (0.0, 0.0)),
        ("<think>A or B? It names the hat.</think>\n\nA", (1.0, 0.0)),
        ("A or B", None),
        ("a", None),
        ("", None),
    ],
)
def test_grades_are_letters(reply, expected):
    assert parse("grade", reply) == (expected and dict(zip(("accuracy", "not_attempted"), expected)))


def test_own_prompts(tmp_path):
    given = {"answer": {"system": "S", "user": "{question}|{answer}|{prediction}"}}
    prompts = read_prompts(write_json(tmp_path / "p.json", given))
    values = {"question": "q {answer}", "answer": "a", "prediction": "p"}
    assert [message["content"] for message in prompts["answer"].fill(values)] == ["S", "q {answer}|a|p"]
    assert prompts["detail"] == PROMPTS["detail"]
    for content, message in [
        ({"style": {}}, "unknown aspect 'style'"),
        ({"answer": {"user": "x"}}, "must have the texts"),
        ({"consistency": {"system": "", "user": "{prediction}"}}, r"must contain \{prediction\}, \{prediction_2\}"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_prompts(write_json(tmp_path / "bad.json", content))


# -- a server that misbehaves ------------------------------------------------------------------------------------------
def test_every_kind_of_trouble(asked, predictions, tmp_path):
    def answer(text: str, nth: int) -> str:
        kind = number(text) % 8
        if kind == 1 and nth < 2:
            raise BusyError(429)
        if kind == 2 and nth < 1:
            raise BusyError(500)
        if kind == 3:
            return slowly(0.05, YES)
        if kind == 4 and nth < ATTEMPTS - 1:
            return "I would say yes."
        if kind == 5:
            return "Never mind."
        if kind == 6 and nth == 0:
            raise RawError("<html>", "text/html")
        if kind == 7 and nth == 0:
            raise RawError('{"choices": []}')
        return YES

    with StandIn(answer) as server:
        summary = judge(asked, predictions, tmp_path / "s.jsonl", server)
        assert server.most_at_once <= 4
        assert {request["temperature"] for request in server.requests} == {0.0}
        assert {request["model"] for request in server.requests} == {"judge-2026-01-01"}
        calls = server.calls.total()
        again = judge(asked, predictions, tmp_path / "s.jsonl", server)
        assert server.calls.total() == calls  # nothing is asked twice, not even what could not be read
    unread = [str(i) for i in range(NUM) if i % 8 == 5]
    assert wrong(summary) == {"unparsable_verdict": unread}
    assert (summary["questions"], summary["failed_calls"]) == (NUM, {})
    assert summary["metrics"] == {"accuracy": round(21 / 24, 6), "score": round(21 * 4 / 24, 6)}
    assert again == summary
    replies = [json.loads(line) for line in (tmp_path / "s.replies.jsonl").read_text().splitlines()]
    assert sum(reply["text"] == "Never mind." for reply in replies) == ATTEMPTS * len(unread)  # every raw reply is kept
    assert len(replies) == NUM + 3 * 2 + 3 * 2
    info = summary["scorers"][0]["judge"]
    assert (info["model"], info["answered_by"], info["temperature"]) == ("judge-2026-01-01", ["judge-2026-01-01"], 0.0)


def test_a_server_that_dies_half_way(asked, predictions, tmp_path):
    lock, given = threading.Lock(), []

    def dying(text: str, nth: int) -> str:
        with lock:
            given.append(text)
            if len(given) > NUM // 2:
                raise DieError
        return YES

    out = tmp_path / "s.jsonl"
    with StandIn(dying) as first:
        summary = judge(asked, predictions, out, first, retries=1)
    known = set(first.asked)
    assert len(known) == NUM // 2
    assert len(wrong(summary)["not_judged"]) == NUM // 2 == len(summary["failed_calls"])
    assert first.calls.total() <= NUM // 2 + 2 * 4  # of four callers each tries twice; the others do not begin
    assert summary["metrics"]["accuracy"] == 0.5
    # The last line was cut off when the machine went down, too.
    kept = (tmp_path / "s.replies.jsonl").read_bytes()
    (tmp_path / "s.replies.jsonl").write_bytes(kept + b'{"key": "torn')
    with StandIn(lambda text, nth: YES) as second:
        summary = judge(asked, predictions, out, second)
    assert wrong(summary) == {}
    assert summary["metrics"] == {"accuracy": 1.0, "score": 4.0}
    assert not known & set(second.asked)
    assert set(second.asked.values()) == {1}
    assert len(known | set(second.asked)) == NUM


def test_an_interruption_ends_the_run_and_keeps_what_was_said(asked, predictions, tmp_path, monkeypatch):
    started = threading.Event()

    def answer(text: str, nth: int) -> str:
        if not started.is_set():
            started.set()
            return YES
        return slowly(0.2, YES)

    def interrupt(future, timeout=None):
        started.wait()
        raise KeyboardInterrupt

    out = tmp_path / "s.jsonl"
    with StandIn(answer) as server:
        with monkeypatch.context() as patch:
            patch.setattr(Future, "result", interrupt)
            with pytest.raises(KeyboardInterrupt):
                judge(asked, predictions, out, server, concurrency=2)
        assert server.calls.total() < NUM  # those under way, not all that were waiting
        known = dict(server.asked)
        assert known
        judge(asked, predictions, out, server)
        assert set(server.asked.values()) == {1}
        assert len(server.asked) == NUM


def test_two_judges_do_not_write_one_file(asked, predictions, tmp_path):
    with StandIn(lambda text, nth: YES) as server, only_writer(tmp_path / "s.replies.jsonl"):
        with pytest.raises(ValueError, match="another process is writing"):
            judge(asked, predictions, tmp_path / "s.jsonl", server)
        assert server.calls.total() == 0


def test_a_server_that_is_not_there(tmp_path):
    with StandIn(lambda text, nth: YES) as server:
        pass
    with pytest.raises(JudgeError) as error:
        RemoteJudge("x", server.url, retries=0).ask([{"role": "user", "content": "?"}])
    assert error.value.final


def test_a_server_that_refuses(asked, predictions, tmp_path):
    def refuse(text: str, nth: int) -> str:
        raise BusyError(401)

    with StandIn(refuse) as server:
        summary = judge(asked, predictions, tmp_path / "s.jsonl", server, concurrency=1)
        assert server.calls.total() == 1
    assert len(wrong(summary)["not_judged"]) == NUM


@pytest.mark.parametrize("names_it", [True, False])
def test_models_that_refuse_settings_are_asked_without_them(asked, predictions, tmp_path, names_it):
    def reasoning(text: str, nth: int) -> str:
        for setting in ("max_tokens", "temperature"):
            if setting in server.requests[-1]:
                raise RefusedError(setting, names_it)
        return YES

    with StandIn(reasoning) as server:
        summary = judge(asked, predictions, tmp_path / "s.jsonl", server, concurrency=1)
        assert server.calls.total() == NUM + 2  # learned once
    assert summary["metrics"]["accuracy"] == 1.0
    (entry,) = summary["scorers"]
    assert {"seed": 0, "max_completion_tokens": 4096}.items() <= entry["judge"].items()
    assert not {"temperature", "max_tokens"} & entry["judge"].keys()


def test_models_that_refuse_are_asked_by_many_threads_at_once(asked, predictions, tmp_path):
    def reasoning(text: str, nth: int) -> str:
        if nth == 0 and any("max_tokens" in r for r in server.requests if r["messages"][-1]["content"] == text):
            raise RefusedError("max_tokens")
        return YES

    with StandIn(reasoning) as server:
        summary = judge(asked, predictions, tmp_path / "s.jsonl", server, concurrency=8)
    assert summary["metrics"]["accuracy"] == 1.0


def test_another_mistake_is_still_one(tmp_path):
    def refuse(text: str, nth: int) -> str:
        raise RefusedError("messages")

    with StandIn(refuse) as server, pytest.raises(JudgeError, match="messages"):
        RemoteJudge("x", server.url).ask([{"role": "user", "content": "?"}])


def test_content_in_parts_and_after_thoughts(tmp_path):
    def answer(text: str, nth: int):
        if text == "parts":
            return [{"type": "reasoning", "text": "no"}, {"type": "text", "text": "{1"}, {"type": "text", "text": "2}"}]
        if "max_tokens" in server.requests[-1] and server.requests[-1]["max_tokens"] < 4096:
            return {"content": None, "reasoning_content": "I think that"}  # its thoughts have used up all tokens
        return {"content": "said", "reasoning_content": "thought"}

    with StandIn(answer) as server:
        client = RemoteJudge("x", server.url)
        assert client.ask([{"role": "user", "content": "parts"}]).text == "{12}"
        assert client.ask([{"role": "user", "content": "?"}]).text == "said"


def test_replies_without_their_key_name_their_line(asked, predictions, tmp_path):
    replies = tmp_path / "s.replies.jsonl"
    for lines, message in [
        (
            ('{"key": "k", "text": "t", "model": "m"}', '{"key": null, "text": "t"}'),
            "line 2 is not a judge's reply: 'key'",
        ),
        (('{"key": "k", "model": "m"}',), "line 1 is not a judge's reply: 'text'"),
        (('{"key": "k", "text"', '{"key": "k", "text": "t"}'), "line 1: not valid JSON"),
        (("My notes",), "was not written by this command"),
    ]:
        content = "\n".join(lines) + "\n"
        replies.write_text(content)
        code, _, err = run(
            *("evaluate", "judge", "msvd-qa", asked, predictions, "--output", tmp_path / "s.jsonl", "--name", "x"),
            *("--base-url", "http://localhost:1/v1"),
        )
        assert code == 2
        assert str(replies) in err
        assert message in err
        assert replies.read_text() == content


def test_replies_that_nobody_can_read_are_no_zero_with_exit_code_zero(asked, predictions, tmp_path):
    with StandIn(lambda text, nth: {"content": None, "reasoning_content": "hm"}) as server:
        common = ("evaluate", "judge", "msvd-qa", asked, predictions, "--output", tmp_path / "s.jsonl", "--name", "x")
        code, out, _ = run(*common, "--base-url", server.url)
    assert code == 1
    assert "unparsable verdict 24" in out


def test_too_slow_is_no_answer(tmp_path):
    with StandIn(lambda text, nth: slowly(1.0 if nth == 0 else 0.0, YES)) as server:
        client = RemoteJudge("x", server.url, retries=0, timeout=0.3)
        with pytest.raises(JudgeError, match="timed out") as error:
            client.ask([{"role": "user", "content": "?"}])
        assert not error.value.final


# -- what counts -------------------------------------------------------------------------------------------------------
def test_denominators_and_equal_calls(asked, tmp_path):
    rows = [{"id": i, "pred": "a dog"} for i in range(NUM - 4)]
    rows += [{"id": str(NUM - 4), "prediction": None, "failure": "missing_video"}]
    rows += [{"id": NUM - 3, "pred": "x"}, {"id": str(NUM - 3), "pred": "y"}]
    predictions = write_lines(tmp_path / "p.jsonl", *rows)
    with StandIn(lambda text, nth: YES) as server:
        summary = judge(asked, predictions, tmp_path / "s.jsonl", server)
        assert server.calls.total() == NUM - 4
    assert wrong(summary) == {"missing_video": ["20"], "missing_prediction": ["22", "23"], "duplicate_id": ["21"]}
    assert (summary["questions"], summary["metrics"]["accuracy"]) == (NUM, round(20 / 24, 6))
    write_json(asked / "test_q.json", [question("c", "what 1?", i) for i in range(NUM)])
    with StandIn(lambda text, nth: YES) as server:
        judge(asked, predictions, tmp_path / "t.jsonl", server)
        assert server.calls.total() == 1  # twenty equal calls


def test_five_aspects_with_both_questions(tmp_path):
    folder = WRITERS["video-chatgpt"](tmp_path / "vcg")
    ids = ["generic/v_INVENT_01/0", "generic/v_INVENT_01/1", "temporal/v_INVENT_01/0"]
    ids += ["consistency/v_INVENT_01/0/Q1", "consistency/v_INVENT_01/0/Q2"]
    predictions = write_lines(tmp_path / "p.jsonl", *({"id": id_, "pred": f"reply to {id_}"} for id_ in ids))
    points = {"facts": 5, "complete": 4, "theme": 3, "order": 2, "agree": 1}

    def answer(text: str, nth: int) -> str:
        system = server.requests[-1]["messages"][0]["content"]
        return json.dumps({"score": next(value for word, value in points.items() if word in system)})

    with StandIn(answer) as server:
        work = prepare("video-chatgpt", folder, predictions, tmp_path / "s.jsonl")
        summary = judge_file(work, tmp_path / "s.jsonl", RemoteJudge("x", server.url), PROMPTS, concurrency=1)
        (pair,) = [text for text in server.asked if "Second question" in text]
    given = {"correctness": 5, "detail": 4, "context": 3, "temporal": 2, "consistency": 1}
    assert summary["metrics"] == {"average": 3, **given}
    assert {name: part["questions"] for name, part in summary["types"].items()} == {
        "correctness": 2,
        "detail": 2,
        "context": 2,
        "temporal": 1,
        "consistency": 1,
    }
    (table,) = report([tmp_path / "s.jsonl"])["benchmarks"]
    assert "| detail | 2 | 4.00 |" in markdown(table)
    assert "| temporal | 1 | 2.00 |" in markdown(table)
    assert write({"benchmarks": [table]}, tmp_path / "report")[0].name == "video-chatgpt.types.png"
    for piece in ("Which colour is it?", "Can you tell its colour?", f"reply to {ids[3]}", f"reply to {ids[4]}"):
        assert piece in pair
    missing = write_lines(tmp_path / "q.jsonl", *({"id": id_, "pred": "x"} for id_ in ids[:4]))
    with StandIn(answer) as server:
        work = prepare("video-chatgpt", folder, missing, tmp_path / "t.jsonl")
        summary = judge_file(work, tmp_path / "t.jsonl", RemoteJudge("x", server.url), PROMPTS, concurrency=1)
    assert wrong(summary) == {"missing_prediction": ["consistency/v_INVENT_01/0#consistency"]}


# -- the command -------------------------------------------------------------------------------------------------------
def test_the_command_judges_and_two_judges_do_not_mix(asked, predictions, tmp_path):
    files = []
    for name in ("judge-a", "judge-b"):
        out = tmp_path / f"{name}.jsonl"
        common = ("evaluate", "judge", "msvd-qa", asked, predictions, "--output", out, "--name", name)
        with StandIn(lambda text, nth: YES, model=name) as server:
            code, printed, _ = run(*common, "--base-url", server.url, "--dry-run", "--price-in", 2, "--price-out", 10)
            cost = json.loads(printed)
            assert (code, cost["calls"]) == (0, NUM)
            expected = (cost["input_tokens"] * 2 + cost["output_tokens"] * 10) / 1e6
            assert cost["cost"] == pytest.approx(expected, abs=1e-4)
            assert server.calls.total() == 0
            code, printed, err = run(*common, "--base-url", server.url, "--json")
        assert code == 0
        assert '"calls": 24' in err
        assert json.loads(printed)["metrics"] == {"accuracy": 1.0, "score": 4.0}
        files.append(out)
    (table,) = report(files[:1])["benchmarks"]
    text = markdown(table)
    assert "judge judge-a, prompts " in text
    assert "| 100.0 [100.0, 100.0] | 4.00 [4.00, 4.00] |" in text
    with pytest.raises(ValueError, match="differ in scorer or judge"):
        report(files)


def test_exit_code_one_says_that_some_are_not_judged(asked, predictions, tmp_path):
    with StandIn(lambda text, nth: YES) as server:
        pass
    common = ("evaluate", "judge", "msvd-qa", asked, predictions, "--output", tmp_path / "s.jsonl", "--name", "x")
    code, out, err = run(*common, "--base-url", server.url, "--retries", 0)
    assert code == 1
    assert "not judged 24" in out
    assert "calls failed: Connection error" in err
    for arguments, message in [
        (("--import", tmp_path), "one of --name, --model and --import"),
        (("--prompts", predictions), "must contain one JSON object|is not valid JSON"),
        ((), "set OPENAI_API_KEY"),
        (("--output", predictions), "is the predictions file"),
    ]:
        code, out, err = run(*common, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert any(piece in err for piece in message.split("|"))


def test_official_outputs_are_imported(asked, predictions, tmp_path):
    folder = tmp_path / "official"
    for i in range(NUM - 2):
        about = {"q": f"what {i}?", "a": "dog", "pred": f"a dog {i}"}
        write_json(folder / f"{i}.json", [{"pred": "yes" if i % 2 else "no", "score": 4.8}, about])
    write_json(folder / f"{NUM - 2}.json", [{"pred": "unknown", "score": 1}, {}])
    common = ("evaluate", "judge", "msvd-qa", asked, predictions, "--output", tmp_path / "s.jsonl", "--json")
    code, out, _ = run(*common, "--import", folder)
    summary = json.loads(out)
    assert code == 1
    assert wrong(summary) == {"unparsable_verdict": ["22"], "not_judged": ["23"]}
    assert summary["metrics"] == {"accuracy": round(11 / 24, 6), "score": round(22 * 4 / 24, 6)}
    combined = {str(i): [{"pred": "yes", "score": 5}, {}] for i in range(NUM)}
    code, out, _ = run(*common, "--import", write_json(tmp_path / "results.json", combined))
    assert (code, json.loads(out)["metrics"]["accuracy"]) == (0, 1.0)
    code, _, err = run(*common, "--import", write_json(tmp_path / "others.json", {"x": []}))
    assert (code, "contains no verdict on any of the 24 questions" in err) == (2, True)


def test_official_aspects_are_imported(tmp_path):
    folder = WRITERS["video-chatgpt"](tmp_path / "vcg")
    ids = [f"generic/v_INVENT_01/{i}" for i in range(2)]
    predictions = write_lines(tmp_path / "p.jsonl", *({"id": id_, "pred": "x"} for id_ in ids))
    for i in range(2):
        write_json(tmp_path / "official" / "detail" / f"v_INVENT_01_{i}.json", [{"score": 2 + i}, {}])
    common = ("evaluate", "judge", "video-chatgpt", folder, predictions, "--output", tmp_path / "s.jsonl", "--json")
    _, out, _ = run(*common, "--import", tmp_path / "official")
    assert json.loads(out)["metrics"]["detail"] == 2.5


def test_a_local_model_judges(asked, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    from tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), eos_token_id=2, **sizes)).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    predictions = write_lines(tmp_path / "p.jsonl", {"id": 0, "pred": "a dog"})
    common = ("evaluate", "judge", "msvd-qa", asked, predictions, "--output", tmp_path / "s.jsonl", "--json")
    code, out, _ = run(*common, "--model", tmp_path / "m")
    summary = json.loads(out)
    assert code == 1
    assert wrong(summary)["unparsable_verdict"] == ["0"]  # a random model writes no verdicts
    replies = [json.loads(line) for line in (tmp_path / "s.replies.jsonl").read_text().splitlines()]
    assert len({reply["text"] for reply in replies}) == 1
    assert (len(replies), summary["scorers"][0]["judge"]["model"].split()[0]) == (ATTEMPTS, "m")
