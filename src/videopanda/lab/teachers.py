"""Small teachers, trained on Scenes: the counterparts of LanguageBind, CLIP, DINOv2 and InternVideo2 at this scale.

    train_teacher("video-text", Path("out/language"), Path("out/teacher"), steps=600, batch=64, clips=4096)

All have the same tower (1.2 million parameters with attention over time), data and number of steps, and learn by
distinguishing pairs in a batch (InfoNCE). They differ in what belongs together:

video-text   a clip and its caption; in every second step a frame and the description of that moment
image-text   a frame and the description of that moment
video        two views of a clip: other crops, other brightness
image        two views of a frame

The folder is one of LanguageBind's kind, as the setting `teacher` takes it.
"""

import json
import time
from pathlib import Path
from statistics import mean
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, set_seed

from videopanda.data.worlds.scenes.dataset import TRAINING_THEMES, draw
from videopanda.data.worlds.scenes.questions import describe, describe_moment
from videopanda.data.worlds.scenes.world import Difficulty, Scene, make_scene
from videopanda.encoders.open import Teacher
from videopanda.models.families import DEFAULT, fresh_config, processor_class
from videopanda.models.languagebind import LanguageBindTower
from videopanda.models.load import multiplies_bfloat16
from videopanda.training.run_folder import write_text
from videopanda.training.whiten import whiten_patch_embedding

Kind = Literal["video-text", "image-text", "video", "image"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FRAMES, SIDE, PATCH, WIDTH = 4, 100, 20, 128  # SIDE and PATCH: the geometry of nano's frames, 5 × 5 cells
HELD_OUT = 256  # clips on which the teacher is measured


class TwoTowers(nn.Module):
    """A LanguageBind tower, and a text tower that is dropped after training, that map into one space."""

    def __init__(self, vocab_size: int, num_frames: int):
        super().__init__()
        shape: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4}
        self.vision_config = CLIPVisionConfig(**shape, num_hidden_layers=4, image_size=SIDE, patch_size=PATCH)
        self.vision_model = LanguageBindTower(self.vision_config, num_frames)
        text = CLIPTextConfig(
            **shape,
            num_hidden_layers=2,
            vocab_size=vocab_size,
            max_position_embeddings=192,
            bos_token_id=1,
            eos_token_id=2,
        )
        self.text_model = CLIPTextModel(text)
        self.visual_projection = nn.Linear(WIDTH, WIDTH, bias=False)
        self.text_projection = nn.Linear(WIDTH, WIDTH, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def frames(self, pixels_BTCHW: Tensor) -> Tensor:
        """Embeddings of frames, (B, T, D), from their class tokens."""
        tower = self.vision_model
        *_, last = tower.encoder["layers"].children()  # which the distillation leaves out
        x_FND = last(tower(pixels_BTCHW.flatten(0, 1)), None)
        x_FD = self.visual_projection(tower.post_layernorm(x_FND[:, 0]))
        return x_FD.unflatten(0, pixels_BTCHW.shape[:2])

    def texts(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Embeddings of texts, (B, D), from their last tokens."""
        x_BLD = self.text_model(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
        return self.text_projection(x_BLD[torch.arange(len(x_BLD)), mask_BL.sum(1) - 1])

    def loss(self, one_BD: Tensor, other_BD: Tensor) -> Tensor:
        """Symmetric InfoNCE over the batch."""
        scores_BB = F.normalize(one_BD.float(), dim=-1) @ F.normalize(other_BD.float(), dim=-1).T
        scores_BB = scores_BB * self.logit_scale.exp().clamp(max=100)
        own = torch.arange(len(scores_BB))
        return (F.cross_entropy(scores_BB, own) + F.cross_entropy(scores_BB.T, own)) / 2


class Pairs:
    """What belongs together for a kind of teacher: two embeddings, (B, D) each, of chosen clips."""

    def __init__(self, kind: Kind, model: TwoTowers, scenes: list[Scene], tokenizer: object):
        self.kind, self.model, self.scenes, self.tokenizer = kind, model, scenes, tokenizer
        self.pixels, _ = pictures(scenes)

    def __call__(self, chosen: np.ndarray, frame: int | None) -> tuple[Tensor, Tensor]:
        """Embed clips, or one frame of each."""
        pixels_BTCHW = self.pixels[chosen].float()
        if self.kind in ("image", "video"):
            return self._shown(augmented(pixels_BTCHW), frame), self._shown(augmented(pixels_BTCHW), frame)
        texts = [self._told(self.scenes[i], frame) for i in chosen]
        tokens = self.tokenizer(  # type: ignore[operator]
            texts, padding=True, truncation=True, max_length=192, return_tensors="pt"
        )
        told_BD = self.model.texts(tokens["input_ids"], tokens["attention_mask"])
        return self._shown(pixels_BTCHW, frame), told_BD

    def _shown(self, pixels_BTCHW: Tensor, frame: int | None) -> Tensor:
        if self.model.vision_model.num_frames == 1 and frame is not None:
            return self.model.frames(pixels_BTCHW[:, frame : frame + 1])[:, 0]
        frames_BTD = self.model.frames(pixels_BTCHW)
        return F.normalize(frames_BTD, dim=-1).mean(1) if frame is None else frames_BTD[:, frame]

    def _told(self, scene: Scene, frame: int | None) -> str:
        return describe(scene) if frame is None else describe_moment(scene, (frame + 0.5) * scene.duration / FRAMES)


def train_teacher(
    kind: Kind, language: Path, out: Path, steps: int, batch: int, clips: int, max_things: int = 4, seed: int = 0
) -> Path:
    """Train a teacher on `clips` scenes, each seen several times, and write its vision tower; returns `out`.

    Args:
        language: folder of a language model, whose tokenizer the texts go through.
        steps: of `batch` clips each.

    Raises:
        ValueError: an unknown kind, or a batch that is larger than the number of clips.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown teacher kind {kind!r}: choose from {', '.join(KINDS)}")
    if not 2 <= batch <= clips:
        raise ValueError(f"a batch must have between 2 and {clips} clips, got {batch}")
    began = time.perf_counter()
    set_seed(seed)
    try:
        tokenizer = AutoTokenizer.from_pretrained(language)
    except (OSError, ValueError) as error:
        raise ValueError(f"{language} has no tokenizer: choose the folder of a language model with --model") from error
    difficulty = Difficulty(max_things, TRAINING_THEMES)
    scenes = [make_scene(seed, "train", i, difficulty) for i in range(clips + HELD_OUT)]
    model = TwoTowers(len(tokenizer), 1 if kind.startswith("image") else FRAMES)
    pair = Pairs(kind, model, scenes, tokenizer)
    whiten_patch_embedding(model.vision_model.embeddings.patch_embedding.weight, pair.pixels[:64].float())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    rng = np.random.default_rng(seed)
    losses = []
    for step in range(steps):
        chosen = rng.choice(clips, batch, replace=False)
        # LanguageBind also learns from images: they say more about single cells.
        single = kind.startswith("image") or (kind == "video-text" and step % 2 == 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16("cpu")):
            loss = model.loss(*pair(chosen, int(rng.integers(FRAMES)) if single else None))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    with torch.no_grad():
        one, other = pair(np.arange(clips, clips + HELD_OUT), 0 if kind.startswith("image") else None)
    ranks = (F.normalize(other.float(), dim=-1) @ F.normalize(one.float(), dim=-1).T).argsort(descending=True)
    own = torch.arange(HELD_OUT)[:, None]
    record = {
        "kind": kind,
        "parameters": sum(p.numel() for p in model.vision_model.parameters()),
        "steps": steps, "batch": batch, "clips": clips, "max_things": max_things, "seed": seed,
        "loss": round(mean(losses[-20:]), 4),
        f"unseen_pairs_of_{HELD_OUT}": {
            f"recall@{k}": round((ranks[:, :k] == own).any(1).float().mean().item(), 4) for k in (1, 5)
        },
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, out / "model.safetensors")
    write_text(out / "training.json", json.dumps(record, indent=2) + "\n")
    frames = model.vision_model.num_frames
    vision = {**model.vision_config.to_dict(), "add_time_attn": frames > 1, "num_frames": frames}
    write_text(out / "config.json", json.dumps({"model_type": "LanguageBindVideo", "vision_config": vision}))
    return out


def pictures(scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    """What a teacher sees of scenes, and where it lies on the canvas: (B, T, 3, S, S) in bfloat16, (B, 6)."""
    student = processor_class(config := fresh_config(DEFAULT, "nano", {})).video_processor_for(config)
    student.num_frames = FRAMES
    processor = Teacher(nn.Identity, lambda _, pixels: pixels, WIDTH, SIDE).video_processor(student)
    batches = [
        processor(videos=[draw(scene, FRAMES) for scene in scenes[i : i + 64]], return_tensors="pt")
        for i in range(0, len(scenes), 64)
    ]
    return (
        torch.cat([batch["pixel_values_videos"].bfloat16() for batch in batches]),
        torch.cat([batch["video_placement"] for batch in batches]),
    )


def augmented(pixels_BTCHW: Tensor) -> Tensor:
    """Another view of every clip: a crop of 60 to 100 % of the sides, and another brightness and contrast.

    All frames of a clip change alike. Colors keep their order, because the world is about colors.
    """
    count = len(pixels_BTCHW)
    scale_B = torch.empty(count).uniform_(0.6, 1.0)
    shift_B2 = torch.empty(count, 2).uniform_(-1, 1) * (1 - scale_B)[:, None]
    theta_B23 = torch.zeros(count, 2, 3)
    theta_B23[:, 0, 0] = theta_B23[:, 1, 1] = scale_B
    theta_B23[:, :, 2] = shift_B2
    flat_BCHW = pixels_BTCHW.flatten(1, 2)
    grid = F.affine_grid(theta_B23, list(flat_BCHW.shape), align_corners=False)
    view = F.grid_sample(flat_BCHW, grid, mode="bilinear", padding_mode="border", align_corners=False)
    contrast, brightness = (torch.empty(count, 1, 1, 1).uniform_(*ends) for ends in ((0.7, 1.3), (-0.3, 0.3)))
    return (view * contrast + brightness).view_as(pixels_BTCHW)
