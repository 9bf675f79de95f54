"""A still picture that is asked about is one image, however it is given; not a clip filled up with zeros."""

import numpy as np
import pytest
from PIL import Image

from media import write_video
from tiny import clip, tiny_model, tiny_processor
from videopanda.inference.answer import Chat, ask
from videopanda.inference.clip import encode_clips
from videopanda.inference.visual_cache import TokenDiskCache
from videopanda.video.read import read_video


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(clip(1)[0]).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.mark.parametrize("preset", ["released", "paper"])
def test_a_still_picture_is_one_frame(picture, tmp_path, preset):
    model, processor = tiny_model(preset), tiny_processor(preset)
    count = processor.video_processor.token_count(1, *clip(1).shape[1:3], kind="image")
    cache = TokenDiskCache(tmp_path / "cache", 1 << 30)
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}],
        add_generation_prompt=True,
    )
    inputs = processor(text=text, images=str(picture))
    expected = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    expected = processor.tokenizer.decode(expected, skip_special_tokens=True).strip()
    for source in (picture, picture.read_bytes(), read_video(picture, num_frames=8)):
        for kept in (None, cache, cache):
            (answer,) = ask(model, processor, source, ["What is it?"], max_new_tokens=8, cache=kept)
            assert (answer.visual_tokens, answer.frame_times, answer.frame_indices) == (count, (0.0,), (0,))
            assert answer.answer == expected
    chat = Chat(model, processor, picture, max_new_tokens=8)
    assert chat.ask("What is it?").answer == expected
    assert chat.ask("And now?").visual_tokens == count


def test_still_pictures_beside_videos(picture, tmp_path):
    model, processor = tiny_model(), tiny_processor()
    still = read_video(picture, num_frames=8)
    video = read_video(write_video(tmp_path / "clip.mp4", range(8)), num_frames=8)
    encoded = encode_clips(model, processor, [still, video, still])
    assert [one.kind for one in encoded] == ["image", "video", "image"]
    assert np.array_equal(encoded[0].tokens, encoded[2].tokens)


def test_the_released_model_takes_272_tokens():
    """At 448 × 448, where a padded clip of one frame takes 784."""
    from videopanda.models.videopanda import VideoPandaVideoProcessor

    processor = VideoPandaVideoProcessor(image_context_token=False)
    assert processor.token_count(1, 448, 448, kind="image") == 272
    assert processor.token_count(1, 448, 448) == 273 + 7 * 73
