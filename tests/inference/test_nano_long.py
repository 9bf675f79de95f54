"""The bundled nano-long: files at one frame per second, by name, and better answers than from eight frames of them."""

import json

import numpy as np
import pytest

from command import run
from videopanda.data.worlds.long.make import make_long
from videopanda.data.worlds.long.world import make_questions, make_story
from videopanda.hub import folder_of
from videopanda.inference.answer import ask
from videopanda.inference.load import load

CLIPS = 4


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = make_long(tmp_path_factory.mktemp("long") / "data", CLIPS, 5, "validation", (2.0,))
    return sorted((folder / "clips").iterdir(), key=lambda path: int(path.stem.rpartition("-")[2]))


def test_it_answers_from_every_second_of_a_file(clips):
    questions = make_questions(make_story(5, "validation", 0, 2.0))
    code, out, err = run(
        "answer", clips[0], *(one.question for one in questions), "--fps", "1", "--model", "nano-long", "--json"
    )
    assert code == 0, err
    told = json.loads(out)["answers"]
    assert [one["question"] for one in told] == [one.question for one in questions]
    assert all(one["visual_tokens"] <= 2048 for one in told)
    assert sum(int(line.rpartition(": ")[2]) for line in told[0]["selection"]) == 120  # every frame is in some step


def test_it_is_better_than_eight_frames(clips):
    model, processor = load("nano-long", "cpu")
    right: dict[str, list[bool]] = {"memory": [], "eight": []}
    for index, path in enumerate(clips):
        questions = make_questions(make_story(5, "validation", index, 2.0))
        texts = [one.question for one in questions]
        for name, options in (("memory", {"fps": 1.0}), ("eight", {"num_frames": 8})):
            answers = ask(model, processor, path, texts, max_new_tokens=6, **options)
            right[name] += [answer.answer == one.answer for answer, one in zip(answers, questions)]
    assert np.mean(right["memory"]) > np.mean(right["eight"]) + 0.1, right


def test_it_comes_with_its_memory():
    model, processor = load("nano-long", "cpu")
    assert processor.video_processor.max_visual_tokens == 2048
    assert model.chunk_frames == processor.video_processor.frames_per_step == 4
    assert model.config.text_config.max_position_embeddings >= 2048 + 256
    files = list(folder_of("nano-long").iterdir())
    assert sum(file.stat().st_size for file in files) <= 24_000_000
    assert {"README.md", "checksums.json", "config.json", "model.safetensors"} <= {file.name for file in files}
