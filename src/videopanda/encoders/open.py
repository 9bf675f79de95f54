"""Opens teachers from folders of weights, or from a user's own module.

    open_teacher("LanguageBind_Video_merge")      # a folder: LanguageBind, CLIP, DINOv2, SigLIP, SigLIP 2
    open_teacher("my_package.teachers:build")     # a function that returns a `Teacher`, such as `internvideo2(...)`

Dimensions as in `distill.py`; F = B · T frames, S pixels per side of the teacher's canvas, N tokens of a frame.
"""

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, CLIPVisionConfig, SiglipVisionModel

from videopanda.checkpoints.tensors import find_tensors
from videopanda.hub import folder_of, parse
from videopanda.models.frames import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from videopanda.models.languagebind import LanguageBindTower, in_groups, tower_weights

HALF = (0.5, 0.5, 0.5)


@dataclass
class Teacher:
    """A frozen tower and the input it expects.

    The module is built at the first call, put into eval mode, and runs without gradients. A teacher is not a module, so
    no `state_dict` contains it.

    Args:
        build: makes the module, in float32.
        features: (module, pixels (B, T, 3, S, S)) -> features (B, T, G, G, D).
        size: D, known before the module is built.
        image_size: S.
        mean, std: of the pixels, per channel.
        dtype: of the module's weights and arithmetic.
    """

    build: Callable[[], nn.Module]
    features: Callable[[Any, Tensor], Tensor]
    size: int
    image_size: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    dtype: torch.dtype = torch.float32
    _module: nn.Module | None = field(default=None, repr=False)

    def video_processor(self, student: Any) -> Any:
        """The video processor of this teacher's frames, with the geometry of the student's."""
        processor = teacher_video_processor(student, self.image_size)
        processor.image_mean, processor.image_std = list(self.mean), list(self.std)
        processor.pad_color = [int(255 * mean) for mean in self.mean]
        return processor

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        """Take `teacher_pixels` (B, T, 3, S, S) out of the batch; return features (B, T, G, G, D)."""
        pixels_BTCHW = batch.pop("teacher_pixels")
        if self._module is None:
            self._module = self.build().requires_grad_(False).eval().to(pixels_BTCHW.device, self.dtype)
        with torch.autocast(pixels_BTCHW.device.type, enabled=False):
            return self.features(self._module, pixels_BTCHW.to(self.dtype))


def teacher_video_processor(student: Any, image_size: int = 224) -> Any:
    """Return the processor of a teacher's frames: the student's geometry on a square canvas of `image_size` pixels.

    Frames are resized from the source, not from the student's canvas, and cells lie where the student's lie. Mirroring
    is up to the caller: student and teacher must see the same picture (the official code draws independently for each).

    Raises:
        ValueError: the canvas is not a whole number of pixels per cell, or the student has no such canvas.
    """
    if not hasattr(student, "pad_frames"):
        raise ValueError(
            "distill_weight compares cells on a square canvas, which this family does not have: "
            "set distill_weight=0, and tube_weight or frame_weight (docs/elva.md)"
        )
    return type(student)(
        size={"height": image_size, "width": image_size},
        patch_size=image_size // (2 * student.max_cells),
        num_frames=student.num_frames,
        pad_frames=student.pad_frames,
        do_sample_frames=student.do_sample_frames,
    )


def open_teacher(name: str, max_cells: int | None = 16, dtype: torch.dtype = torch.float32) -> Teacher:
    """A teacher from a folder, or from `module:function`, which is called without arguments.

    Args:
        max_cells: cells per side of the student's canvas. Towers that interpolate their positions get a canvas of as
            many patches; CLIP and LanguageBind keep theirs. None: every tower keeps the size it was trained with.

    Raises:
        ValueError: neither a folder nor a function, or an unknown tower.
    """
    if ":" in name and "/" not in name:
        module, _, function = name.partition(":")
        try:
            teacher = getattr(importlib.import_module(module), function)()
        except (ImportError, AttributeError) as error:
            raise ValueError(f"teacher {name}: {error}") from error
        if not isinstance(teacher, Teacher):
            raise ValueError(f"teacher {name}: {function} returned {type(teacher).__name__}, not a Teacher")
        return teacher
    folder = folder_of(name, pickled=True) if parse(name) else Path(name)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"teacher {name}: {folder / 'config.json'} cannot be read: {error}") from error
    kind = config.get("model_type")
    vision = config.get("vision_config", config)
    if kind in ("clip", "clip_vision_model", "LanguageBindImage", "LanguageBindVideo"):
        return clip_teacher(folder, vision, dtype)
    if kind in ("dinov2", "dinov2_with_registers"):
        return _interpolating(folder, vision, max_cells, dtype, dinov2_features, IMAGENET_MEAN, IMAGENET_STD)
    if kind in ("siglip", "siglip_vision_model"):
        return _interpolating(folder, vision, max_cells, dtype, siglip_features, HALF, HALF)
    if kind in ("siglip2", "siglip2_vision_model"):
        return _interpolating(folder, vision, max_cells, dtype, siglip2_features, HALF, HALF)
    raise ValueError(
        f"teacher {name} has the model type {kind!r}, which is not supported; supported are "
        "LanguageBindVideo, LanguageBindImage, clip, dinov2, siglip and siglip2. Others can be passed as "
        "module:function (docs/scale.md)"
    )


def clip_teacher(folder: Path, vision: dict[str, Any], dtype: torch.dtype = torch.float32) -> Teacher:
    """CLIP or LanguageBind: the input of the last layer, without class token, as distilled by the official code.

    The groups of LanguageBind-Video are those of a clip alone; the last one is filled with its last frame.
    """
    num_frames = vision.get("num_frames", 1) if vision.get("add_time_attn") else 1
    known = {key: vision[key] for key in CLIPVisionConfig().to_dict() if key in vision}
    config = CLIPVisionConfig(**known)

    def build() -> nn.Module:
        places = find_tensors(folder)
        # Only the tower is read: the text tower of a LanguageBind model is as large.
        names = tower_weights({name: name for name in places})
        with torch.device("meta"):
            tower = LanguageBindTower(config, num_frames)
        tower.to_empty(device="cpu")
        position_ids = torch.arange(tower.embeddings.num_positions)[None]
        tower.embeddings.register_buffer("position_ids", position_ids, persistent=False)
        tower.load_state_dict({name: places[key].read().float() for name, key in names.items()})
        return tower

    def features(tower: nn.Module, pixels_BTCHW: Tensor) -> Tensor:
        whole_BTCHW = in_groups(pixels_BTCHW, num_frames)
        tokens_FND = tower(whole_BTCHW.flatten(0, 1))[:, 1:]
        return _grid(tokens_FND, whole_BTCHW)[:, : pixels_BTCHW.shape[1]]

    return Teacher(build, features, config.hidden_size, vision.get("image_size", 224), dtype=dtype)


def _interpolating(
    folder: Path,
    vision: dict[str, Any],
    max_cells: int | None,
    dtype: torch.dtype,
    features: Callable[[Any, Tensor], Tensor],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Teacher:
    def build() -> nn.Module:
        if features is siglip_features:
            return _loaded(SiglipVisionModel, folder)
        model = _loaded(AutoModel, folder)
        return model.vision_model if features is siglip2_features and hasattr(model, "vision_model") else model

    # A configuration file holds what differs from the defaults, which are 768 channels and patches of 14 or 16.
    patch = vision.get("patch_size", 14 if features is dinov2_features else 16)
    side = max_cells or vision.get("image_size", 224) // patch
    return Teacher(build, features, vision.get("hidden_size", 768), patch * side, mean, std, dtype)


def _loaded(kind: Any, folder: Path) -> Any:
    """A model of a folder. Raises ValueError for weights that are missing, which would stay random."""
    model, report = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    if missing := sorted(name for name in report["missing_keys"] if "mask_token" not in name):
        raise ValueError(f"{folder} is incomplete: it lacks {missing[0]} ({len(missing)} weights in all)")
    return model


def dinov2_features(model: Any, pixels_BTCHW: Tensor) -> Tensor:
    """Normalized patch tokens of DINOv2, without class and register tokens."""
    tokens_FND = model(pixel_values=pixels_BTCHW.flatten(0, 1)).last_hidden_state
    grid = pixels_BTCHW.shape[-1] // model.config.patch_size
    return _grid(tokens_FND[:, -grid * grid :], pixels_BTCHW)


def siglip_features(model: Any, pixels_BTCHW: Tensor) -> Tensor:
    """Normalized tokens of SigLIP, and of the SigLIP 2 towers of fixed resolution."""
    output = model(pixel_values=pixels_BTCHW.flatten(0, 1), interpolate_pos_encoding=True)
    return _grid(output.last_hidden_state, pixels_BTCHW)


def siglip2_features(model: Any, pixels_BTCHW: Tensor) -> Tensor:
    """Normalized tokens of SigLIP 2 with flexible resolution ("naflex"), which takes patches instead of pictures."""
    frames_FCHW = pixels_BTCHW.flatten(0, 1)
    patch = model.config.patch_size
    patches = frames_FCHW.unfold(2, patch, patch).unfold(3, patch, patch)  # (F, 3, G, G, P, P)
    patches_FNV = patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
    frames, tokens = patches_FNV.shape[:2]
    side = frames_FCHW.shape[-1] // patch
    shapes = torch.full((frames, 2), side, device=frames_FCHW.device)
    mask = torch.ones(frames, tokens, dtype=torch.long, device=frames_FCHW.device)
    output = model(pixel_values=patches_FNV, pixel_attention_mask=mask, spatial_shapes=shapes)
    return _grid(output.last_hidden_state, pixels_BTCHW)


def internvideo2(
    build: Callable[[], nn.Module], size: int = 1408, image_size: int = 224, layer: int = -2, **fields: Any
) -> Teacher:
    """InternVideo2, whose code and weights come from its authors' repository (OpenGVLab/InternVideo).

    Args:
        build: returns their `PretrainInternVideo2` (or `PretrainVisionTransformer_clean`) with weights and positions
            interpolated to the number of frames that is trained with: 1B or 6B, `tubelet_size=1`.
        size: width of the tower, 1408 for 1B and 3200 for 6B.
        layer: `x_vis_return_idx`, the layer whose output is distilled, counted from the end.
    """

    def features(tower: nn.Module, pixels_BTCHW: Tensor) -> Tensor:
        video_BCTHW = pixels_BTCHW.transpose(1, 2)
        tokens = tower(video_BCTHW, None, False, x_vis_return_idx=layer, x_vis_only=True)[:, 1:]
        frames = pixels_BTCHW.shape[1]
        return _grid(tokens.unflatten(1, (frames, -1)).flatten(0, 1), pixels_BTCHW)

    return Teacher(build, features, size, image_size, IMAGENET_MEAN, IMAGENET_STD, **fields)


def _grid(tokens_FND: Tensor, pixels_BTCHW: Tensor) -> Tensor:
    """Arrange the N patches of each frame in their square grid: (B, T, G, G, D)."""
    side = round(tokens_FND.shape[1] ** 0.5)
    return tokens_FND.unflatten(1, (side, side)).unflatten(0, pixels_BTCHW.shape[:2])
