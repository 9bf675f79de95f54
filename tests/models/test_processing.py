"""Inputs of every form give the same pixels, counts are right, and the processor refuses what does not fit."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor

import videopanda  # noqa: F401 - makes AutoProcessor know our classes
from tiny import clip, tiny_config, tiny_processor, tiny_stab, tiny_tokenizer
from videopanda.models.videopanda import (
    VideoPandaProcessor,
    VideoPandaVideoProcessor,
    placement_for_size,
    visual_token_count,
)
from videopanda.video.read import released_frame_indices


def test_known_counts():
    assert visual_token_count(8, 448, 448) == 2184
    assert visual_token_count(8, 360, 640) == 1232
    assert visual_token_count(8, 640, 360) == 1288
    assert visual_token_count(2, 1080, 1920, pad_to_frames=8) == 2 * 154 + 6 * 73
    assert visual_token_count(8, 360, 640, row_tokens=False, context_token=False) == 8 * 9 * 16


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 32), st.booleans())
def test_geometry(height, width, max_cells, tight):
    top, left, rows, columns = placement_for_size(height, width, max_cells, tight)
    assert max(rows, columns) == max_cells
    assert min(rows, columns) >= 1
    assert (min(rows, columns) - 1) * max(height, width) < max_cells * min(height, width)  # not one cell too many
    assert min(rows, columns) * max(height, width) >= max_cells * min(height, width)  # and not one too few
    if tight:
        assert (top, left) == (0, 0)
    else:
        assert 0 <= max_cells - rows - 2 * top <= 1
        assert 0 <= max_cells - columns - 2 * left <= 1


def test_every_form_of_input_gives_the_same_pixels():
    frames = clip()
    processor = tiny_processor().video_processor
    expected = processor(frames)["pixel_values_videos"]
    images = [Image.fromarray(frame) for frame in frames]
    read = SimpleNamespace(frames=frames, timestamps=np.arange(8.0), duration=8.0)
    for video in (images, [images], list(frames), torch.from_numpy(frames), [[read]], frames[None]):
        assert torch.equal(processor(video)["pixel_values_videos"], expected)
    assert torch.equal(processor(frames.transpose(0, 3, 1, 2))["pixel_values_videos"], expected)
    assert len(processor([[frames, frames], [frames]])["video_placement"]) == 3


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (clip().astype(np.float32), "uint8"),
        (np.zeros((8, 4, 4, 4), np.uint8), "RGB"),
        (np.zeros((0, 4, 4, 3), np.uint8), "at least one frame"),
        ([Image.new("RGB", (4, 4)), Image.new("RGB", (5, 4))], "same size"),
        ([], "no video"),
        (3, "frames"),
    ],
)
def test_bad_videos_are_refused(video, message):
    with pytest.raises(ValueError, match=message):
        tiny_processor().video_processor(video)


@pytest.mark.parametrize(
    "fields",
    [
        {"size": {"height": 50, "width": 50}},
        {"size": {"height": 48, "width": 96}},
        {"canvas": "round"},
        {"frame_sampling": "random"},
        {"num_frames": 0},
        {"canvas": "tight", "pad_frames": True},
        {"image_mean": [0.5]},
    ],
)
def test_bad_fields_are_refused(fields):
    with pytest.raises(ValueError, match=r"."):
        VideoPandaVideoProcessor(**{"size": {"height": 48, "width": 48}, "patch_size": 4, **fields})


def test_tight_canvas_needs_masked_padding():
    with pytest.raises(ValueError, match="mask_padding"):
        tiny_processor("released", canvas="tight", pad_frames=False)
    out = tiny_processor("paper", canvas="tight").video_processor([clip(), clip(4, 20, 40)])
    assert out["pixel_values_videos"].shape == (2, 8, 3, 40, 48)
    assert out["video_placement"].tolist() == [[0, 0, 5, 6, 8, 8], [0, 0, 3, 6, 4, 4]]
    assert not out["pixel_values_videos"][1, :, :, 24:].any()


def test_sampling():
    processor = tiny_processor().video_processor
    metadata = SimpleNamespace(total_num_frames=80, fps=10.0)
    assert processor.sample_frames(metadata).tolist() == [5, 15, 25, 35, 45, 55, 65, 75]
    assert processor.sample_frames(metadata, num_frames=2).tolist() == [20, 60]
    assert processor.sample_frames(metadata, fps=0.5).tolist() == [10, 30, 50, 70]
    frames = clip(20)
    out = processor(frames, num_frames=4, return_metadata=True, video_metadata={"fps": 10.0, "total_num_frames": 20})
    assert out["video_metadata"][0].frames_indices == [2, 7, 12, 17]
    assert out["video_metadata"][0].duration == 2.0
    assert out["video_placement"].tolist() == [[0, 0, 5, 6, 8, 4]]
    assert len(processor(frames, do_sample_frames=False)["pixel_values_videos"][0]) == 20
    read = SimpleNamespace(frames=frames, timestamps=np.arange(20.0), duration=20.0)
    assert len(processor(read)["pixel_values_videos"][0]) == 20


@settings(deadline=None)
@given(st.integers(1, 5000), st.floats(0.1, 240), st.integers(1, 64))
def test_released_sampling_is_that_of_read_video(total, fps, most):
    processor = tiny_processor(frame_sampling="released", num_frames=most).video_processor
    metadata = SimpleNamespace(total_num_frames=total, fps=fps)
    assert processor.sample_frames(metadata).tolist() == released_frame_indices(total, fps, most)


def test_released_sampling_without_frame_rate_is_uniform():
    metadata = SimpleNamespace(total_num_frames=80, fps=None)
    indices = tiny_processor(frame_sampling="released").video_processor.sample_frames(metadata)
    assert indices.tolist() == [5, 15, 25, 35, 45, 55, 65, 75]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(4, 80), st.integers(4, 80), st.booleans())
def test_placeholders_equal_the_count(frames, height, width, padded):
    processor = tiny_processor(pad_frames=padded, do_sample_frames=False)
    out = processor(text="<video>", videos=clip(frames, height, width))
    found = (out["input_ids"] == processor.video_token_id).sum().item()
    counted = processor._get_num_multimodal_tokens(video_sizes=[(frames, height, width)]).num_video_tokens
    assert [found] == counted == [processor.video_processor.token_count(frames, height, width)]
    image = processor(text="<image>", images=clip(1, height, width)[0])
    assert processor._get_num_multimodal_tokens(image_sizes=[(height, width)]).num_image_tokens == [
        (image["input_ids"] == processor.image_token_id).sum().item()
    ]


def test_conversation_with_videos_and_images():
    processor = tiny_processor()
    picture = Image.fromarray(clip(1)[0])
    conversation = [
        {
            "role": "user",
            "content": [
                {"type": "video", "video": clip()},
                {"type": "image", "image": picture},
                {"type": "text", "text": "Which is red?"},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "The first."}]},
        {
            "role": "user",
            "content": [{"type": "video", "video": clip(4, 40, 20)}, {"type": "text", "text": "And now?"}],
        },
    ]
    out = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=True, return_dict=True)
    visual = {"pixel_values_videos", "video_placement", "pixel_values", "image_placement"}
    assert visual | {"input_ids", "attention_mask"} <= set(out) <= set(processor.model_input_names)
    ids = out["input_ids"]
    videos = [processor.video_processor.token_count(8, 30, 40), processor.video_processor.token_count(4, 40, 20)]
    assert (ids == processor.video_token_id).sum() == sum(videos)
    assert (ids == processor.image_token_id).sum() == processor.video_processor.token_count(1, 30, 40, "image")
    text = processor.apply_chat_template(conversation, add_generation_prompt=True)
    assert text == (
        "<s> A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the human's questions. USER: <video> \n<image> \nWhich is red? "
        "ASSISTANT: The first.</s>USER: <video> \nAnd now? ASSISTANT:"
    )
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert processor.apply_chat_template(system) == "<s> Be brief. USER: Hi "


def test_batch_of_conversations_pads_on_the_left():
    processor = tiny_processor()
    ask = [
        [{"role": "user", "content": [{"type": "video", "video": clip(n)}, {"type": "text", "text": "What?"}]}]
        for n in (8, 3)
    ]
    out = processor.apply_chat_template(ask, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert out["attention_mask"][:, -1].tolist() == [1, 1]
    assert out["pixel_values_videos"].shape[:2] == (2, 8)
    for row, real in zip(out["input_ids"], (8, 3)):
        assert (row == processor.video_token_id).sum() == processor.video_processor.token_count(real, 30, 40)


def test_time_prompt():
    processor = tiny_processor(time_prompt=True)
    read = SimpleNamespace(frames=clip(), timestamps=np.arange(8.0), duration=12.54)
    text = processor.tokenizer.decode(processor(text="<video>", videos=read)["input_ids"][0])
    assert text.startswith("12.5 seconds: <video><video>")
    metadata = {"duration": 3.0, "total_num_frames": 8, "fps": None}
    out = processor(text="<video>", videos=clip(), videos_kwargs={"video_metadata": [metadata]})
    assert processor.tokenizer.decode(out["input_ids"][0]).startswith("3.0 seconds: <video>")
    assert "video_metadata" not in out
    with pytest.raises(ValueError, match="length"):
        processor(text="<video>", videos=clip())


@pytest.mark.parametrize(("preset", "told"), [("released", False), ("paper", True), ("eve_star", False)])
def test_a_new_processor_follows_the_preset(preset, told):
    """A model that sees no padding has none, and its prompt begins with the length of the clip."""
    processor = VideoPandaProcessor.for_config(tiny_config(preset), tiny_tokenizer())
    fields = processor.video_processor
    assert (fields.canvas, fields.pad_frames) == (("tight", False) if told else ("square", True))
    assert (fields.frame_sampling, fields.num_frames) == ("uniform", 8)
    read = SimpleNamespace(frames=clip(), timestamps=np.arange(8.0) / 2, duration=4.0)
    text = processor.tokenizer.decode(processor(text="<video>", videos=read)["input_ids"][0])
    assert text.startswith("4.0 seconds: <video>" if told else "<video>")


@pytest.mark.parametrize(
    ("text", "videos", "numbers"),
    [
        ("<video><video>", [clip()], ("2", "1")),
        ("Hi", [clip()], ("0", "1")),
        ("<video>", None, ("1", "0")),
        (["<video>", "<video><video>"], [[clip(), clip()], [clip()]], ("1", "2")),
        ("<image>", None, ("1", "0")),
    ],
)
def test_wrong_number_of_visuals(text, videos, numbers):
    with pytest.raises(ValueError, match="{}.*{}".format(*numbers)):
        tiny_processor()(text=text, videos=videos)


def test_truncation_never_cuts_a_video():
    with pytest.raises(ValueError, match=r"(?i)truncat"):
        tiny_processor()(text="<video>What?", videos=clip(), truncation=True, max_length=50)


def test_tokenizer_without_placeholders_is_refused():
    tokenizer = tiny_tokenizer()
    plain = type(tokenizer)(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(
            tokenizer.backend_tokenizer.to_str().replace("<video>", "<movie>")
        )
    )
    with pytest.raises(ValueError, match="<video>"):
        VideoPandaProcessor(tiny_processor().video_processor, plain)


def test_save_and_load(tmp_path):
    processor = tiny_processor("paper", canvas="tight", num_frames=4, time_prompt=True)
    processor.chat_template = "{{ messages[0]['content'] }}"
    processor.save_pretrained(tmp_path)
    for loaded in (AutoProcessor.from_pretrained(tmp_path), VideoPandaProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is VideoPandaProcessor
        assert loaded.chat_template == processor.chat_template
        assert loaded.time_prompt is True
        assert loaded.video_processor.to_dict() == processor.video_processor.to_dict()
        read = SimpleNamespace(frames=clip(), timestamps=np.arange(8.0), duration=1.0)
        for one, two in zip(
            processor(text="<video>?", videos=read).items(), loaded(text="<video>?", videos=read).items()
        ):
            assert one[0] == two[0]
            assert torch.equal(one[1], two[1])


def test_for_stab_follows_the_configuration():
    config = tiny_stab("eve_star", row_tokens=False, fsra=False, image_size=448, patch_size=14)
    processor = VideoPandaVideoProcessor.for_stab(config, pad_frames=False)
    assert processor.token_count(8, 360, 640) == 8 * 9 * 16
    assert tiny_processor(stab=tiny_stab(fsra=False)).video_processor.token_count(1, 30, 40, "image") == 5 * 7
