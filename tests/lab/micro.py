"""A table that takes seconds, and the small language model that it starts from."""

from pathlib import Path

from transformers import Qwen3ForCausalLM

from videopanda.training import nano

TABLE = """
title: Two rows
compare: full
stages: [pretrain]
fields: {model_preset: nano, stab.hidden_size: 32, stab.coordinates: false}
settings:
  pretrain:
    {compile: false, num_workers: 0, validation: 0, dtype: float32, num_frames: 2, batch_size: 1, align_weight: 0,
     scenes_captions: 0, log_steps: 1, save_steps: 2}
budgets:
  small: {seeds: 1, questions: 12, stages: {pretrain: {max_steps: 8}}}
rows:
  - {name: full, published: {Bench: 60}}
  - {name: no row token, fields: {stab.row_tokens: false}, published: {Bench: 50}}
"""


def write_table(folder: Path, text: str = TABLE) -> Path:
    path = folder / "micro.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def write_language_model(folder: Path) -> Path:
    """Return a folder with a language model of two small layers and nano's tokenizer."""
    tokenizer = nano.make_tokenizer(10)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    model: Qwen3ForCausalLM = nano.make_language_model(tokenizer, 0, {f"text.{k}": v for k, v in sizes.items()})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
