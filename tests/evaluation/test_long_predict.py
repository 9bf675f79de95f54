"""Protects the ways in which long clips are shown to a model in an evaluation: a memory of the whole clip, the last
frames, and frames by motion or scenes, each named in the protocol."""

from pathlib import Path

import pytest
from benchmark_files import WRITERS

from compressed import compressed
from videopanda.data.worlds.long.make import make_long
from videopanda.evaluation.conditions import Shown
from videopanda.evaluation.predict import PredictJob, Predictor, predict
from videopanda.evaluation.predictions import read_predictions
from videopanda.inference.answer import ask
from videopanda.inference.clip import EncodedClip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_long(tmp_path_factory.mktemp("long") / "data", 1, 0, "test", (0.5,))


@pytest.mark.parametrize(
    ("choice", "sampling"),
    [
        ({"max_visual_tokens": 200}, "1 fps, at most 200 visual tokens"),
        ({"last_frames": 4, "fps": 2.0}, "the last 4 frames at 2 fps"),
        ({"frames_by": "motion", "num_frames": 4}, "motion"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_predictions_are_the_answers_of_the_library(tmp_path, folder, choice, sampling):
    loaded = compressed("elva")
    out = tmp_path / "p.jsonl"
    job = PredictJob("scenes", folder, folder, max_new_tokens=3, **choice)
    assert predict(job, out, loaded=loaded)["complete"]
    rows = list(read_predictions(out))
    assert {row.protocol.sampling for row in rows} == {sampling}
    assert all(row.frame_times for row in rows)
    questions = [item.item.question for batch in job.batches for item in batch]
    clip = next((folder / "clips").iterdir())
    answers = ask(*loaded, clip, questions, max_new_tokens=3, **choice)
    assert [row.prediction for row in rows] == [answer.answer for answer in answers]


def test_subtitles_are_those_of_all_frames_in_a_memory(tmp_path):
    """Not only of the frames with which its steps begin."""
    annotations = WRITERS["video-mme-subtitles"](tmp_path)
    job = PredictJob("video-mme-subtitles", annotations, tmp_path, max_visual_tokens=200)
    item = next(one.item for batch in job.batches for one in batch if "subtitles" in one.item.extra)  # from 1 to 2.5 s
    clip = EncodedClip("key", "video", "", times=(0.0, 1.0, 2.0, 3.0))
    shown = Shown(clip, (), (0.0, 3.0), "pyav")
    assert Predictor(job, loaded=compressed("elva"))._subtitles(item, shown) == ["Two cups."]


def test_a_wrong_video_comes_with_its_own_subtitles(tmp_path):
    annotations = WRITERS["video-mme-subtitles"](tmp_path)
    for number in (1, 2):  # only the first has subtitles
        (tmp_path / f"INVENTED_0{number}.mp4").touch()
    job = PredictJob("video-mme-subtitles", annotations, tmp_path, condition="wrong_video")
    predictor = Predictor(job, loaded=compressed("elva"))
    shown = Shown(EncodedClip("key", "video", "", times=(1.0,)), (), (1.0,), "pyav")
    asked = [question for batch in job.batches for question in batch]
    texts = {one.item.id: str(predictor._ask(one, shown)[1]) for one in asked}
    assert {id_: "Two cups." in text for id_, text in texts.items()} == {"901-2": False, "902-1": True}


def test_one_way_at_a_time(tmp_path, folder):
    job = PredictJob("scenes", folder, folder, max_visual_tokens=200, frames_by="motion")
    with pytest.raises(ValueError, match="mutually exclusive"):
        predict(job, tmp_path / "p.jsonl", loaded=compressed("elva"))
