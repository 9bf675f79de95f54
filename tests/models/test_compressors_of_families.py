"""Protects compressors as fields of a model: counted as made, put on a trained model, trained, exported, merged."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressed import FAMILIES, compressed
from tiny import clip, realign
from videopanda.checkpoints.export import export
from videopanda.inference.answer import ask
from videopanda.models.compression_config import CompressionConfig
from videopanda.models.families import changed_config, model_class
from videopanda.models.load import load_checkpoint
from videopanda.models.merge_schedule import MergeSchedule
from videopanda.models.visual import CELL
from videopanda.plan.planner import Planner
from videopanda.training.build import change_checkpoint
from videopanda.training.freezing import set_stage
from videopanda.training.run import make_task
from videopanda.training.stages import make_config

QUESTIONS = ["What colour is the circle?", "How many?"]


class Frames:
    def __init__(self, frames):
        self.frames, self.timestamps, self.duration = frames, list(range(len(frames))), float(len(frames))


compression = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["pool", "mamba", "mamba2"]),
        "pool_time": st.integers(1, 5),
        "pool_space": st.integers(1, 3),
        "keep_every": st.integers(1, 3),
        "merge_tokens": st.sampled_from([0, 0, 1, 5]),
        "merge_frames": st.integers(1, 3),
        "mixed": st.sampled_from(["no", "queries", "bidirectional"]),
    }
)


@settings(max_examples=12, deadline=None)
@given(compression, st.integers(1, 9), st.integers(24, 60), st.integers(24, 60))
@pytest.mark.parametrize("family", FAMILIES)
def test_the_planned_tokens_are_the_made_tokens(family, fields, frames, height, width):
    mixed = fields.pop("mixed")
    if mixed != "no" and fields["kind"] != "pool":
        fields[mixed] = True
    model, processor = compressed(family, fields)
    rules = processor.video_processor
    planned = rules.token_count(frames, height, width)
    inputs = rules(videos=[clip(frames, height, width), clip(2, 30, 40)], return_tensors="pt", num_frames=frames)
    with torch.no_grad():
        visuals = model.encode(inputs)
    assert len(visuals[0].tokens) == len(visuals[0].layout) == len(rules.token_layout(inputs, 0)) == planned
    prompt = processor(text="<video>What?", videos=[Frames(clip(frames, height, width))])["input_ids"]
    assert int((prompt == processor.video_token_id).sum()) == planned
    plan = Planner(model.config, rules, torch.float32).plan(frames, height, width)
    assert plan.visual_tokens == planned
    assert plan.flops["vision"] > 0
    assert rules.most_tokens(frames) >= planned
    image = rules.preprocess_images([clip(1, height, width)[0]], return_tensors="pt")
    with torch.no_grad():
        (made,) = model.encode(image, "image")
    assert len(made.tokens) == rules.token_count(1, height, width, "image") == len(made.layout)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_compressor_is_put_on_a_trained_model_and_starts_as_pooling(tmp_path, family):
    model, processor = compressed(family)
    processor.video_processor.num_frames = 12  # a setting of its own stays
    model.save_pretrained(tmp_path / "trained")
    processor.save_pretrained(tmp_path / "trained")
    lines = change_checkpoint(tmp_path / "mamba", tmp_path / "trained", {"compression.kind": "mamba"})
    assert any("compressor, fresh" in line for line in lines)
    change_checkpoint(tmp_path / "pool", tmp_path / "trained", {"compression.kind": "pool"})
    answers = {}
    for name in ("mamba", "pool"):
        loaded, its_processor = load_checkpoint(tmp_path / name, torch.float32)
        assert its_processor.video_processor.num_frames == 12
        inputs = its_processor.video_processor(videos=[clip(8)], return_tensors="pt")
        with torch.no_grad():
            (visual,) = realign(loaded).encode(inputs)  # kernels add up differently in unaligned memory
        answers[name] = visual.tokens, ask(loaded.eval(), its_processor, Frames(clip(8)), QUESTIONS)
    torch.testing.assert_close(answers["mamba"][0], answers["pool"][0], atol=0, rtol=0)
    assert [a.answer for a in answers["mamba"][1]] == [a.answer for a in answers["pool"][1]]
    before = dict(model.named_parameters())
    for name, weight in load_checkpoint(tmp_path / "mamba", torch.float32)[0].named_parameters():
        if not name.startswith("model.compressor."):
            assert torch.equal(weight, before[name])
    change_checkpoint(
        tmp_path / "again", tmp_path / "mamba", {"compression.kind": "none", "compression.pool_time": "4"}
    )
    assert load_checkpoint(tmp_path / "again", torch.float32)[1].video_processor.compression is None


def test_settings_that_do_not_fit_the_weights_are_refused(tmp_path):
    model, processor = compressed("videopanda")
    model.save_pretrained(tmp_path / "trained")
    processor.save_pretrained(tmp_path / "trained")
    with pytest.raises(ValueError, match=r"do not fit stab\.hidden_size"):
        change_checkpoint(tmp_path / "out", tmp_path / "trained", {"stab.hidden_size": "64"})
    with pytest.raises(ValueError, match=r"did you mean 'compression\.kind'"):
        change_checkpoint(tmp_path / "out", tmp_path / "trained", {"compression.kid": "mamba"})
    with pytest.raises(ValueError, match="nothing to change"):
        change_checkpoint(tmp_path / "out", tmp_path / "trained", {})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stage_trains_the_compressor_at_a_rate_of_its_own(family):
    model, processor = compressed(family, {"kind": "mamba", "pool_time": 2})
    stage = make_config("finetune", "custom", ["vision_lr=0", "language_model_lr=0", "lr.compressor=1e-3"])
    reports = {report.part: report for report in set_stage(model.train(), stage.learning_rates(model.vision_modules()))}
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert trained
    assert all(name.startswith("model.compressor.") for name in trained)
    assert reports["compressor"].learning_rate == 1e-3
    inputs = processor(text="<video>What?", videos=[Frames(clip(8))])
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    weights = dict(model.named_parameters())
    assert all(weights[name].grad is not None and bool(weights[name].grad.abs().any()) for name in trained)
    with pytest.raises(ValueError, match="cannot be compared with single cells"):
        make_task(make_config("finetune", "nano"), model, processor, None)


def test_an_exported_folder_brings_its_compressor(tmp_path):
    model, processor = compressed("elva", {"kind": "mamba", "bidirectional": True, "pool_time": 2})
    model.save_pretrained(tmp_path / "trained")
    processor.save_pretrained(tmp_path / "trained")
    names = export(tmp_path / "trained", tmp_path / "exported")
    assert {"compression.py", "compression_config.py", "state_space.py"} <= set(names)
    script = (
        "import sys; sys.modules['videopanda'] = None\n"
        "import numpy as np, torch; from transformers import AutoModelForImageTextToText, AutoProcessor\n"
        f"m = AutoModelForImageTextToText.from_pretrained({str(tmp_path / 'exported')!r}, trust_remote_code=True)\n"
        f"p = AutoProcessor.from_pretrained({str(tmp_path / 'exported')!r}, trust_remote_code=True)\n"
        "frames = np.random.default_rng(0).integers(0, 256, (8, 30, 40, 3), dtype=np.uint8)\n"
        "inputs = p.video_processor(videos=[frames], return_tensors='pt')\n"
        "print(repr(m.encode(inputs)[0].tokens.double().sum().item()))\n"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    inputs = processor.video_processor(videos=[clip(8)], return_tensors="pt")
    with torch.no_grad():
        expected = model.encode(inputs)[0].tokens.double().sum().item()
    assert float(out.stdout) == pytest.approx(expected, abs=1e-4)  # measured: 2e-7


@pytest.mark.parametrize("family", FAMILIES)
def test_compressed_tokens_merge_in_the_language_model_as_planned(family):
    model, processor = compressed(family, {"kind": "mamba", "pool_time": 2, "pool_space": 2})
    model.model.merge_schedule = MergeSchedule(layers=(1,), keep=0.5)
    rules = processor.video_processor
    planner = Planner(model.config, rules, torch.float32)
    planner.model.model.merge_schedule = model.model.merge_schedule
    inputs = processor(text="<video>What?", videos=[Frames(clip(8))])
    with torch.no_grad():
        visuals = model.encode(inputs)
        _, cache = model.prefill(inputs["input_ids"], visuals={"video": visuals})
    lengths = [layer.positions.shape[1] for layer in cache.layers]
    layers = planner.plan(8, 30, 40).layer_tokens
    assert lengths[0] - lengths[1] == layers[0] - layers[1] > 0


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match="merge either before the language model or in it"):
        compressed("elva", {"kind": "pool", "merge_tokens": 4}, merge_config={"layers": [1]})
    with pytest.raises(ValueError, match="not known in advance"):
        compressed("elva", {"kind": "pool"}, hybrid_config={"policy": "change", "every": 2})


def test_every_field_is_reachable_by_name():
    model, _ = compressed("videopanda")
    config = changed_config(model.config, {"compression.kind": "mamba2", "compression.queries": "true"})
    assert config.compression.queries
    assert sum(p.numel() for p in model_class(config)(config).vision_modules()["compressor"].parameters()) > 0


@settings(max_examples=12, deadline=None)
@given(st.floats(0.05, 1.0), st.sampled_from([0, 3]), st.integers(1, 6), st.integers(24, 60), st.integers(24, 60))
def test_cells_that_are_left_out_are_planned(keep, merge, frames, height, width):
    fields = {"kind": "pool", "pool_time": 1, "keep_changed": keep, "merge_tokens": merge}
    model, processor = compressed("elva", fields, merge_config={"layers": []})
    rules = processor.video_processor
    planned = rules.token_count(frames, height, width)
    inputs = rules(videos=[clip(2, 30, 40), clip(frames, height, width)], return_tensors="pt", num_frames=frames)
    with torch.no_grad():
        visuals = model.encode(inputs)
    assert len(visuals[1].tokens) == len(visuals[1].layout) == len(rules.token_layout(inputs, 1)) == planned
    assert len(visuals[0].tokens) == rules.token_count(min(2, frames), 30, 40)
    assert Planner(model.config, rules, torch.float32).plan(frames, height, width).visual_tokens == planned


def test_what_does_not_change_is_left_out_and_the_rest_is_as_before():
    fields = {"kind": "pool", "pool_time": 1, "keep_changed": 0.3}
    frames = np.repeat(clip(1, 24, 32), 3, axis=0)  # 3 x 4 cells of 8 pixels
    frames[1, :8, 8:24] = 255 - frames[1, :8, 8:24]
    frames[2] = frames[1]
    frames[2, 16:, 24:] = 255 - frames[2, 16:, 24:]
    made = {}
    for name, compression in (("all", {"kind": "pool", "pool_time": 1}), ("changed", fields)):
        model, processor = compressed("elva", compression, merge_config={"layers": []})
        with torch.no_grad():
            (made[name],) = model.encode(processor.video_processor(videos=[frames], return_tensors="pt", num_frames=3))
    layout = made["changed"].layout
    cells = {frame: [(row, column) for t, row, column, kind in layout.tolist() if t == frame and kind == CELL]
             for frame in range(3)}  # fmt: skip
    assert len(cells[0]) == 12
    assert len(cells[1]) == len(cells[2]) == 4  # ceil(0.3 x 12)
    assert {(0, 1), (0, 2)} <= set(cells[1])
    assert (2, 3) in cells[2]
    places = {tuple(place): row for row, place in enumerate(made["all"].layout.tolist())}
    same = torch.tensor([places[tuple(place)] for place in layout.tolist()])
    is_cell = layout[:, 3] == CELL  # LINE and FRAME tokens read the cells that are there
    torch.testing.assert_close(made["changed"].tokens[is_cell], made["all"].tokens[same][is_cell], atol=1e-6, rtol=0)


def test_leaving_out_cells_is_refused_where_it_cannot_be():
    with pytest.raises(ValueError, match="embedded alone"):
        compressed("videopanda", {"kind": "pool", "pool_time": 1, "keep_changed": 0.5})
    with pytest.raises(ValueError, match="counts whole frames"):
        compressed("elva", {"kind": "pool", "pool_time": 1, "keep_changed": 0.5}, merge_config={"layers": [1]})
    for fields in ({"pool_time": 2}, {"pool_time": 1, "pool_space": 2}):
        with pytest.raises(ValueError, match="pool_time=1, pool_space=1"):
            CompressionConfig(kind="pool", keep_changed=0.5, **fields)
    with pytest.raises(ValueError, match="at most 1"):
        CompressionConfig(kind="pool", pool_time=1, keep_changed=1.5)
    with pytest.raises(ValueError, match="changes nothing without"):
        CompressionConfig(keep_changed=0.5)
    model, _ = compressed("elva", {"kind": "pool", "pool_time": 1, "keep_changed": 0.5}, merge_config={"layers": []})
    assert model.chunk_frames is None


def test_no_section_has_the_name_by_which_engines_know_quantization(tmp_path):
    model = compressed("videopanda", {"kind": "pool"})[0]
    assert not hasattr(model.config, "compression_config")
    with pytest.raises(ValueError, match="a section compression_config: rename it to compression"):
        type(model.config)(compression_config={"kind": "pool"})
