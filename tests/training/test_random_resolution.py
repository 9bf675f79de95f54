"""Protects training at random resolution: each frame of a clip has a size of its own, drawn by seed and sample; the
saved model and its validation see full frames. A stage may also set the policy of hybrid resolution."""

import json

import numpy as np
import pytest
import torch
from clips import Clips, timed
from transformers import AutoConfig, AutoProcessor

from media import write_video
from tiny import tiny_processor
from tiny_elva import elva
from videopanda.data.collate import Collator, frame_scales
from videopanda.data.sample import Sample
from videopanda.training.run import make_collator, train
from videopanda.training.stages import GUIDED, make_config
from videopanda.training.validation import ValidationBatches


def samples(count: int = 3) -> list[Sample]:
    return [timed(Clips()[i]) for i in range(count)]


def grids(batch) -> torch.Tensor:
    return batch["video_placement"]


def collator(seed: int = 3, least: float = 0.5, **fields) -> Collator:
    stage = make_config("finetune", "elva", [f"random_resolution={least}", f"seed={seed}"])
    return make_collator(stage, elva()[1], **fields)


def test_sizes_are_drawn_by_seed_and_sample_for_every_frame():
    assert GUIDED["finetune"].random_resolution == 0.5
    batch = collator()(samples())
    sizes = {tuple(grid) for grid in grids(batch)[:, 2:].tolist()}
    assert len(sizes) > 2  # of 3 × 4 cells: all between half and whole
    assert torch.equal(grids(batch), grids(collator()(samples())))
    assert not torch.equal(grids(batch), grids(collator(seed=4)(samples())))
    alone = torch.cat([grids(collator()([sample]))[:, 1:] for sample in samples()])
    assert torch.equal(grids(batch)[:, 1:], alone)  # neither the batch nor its order matter
    drawn = frame_scales("a", 0, 1000, 0.5, 3)
    assert 0.5 <= drawn.min() < 0.51
    assert 0.99 < drawn.max() <= 1
    assert not np.array_equal(drawn, frame_scales("a", 1, 1000, 0.5, 3))


def test_the_model_takes_as_many_tokens_as_the_row_holds():
    model, _ = elva(merge={"layers": [1, 2], "random_keep": 0.5})
    batch = collator()(samples())
    loss = model.train()(**batch).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert int((batch["input_ids"] == model.config.video_token_id).sum()) < len(samples()) * 8 * (12 + 3 + 1)


def test_validation_sees_full_frames():
    full = elva()[1].video_processor(videos=[Clips()[0].videos[0]])["video_placement"]
    _, batches = ValidationBatches(samples(1), collator(), 1, 0, 1)[0]
    assert torch.equal(grids(batches[""]), full)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("random_resolution=1.5", r"random_resolution must be in \[0, 1\]"),
        ("random_resolution=-0.5", r"random_resolution must be in \[0, 1\]"),
        ("random_resolution=nan", r"random_resolution must be in \[0, 1\]"),
    ],
)
def test_a_share_that_makes_no_sense_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        make_config("finetune", "elva", [setting])


def test_what_needs_frames_of_one_size_is_refused():
    with pytest.raises(ValueError, match="set align_to=phrases"):
        make_config("pretrain", "nano", ["random_resolution=0.5"])
    with pytest.raises(ValueError, match="frames may differ in size: set random_resolution=0"):
        make_collator(make_config("finetune", "custom", ["random_resolution=0.5"]), tiny_processor())


def test_a_stage_sets_the_policy_and_the_model_keeps_it_but_not_the_random_sizes(tmp_path):
    for part in elva(merge={"layers": []}):
        part.save_pretrained(tmp_path / "start")
    write_video(tmp_path / "a.mp4", range(12), fps=6)
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "yes"}]
    (tmp_path / "rows.json").write_text(json.dumps([{"id": "a", "video": "a.mp4", "conversations": turns}] * 2))
    common = [f"data={tmp_path / 'rows.json'}", "batch_size=2", "global_batch=0", "max_steps=1", "dtype=float32"]
    common += ["validation=0", "num_frames=6", "strategy=ddp", "merge.layers=1", "group_by_length=false"]
    chosen = {"policy": ["hybrid.every=2", "hybrid.policy=random", "random_resolution=0"], "drawn": []}
    for name, more in chosen.items():
        out = train("finetune", "elva", [*common, *more], tmp_path / "start", tmp_path / name, False)
        hybrid, rules = (
            AutoConfig.from_pretrained(out).hybrid_config,
            AutoProcessor.from_pretrained(out).video_processor,
        )
        expected = (2, "random") if name == "policy" else (0, "every")
        assert (hybrid.every, hybrid.policy) == (rules.hybrid_every, rules.hybrid_policy) == expected
        assert rules.num_frames == 6
