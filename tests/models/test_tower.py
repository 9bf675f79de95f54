"""Protects the encoder-based peer: its tower's weights and features are the published ones, and stages freeze it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from command import run
from tiny import randomize, tiny_tokenizer
from videopanda.data.worlds.scenes.make import make
from videopanda.encoders.open import open_teacher
from videopanda.inference.load import load
from videopanda.models.languagebind import LanguageBindTower
from videopanda.training.build import build_model
from videopanda.training.stages import make_config

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=2048, pad_token_id=0, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def languagebind(folder: Path, frames: int = 4) -> Path:
    """A tower as published: groups of `frames` frames, 5 × 5 patches of 20 pixels."""
    config = CLIPVisionConfig(**SMALL, image_size=100, patch_size=20)
    torch.manual_seed(1)
    tower = LanguageBindTower(config, frames)
    randomize(tower)
    folder.mkdir()
    weights = {f"vision_model.{name}": tensor.contiguous() for name, tensor in tower.state_dict().items()}
    save_file({**weights, "logit_scale": torch.ones(())}, folder / "model.safetensors")
    vision = {**config.to_dict(), "add_time_attn": frames > 1, "num_frames": frames}
    (folder / "config.json").write_text(json.dumps({"model_type": "LanguageBindVideo", "vision_config": vision}))
    return folder


def dinov2(folder: Path) -> Path:
    Dinov2Model(Dinov2Config(**{**SMALL, "num_hidden_layers": 2}, image_size=56, patch_size=14)).save_pretrained(folder)
    return folder


def siglip(folder: Path) -> Path:
    config = SiglipVisionConfig(**SMALL, image_size=56, patch_size=14)
    SiglipVisionModel(config).save_pretrained(folder)
    return folder


def new(text: Path, encoder: Path, **fields):
    given = {"family": "tower", "preset": "nano", "encoder": str(encoder), "chat_template": "vicuna", "fields": fields}
    model, processor = build_model(text, seed=0, **given)
    return model.eval(), processor


def clips(*sizes: tuple[int, int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def test_distillation_needs_a_canvas_of_cells(text, tmp_path):
    encoder = languagebind(tmp_path / "encoder")
    _, processor = new(text, encoder)
    with pytest.raises(ValueError, match="set distill_weight=0, and tube_weight or frame_weight"):
        open_teacher(str(encoder), 5).video_processor(processor.video_processor)


@pytest.mark.parametrize("make_encoder", [languagebind, dinov2, siglip])
def test_features_are_those_of_the_teacher_of_this_folder(make_encoder, text, tmp_path):
    encoder = make_encoder(tmp_path / "encoder")
    model, processor = new(text, encoder)
    inputs = processor.video_processor(videos=clips((4, 80, 80)), return_tensors="pt")
    teacher = open_teacher(str(encoder), None)
    student = processor.video_processor
    assert list(teacher.mean) == student.image_mean
    expected = teacher({"teacher_pixels": inputs["pixel_values_videos"]})
    found = model.model.features(inputs["pixel_values_videos"].flatten(0, 1))
    assert found.shape == (4, student.max_cells, student.max_cells, 16)
    assert torch.equal(found.unflatten(0, (1, 4)), expected)


def test_tokens_are_the_cells_of_the_picture_in_any_batch(text, tmp_path):
    model, processor = new(text, languagebind(tmp_path / "encoder"))
    videos = clips((5, 60, 80), (2, 90, 40))  # 5 × 4 cells of 5 frames, which fill two groups; 3 columns of 2 frames
    both = processor.video_processor(videos=videos, return_tensors="pt")
    with torch.no_grad():
        found = model.model.encode(both["pixel_values_videos"], both["video_placement"])
        for i, (visual, video) in enumerate(zip(found, videos)):
            alone = processor.video_processor(videos=[video], return_tensors="pt")
            (single,) = model.model.encode(alone["pixel_values_videos"], alone["video_placement"])
            assert (visual.tokens - single.tokens).abs().max() <= 1e-6  # measured worst: 0, of values up to 0.05
            assert torch.equal(visual.layout, processor.video_processor.token_layout(both, i))
            count = processor.video_processor.token_count(*video.shape[:3])
            assert len(visual.tokens) == len(visual.layout) == count
    assert [len(visual.tokens) for visual in found] == [5 * 20, 2 * 15]
    (empty,) = model.model.encode(*model.no_video().values())
    assert empty.tokens.shape == (0, 32)
    assert empty.tokens.requires_grad  # all processes reduce the same gradients


def test_patches_are_pooled_to_fewer_tokens(text, tmp_path):
    encoder = dinov2(tmp_path / "encoder")
    model, processor = new(text, encoder, frame_size=112, pool=2)
    fine, _ = new(text, encoder, frame_size=112)
    inputs = processor.video_processor(videos=clips((1, 50, 50)), return_tensors="pt")
    pooled, whole = (each.model.features(inputs["pixel_values_videos"][0]) for each in (model, fine))
    assert processor.video_processor.token_count(1, 50, 50) == 16
    assert (pooled[0, 1, 2] - whole[0, 2:4, 4:6].mean((0, 1))).abs().max() <= 1e-6  # measured worst: 6e-8
    assert model.config.smaller().frame_size == 84


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory) -> Path:
    """What `init` and `train` make of a language model and a tower."""
    folder = tmp_path_factory.mktemp("world")
    encoder = languagebind(folder / "encoder")
    make(folder / "scenes", 3, 0, "train")
    told = ("--backbone", text, "--chat-template", "vicuna", "--family", "tower", "--encoder", encoder)
    code, out, err = run("init", folder / "fresh", *told)
    assert (code, "encoder, pretrained" in out, "projector, fresh" in out) == (0, True, True), err
    assert str(folder) not in (folder / "fresh" / "config.json").read_text()
    settings = ["data=" + str(folder / "scenes" / "annotations.json"), "max_steps=2", "num_frames=2", "batch_size=2"]
    settings += ["distill_weight=0", "dtype=float32", "global_batch=0", "strategy=ddp", "gradient_checkpointing=no"]
    sets = [word for setting in (*settings, "data_share=1") for word in ("--set", setting)]
    code, out, err = run("train", "pretrain", "--model", folder / "fresh", "--output", folder / "trained", *sets)
    assert code == 0, err
    return folder


def test_a_stage_trains_the_projector_and_leaves_the_encoder(trained):
    before, after = (load(trained / name)[0].state_dict() for name in ("fresh", "trained"))
    moved = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert {"projector", "language_model"} <= moved
    assert "encoder" not in moved
    frozen = json.loads((trained / "trained" / "run.json").read_text())["parts"]
    assert {part["part"]: part["num_trainable"] > 0 for part in frozen}["encoder"] is False


def test_it_is_planned_answered_and_exported(trained, tmp_path):
    clip = next((trained / "scenes").rglob("*.mp4"))
    folder = trained / "trained"
    code, out, err = run("plan", "--model", folder, "--num-frames", 8, "--json", "--device", "cpu")
    assert code == 0, err
    assert json.loads(out)["flops"]["vision"] > 0
    told = ("--num-frames", 3, "--max-new-tokens", 5, "--json")
    code, out, err = run("answer", clip, "What moves?", "--model", folder, *told)
    assert code == 0, err
    assert json.loads(out)["visual_tokens"] == 3 * 20
    code, _, err = run("export", folder, tmp_path / "out")
    assert code == 0, err
    script = (
        "import sys, numpy as np; from transformers import AutoModelForImageTextToText, AutoProcessor\n"
        "told = {'trust_remote_code': True}\n"
        "model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], **told)\n"
        "processor = AutoProcessor.from_pretrained(sys.argv[1], **told)\n"
        "inputs = processor(text='<video>What?', videos=[np.zeros((2, 30, 40, 3), np.uint8)],\n"
        "    video_metadata=[{'duration': 2.0}])\n"
        "print(model(**inputs).logits[0, -1, :5].tolist(), 'videopanda' in sys.modules)"
    )
    home = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, tmp_path / "out"], capture_output=True, text=True, check=False, env=home
    )
    assert done.returncode == 0, done.stderr[-2000:]
    model, processor = load(folder, device="cpu")
    inputs = processor(
        text="<video>What?", videos=[np.zeros((2, 30, 40, 3), np.uint8)], video_metadata=[{"duration": 2.0}]
    )
    assert done.stdout.strip().endswith(f"{model(**inputs).logits[0, -1, :5].tolist()} False")


def test_wrong_encoders_are_told_in_one_line(text, tmp_path):
    given = ("init", tmp_path / "out", "--backbone", text, "--chat-template", "vicuna")
    folder = languagebind(tmp_path / "encoder")
    for more, message in (
        (("--family", "tower"), "family tower needs a pretrained encoder: --encoder DIR"),
        (("--encoder", folder), "family videopanda takes no pretrained encoder"),
        (("--family", "tower", "--encoder", tmp_path / "none"), "No such file"),
        (("--family", "tower", "--encoder", text), "model type 'llama'; supported are clip"),
        (("--family", "tower", "--encoder", folder, "--set", "frame_size=80"), "need the 100 of their training"),
    ):
        code, _, err = run(*given, *more)
        assert (code, message in err, len(err.strip().splitlines())) == (2, True, 1), err
    record = json.loads((folder / "config.json").read_text())
    record["vision_config"]["hidden_size"] = 32  # not that of the weights
    (folder / "config.json").write_text(json.dumps(record))
    code, _, err = run(*given, "--family", "tower", "--encoder", folder)
    assert (code, "its weights are not those of its configuration" in err) == (2, True), err
    new = ["model_family=tower", "model_preset=nano", "encoder=x", "whiten_patches=no"]
    assert make_config("prealign", "nano", [*new, "frame_size=70"]).model_fields == {"frame_size": "70"}
    with pytest.raises(ValueError, match="unknown setting 'frame_sizes': did you mean 'frame_size'"):
        make_config("prealign", "nano", [*new, "frame_sizes=70"])
    sets = ("--set", "encoder=x", "--set", "model_family=tower")
    code, _, err = run("train", "prealign", "--config", "nano", "--model", text, "--output", tmp_path / "run", *sets)
    assert (code, "whiten_patches would overwrite the pretrained encoder" in err) == (2, True), err
