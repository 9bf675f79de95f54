"""Protects questions about exact times: the answers are true of the frames that are shown, and the times vary."""

import re
from itertools import pairwise

import numpy as np
import pytest

from videopanda.data.worlds.scenes.dataset import ScenesDataset
from videopanda.data.worlds.scenes.exact_times import at_speed, exact_questions, part_of
from videopanda.data.worlds.scenes.questions import make_questions
from videopanda.data.worlds.scenes.world import make_scene

NAME = r"the ((?:\w+ )?(?:circle|square|triangle|cross))"
APPEARING = (
    "appears",
    "shows up",
    "comes in",
    "comes into view",
    "is seen for the first",
    "becomes visible",
    "turns up",
)


@pytest.fixture(scope="module")
def parts():
    found = []
    for index in range(150):
        rng = np.random.default_rng([5, index])
        part = part_of(make_scene(5, "train", index), 8, rng)
        found += [(part, question) for question in exact_questions(part, rng)]
    return found


def test_what_happens_is_between_the_two_frames(parts):
    """The thing that appears is missing in one frame and there in the next one."""
    seen = 0
    for part, question in parts:
        if not question.answer.startswith("between"):
            continue
        first, second = (float(text) for text in re.findall(r"[\d.]+", question.answer))
        shown = [round(t, 1) for t in part.times]
        assert any((a, b) == (first, second) for a, b in pairwise(shown))
        found = re.search(NAME + f" ({'|'.join(APPEARING)})", question.question)
        if found is None:
            continue
        (thing,) = [t for t in part.scene.things if found[1] in (t.name, t.shape)]
        pairs = [(a, b) for a, b in pairwise(part.times) if (round(a, 1), round(b, 1)) == (first, second)]
        assert any(a < thing.enters <= b for a, b in pairs)
        seen += 1
    assert seen > 50


def test_yes_and_no_are_equally_likely_and_true(parts):
    answers = [q.answer for _, q in parts if q.answer in ("yes", "no")]
    assert len(answers) > 500
    assert 0.4 < answers.count("yes") / len(answers) < 0.6
    checked = 0
    for part, question in parts:
        found = re.search(NAME + " is (visible|there|seen\\?|shown|in the picture)", question.question)
        if question.answer in ("yes", "no") and found and "first" not in question.question:
            things = [t for t in part.scene.things if found[1] in (t.name, t.shape)]
            names = {f"{t.turns[1]} {t.shape}" for t in part.scene.things if t.turns}
            if found[1] in names:
                continue
            shown = [any(t.visible(s) for t in things) for s in part.times]
            assert question.answer == ("yes" if all(shown) else "no")
            assert all(shown) or not any(shown)
            checked += 1
    assert checked > 100


def test_parts_last_and_begin_as_they_like(parts):
    whole = {part.scene.index: part for part, _ in parts if part.is_whole}
    cut = {part.scene.index: part for part, _ in parts if not part.is_whole}
    assert len(whole) > 50
    assert len(cut) > 30
    for part in (*whole.values(), *cut.values()):
        assert list(part.times) == sorted(part.times)
        assert part.times[0] >= 0
        assert part.times[-1] <= part.scene.duration
        assert part.times[-1] - part.times[0] < part.duration + 1e-6
    assert all(part.duration == part.scene.duration for part in whole.values())
    assert len({round(part.scene.duration, 1) for part in whole.values()}) > 30


def test_at_another_speed_everything_but_the_times_is_the_same():
    for index in range(30):
        scene = make_scene(1, "train", index)
        slow = at_speed(scene, 1.5)
        assert slow.duration == 1.5 * scene.duration
        for before, after in zip(scene.things, slow.things):
            for second in np.linspace(0, scene.duration, 9):
                assert after.position(1.5 * second) == pytest.approx(before.position(second))
                assert after.visible(1.5 * second) == before.visible(second)
                assert after.colour_at(1.5 * second + 1e-9) == before.colour_at(second + 1e-9)
        texts = []
        for one in (scene, slow):
            questions = make_questions(one, np.random.default_rng(index))
            texts.append({q.question: q.answer for q in questions if q.family != "duration"})
        same = texts[0].keys() & texts[1].keys()
        assert {key: texts[0][key] for key in same} == {key: texts[1][key] for key in same}


def test_training_sees_a_share_of_them_and_the_rest_is_unchanged():
    plain, exact = (ScenesDataset(60, seed=3, wordings=0.5, exact_times=share) for share in (0.0, 0.3))
    asked = 0
    for index in range(60):
        sample, other = exact[index], plain[index]
        if sample.conversations == other.conversations:
            assert np.array_equal(sample.videos[0].frames, other.videos[0].frames)
            continue
        asked += 1
        assert sample.videos[0].timestamps != other.videos[0].timestamps
    assert 8 < asked < 30
