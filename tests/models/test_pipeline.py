"""transformers' own pipeline answers questions about a video file."""

import numpy as np
import pytest
from transformers import pipeline

import videopanda
from media import write_video
from tiny import clip, tiny_model, tiny_processor
from videopanda.inference.answer import ask
from videopanda.video.read import VideoReadError


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return str(write_video(tmp_path_factory.mktemp("video") / "clip.mp4", range(40), fps=10))


def message(**video):
    return [{"role": "user", "content": [{"type": "video", **video}, {"type": "text", "text": "What moves?"}]}]


@pytest.mark.parametrize(
    ("preset", "settings"),
    [("released", {}), ("released", {"frame_sampling": "released"}), ("paper", {"time_prompt": True})],
)
def test_pipeline_answers_as_ask_does(file, preset, settings):
    """From the file's name alone; with `time_prompt`, which needs the length of the clip, too."""
    model, processor = tiny_model(preset), tiny_processor(preset, **settings)
    (expected,) = ask(model, processor, file, ["What moves?"], max_new_tokens=8)
    answerer = pipeline("image-text-to-text", model=model, processor=processor)
    read = videopanda.read_video(file, num_frames=8, sampling=processor.video_processor.frame_sampling)
    for video in ({"path": file}, {"url": file}, {"video": file}, {"video": read}):
        (result,) = answerer(text=message(**video), max_new_tokens=8, return_full_text=False)
        assert result["generated_text"].strip() == expected.answer


def test_frames_of_a_file_are_those_of_read_video(file):
    processor = tiny_processor("paper", num_frames=5).video_processor
    out = processor(file, return_metadata=True)
    video = videopanda.read_video(file, num_frames=5)
    assert list(out["video_metadata"][0].frames_indices) == list(video.indices)
    assert out["video_metadata"][0].duration == pytest.approx(video.duration)
    assert np.array_equal(out["pixel_values_videos"], processor(video)["pixel_values_videos"])
    assert processor([file, clip(3)], num_frames=4)["video_placement"][:, 4].tolist() == [4, 3]
    assert processor(file, do_sample_frames=False)["pixel_values_videos"].shape[1] == 40


def test_images_come_from_files_too(tmp_path):
    from PIL import Image

    model, processor = tiny_model(), tiny_processor()
    picture = clip(1)[0]
    Image.fromarray(picture).save(tmp_path / "picture.png")
    answerer = pipeline("image-text-to-text", model=model, processor=processor)
    texts = []
    for image in (str(tmp_path / "picture.png"), picture):
        content = [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]
        result = answerer(text=[{"role": "user", "content": content}], max_new_tokens=8, return_full_text=False)
        texts.append(result[0]["generated_text"])
    assert texts[0] == texts[1] != ""


def test_files_that_are_no_videos(tmp_path):
    processor = tiny_processor().video_processor
    (tmp_path / "text.mp4").write_text("text")
    for name, reason in (("none.mp4", "No such file"), ("text.mp4", "it is a text file")):
        for video in (tmp_path / name, str(tmp_path / name)):
            with pytest.raises(VideoReadError, match=reason):
                processor(video)
