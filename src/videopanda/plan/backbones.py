"""Published shapes of language models, for plans without weights. Names as on the Hub, in lower case."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from videopanda.hub import folder_of, parse
from videopanda.models.families import DEFAULT, fresh_config, model_class


def _llama(hidden: int, mlp: int, layers: int, heads: int) -> dict[str, Any]:
    # LLaMA-2 has 32,000 entries and no spare rows: the two placeholders come on top.
    return _shape("llama", hidden, mlp, layers, heads, heads, 32002, 4096, False)


def _qwen2(hidden: int, mlp: int, layers: int, heads: int, kv: int, vocab: int, tied: bool) -> dict[str, Any]:
    return _shape("qwen2", hidden, mlp, layers, heads, kv, vocab, 32768, tied)


def _qwen3(hidden: int, mlp: int, layers: int, heads: int, tied: bool) -> dict[str, Any]:
    return _shape("qwen3", hidden, mlp, layers, heads, 8, 151936, 40960, tied) | {"head_dim": 128}


def _phi3(hidden: int, mlp: int, layers: int, heads: int, kv: int, context: int, window: int) -> dict[str, Any]:
    sizes = _shape("phi3", hidden, mlp, layers, heads, kv, 32064, context, False)
    return sizes | {"sliding_window": window, "pad_token_id": 32000}


def _shape(
    kind: str, hidden: int, mlp: int, layers: int, heads: int, kv: int, vocab: int, context: int, tied: bool
) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "tie_word_embeddings": tied,
    }


BACKBONES = {
    "llama-2-7b": _llama(4096, 11008, 32, 32),
    "llama-2-13b": _llama(5120, 13824, 40, 40),
    "vicuna-7b-v1.5": _llama(4096, 11008, 32, 32),
    "vicuna-13b-v1.5": _llama(5120, 13824, 40, 40),
    "qwen2-1.5b": _qwen2(1536, 8960, 28, 12, 2, 151936, True),
    "qwen2-7b": _qwen2(3584, 18944, 28, 28, 4, 152064, False),
    "qwen2.5-0.5b": _qwen2(896, 4864, 24, 14, 2, 151936, True),
    "qwen2.5-1.5b": _qwen2(1536, 8960, 28, 12, 2, 151936, True),
    "qwen2.5-3b": _qwen2(2048, 11008, 36, 16, 2, 151936, True),
    "qwen2.5-7b": _qwen2(3584, 18944, 28, 28, 4, 152064, False),
    "qwen2.5-14b": _qwen2(5120, 13824, 48, 40, 8, 152064, False),
    "qwen3-0.6b": _qwen3(1024, 3072, 28, 16, True),
    "qwen3-1.7b": _qwen3(2048, 6144, 28, 16, True),
    "qwen3-4b": _qwen3(2560, 9728, 36, 32, True),
    "qwen3-8b": _qwen3(4096, 12288, 36, 32, False),
    "qwen3-14b": _qwen3(5120, 17408, 40, 40, False),
    "smollm2-135m": _shape("llama", 576, 1536, 30, 9, 3, 49152, 8192, True),
    "phi-3-mini-4k": _phi3(3072, 8192, 32, 32, 32, 4096, 2047),
    "phi-3-mini-128k": _phi3(3072, 8192, 32, 32, 32, 131072, 262144),
    "phi-3-medium-4k": _phi3(5120, 17920, 40, 40, 10, 4096, 2047),
}


def config_of(backbone: str, family: str = DEFAULT, preset: str = "", fields: Mapping[str, Any] | None = None) -> Any:
    """The configuration that `videopanda init` would make from a published language model, or from one in a folder.

    Raises:
        ValueError: no such name and no such folder, or the folder has a vision part of this package; an unknown family,
            preset or field.
    """
    text: Any = BACKBONES.get(backbone.lower())
    if text is None:
        text = _read(backbone).get_text_config().to_dict()
    ids = {"video_token_id": text["vocab_size"] - 2, "image_token_id": text["vocab_size"] - 1}
    return fresh_config(
        family, preset, fields or {}, text_config=text, tie_word_embeddings=text["tie_word_embeddings"], **ids
    )


def _read(folder: str) -> PreTrainedConfig:
    if parse(folder):
        folder = str(folder_of(folder, files=("*.json",)))
    if not Path(folder, "config.json").is_file():
        raise ValueError(
            f"no language model {folder!r}: name a folder with a config.json, or one of {', '.join(BACKBONES)}"
        )
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if model_class(config) is not None:
        raise ValueError(f"{folder} already has a vision part: plan it with --model {folder}")
    return config
