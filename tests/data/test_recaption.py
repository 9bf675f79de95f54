"""Protects `videopanda data recaption` (against our own server, and with a local model) and the counts of balance."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "serving"))

from live import Server

from command import run
from videopanda.data import recaption as module
from videopanda.data.balance import OFTEN, Balance
from videopanda.data.doctor import check
from videopanda.data.formats.opening import open_sources
from videopanda.data.formats.record import Record
from videopanda.data.sample import Turn
from videopanda.data.worlds.scenes.make import make


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("scenes"), 3, seed=0, workers=1, progress=False)


@pytest.fixture
def few(scenes, tmp_path) -> Path:
    rows = json.loads((scenes / "annotations.json").read_text())
    rows.append({**rows[0], "id": "again"})  # the same clip once more
    path = tmp_path / "train.json"
    path.write_text(json.dumps(rows))
    return path


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_server_describes_every_clip_once_and_a_torn_file_is_continued(scenes, few, tmp_path):
    output = tmp_path / "new.jsonl"
    server = Server(tmp_path / "files")
    try:
        arguments = [
            *("data", "recaption", few, "--media-root", scenes, "--output", output, "--base-url", f"{server.url}/v1"),
            *("--name", "nano", "--send", "video", "--prompt", "Describe the video."),
        ]
        code, out, err = run(*arguments)
        assert code == 0, err
        assert "3 captions written, 0 kept, 0 failed" in out
        whole = sorted(output.read_bytes().splitlines())
        output.write_bytes(b"\n".join(output.read_bytes().splitlines()[:2]) + b'\n{"id": "torn')
        code, out, _ = run(*arguments)
        assert "1 captions written, 2 kept" in out
        assert sorted(output.read_bytes().splitlines()) == whole
    finally:
        server.stop()
    for row in lines(output):
        assert row["provenance"]["model"] == row["provenance"]["answered_by"] == "nano"
        assert len(row["provenance"]["before"]) >= 1
        assert row["conversations"][1]["value"].strip()
    (source,) = open_sources(output, media_root=scenes)
    records = [record for _, record in source.records()]
    assert all(isinstance(record, Record) for record in records)
    assert len(records) == 3


def test_a_local_model_describes_and_other_settings_are_refused(scenes, few, tmp_path):
    output = tmp_path / "new.jsonl"
    captioner = module.Local(None)
    report = module.recaption(few, output, captioner, "Describe the video.", media_root=scenes)
    assert (report.written, report.known, report.failed) == (3, 0, {})
    assert module.recaption(few, output, captioner, "Describe the video.", media_root=scenes).known == 3
    with pytest.raises(ValueError, match="was written with prompt_sha256"):
        module.recaption(few, output, captioner, "What happens?", media_root=scenes)
    output.write_text('{"id": 1}\n')
    with pytest.raises(ValueError, match="line 1 was not written by this command"):
        module.recaption(few, output, captioner, "Describe the video.", media_root=scenes)


@pytest.mark.parametrize("text", ['[{"id": "1"}]', '{"id": "1", "video": "a.mp4"}', "notes"])
def test_a_file_of_another_kind_keeps_its_last_line(few, scenes, tmp_path, text):
    """Only what an interruption left of a line is removed: not a file without an end of line, such as the data."""
    output = tmp_path / "new.jsonl"
    output.write_text(text)
    with pytest.raises(ValueError, match="its last line was not written by this command"):
        module.recaption(few, output, Silent(), media_root=scenes)
    with pytest.raises(ValueError, match=r"new\.jsonl is not a manifest of videopanda data check: line 1"):
        check([few], output, media_root=scenes)
    assert output.read_text() == text


class Silent:
    name = "silent"

    def describe(self, path, video, prompt):
        return "", "silent"


class Waiting:
    """A captioner whose clip another command describes meanwhile."""

    name = "waiting"

    def __init__(self, data, output, scenes):
        self.data, self.output, self.scenes = data, output, scenes

    def describe(self, path, video, prompt):
        with pytest.raises(ValueError, match=r"another process is writing .*new\.jsonl: wait for it, or choose"):
            module.recaption(self.data, self.output, Silent(), media_root=self.scenes)
        return "A cat.", "waiting"


def test_two_commands_do_not_write_one_file(few, scenes, tmp_path):
    """Both would describe every clip, and each clip would be in the file twice."""
    output = tmp_path / "new.jsonl"
    report = module.recaption(few, output, Waiting(few, output, scenes), media_root=scenes)
    assert (report.written, len(lines(output))) == (3, 3)


def test_what_fails_is_listed_and_tried_again(few, scenes, tmp_path):
    rows = [*json.loads(few.read_text())[:1], {"id": "none", "video": "clips/none.mp4", "conversations": [
        {"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "A cat."}]}]  # fmt: skip
    few.write_text(json.dumps(rows))
    report = module.recaption(few, tmp_path / "new.jsonl", Silent(), media_root=scenes)
    assert report.written == 0
    assert set(report.failed) == {"clips/train-0-0.mp4", "clips/none.mp4"}
    assert report.failed["clips/train-0-0.mp4"] == "the caption is empty"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "either --base-url and --name, or --model"),
        (["--base-url", "http://x/v1"], "--base-url needs --name"),
        (["--model", "none"], "no model folder"),
    ],
)
def test_wrong_options_are_told(few, tmp_path, options, message):
    code, _, err = run("data", "recaption", few, "--output", tmp_path / "o.jsonl", *options)
    assert code == 2
    assert message in err


# -- balance -----------------------------------------------------------------------------------------------------------
def record(question: str, answer: str) -> Record:
    return Record("1", "x", (), (Turn(f"<video>\n{question}", answer),))


def test_one_sided_answers_and_frequent_words_are_counted():
    balance = Balance()
    for number in range(OFTEN):
        balance.add(record("Is there a dog?", "Yes." if number else "no"))
        balance.add(record("What is it?", f"A dog is running over meadow {number} and the cat sees it run."))
    balance.add(record("Is there a cat?", "no"))
    found = balance.report(["cat", "horse"])
    assert found["questions"] == [
        {"question": "Is there a dog?", "asked": OFTEN, "answer": "yes", "given": OFTEN - 1, "share": 0.95}
    ]
    assert found["answers"] == {"yes": OFTEN - 1, "no": 2}
    assert found["words"]["dog"] == found["words"]["cat"] == OFTEN
    assert found["words"]["horse"] == 0
    assert "the" not in found["words"]


def test_the_check_shows_them(scenes, tmp_path):
    annotations = scenes / "annotations.json"
    arguments = ["data", "check", annotations, "--manifest", tmp_path / "m.jsonl", "--words", "purple,dog"]
    code, out, _ = run(*arguments, "--workers", 1)
    assert code == 0
    assert "Words of answers" in out
    assert "dog 0" in out
    _, out, _ = run(*arguments, "--workers", 1, "--json")
    assert json.loads(out)["balance"]["rows"] == 3
