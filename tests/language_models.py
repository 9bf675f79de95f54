"""Tiny random members of the families of language models, with the traits that real ones have. What they show is the
table in docs/backbones.md; see `tests/models/test_backbone_table.py`.
"""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
    __version__,
)

import chat_templates as templates
from tiny import TINY_SIZES

WINDOW = 16  # tokens, far fewer than a row has
_SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_DELTA = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
_NO_LAYER_INPUTS = {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}  # as Gemma 4 of 12B and more
_GEMMA4 = {**_SLIDING, **_NO_LAYER_INPUTS, "head_dim": 16, "global_head_dim": 32, "num_global_key_value_heads": 2}
_VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def scaled(kind: str, **fields: Any) -> dict[str, Any]:
    """A scaled position embedding, for four times the 64 tokens of its training."""
    return {
        "rope_type": kind,
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        **fields,
    }


_LLAMA3 = scaled("llama3", low_freq_factor=1.0, high_freq_factor=4.0)
_LONG = scaled("longrope", short_factor=[1.0] * 6, long_factor=[2.0] * 6, original_max_position_embeddings=512)
_BY_TYPE = {"full_attention": scaled("linear"), "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}


@dataclass(frozen=True)
class Member:
    """A tiny member of a family.

    kind: its `model_type`; fields: of its configuration, beyond sizes.
    template: its chat template; "vicuna" for a tokenizer without one.
    spare: rows of the embedding beyond the tokenizer.
    rope: the scaled position embedding of its long members.
    published: `model_type` and fields of the vision-language model as part of which it is published.
    wide: fields of a member of full width, beyond the defaults of transformers.
    """

    kind: str
    template: str
    fields: dict[str, Any] = field(default_factory=dict)
    spare: int = 0
    rope: dict[str, Any] | None = None
    published: tuple[str, dict[str, Any]] | None = None
    wide: dict[str, Any] = field(default_factory=dict)


MEMBERS = {
    "LLaMA-2": Member("llama", templates.LLAMA2, rope=scaled("linear")),
    "Vicuna v1.5": Member("llama", "vicuna", rope=scaled("linear")),
    "Llama 3": Member("llama", templates.LLAMA3, {"tie_word_embeddings": True}, rope=_LLAMA3),
    "Phi-3": Member("phi3", templates.BARS, {"sliding_window": WINDOW, "pad_token_id": 0}, spare=2, rope=_LONG),
    "Phi-4": Member("phi3", templates.PHI4, {"sliding_window": None, "pad_token_id": 0}, spare=2),
    "Qwen2.5": Member("qwen2", templates.QWEN25, {"tie_word_embeddings": True}, spare=21, rope=scaled("yarn")),
    "Qwen3": Member("qwen3", templates.QWEN3, {"head_dim": 16}, spare=21, rope=scaled("yarn")),
    "Qwen3.5": Member(
        "qwen3_5_text",
        templates.QWEN35,
        {**_DELTA, "head_dim": 16, "tie_word_embeddings": True},
        spare=21,
        published=(
            "qwen3_5",
            {"vision_config": {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}},
        ),
    ),
    "Gemma 3": Member(
        "gemma3_text",
        templates.GEMMA3,
        {**_SLIDING, "head_dim": 16, "query_pre_attn_scalar": 16, "tie_word_embeddings": True},
        spare=21,
        rope=_BY_TYPE,
        published=("gemma3", {"mm_tokens_per_image": 4, "vision_config": {**_VISION, "image_size": 28}}),
    ),
    "Gemma 4": Member(
        "gemma4_text",
        templates.GEMMA4,
        {**_GEMMA4, "tie_word_embeddings": True, "final_logit_softcapping": 30.0},
        spare=21,
        published=("gemma4", {"vision_config": _VISION, "audio_config": None}),
        wide=_NO_LAYER_INPUTS,
    ),
    "Mistral": Member("mistral", templates.INST, {"sliding_window": WINDOW}),
    "SmolLM2": Member("llama", templates.CHATML, {"tie_word_embeddings": True}),
    "SmolLM3": Member(
        "smollm3",
        templates.SMOLLM3,
        {"tie_word_embeddings": True, "pad_token_id": 0, "no_rope_layers": [1, 0]},
        spare=1,
        rope=scaled("yarn"),
    ),
    "LFM2": Member(
        "lfm2", templates.LFM, {"layer_types": ["conv", "full_attention"], "tie_word_embeddings": True}, spare=21
    ),
    "LFM3": Member(
        "lfm3",
        templates.LFM,
        {
            "num_hidden_layers": 3,
            "layer_types": ["conv", "sliding_attention", "full_attention"],
            "sliding_window": WINDOW,
            "head_dim": 16,
            "tie_word_embeddings": True,
        },
        spare=21,
    ),
}


def where_known(name: str, kind: str) -> Any:
    """A parameter of a test that is skipped where the installed transformers lacks that `model_type`."""
    lacks = pytest.mark.skipif(kind not in CONFIG_MAPPING, reason=f"transformers {__version__} has no {kind}")
    return pytest.param(name, marks=lacks)


NAMES = [where_known(name, member.kind) for name, member in MEMBERS.items()]
TURN_ENDS = ("<|eot_id|>", "<end_of_turn>", "<turn|>", "<|end|>")  # of Llama 3, Gemma 3 and 4, Phi-3


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", *TURN_ENDS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["user: What moves? assistant: The circle."], trainer)
    return tokenizer.to_str()


def text_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """A tokenizer that has never heard of videos; with ChatML its turns end as those of Qwen do."""
    chatml = template is not None and "<|im_end|>" in template
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()),
        unk_token="<unk>",
        bos_token=None if chatml and "bos_token" not in template else "<s>",
        eos_token="<|im_end|>" if chatml else "</s>",
        pad_token="</s>" if chatml else None,
        chat_template=template,
    )


def text_config(member: Member, **fields: Any) -> Any:
    """The configuration of a member with random weights of visible size."""
    sizes = {
        "vocab_size": len(text_tokenizer(None)) + member.spare,
        **TINY_SIZES,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "tie_word_embeddings": False,
    }
    rope = {"rope_parameters": member.rope} if member.rope else {}
    return AutoConfig.for_model(member.kind, **{**sizes, **member.fields, **rope, **fields})


def write(folder: Path, member: Member, published: bool = False, **fields: Any) -> Path:
    """A folder as on the Hub: language model and tokenizer; if `published`, with the vision part of its release."""
    torch.manual_seed(0)
    config = text_config(member, **fields)
    if published:
        assert member.published is not None
        kind, own = member.published
        tied = {"tie_word_embeddings": config.tie_word_embeddings}
        config = AutoConfig.for_model(kind, text_config=config.to_dict(), **tied, **own)
        AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    else:
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    text_tokenizer(None if member.template == "vicuna" else member.template).save_pretrained(folder)
    return folder
