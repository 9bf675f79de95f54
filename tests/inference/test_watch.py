"""Protects watching: questions at their times, alarms with hysteresis that name the right second, and notes told."""

from types import SimpleNamespace

import pytest

from command import run
from media import write_video
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


class Frames(list):
    notes = ()


def stream(count: int) -> Frames:
    return Frames(SimpleNamespace(image=None, time=float(second)) for second in range(count))


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


def test_notes_of_the_stream_are_told():
    frames = stream(4)
    frames.notes = (SimpleNamespace(time=1.0, kind="jump", text="the clock jumped"),)
    (event,) = watch(Session(), frames)
    assert (event.kind, event.text) == ("note", "jump: the clock jumped")
    with pytest.raises(ValueError, match="must be positive"):
        next(watch(Session(), frames, every=0.0))


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
        ([path, "--every", "soon", "What?"], "expected a time such as 5s"),
        ([tmp_path / "none.mp4", "--when", RED], "no video at"),
    ):
        code, _, err = run("watch", *arguments)
        assert code == 2
        assert message in err
