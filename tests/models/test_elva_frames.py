"""Protects ELVA's native frames from end to end: mixed sizes in a video and a batch, high and low resolution, limits.

One function counts for the processor, the planner, the engine and the model.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from tiny import tiny_processor
from tiny_elva import elva, frames, model_inputs
from videopanda.data.worlds.scenes.dataset import Clip
from videopanda.inference.answer import ask
from videopanda.models.elva import ElvaConfig, ElvaVideoProcessor
from videopanda.models.elva.configuration_elva import frame_tokens

SIZES = [(24, 40), (16, 16), (30, 20), (24, 40), (8, 64)]


def mixed(seed: int, sizes=SIZES) -> list[np.ndarray]:
    return [frames(seed + t, 1, *size)[0] for t, size in enumerate(sizes)]


@torch.no_grad()
def test_frames_of_different_sizes_in_a_video_and_a_batch():
    """Each video gives the tokens and the logits that it gives alone, and each frame the tokens that it gives alone."""
    model, processor = elva(merge={"layers": []})
    videos = [mixed(1), list(frames(9, 3)), mixed(5, SIZES[2:4])]
    rules = processor.video_processor
    together = rules(videos=videos)
    encoded = model.encode(together)
    counts = [len(rules.token_layout(together, i)) for i in range(3)]
    assert counts == [len(visual.tokens) for visual in encoded]
    assert counts == [sum(rules.token_count(1, *frame.shape[:2]) for frame in video) for video in videos]
    for video, visual in zip(videos, encoded):
        (alone,) = model.encode(rules(videos=[video]))
        torch.testing.assert_close(visual.tokens, alone.tokens, atol=1e-5, rtol=0)  # measured: 1.5e-6
        assert torch.equal(visual.layout, alone.layout)
        single = [model.encode(rules(videos=[[frame]]))[0] for frame in video]
        torch.testing.assert_close(visual.tokens, torch.cat([one.tokens for one in single]), atol=1e-5, rtol=0)
        assert visual.layout[:, 0].tolist() == [t for t, one in enumerate(single) for _ in one.tokens]
    texts = [f"user: <video>{question}\nassistant:" for question in ("How many?", "What colour is it?", "Why?")]
    known = [{"duration": 2.0, "total_num_frames": len(video)} for video in videos]
    inputs = model_inputs(processor(text=texts, videos=videos, video_metadata=known, do_sample_frames=False))
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    logits = model(**inputs, position_ids=positions).logits[:, -1]
    for text, video, entry, own in zip(texts, videos, known, logits):
        one = model_inputs(processor(text=[text], videos=[video], video_metadata=[entry], do_sample_frames=False))
        torch.testing.assert_close(model(**one).logits[0, -1], own, atol=1e-5, rtol=0)  # measured: 5e-7


@pytest.mark.parametrize("policy", ["every", "ends", "change", "random"])
def test_a_policy_lowers_the_same_frames_wherever_it_is_asked(policy):
    fields = {"policy": policy, "every": 3, "scale": 0.5}
    model, processor = elva(merge={"layers": [1]}, hybrid_config=fields)
    clip = Clip(frames(3, 8), tuple(range(8)), 8.0)
    rules = processor.video_processor
    inputs = rules(videos=[clip])
    grids = inputs["video_placement"][:, 2:].tolist()
    high, low = [2, 4], [1, 2]
    assert {tuple(grid) for grid in grids} == {tuple(high), tuple(low)}
    assert grids[0] == grids[-1] == high
    if policy == "every":
        assert [t for t, grid in enumerate(grids) if grid == high] == [0, 3, 6, 7]
    if policy == "ends":
        assert grids.count(high) == 2
    count = sum(frame_tokens(*grid) for grid in grids)
    (visual,) = model.encode(inputs)
    layout = rules.layout([(8, 24, 40)])
    assert count == len(visual.tokens) == rules.token_count(8, 24, 40) == len(rules.token_layout(layout, 0))
    (answer,) = ask(model, processor, clip, ["What?"], max_new_tokens=2)
    assert answer.visual_tokens == count


def test_without_a_number_all_frames_stay_high():
    for policy in ("every", "ends", "change", "random"):
        rules = ElvaVideoProcessor(patch_size=4, hybrid_policy=policy, hybrid_every=0)
        assert rules.high_frames(5, frames(1)).all()
        assert rules.token_count(5, 24, 40) == 5 * frame_tokens(3, 5)


def test_frames_at_scales_of_their_own():
    """As training draws them: sizes by the scales, the policy aside, counted and encoded alike."""
    model, processor = elva(merge={"layers": []}, hybrid_config={"every": 3})
    rules = processor.video_processor
    scales = [np.array([1.0, 0.5, 0.75, 0.2, 1.0]), np.array([0.5, 0.9, 1.0])]
    inputs = rules(videos=[frames(1), frames(2, 3, 16, 16)], frame_scales=scales)
    grids = inputs["video_placement"]
    assert grids[grids[:, 0] == 0][:, 2:].tolist() == [[2, 4], [1, 2], [2, 3], [1, 1], [2, 4]]
    assert grids[grids[:, 0] == 1][:, 2:].tolist() == [[1, 1], [2, 2], [2, 2]]
    for i, visual in enumerate(model.encode(inputs)):
        assert len(visual.tokens) == len(rules.token_layout(inputs, i))
    with pytest.raises(ValueError, match="cannot be scaled one by one"):
        tiny_processor().video_processor(videos=[frames(1)], frame_scales=[np.ones(5)])


def test_by_change_the_frames_after_a_cut_stay_high():
    rules = ElvaVideoProcessor(patch_size=4, hybrid_policy="change", hybrid_every=4)
    still = np.full((12, 24, 40, 3), 90, np.uint8)
    still[5:] = 200
    still[9:] = 20
    assert rules.high_frames(12, still).nonzero()[0].tolist() == [0, 5, 9, 11]
    assert rules.high_frames(12).sum() == 4  # as many without pixels, so that counting needs none


def test_at_random_each_clip_draws_its_own_frames_and_keeps_them():
    rules = ElvaVideoProcessor(patch_size=4, hybrid_policy="random", hybrid_every=3)
    drawn = [tuple(rules.high_frames(12, frames(seed, 12)).tolist()) for seed in range(8)]
    assert drawn[0] == tuple(rules.high_frames(12, frames(0, 12)).tolist())
    assert len(set(drawn)) > 4
    assert {sum(high) for high in drawn} == {int(rules.high_frames(12).sum())}
    assert all(high[0] and high[-1] for high in drawn)


def test_a_frame_keeps_to_both_limits():
    by_cells = ElvaVideoProcessor(max_frame_cells=100)
    by_pixels = ElvaVideoProcessor(max_frame_cells=1000, max_frame_pixels=100 * 28 * 28)
    for size in ((720, 1280), (1080, 1920), (100, 3000), (480, 480)):
        assert by_cells.grids(1, *size).tolist() == by_pixels.grids(1, *size).tolist()
        rows, columns = by_pixels.grids(1, *size)[0]
        assert rows * columns * 28 * 28 <= 100 * 28 * 28
    assert by_pixels.max_cells == 10
    assert ElvaVideoProcessor(max_frame_cells=9, max_frame_pixels=10**6).max_cells == 3


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ([frames(1, 1)[0], np.zeros((24, 40, 4), np.uint8)], r"got uint8 \(24, 40, 4\) as frame 1: give transparent"),
        ([frames(1, 1)[0], frames(1, 1)[0].astype(np.float32)], "got float32"),
        (frames(1, 2, 6, 40), "a frame of 40 × 6 pixels is smaller than a patch of 8 × 8"),
        ([*frames(1, 2), frames(1, 1, 24, 7)[0]], "a frame of 7 × 24 pixels is smaller than a patch of 8 × 8"),
        (frames(1, 0), "at least one frame"),
    ],
)
def test_bad_frames_are_refused_in_one_line(video, message):
    with pytest.raises(ValueError, match=message) as caught:
        ElvaVideoProcessor(patch_size=4)(videos=[video], do_sample_frames=False)
    assert "\n" not in str(caught.value)


def test_pictures_with_and_without_transparency_are_put_on_the_background():
    color = Image.fromarray(frames(1, 1)[0])
    clear = Image.fromarray(np.zeros((16, 24, 4), np.uint8), "RGBA")
    rules = ElvaVideoProcessor(patch_size=4)
    inputs = rules(videos=[[color, clear]], do_sample_frames=False)
    assert inputs["video_placement"][:, 2:].tolist() == [[3, 5], [2, 3]]
    assert inputs["pixel_values_videos"][15:].eq(1).all()  # white


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_frame_pixels": 100}, "must be at least one cell, 28 × 28 pixels, got 100"),
        ({"max_frame_pixels": 0}, "`max_frame_pixels` must be a positive integer"),
        ({"max_frame_cells": 2.5}, "`max_frame_cells` must be a positive integer"),
    ],
)
def test_limits_that_make_no_sense_are_refused(fields, message):
    for made in (ElvaConfig, ElvaVideoProcessor):
        with pytest.raises(ValueError, match=message):
            made(**fields)
