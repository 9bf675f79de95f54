"""Protects the small teachers: each kind learns its pairs, and the folder opens as a teacher of the distillation."""

import json

import pytest
import torch
from micro import write_language_model

from videopanda.encoders.open import open_teacher
from videopanda.lab import teachers


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return write_language_model(tmp_path_factory.mktemp("language"))


@pytest.mark.parametrize("kind", teachers.KINDS)
def test_each_kind_is_trained_and_opens(kind, language, tmp_path, monkeypatch):
    monkeypatch.setattr(teachers, "HELD_OUT", 8)
    folder = teachers.train_teacher(kind, language, tmp_path / "teacher", steps=3, batch=4, clips=8)
    record = json.loads((folder / "training.json").read_text())
    assert record["kind"] == kind
    assert 0 < record["loss"] < 10
    pixels, _ = teachers.pictures([teachers.make_scene(0, "test", i) for i in range(2)])
    features = open_teacher(str(folder), 5)({"teacher_pixels": pixels})
    assert features.shape == (2, teachers.FRAMES, 5, 5, teachers.WIDTH)
    still = pixels[:, :1].expand(-1, teachers.FRAMES, -1, -1, -1).contiguous()
    changed = open_teacher(str(folder), 5)({"teacher_pixels": still})[:, 0] - features[:, 0]
    assert (changed.abs().max() > 1e-4) == kind.startswith("video")  # only these look at other frames


def test_a_view_shows_the_same_clip_in_all_frames():
    torch.manual_seed(0)
    pixels = torch.rand(1, 1, 3, 20, 20).expand(3, 4, -1, -1, -1)
    view = teachers.augmented(pixels)
    assert view.shape == pixels.shape
    assert torch.equal(view[0, 0], view[0, 3])
    assert not torch.equal(view[0], view[1])


def test_wrong_settings_are_told(language, tmp_path):
    with pytest.raises(ValueError, match="choose from video-text, image-text"):
        teachers.train_teacher("audio", language, tmp_path, 1, 2, 4)
    with pytest.raises(ValueError, match="between 2 and 4"):
        teachers.train_teacher("video", language, tmp_path, 1, 8, 4)
