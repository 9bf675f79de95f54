"""Writes official-layout checkpoints, as the published ones are laid out (tiny; no published weights are needed).

folder = write_official(tmp_path / "official")                       # two .bin shards with an index, all names twice
folder = write_official(tmp_path / "eve", eve_weights(), config=official_config("eve"), layout="safetensors")

The weights are those of the golden whole model: official names, width 48, 8 layers, tower of width 64, canvas of 112.
"""

import json
import math
import shutil
import struct
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
PREPROCESSOR_PATH = "videopanda/config/preprocessor_config.json"  # relative to the official source tree


def golden_weights() -> dict[str, Tensor]:
    """The golden whole model under its official names: no aliases, one teacher."""
    return load_file(GOLDEN / "full_small_weights.safetensors")


def official_weights() -> dict[str, Tensor]:
    """All names that the official trainer writes: aliases, the teacher twice, rotary frequencies."""
    weights = golden_weights()
    for name in list(weights):
        for ours, alias in (("video_tower.", "vision_tower."), ("video_projector.", "mm_projector.")):
            if name.startswith(f"model.{ours}"):
                weights[name.replace(ours, alias)] = weights[name]
        if name.startswith("model.video_teacher."):
            inner = name.removeprefix("model.video_teacher.")
            weights[f"model.video_tower_compressor.teacher_layer.{inner}"] = weights[name]
    for layer in range(8):
        weights[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = 10000.0 ** -(torch.arange(0, 12, 2) / 12)
    return weights


def eve_weights() -> dict[str, Tensor]:
    """The same values as EVE has them: image names, no temporal parts, a CLIP teacher inside the head."""
    weights = {}
    parts = ("patch_embedding.", "class_embedding", "split_embedding", "local_attention.", "global_attention.")
    for name, tensor in golden_weights().items():
        if name.startswith("model.video_tower."):
            inner = name.removeprefix("model.video_tower.")
            if inner.startswith(parts):
                weights[f"model.vision_tower.{inner}"] = tensor
        elif name.startswith("model.video_projector."):
            weights[name.replace("video_projector", "mm_projector")] = tensor
        elif name.startswith("model.video_tower_compressor."):
            weights[name.replace("video_tower", "vision_tower")] = tensor
        elif not name.startswith("model.video_teacher."):
            weights[name] = tensor
    weights["model.vision_tower_compressor.clip.vision_model.pre_layrnorm.weight"] = torch.ones(64)
    return weights


def official_config(model_type: str = "videopanda", **fields) -> dict:
    """A `config.json` with the fields of the published one."""
    llm = json.loads((GOLDEN / "full_small_config.json").read_text())["llm"]
    return {
        "model_type": model_type,
        "architectures": ["VideoPandaLlamaForCausalLM"],
        **llm,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "float32",
        "transformers_version": "4.31.0",
        "mm_hidden_size": 64,
        "video_hidden_size": 64,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "mm_vision_select_layer": -2,
        "requires_video_distill": True,
        "requires_image_distill": False,
        "mm_video_tower": PREPROCESSOR_PATH,
        "mm_vision_tower": PREPROCESSOR_PATH,
        **fields,
    }


def write_official(
    folder: Path,
    weights: dict[str, Tensor] | None = None,
    config: dict | None = None,
    layout: str = "bin",
    shards: int = 2,
    zip_format: bool = True,
    preprocessor: bool = True,
) -> Path:
    """Write a checkpoint folder; `layout` is "bin" or "safetensors", with an index where there are several shards."""
    weights = official_weights() if weights is None else weights
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(official_config() if config is None else config))
    (folder / "generation_config.json").write_text('{"_from_model_config": true, "temperature": 0.0}')
    for file in (GOLDEN / "tiny_tokenizer").iterdir():
        shutil.copyfile(file, folder / file.name)
    if preprocessor:
        path = folder / PREPROCESSOR_PATH
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(json.loads((GOLDEN / "full_small_config.json").read_text())["preprocessor"]))
    stem, suffix = ("pytorch_model", "bin") if layout == "bin" else ("model", "safetensors")
    names = sorted(weights)
    parts = [names[number::shards] for number in range(shards)]
    weight_map = {}
    for number, part in enumerate(parts, start=1):
        file = f"{stem}.{suffix}" if shards == 1 else f"{stem}-{number:05}-of-{shards:05}.{suffix}"
        chosen = {name: weights[name] for name in part}
        if layout == "bin":
            torch.save(chosen, folder / file, _use_new_zipfile_serialization=zip_format)
        else:
            save_file({name: tensor.clone() for name, tensor in chosen.items()}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return folder


def released_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published 7B checkpoint without aliases and teacher."""
    width = {64: 1024, 128: 2048, 192: 3072, 256: 4096, 42: 682, 48: 4096}
    shapes: dict[str, tuple[int, ...]] = {"lm_head.weight": (32000, 4096), "model.embed_tokens.weight": (32000, 4096)}
    shapes["model.norm.weight"] = (4096,)
    golden = golden_weights()
    for name, tensor in golden.items():
        if name.startswith(("model.video_tower", "model.video_projector")):
            shapes[name] = tuple(width.get(n, n) for n in tensor.shape)
    for state in range(3, 9):  # the small model has 3 of 9 distilled states
        for kind in ("0.weight", "0.bias", "1.weight"):
            name = f"model.video_tower_compressor.norm_layer.{{}}.{kind}"
            shapes[name.format(state)] = shapes[name.format(0)]
    wide, narrow = {"gate_proj", "up_proj"}, {"down_proj"}
    for name in golden:
        if name.startswith("model.layers.0."):
            part = name.split(".")[-2]
            shape = (4096, 4096)
            if part in wide | narrow:
                shape = (11008, 4096) if part in wide else (4096, 11008)
            elif "layernorm" in part:
                shape = (4096,)
            for layer in range(32):
                shapes[name.replace(".0.", f".{layer}.", 1)] = shape
    return shapes


def write_sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write a safetensors file of bfloat16 zeros that takes no room on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def write_vocabulary(path: Path, num_pieces: int) -> None:
    """Extend the tiny SentencePiece model to `num_pieces` pieces."""
    model = (GOLDEN / "tiny_tokenizer" / "tokenizer.model").read_bytes()
    for number in range(416, num_pieces):
        text = f"~{number}".encode()
        piece = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", -float(number))
        model += b"\x0a" + bytes([len(piece)]) + piece
    path.write_bytes(model)
