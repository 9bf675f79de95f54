"""Protects LoRA: only the adapter is trained, all of it is in one folder, merged or not the logits are the same."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import Clips, metrics, timed
from peft import PeftModel
from safetensors.torch import load_file, save_file

from tiny import clip, save_wide, tiny_model, tiny_processor
from tiny_elva import batch, elva, frames, model_inputs
from videopanda.data.sample import Sample
from videopanda.models.load import load_checkpoint
from videopanda.models.videopanda import VideoPandaForConditionalGeneration
from videopanda.training.adapter import ADAPTER, add_adapter, load_quantized, merge
from videopanda.training.build import as_trained, change_fields
from videopanda.training.freezing import set_stage
from videopanda.training.run import run_stage
from videopanda.training.stages import CUSTOM, StageConfig

FAST = {"lora_rank": 4, "max_steps": 3, "batch_size": 2, "dtype": "float32", "vision_lr": 1e-2}
FAST |= {"language_model_lr": 1e-2, "save_steps": 2, "keep_checkpoints": 2, "max_grad_norm": 0.0}


def stage(**fields) -> StageConfig:
    return StageConfig(**{**CUSTOM["finetune"].as_dict(), **FAST, **fields})


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


class TimedClips(Clips):
    """The same, with the times of frames, which the prompts of some models state."""

    def __getitem__(self, index: int) -> Sample:
        return timed(super().__getitem__(index))


def train(start: Path, out: Path, settings: StageConfig) -> Path:
    model, processor = load_checkpoint(start, torch.float32)
    return run_stage(settings, add_adapter(model, settings), processor, TimedClips(), out)


@pytest.fixture(scope="module")
def tuned(start, tmp_path_factory) -> Path:
    return train(start, tmp_path_factory.mktemp("tuned"), stage())


def logits(model: torch.nn.Module) -> torch.Tensor:
    processor = tiny_processor()
    asked = [{"role": "user", "content": [{"type": "video", "video": clip()}, {"type": "text", "text": "What?"}]}]
    batch = processor.apply_chat_template([asked], add_generation_prompt=True, tokenize=True, return_dict=True)
    with torch.no_grad():
        return model.eval()(**batch).logits


def test_loaded_merged_and_unmerged_give_the_same_logits(start, tuned):
    merged_folder = logits(VideoPandaForConditionalGeneration.from_pretrained(tuned))
    model = PeftModel.from_pretrained(load_checkpoint(start, torch.float32)[0], tuned / ADAPTER)
    loaded = logits(model)
    model.merge_adapter()
    merged = logits(model)
    model.unmerge_adapter()
    unmerged = logits(model)
    before = logits(load_checkpoint(start, torch.float32)[0])
    assert (loaded - before).abs().max() > 1e-2
    for other in (merged_folder, merged, unmerged):
        assert (other - loaded).abs().max() <= 1e-4  # measured worst: 7.8e-6


def test_only_adapter_stab_and_projector_are_trained(start, tuned):
    before, after = load_file(start / "model.safetensors"), load_file(tuned / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[1] for name in moved} == {"stab", "projector", "language_model"}
    language = {name for name in moved if name.startswith("model.language_model.")}
    assert language == {name for name in before if name.endswith("_proj.weight") and ".layers." in name}
    saved = load_file(tuned / ADAPTER / "adapter_model.safetensors")
    assert {
        name for name in saved if "lora" not in name and ".stab." not in name and ".projector." not in name
    } == set()
    assert any("running_mean" in name for name in saved)


def test_a_frozen_stab_is_not_in_the_adapter(start, tmp_path):
    settings = stage(vision_lr=0.0, max_steps=1)
    saved = load_file(train(start, tmp_path, settings) / ADAPTER / "adapter_model.safetensors")
    assert saved
    assert all("lora" in name for name in saved)


def test_what_is_trained_by_name(start):
    settings = stage(module_lr={"projector": 0.0})
    model = add_adapter(load_checkpoint(start, torch.float32)[0], settings)
    reports = {report.part: report for report in set_stage(model, settings.learning_rates(("stab", "projector")))}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {".lora_" in name or ".stab.modules_to_save." in name for name in trained} == {True}
    assert reports["projector"].num_trainable == 0
    rank, width, kv, inner = 4, 48, 24, 96
    per_layer = 2 * (width + width) + 2 * (width + kv) + 2 * (width + inner) + (inner + width)
    assert reports["language_model"].num_trainable == 2 * rank * per_layer


def test_the_first_weights_of_an_adapter_depend_on_the_seed_alone(start):
    drawn = []
    for before, seed in ((1, 0), (2, 0), (1, 3)):
        torch.manual_seed(before)
        model = add_adapter(load_checkpoint(start, torch.float32)[0], stage(seed=seed))
        drawn.append(torch.cat([weight.flatten() for name, weight in model.named_parameters() if "lora_A" in name]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_run_with_an_adapter_resumes(start, tuned, tmp_path):
    shutil.copytree(tuned / "checkpoint-2", tmp_path / "checkpoint-2")
    shutil.copy(tuned / "run.json", tmp_path)
    model, processor = load_checkpoint(start, torch.float32)
    run_stage(stage(), add_adapter(model, stage()), processor, TimedClips(), tmp_path, resume=True)
    one, other = (load_file(folder / ADAPTER / "adapter_model.safetensors") for folder in (tmp_path, tuned))
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert np.isfinite(json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["loss"])


def test_four_bits_pass_gradients_on_after_an_evaluation(tmp_path):
    pytest.importorskip("bitsandbytes")
    settings = stage(quantize="nf4")
    model, _ = load_quantized(save_wide(tmp_path))
    model = add_adapter(model, settings)
    ids = torch.arange(5, 25)[None]
    found = []
    for _ in range(2):
        model.train()
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        model.eval()
        with torch.no_grad():
            model(input_ids=ids)
    assert any(".layers.0." in name and grad.abs().max() > 0 for name, grad in found[0].items())
    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        assert torch.equal(found[1][name], grad)


def test_a_quantized_language_model_is_adapted(tmp_path_factory, tmp_path):
    """4 bits in the language model alone, in training alone: what is saved has the full weights."""
    pytest.importorskip("bitsandbytes")
    start = save_wide(tmp_path_factory.mktemp("wide"))
    settings = stage(quantize="nf4", max_steps=5)
    model, processor = load_quantized(start)
    in_four_bits = {name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
    assert in_four_bits == {name for name, _ in model.named_modules() if ".layers." in name and name.endswith("_proj")}
    run_stage(settings, add_adapter(model, settings), processor, Clips(), tmp_path)
    losses = [row["loss"] for row in metrics(tmp_path)]
    assert losses[-1] < 0.8 * losses[0]  # measured: 4.4 of 7.4
    after, before = load_file(tmp_path / "model.safetensors"), load_file(start / "model.safetensors")
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in after.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in before.items()
    }


def test_a_model_with_missing_weights_is_refused(start, tmp_path):
    weights = load_file(start / "model.safetensors")
    del weights["model.stab.row_token"]
    tiny_model().save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"is not a complete videopanda checkpoint: it lacks model\.stab\.row_token"):
        load_checkpoint(tmp_path, torch.float32)


@pytest.mark.parametrize("fields", [{"modality_split": "norm"}, {"modality_split": "all"}, {"pre_buffer_layers": 1}])
def test_an_adapter_is_refused_where_visual_tokens_have_weights_in_the_layers(fields):
    """They would be trained beside the copies that PEFT makes, and the merged model would answer differently."""
    model, _ = elva(merge={"layers": []}, **fields)
    with pytest.raises(ValueError, match="LoRA does not work with modality_split or pre_buffer_layers"):
        add_adapter(model, stage())


def test_an_adapter_of_a_model_that_merges_is_merged_exactly(tmp_path):
    """The folder answers as the adapted model did, whose tokens merge."""
    for part in elva(merge={"layers": [1, 2]}):
        part.save_pretrained(tmp_path / "start")
    out = train(tmp_path / "start", tmp_path / "out", stage())
    model, processor = load_checkpoint(out, torch.float32)
    adapted = PeftModel.from_pretrained(load_checkpoint(tmp_path / "start", torch.float32)[0], out / ADAPTER)
    inputs = model_inputs(batch(processor, [frames(1), frames(2, 3)], ["What?", "How many?"]))
    start = load_checkpoint(tmp_path / "start", torch.float32)[0]
    with torch.no_grad():
        merged, loaded, before = (net.eval()(**inputs).logits[:, -1] for net in (model, adapted, start))
    assert (loaded - before).abs().max() > 1e-2
    assert (loaded - merged).abs().max() <= 1e-4  # measured worst: 1e-6


def test_an_adapted_model_keeps_the_fields_that_its_stage_changed(tmp_path):
    """Merging and time stamps, which it was trained with; weights and 4 bits are those of its start."""
    for part in elva(merge={"layers": []}):
        part.save_pretrained(tmp_path / "start")
    model, processor = load_checkpoint(tmp_path / "start", torch.float32)
    settings = stage(timestamps="frame", max_steps=1)
    change_fields(model, processor, {"merge.layers": "1,2", "merge.random_keep": "0.3"}, tmp_path / "start")
    as_trained(model, processor, settings)
    model.config.quantization_config = {"load_in_4bit": True}  # as bitsandbytes leaves it
    adapted = add_adapter(model, settings)
    adapted.save_pretrained(tmp_path / ADAPTER)
    merge(adapted, tmp_path / ADAPTER).save_pretrained(tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (saved["merge_config"]["layers"], saved["merge_config"]["random_keep"]) == ([1, 2], 0.3)
    assert saved["timestamps"] == "frame"
    assert "quantization_config" not in saved


def test_vision_modules_beside_four_bits_are_trained_in_float32(tmp_path):
    """Steps of their size would be rounded away in bfloat16, in which large models are saved."""
    pytest.importorskip("bitsandbytes")
    save_wide(tmp_path)
    VideoPandaForConditionalGeneration.from_pretrained(tmp_path).to(torch.bfloat16).save_pretrained(tmp_path)
    settings = stage(quantize="nf4")
    model = add_adapter(load_quantized(tmp_path)[0], settings)
    set_stage(model, settings.learning_rates(("stab", "projector")))
    trained = {name: weight.dtype for name, weight in model.named_parameters() if weight.requires_grad}
    assert any(".stab." in name for name in trained)
    assert set(trained.values()) == {torch.float32}
