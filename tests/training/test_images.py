"""Protects that pictures train: from annotation files through the real Trainer, alone and in batches with clips.

A picture is one frame (T = 1), in training as in an answer: the tiny model is asked about what it was trained on.
"""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import videopanda
from media import write_video
from tiny import tiny_model, tiny_processor
from videopanda.training.run import train

COLORS = {"red": (220, 30, 30), "blue": (30, 30, 220)}
SETTINGS = ["compile=false", "dtype=float32", "num_workers=0", "validation=0", "log_steps=1", "warmup_ratio=0"]
SETTINGS += ["official_flip=false", "max_length=512", "num_frames=4", "vision_lr=3e-3", "language_model_lr=3e-3"]


def row(question: str, answer: str, **media: list[str]) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **media}


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, color in COLORS.items():
        Image.new("RGB", (64, 48), color).save(tmp_path / f"{name}.png")
    write_video(tmp_path / "clip.mp4", range(0, 160, 20), fps=4)
    mixed = [row("<image>\nWhat?", name, images=[f"{name}.png"]) for name in COLORS]
    mixed += [row("<video>\nWhat?", "grey", videos=["clip.mp4"]), row("What is two?", "a number")]
    (tmp_path / "pictures.json").write_text(json.dumps(mixed[:2]))
    (tmp_path / "mixed.json").write_text(json.dumps(mixed))
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    return tmp_path


@pytest.mark.parametrize(("kind", "batch_size", "steps"), [("pictures", 2, 20), ("mixed", 4, 30)])
def test_pictures_train_and_are_answered_as_they_were_trained(folder, kind, batch_size, steps):
    torch.set_num_threads(1)
    given = [f"data={folder / kind}.json", f"batch_size={batch_size}", f"max_steps={steps}", *SETTINGS]
    trained = train("finetune", "custom", given, folder / "model", folder / "out", False)
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == steps
    assert losses[-1] < losses[0] / 4
    before, after = load_file(folder / "model" / "model.safetensors"), load_file(trained / "model.safetensors")
    moved = {name.split(".")[1] for name in after if not torch.equal(before[name], after[name])}
    assert {"stab", "projector", "language_model"} <= moved
    for name in COLORS:
        said = videopanda.answer(folder / f"{name}.png", "What?", model=trained, max_new_tokens=8)
        assert (said.answer, len(said.frame_times)) == (name, 1)
