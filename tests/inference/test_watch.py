"""Protects watching: questions at their times, alarms with hysteresis that name the right second, and notes told."""

import json
from types import SimpleNamespace

import pytest

from command import run
from media import write_video
from videopanda.cli.watch import _clock
from videopanda.inference.watching import Condition, watch

RED = "Is there a red circle?"


class Session:
    """Answers from what it has seen: red between the 10th and the 20th second, with one wrong answer in between."""

    def __init__(self):
        self.num_frames, self.now, self.asked = 0, 0.0, []

    def push(self, image, seconds):
        self.num_frames, self.now = self.num_frames + 1, seconds

    def ask(self, question):
        self.asked.append((self.now, question))
        is_red = (10 <= self.now < 20 and self.now != 14) or self.now == 5
        return SimpleNamespace(answer="Yes." if is_red else "no", visual_tokens=7)


def stream(count: int, between: float = 1.0) -> list:
    return [SimpleNamespace(image=None, time=between * number) for number in range(count)]


def test_questions_come_at_their_times_and_stop():
    events = list(watch(Session(), stream(30), every=5.0, question="What?", until=21))
    assert [(event.time, event.kind, event.question) for event in events] == [
        (second, "answer", "What?") for second in (5, 10, 15, 20)
    ]
    assert events[0].frames == 6


def test_an_alarm_needs_two_answers_and_names_the_first():
    events = list(watch(Session(), stream(30), conditions=[RED]))
    assert [(event.kind, event.time, event.seen) for event in events] == [("began", 10, 11), ("ended", 20, 21)]


@pytest.mark.parametrize(("answers", "expected"), [("nyny", []), ("yynn", [0, 2]), ("ynyy", [2]), ("yynynn", [0, 4])])
def test_hysteresis(answers, expected):
    condition, words = Condition(RED), {"y": "Yes, there is", "n": "No yes"}
    changes = [condition.update(float(second), words[letter]) for second, letter in enumerate(answers)]
    assert [change for change in changes if change is not None] == expected


def test_a_question_that_is_asked_late_does_not_delay_the_later_ones():
    events = list(watch(Session(), stream(14, between=0.7), every=2.0, question="What?"))
    assert [round(event.time, 1) for event in events] == [2.1, 4.2, 6.3, 8.4]
    with pytest.raises(ValueError, match="must be positive"):
        next(watch(Session(), stream(4), every=0.0))


def test_what_happens_to_the_stream_is_told_at_once_and_after_its_last_frame(tmp_path):
    whole = write_video(tmp_path / "whole.mkv", range(60), fps=10, g="10").read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(whole[: len(whole) * 3 // 4])
    code, out, err = run("watch", path, "--every", "2s", "How many objects are there?")
    assert code == 0
    assert "[0:00:02.0]" in out
    assert "end: the file is cut short" in err
    code, out, _ = run("watch", path, "--every", "1h", "What?", "--json")
    kinds = [json.loads(line)["kind"] for line in out.splitlines()]
    assert (code, kinds) == (0, ["note", "log"])


def test_the_verb(tmp_path):
    path = write_video(tmp_path / "a.mp4", range(60), fps=10)
    code, out, err = run("watch", path, "--every", "2s", "How many objects are there?", "--json", "--when", RED)
    lines = out.splitlines()
    assert code == 0
    assert "watching the last 8 frames" in err
    assert '"time": 2.0, "kind": "answer"' in lines[0]
    assert '"kind": "log", "frames": 6' in lines[-1]
    for arguments, message in (
        ([path], "nothing to ask"),
        ([path, "--every", "soon", "What?"], "expected a time in seconds"),
        ([tmp_path / "none.mp4", "--when", RED], "no video at"),
    ):
        code, _, err = run("watch", *arguments)
        assert code == 2
        assert message in err


def test_times_are_rounded_before_they_are_split():
    assert [_clock(seconds) for seconds in (0.04, 59.94, 59.96, 3599.97)] == [
        "0:00:00.0", "0:00:59.9", "0:01:00.0", "1:00:00.0"
    ]  # fmt: skip
