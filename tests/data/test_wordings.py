"""Protects questions in other words: the same is asked, answers stay true, held-out ones are not trained on."""

import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from videopanda.data.worlds.scenes import wordings
from videopanda.data.worlds.scenes.dataset import OutsideClip, ScenesDataset
from videopanda.data.worlds.scenes.make import clip_questions
from videopanda.data.worlds.scenes.outside import outside_frames, unanswerable
from videopanda.data.worlds.scenes.questions import make_questions
from videopanda.data.worlds.scenes.selection import in_other_words, select_questions
from videopanda.data.worlds.scenes.wordings import (
    DECLINE,
    PARTS,
    expand,
    follow_up,
    in_wordings,
    intent_of,
    outside_question,
    read_wordings,
    reworded,
    wording_data,
)
from videopanda.data.worlds.scenes.world import COLOURS, SHAPES, make_scene

HAND_WRITTEN, OTHER_HAND = (
    Path(wordings.__file__).with_name(f"{name}.json") for name in ("hand_written", "other_hand")
)


@pytest.fixture(scope="module")
def asked():
    """Questions as written of 120 scenes, with the scene."""
    found = []
    for index in range(120):
        scene = make_scene(2, "train", index)
        found += [(scene, q) for q in make_questions(scene, np.random.default_rng([2, index]))]
    return found


# -- intents -----------------------------------------------------------------------------------------------------------
def test_every_question_has_an_intent_and_every_intent_is_asked(asked):
    intents = Counter(intent_of(question.question)[0].name for _, question in asked)
    assert set(intents) == {*wording_data()["intents"]} - {"describe"}
    for _, question in asked:
        intent, slots = intent_of(question.question)
        written = [text.format(**slots) for text in wording_data()["intents"][intent.name]["written"]]
        assert question.question in written


def test_another_question_is_refused():
    with pytest.raises(ValueError, match="as it is written"):
        intent_of("What is the weather like?")


# -- truth -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("part", PARTS)
def test_the_answer_stays_the_true_one(asked, part):
    rng = np.random.default_rng(1)
    kinds = Counter()
    for _, question in asked:
        found = reworded(question, part, rng)
        if found.answer == question.answer:
            kinds["same"] += 1
        elif found.answer in ("yes", "no"):
            kinds[found.answer] += 1
        else:
            kinds["sentence"] += 1
            assert found.answer.endswith(".")
            true = {"yes": "Yes, there is", "no": "No, there is no"}.get(question.answer, question.answer)
            assert true in found.answer
        assert "{" not in found.question
        assert "|" not in found.question
    assert kinds["same"] > {"train": 0.5, "held_out": 0.7}[part] * len(asked)
    assert kinds["sentence"] > 0.02 * len(asked)
    assert abs(kinds["yes"] - kinds["no"]) < 3 * np.sqrt(kinds["yes"] + kinds["no"])


def test_a_guess_is_affirmed_if_and_only_if_it_is_true(asked, monkeypatch):
    monkeypatch.setitem(wordings._KINDS, "train", {"yes_no": 1.0})
    monkeypatch.setattr(wordings, "_synonym", lambda value, rng: value)
    rng, seen = np.random.default_rng(0), Counter()
    said = {
        name: {expand(text, np.random.default_rng(k)) for text in entry["train"]["yes_no"] for k in range(40)}
        for name, entry in wording_data()["intents"].items()
    }
    for _, question in asked:
        intent, slots = intent_of(question.question)
        if not said[intent.name] or seen[intent.name] == 12:
            continue
        found = reworded(question, "train", rng, plain=True)
        guesses = set()
        for template in said[intent.name]:
            text = re.escape(template).replace(r"\{guess\}", "(?P<guess>[a-z0-9 ]+?)", 1)
            text = text.replace(r"\{guess\}", "(?P=guess)").replace(r"\{other\}", ".+?")
            for name, value in slots.items():
                text = text.replace(rf"\{{{name}\}}", re.escape(value))
            if match := re.fullmatch(rf"{text}\??", found.question, re.IGNORECASE):
                guesses.add(match["guess"].lower())
        guess = min(guesses, key=len)  # of "right" and "to the right"
        assert found.answer == ("yes" if guess == question.answer else "no"), found.question
        seen[intent.name] += 1
    assert len(seen) == 13


def test_options_hold_the_answer_once(asked, monkeypatch):
    monkeypatch.setitem(wordings._KINDS, "held_out", {"options": 1.0})
    rng, places = np.random.default_rng(0), Counter()
    for _, question in asked:
        if question.family not in ("colour", "shape", "motion_direction", "state_change"):
            continue
        if intent_of(question.question)[0].name == "which_changes":
            continue
        text = reworded(question, "held_out", rng, plain=True).question
        shown = re.search(r"(?:from |\()((?:\w+, )*\w+ or \w+)", text)[1]
        options = re.split(", | or ", shown)
        assert len({*options}) == len(options) >= 2
        places[options.index(question.answer)] += 1
    assert places[0] < 0.6 * places.total()


def test_a_follow_up_is_about_another_object():
    dataset = ScenesDataset(400, seed=5, captions=0, chats=0.5, wordings=1.0)
    pairs = [turns for i in range(25) for turns in dataset[i].conversations if len(turns) == 2]
    assert len(pairs) > 5
    scene, question = make_scene(2, "train", 0), make_questions(make_scene(2, "train", 0), np.random.default_rng(0))[0]
    assert scene
    assert follow_up(question, "train", np.random.default_rng(0), is_other=False).answer == question.answer


# -- splits ------------------------------------------------------------------------------------------------------------
def test_parts_share_no_template():
    for name, intent in wording_data()["intents"].items():
        for kind, templates in intent["train"].items():
            assert not {*templates} & {*intent["held_out"][kind]}, name
    for kind, frames in wording_data()["frames"]["train"].items():
        assert not {*frames} & {*wording_data()["frames"]["held_out"][kind]}, kind
    assert not {*wording_data()["outside"]["train"]} & {*wording_data()["outside"]["held_out"]}


def test_held_out_questions_are_not_trained_on(asked):
    def plain(part, question, seed):
        return reworded(question, part, np.random.default_rng(seed), plain=True).question.lower().rstrip("?. ")

    trained = {plain("train", q, seed) for _, q in asked[:500] for seed in range(8)}
    held_out = [plain("held_out", q, seed) for _, q in asked[:500] for seed in range(2)]
    assert sum(text in trained for text in held_out) == 0


def test_both_spellings_and_styles_occur(asked):
    rng = np.random.default_rng(0)
    texts = [reworded(q, "train", rng).question for _, q in asked]
    british, american = (sum(word in text.lower() for text in texts) for word in ("colour", "color"))
    assert 0.6 < british / american < 1.6
    assert 0.15 < np.mean([text == text.lower() for text in texts]) < 0.4


# -- declining ---------------------------------------------------------------------------------------------------------
def test_what_is_declined_is_not_in_the_scene():
    kinds = Counter()
    for index in range(200):
        scene, rng = make_scene(3, "test", index), np.random.default_rng(index)
        question = unanswerable(scene, rng)
        assert question.answer == DECLINE
        intent, slots = intent_of(question.question)
        names = [slots[name] for name in ("a", "b") if name in slots]
        missing = [name for name in names if not _is_there(scene, name)]
        kinds["absent" if missing else "idle"] += 1
        if missing or intent.name == "which_changes":
            assert missing or not any(t.turns for t in scene.things)
            continue
        (thing,) = [t for t in scene.things if t.name == slots["a"]]
        idle = {
            "new_colour": thing.turns is None,
            "when_changes": thing.turns is None,
            "direction": thing.travel == 0,
            "when_appears": thing.enters == 0,
            "when_vanishes": thing.leaves >= scene.duration,
        }
        assert idle[intent.name], question
    assert kinds["absent"] > 100
    assert kinds["idle"] > 15


def _is_there(scene, name):
    """Whether anything that the scene ever shows fits all words of a name."""
    for thing in scene.things:
        looks = {thing.colour, thing.shape, thing.size, "object"} | ({thing.turns[1]} if thing.turns else set())
        if set(name.split()) <= looks:
            return True
    return False


def test_outside_questions_and_frames_are_repeatable_and_varied():
    def drawn(seed):
        return outside_frames(np.random.default_rng(seed), 8)

    assert (drawn(3) == drawn(3)).all()
    assert len({outside_question("train", np.random.default_rng(i)).question for i in range(300)}) > 200
    frames = [drawn(seed) for seed in range(30)]
    assert all(f.dtype == np.uint8 and f.shape[0] == 8 and f.shape[3] == 3 for f in frames)
    assert len({f.shape for f in frames}) > 4
    assert sum((f[0] != f[-1]).any() for f in frames) > 15  # most of them move


def test_training_rows_mix_what_is_asked():
    dataset = ScenesDataset(1000, seed=4, captions=0, wordings=0.6, outside=0.1)
    kinds, outside = Counter(), 0
    for index in range(45):
        sample = dataset[index]
        turns = [turn for turns in sample.conversations for turn in turns]
        if isinstance(sample.videos[0], OutsideClip):
            outside += 1
            assert {turn.answer for turn in turns} == {DECLINE}
            assert sample.videos[0].cell_words(4, 5) == [()] * 160
            continue
        kinds["declined"] += sum(turn.answer == DECLINE for turn in turns)
        kinds["all"] += len(turns)
    assert 1 <= outside <= 12
    assert 0.02 < kinds["declined"] / kinds["all"] < 0.12
    again = ScenesDataset(1000, seed=4, captions=0, wordings=0.6, outside=0.1)[7]
    assert again.conversations == dataset[7].conversations


# -- evaluation --------------------------------------------------------------------------------------------------------
def test_a_test_in_other_words_asks_about_the_same(tmp_path):
    scenes = select_questions(96, seed=0)
    assert in_other_words(scenes, "written", 0) is scenes
    for source in ("held-out", str(HAND_WRITTEN)):
        told = in_other_words(scenes, source, 0)
        assert told == in_other_words(scenes, source, 0)
        assert [s.index for s in told] == [s.index for s in scenes]
        pairs = [(a, b) for one, two in zip(scenes, told) for a, b in zip(one.questions, two.questions, strict=True)]
        assert all(a.family == b.family for a, b in pairs)
        assert sum(a.question == b.question for a, b in pairs) < 0.1 * len(pairs)
    with pytest.raises(ValueError, match="written, held-out or a file"):
        in_other_words(scenes, "held_out", 0)


@pytest.mark.parametrize(("file", "least"), [(HAND_WRITTEN, 200), (OTHER_HAND, 190)])
def test_wordings_by_hand_are_complete_and_true(asked, file, least):
    templates = read_wordings(file)
    assert sum(map(len, templates.values())) >= least
    families = defaultdict(int)
    for _, question in asked:
        families[question.family] |= len(templates[intent_of(question.question)[0].name])
    rng = np.random.default_rng(0)
    for _, question in asked:
        found = in_wordings(question, templates, rng)
        assert (found.family, found.answer) == (question.family, question.answer)
        for word in (*COLOURS, *SHAPES):
            assert (word in found.question.lower()) >= (word in question.question.lower())


def _all_of(text):
    """Every choice of every "(a|b|)"."""
    found = re.search(r"\(([^()]*\|[^()]*)\)", text)
    if found is None:
        return [text]
    return [
        whole for part in found[1].split("|") for whole in _all_of(text[: found.start()] + part + text[found.end() :])
    ]


def _plain(text):
    return re.sub(r"[^a-z{} ]", "", text.lower().replace("colour", "color")).strip()


def test_wordings_of_another_hand_are_not_those_of_training():
    for name, templates in read_wordings(OTHER_HAND).items():
        intent = wording_data()["intents"][name]
        trained = [*intent["written"], *(text for kind in intent["train"].values() for text in kind)]
        known = {_plain(whole) for text in trained for whole in _all_of(text)}
        assert not known & {_plain(text) for text in templates}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weather": ["Is it raining?"]}, "weather"),
        ({"colour": ["What colour is it?"]}, "slots"),
        ({"colour": []}, "list of templates"),
        ({"colour": None}, "list of templates"),
    ],
)
def test_faulty_wordings_are_refused(tmp_path, change, message):
    content = {**json.loads(HAND_WRITTEN.read_text()), **change}
    (tmp_path / "mine.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_wordings(tmp_path / "mine.json")


def test_questions_as_written_stay_as_they_were():
    dataset = ScenesDataset(100, seed=0)
    written = {q.question for i in range(5) for q in clip_questions(0, "train", i)}
    assert written
    assert all(turn.answer != DECLINE for i in range(5) for turns in dataset[i].conversations for turn in turns)


def test_processes_draw_the_same_questions():
    """Python orders sets of strings differently in every process; ranks and resumed runs are such processes."""
    code = (
        "from videopanda.data.worlds.scenes.dataset import ScenesDataset\n"
        "data = ScenesDataset(160, seed=3, wordings=0.6)\n"
        "print([data[i].conversations for i in range(160)])"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1]
    assert len(said[0]) > 10_000
