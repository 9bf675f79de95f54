"""Protects what ELVA must hold from pixels to logits, on four shapes of language model, for batches of different clips
that are padded on the left, with a KV cache and without one.

The remaining checks: counting and parameters in `test_elva_embedding.py`, a reference with loops in `test_merging.py`,
decoding in `test_elva.py`, a split by modality in `test_elva_variants.py`, FLOPs in `plan/test_planner.py`.
"""

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from tiny_elva import batch, elva, frames, greedy_by_recompute, model_inputs
from videopanda.checkpoints.export import export
from videopanda.checkpoints.tensors import HEAD_FILE
from videopanda.models.merging import PADDING
from videopanda.training.guidance import GuidedVideoLanguage, VideoGuidance
from videopanda.training.trainer import TaskModule

FAMILIES = ["llama", "qwen2", "qwen3", "phi3"]
QUESTIONS = ["What colour is the circle?", "How many?", "Which way does it go, and when?"]
MOVING = [frames(1), frames(2, 3), frames(3, 7, 16, 16)]
NEVER = {"layers": [0, 2, 3], "mode": "threshold", "threshold": 1.01}

shapes = pytest.mark.parametrize("family", FAMILIES)
caching = pytest.mark.parametrize("cached", [False, True], ids=["uncached", "cached"])


def inputs_of(processor, clips, questions=QUESTIONS):
    inputs = model_inputs(batch(processor, clips, questions))
    assert int((inputs["attention_mask"] == 0).sum()) > 0  # rows of different lengths, padded on the left
    return inputs


def forward(model, inputs, cached: bool):
    """The output of the base model, and what merged its tokens."""
    mergers: list = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: mergers.append(kwargs.get("token_merger")), with_kwargs=True
    )
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        output = model.model(**inputs, position_ids=positions, use_cache=cached)
    handle.remove()
    return output, mergers[0]


@caching
@shapes
def test_merging_that_never_happens_changes_no_bit(family, cached):
    plain, processor = elva(family, {"layers": []})
    never, _ = elva(family, NEVER)
    inputs = inputs_of(processor, MOVING)
    kept = inputs["attention_mask"].bool()
    one, other = (forward(model, inputs, cached)[0].last_hidden_state[kept] for model in (plain, never))
    assert torch.equal(one, other)
    made = [
        model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False, use_cache=cached)
        for model in (plain, never)
    ]
    assert torch.equal(*made)


@caching
@shapes
def test_a_static_clip_collapses_to_one_frame_and_a_moving_one_does_not(family, cached):
    model, processor = elva(family, {"layers": [0], "mode": "threshold", "threshold": 0.9999})
    clips = [np.repeat(frames(1, 1), 5, 0), MOVING[1], np.repeat(frames(3, 1, 16, 16), 7, 0)]
    inputs = inputs_of(processor, clips)
    output, merger = forward(model, inputs, cached)
    kept = merger.place[-1] != PADDING
    counts = [merger.counts[-1][row, kept[row]].tolist() for row in range(3)]
    grids = inputs["video_placement"]
    cells = [int(grids[grids[:, 0] == row][0, 2:].prod()) for row in range(3)]
    assert counts == [[5.0] * cells[0], [1.0] * 3 * cells[1], [7.0] * cells[2]]
    if cached:
        lengths = {layer.keys.shape[2] for layer in output[model.cache_name].layers}
        assert lengths == {merger.place[-1].shape[1]}


@caching
@shapes
def test_unmerged_output_has_the_whole_shape_and_copies(family, cached):
    model, processor = elva(family, {"layers": [1, 3], "keep": 0.5})
    inputs = inputs_of(processor, MOVING)
    output, merger = forward(model, inputs, cached)
    assert output.last_hidden_state.shape[:2] == inputs["input_ids"].shape
    for row, states in enumerate(output.last_hidden_state):
        states = states[inputs["attention_mask"][row].bool()]
        _, copies = torch.unique(states, dim=0, return_counts=True)
        counts = merger.counts[-1][row, ~merger.is_padding[-1][row]]
        assert sorted(copies.tolist()) == sorted(counts.int().tolist())
        assert int(counts.max()) > 1


@caching
@shapes
def test_a_text_after_the_clip_never_changes_merging_and_one_before_it_can(family, cached):
    model, processor = elva(family)
    inputs = inputs_of(processor, MOVING)
    after, before = (inputs["input_ids"].clone() for _ in range(2))
    for row, ids in enumerate(inputs["input_ids"]):
        video = (ids == processor.video_token_id).nonzero()
        after[row, int(video.max()) + 1 :] += 1
        before[row, int(inputs["attention_mask"][row].argmax()) : int(video.min())] += 1
    merges = [
        forward(model, {**inputs, "input_ids": ids}, cached)[1].merges for ids in (inputs["input_ids"], after, before)
    ]
    for own, other in zip(merges[0], merges[1], strict=True):
        assert torch.equal(own.source, other.source)
        assert torch.equal(own.target, other.target)
    assert not all(torch.equal(own.target, other.target) for own, other in zip(merges[0], merges[2]))


@shapes
def test_an_exported_model_has_no_guidance_heads_and_no_teacher(family, tmp_path):
    """The training folder has the heads in a file of their own; the export leaves it out and loads by its own code."""
    model, processor = elva(family)
    teacher = torch.nn.Linear(3, 5)
    guided = GuidedVideoLanguage(VideoGuidance(48, 5), lambda batch: teacher(batch["teacher_pixels"]))
    TaskModule(model, guided, seed=0).save(tmp_path / "trained", processor)
    assert (tmp_path / "trained" / HEAD_FILE).exists()
    files = export(tmp_path / "trained", tmp_path / "exported")
    assert [name for name in files if name.endswith(".safetensors")] == ["model.safetensors"]
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "exported", trust_remote_code=True).eval()
    assert again.state_dict().keys() == model.state_dict().keys()
    inputs = inputs_of(processor, MOVING[:2], QUESTIONS[:2])
    assert torch.equal(
        again.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)[:, -4:],
        greedy_by_recompute(model, inputs, 4),
    )
