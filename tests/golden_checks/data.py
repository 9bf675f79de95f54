"""Sections 6 to 8 of the golden README: preprocessing, frame sampling, prompts."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from golden_checks.findings import Findings
from golden_checks.stab import Weights
from videopanda.data.collate import IGNORE, flipped, render
from videopanda.encoders.open import teacher_video_processor
from videopanda.models.prompts import TRAINING_SYSTEM_PROMPT, VICUNA_CHAT_TEMPLATE, place_marker
from videopanda.models.videopanda import VideoPandaVideoProcessor
from videopanda.models.videopanda.convert.settings import read_tokenizer
from videopanda.video.read import released_frame_indices

PIXEL = 1e-6
PLACEHOLDER = -200  # of the official code


# -- section 6: preprocessing ------------------------------------------------------------------------------------------
def synthetic(width: int, height: int, frames: int) -> np.ndarray:
    """The picture of the golden README, uint8 (frames, height, width, 3)."""
    t, y, x, c = np.ogrid[:frames, :height, :width, :3]
    return ((3 * x + 5 * y + 40 * c + (x * y) // 7 + 17 * t) % 256).astype(np.uint8)


def processors() -> dict[str, VideoPandaVideoProcessor]:
    """Those of the released model and of its teacher."""
    student = VideoPandaVideoProcessor()
    return {"student": student, "teacher": teacher_video_processor(student)}


def check_preprocess(golden: Weights, width: int, height: int, real: int) -> Findings:
    """Pixels, padding colour and masks of student and teacher, and the mirrored clip."""
    findings = Findings()
    for who, processor in processors().items():
        out = processor(synthetic(width, height, real))
        pixels, placement = out["pixel_values_videos"][0], out["video_placement"][0]
        top, left, rows, columns, frames, _ = placement.tolist()
        cell, side = processor.cell_size, processor.max_cells * processor.cell_size
        mask = torch.zeros(frames, side, side, dtype=torch.uint8)
        y, x = top * cell, left * cell
        mask[:real, y : y + rows * cell, x : x + columns * cell] = 1
        grid = (slice(4, None, 16), slice(5, None, 16)) if who == "student" else (slice(2, None, 8), slice(3, None, 8))
        sampled = pixels[:, :, grid[0], grid[1]]
        stored = golden.get(f"{who}.sample")
        found = {
            "sample": sampled[0] if stored is None or stored.ndim == 3 else sampled[[0, real - 1][: len(stored)]],
            "crop_topleft_of_valid": pixels[0, :, y : y + 20, x : x + 20],
            "pad_value": pixels[0, :, 0, 0],
            "mask_patches": mask[:, ::14, ::14],
        }
        for name, value in found.items():
            if f"{who}.{name}" in golden:
                findings.compare(f"{who}.{name}", value, golden[f"{who}.{name}"], PIXEL)
        if f"{who}_flipped.sample" in golden:
            findings.compare(
                f"{who}_flipped.sample", flipped(pixels)[0][:, grid[0], grid[1]], golden[f"{who}_flipped.sample"], PIXEL
            )
        findings.require(f"{who}: padding frames are zero", not pixels[real:].any())
    return findings


def check_preprocess_table(table: list[dict[str, Any]]) -> Findings:
    """Geometry, checksums of resized frames, frame counts and channel means for many source sizes."""
    findings = Findings()
    for row in table:
        width, height = row["source"]
        name, frames = f"{width}x{height}", synthetic(width, height, row["n_frames"])
        for who, processor in processors().items():
            out = processor(frames)
            top, left, rows, columns, sent, real = out["video_placement"][0].tolist()
            cell = processor.cell_size
            rectangle = [row[who][key] for key in ("top", "left", "height", "width")]
            findings.compare(f"{name} {who}", [x * cell for x in (top, left, rows, columns)], rectangle, 0.0)
            resized = processor.resize(frames[:1], rows * cell, columns * cell)[0]
            key = "sha256_frame0_resized_uint8" if who == "student" else "sha256_frame0_teacher_resized_uint8"
            findings.require(f"{name} {key}", hashlib.sha256(resized.tobytes()).hexdigest() == row[key])
            if who == "student":
                count = processor.token_count(1, height, width) - (processor.num_frames - 1) * 73
                findings.compare(f"{name} grid", [rows, columns], row["student_grid_tokens"], 0.0)
                findings.compare(f"{name} tokens", count, row["tokens_per_frame"], 0.0)
                expected = [row["out_frames"], row["all_padding_frames"]]
                findings.compare(f"{name} frames", [sent, sent - real], expected, 0.0)
                first = out["pixel_values_videos"][0, 0]
                findings.compare(f"{name} mean", first.double().mean((1, 2)), row["frame0_mean"], 1e-5)
                findings.compare(f"{name} maximum", first.abs().max(), row["frame0_absmax"], PIXEL)
    return findings


# -- section 7: frame sampling -----------------------------------------------------------------------------------------
def check_sampling(table: list[dict[str, Any]]) -> Findings:
    """Frame numbers. Where the official code fails ours must give some frames of the clip."""
    findings = Findings()
    for row in table:
        found = released_frame_indices(row["num_frames"], row["avg_fps"], max_frames=row["max_frames"])
        name = f"{row['num_frames']} frames at {row['avg_fps']} per second, at most {row['max_frames']}"
        if row["positions"] is None:
            inside = found == sorted(set(found)) and found[0] >= 0 and found[-1] < row["num_frames"]
            findings.require(f"{name}: official error", bool(row["error"]) and inside)
        else:
            findings.require(name, found == row["positions"])
    return findings


# -- section 8: prompts and labels -------------------------------------------------------------------------------------
def to_ids(tokenizer: Any, text: str, frames: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids with official placeholders, and the characters that each stands for."""
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    video, image = tokenizer.convert_tokens_to_ids(["<video>", "<image>"])
    repeats = {video: (PLACEHOLDER, frames), image: (PLACEHOLDER, 1)}
    ids, offsets = [], []
    for token, offset in zip(encoded["input_ids"], encoded["offset_mapping"]):
        value, count = repeats.get(token, (token, 1))
        ids += [value] * count
        offsets += [offset] * count
    return ids, offsets


def official_text(text: str, frames: int) -> str:
    """A prompt as the official code writes it: no start token, one `<image>` per frame, no blank behind them."""
    text = re.sub("(<video>|<image>) ", r"\1", text.removeprefix("<s> "))
    return text.replace("<video>", "<image>" * frames)


def training_prompt(
    tokenizer: Any, conversation: list[dict[str, str]], frames: int
) -> tuple[list[int], list[int], str]:
    """Ids, labels and text of a conversation, by the functions that training uses.

    In official files a run of as many `<image>` as there are frames, or more, stands for the video.
    """
    tokenizer.chat_template = VICUNA_CHAT_TEMPLATE
    all_frames = re.compile(f"(?:<image>){{{frames},}}")
    texts = [place_marker(all_frames.sub("<video>", turn["value"])) for turn in conversation]
    turns = list(zip(texts[::2], texts[1::2]))
    text, spans = render(tokenizer, turns, 0, TRAINING_SYSTEM_PROMPT)
    ids, offsets = to_ids(tokenizer, text, frames)
    labels = [i if any(a <= start < b for a, b in spans) else IGNORE for i, (start, _) in zip(ids, offsets)]
    return ids, labels, official_text(text, frames)


def question_prompt(tokenizer: Any, question: str, frames: int) -> tuple[list[int], str]:
    """Ids and text of a question about a video."""
    content = [{"type": "video"}, {"type": "text", "text": question}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=VICUNA_CHAT_TEMPLATE,
        tokenize=False,
        add_generation_prompt=True,
    )
    return to_ids(tokenizer, text, frames)[0], official_text(text, frames)


def check_prompts(golden: Mapping[str, Any], tokenizer: Any, frames: int = 8) -> Findings:
    """Prompts, ids and labels of training conversations and questions."""
    findings = Findings()
    for i, row in enumerate(golden.get("train", [])):
        ids, labels, text = training_prompt(tokenizer, row["conversations"], frames)
        findings.require(f"train {i} prompt", text == row["prompt"])
        findings.require(f"train {i} input_ids", ids == row["input_ids"])
        # Where the official code cannot tell its rounds apart it warns and masks the whole row; ours finds the answers.
        found = [IGNORE] * len(ids) if row["warning"] else labels
        findings.require(f"train {i} labels", found == row["labels"])
    for i, row in enumerate(golden.get("infer", [])):
        ids, text = question_prompt(tokenizer, row["question"], row["num_frames"])
        findings.require(f"infer {i} prompt", text == row["prompt"])
        findings.require(f"infer {i} input_ids", ids == row["input_ids"])
        findings.require(f"infer {i} stop", tokenizer.eos_token == row["stop"])
    return findings


def load_tokenizer(folder: Path) -> Any:
    """The stored tokenizer, read as a conversion reads it, with our two placeholders."""
    tokenizer = read_tokenizer(folder)
    tokenizer.add_tokens(["<video>", "<image>"], special_tokens=True)
    return tokenizer
