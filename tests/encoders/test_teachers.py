"""Protects the teachers: published key layouts load, features are those of the reference, and nothing is trained."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tiny import clip, randomize
from videopanda.encoders.open import Teacher, internvideo2, open_teacher
from videopanda.models.languagebind import LanguageBindTower
from videopanda.models.videopanda import VideoPandaVideoProcessor

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}


def pixels(size: int, videos: int = 2, frames: int = 4) -> torch.Tensor:
    return torch.randn(videos, frames, 3, size, size, generator=torch.Generator().manual_seed(0))


# -- LanguageBind ------------------------------------------------------------------------------------------------------
def golden_video_teacher(folder: Path, prefix: str) -> Path:
    """The reference teacher as a published folder."""
    config = json.loads((GOLDEN / "full_small_config.json").read_text())["teacher_vision"]
    (folder / "config.json").write_text(json.dumps({"model_type": "LanguageBindVideo", "vision_config": config}))
    official = "model.video_teacher.video_tower."
    weights = load_file(GOLDEN / "full_small_weights.safetensors")
    tower = {prefix + k.removeprefix(official): v for k, v in weights.items() if k.startswith(official)}
    others = {"logit_scale": torch.ones(()), "text_model.final_layer_norm.weight": torch.ones(3)}
    counter = {f"{prefix}embeddings.position_ids": torch.arange(17)[None]}
    torch.save({**tower, **others, **counter}, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("prefix", ["vision_model.", "model.video_teacher.video_tower."])
def test_languagebind_video_gives_the_reference_features(tmp_path, prefix):
    golden = load_file(GOLDEN / "full_small_train_and_generate.safetensors")
    teacher = open_teacher(str(golden_video_teacher(tmp_path, prefix)))
    assert (teacher.size, teacher.image_size) == (64, 56)
    batch = {"teacher_pixels": torch.stack([golden[f"teacher_q.v{b}"] for b in range(2)]) / 64}
    found = teacher(batch)
    assert batch == {}
    expected = golden["teacher_features"][:, :, 1:].unflatten(2, (4, 4))
    assert (found - expected).abs().max() <= 1e-5  # measured worst: 2.1e-6


@pytest.mark.parametrize("frames", [1, 4, 12])
def test_groups_are_of_one_clip_and_the_last_one_is_filled_with_its_last_frame(tmp_path, frames):
    """Groups have 8 frames: two clips of 4, or of 12, would also make whole groups together."""
    teacher = open_teacher(str(golden_video_teacher(tmp_path, "vision_model.")))
    clips = pixels(56, 2, frames)
    found = teacher({"teacher_pixels": clips})
    filled = torch.cat([clips, *[clips[:, -1:]] * (-frames % 8)], 1)
    for b in range(2):
        for start in range(0, frames, 8):
            group = teacher({"teacher_pixels": filled[b : b + 1, start : start + 8]})[0]
            mine = found[b, start : start + 8]
            torch.testing.assert_close(mine, group[: len(mine)], atol=1e-5, rtol=0)  # measured: 5e-7
    with pytest.raises(ValueError, match="a multiple of 8 frames, got 12"):
        teacher._module(pixels(56, 1, 12)[0])


def test_an_unfinished_tower_is_refused(tmp_path):
    golden_video_teacher(tmp_path, "vision_model.")
    weights = torch.load(tmp_path / "pytorch_model.bin")
    del weights["vision_model.encoder.layers.1.temporal_embedding"]
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(RuntimeError, match=r"layers\.1\.temporal_embedding"):
        open_teacher(str(tmp_path))({"teacher_pixels": pixels(56, 1, 8)})


def test_time_matters_to_the_video_tower_only():
    config = CLIPVisionConfig(**SMALL, image_size=28, patch_size=14, attn_implementation="sdpa")
    frames = pixels(28, 1, 4)[0]
    for num_frames, changed in ((1, False), (4, True)):
        tower = LanguageBindTower(config, num_frames).eval()
        randomize(tower)
        other = frames.clone()
        other[3] += 1.0
        difference = (tower(frames)[0] - tower(other)[0]).abs().max()
        assert (difference > 1e-3) == changed


# -- image towers ------------------------------------------------------------------------------------------------------
def saved(model: torch.nn.Module, folder: Path) -> torch.nn.Module:
    randomize(model, scale=0.2)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("whole", [True, False])
def test_clip_is_the_second_to_last_hidden_state(tmp_path, whole):
    config = CLIPVisionConfig(**SMALL, image_size=28, patch_size=7)
    if whole:
        text = {**SMALL, "vocab_size": 50, "num_hidden_layers": 1}
        saved(CLIPModel(CLIPConfig(vision_config=config.to_dict(), text_config=text)), tmp_path)
        reference = CLIPVisionModel.from_pretrained(tmp_path).eval()
    else:
        reference = saved(CLIPVisionModel(config), tmp_path)
    frames = pixels(28)
    with torch.no_grad():
        expected = reference(frames.flatten(0, 1), output_hidden_states=True).hidden_states[-2][:, 1:]
    found = open_teacher(str(tmp_path))({"teacher_pixels": frames})
    assert found.shape == (2, 4, 4, 4, 16)
    assert (found.flatten(0, 1).flatten(1, 2) - expected).abs().max() <= 1e-5  # measured: 0


@pytest.mark.parametrize("registers", [0, 3])
def test_dinov2_on_a_canvas_of_as_many_patches_as_cells(tmp_path, registers):
    sizes = {**SMALL, "image_size": 28, "patch_size": 7}
    del sizes["intermediate_size"]
    if registers:
        model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes, num_register_tokens=registers))
    else:
        model = Dinov2Model(Dinov2Config(**sizes))
    saved(model, tmp_path)
    teacher = open_teacher(str(tmp_path), max_cells=6)
    assert teacher.image_size == 42
    frames = pixels(42)
    found = teacher({"teacher_pixels": frames})
    with torch.no_grad():
        expected = model(pixel_values=frames[1, 2][None]).last_hidden_state[0, 1 + registers :]
    assert found.shape == (2, 4, 6, 6, 16)
    assert (found[1, 2].flatten(0, 1) - expected).abs().max() <= 1e-5  # measured: 0


def test_siglip_interpolates_its_positions(tmp_path):
    model = saved(SiglipVisionModel(SiglipVisionConfig(**SMALL, image_size=32, patch_size=8)), tmp_path)
    teacher = open_teacher(str(tmp_path), max_cells=6)
    frames = pixels(48)
    found = teacher({"teacher_pixels": frames})
    with torch.no_grad():
        expected = model(frames[0, 1][None], interpolate_pos_encoding=True).last_hidden_state[0]
    assert found.shape == (2, 4, 6, 6, 16)
    assert (found[0, 1].flatten(0, 1) - expected).abs().max() <= 1e-5  # measured: 0


def test_siglip2_gets_patches(tmp_path):
    """A patch is its rows of pixels, colour last, as the processor of transformers cuts it."""
    from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

    model = saved(Siglip2VisionModel(Siglip2VisionConfig(**SMALL, num_patches=16, patch_size=8)), tmp_path)
    teacher = open_teacher(str(tmp_path), max_cells=6)
    frames = pixels(48)
    found = teacher({"teacher_pixels": frames})
    patches = torch.as_tensor(convert_image_to_patches(frames[1, 3].numpy(), 8))[None]
    with torch.no_grad():
        expected = model(
            pixel_values=patches.reshape(1, 36, -1),
            pixel_attention_mask=torch.ones(1, 36, dtype=torch.long),
            spatial_shapes=torch.tensor([[6, 6]]),
        ).last_hidden_state[0]
    assert found.shape == (2, 4, 6, 6, 16)
    assert (found[1, 3].flatten(0, 1) - expected).abs().max() <= 1e-5  # measured: 0


# -- what somebody else built ------------------------------------------------------------------------------------------
class Tower(torch.nn.Module):
    """Called as InternVideo2 is: every token says of which frame and place it is, the first one of nothing."""

    def forward(self, video, mask, use_image, x_vis_return_idx, x_vis_only):
        assert (mask, use_image, x_vis_return_idx, x_vis_only) == (None, False, -3, True)
        videos, _, frames, side = video.shape[:4]
        tokens = torch.arange(frames * (side // 14) ** 2).float()[None, :, None].expand(videos, -1, 5)
        return torch.cat([torch.full((videos, 1, 5), -1.0), tokens], 1)


def build() -> Teacher:
    return internvideo2(Tower, size=5, image_size=28, layer=-3)


def test_internvideo2_through_its_adapter():
    teacher = open_teacher("test_teachers:build")
    found = teacher({"teacher_pixels": pixels(28)})
    assert found.shape == (2, 4, 2, 2, 5)
    assert found[1, :, :, :, 0].flatten().tolist() == list(range(16))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", r"config\.json cannot be read"),
        ("no_such_module:build", "No module named 'no_such_module'"),
        ("test_teachers:nothing", "has no attribute 'nothing'"),
        ("test_teachers:Tower", "returned Tower, not a Teacher"),
    ],
)
def test_a_teacher_that_is_none_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        open_teacher(name)


def test_a_tower_that_is_not_known_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "videomae"}')
    with pytest.raises(ValueError, match="type 'videomae', which is not supported; supported are LanguageBindVideo"):
        open_teacher(str(tmp_path))


def test_a_folder_without_a_tower_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "clip", "vision_config": {}}')
    save_file({"text_model.x": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="no CLIP or LanguageBind tower"):
        open_teacher(str(tmp_path))({"teacher_pixels": pixels(224, 1, 1)})


# -- frozen, lazy ------------------------------------------------------------------------------------------------------
def test_a_teacher_is_built_at_its_first_call_and_frozen(tmp_path):
    model = CLIPVisionModel(CLIPVisionConfig(**SMALL, image_size=28, patch_size=14, attention_dropout=0.5))
    saved(model, tmp_path)
    teacher = open_teacher(str(tmp_path), dtype=torch.bfloat16)
    assert teacher._module is None
    frames = pixels(28).requires_grad_()
    first = teacher({"teacher_pixels": frames})
    assert (first.dtype, first.requires_grad) == (torch.bfloat16, False)
    assert torch.equal(teacher({"teacher_pixels": frames}), first)  # no dropout
    assert not teacher._module.training
    assert not any(parameter.requires_grad for parameter in teacher._module.parameters())


def test_the_teacher_sees_its_own_colours_and_the_students_geometry(tmp_path):
    saved(Dinov2Model(Dinov2Config(**{**SMALL, "patch_size": 14, "image_size": 28})), tmp_path)
    student = VideoPandaVideoProcessor()
    processor = open_teacher(str(tmp_path)).video_processor(student)
    frames = clip(2, 36, 64)
    assert processor.image_mean == [0.485, 0.456, 0.406]
    out = processor(frames)
    assert out["pixel_values_videos"].shape == (1, 8, 3, 224, 224)
    assert torch.equal(out["video_placement"], student(frames)["video_placement"])
