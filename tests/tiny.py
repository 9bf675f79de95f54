"""Tiny things that tests share: a tokenizer trained on the spot, configurations, models, synthetic clips."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from videopanda.models.videopanda import (
    VideoPandaConfig,
    VideoPandaForConditionalGeneration,
    VideoPandaProcessor,
    VideoPandaStabConfig,
    VideoPandaVideoProcessor,
)
from videopanda.models.videopanda.configuration_videopanda import STAB_PRESETS
from videopanda.models.videopanda.layout_videopanda import token_layout

TEXT = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_dim": 12},
    "phi3": {"pad_token_id": 0},
}


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<unk>", "<s>", "</s>", "<video>", "<image>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["USER: What colour is the circle? ASSISTANT: The circle is red.</s>"], trainer)
    return tokenizer.to_str()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with fewer than 300 entries, `<video>` and `<image>` among them."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        additional_special_tokens=["<video>", "<image>"],
    )


def tiny_stab(preset: str = "released", **overrides) -> VideoPandaStabConfig:
    """Return a STAB of 32 channels, patches of 4 pixels and at most 6 × 6 tokens per frame."""
    sizes = {"hidden_size": 32, "patch_size": 4, "image_size": 48, "num_heads": 1 if preset == "paper" else 4}
    return VideoPandaStabConfig(**{**STAB_PRESETS[preset], **sizes, **overrides})


# Of a language model in tests; weights of visible size.
TINY_SIZES = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
}


def tiny_text_config(text: str = "llama", **fields) -> dict:
    """Settings of a language model of two layers."""
    tokenizer = tiny_tokenizer()
    return {
        "model_type": text,
        "vocab_size": len(tokenizer),
        **TINY_SIZES,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **TEXT[text],
        **fields,
    }


def tiny_config(preset: str = "released", text: str = "llama", **stab) -> VideoPandaConfig:
    """Return a model of two language-model layers."""
    tokenizer = tiny_tokenizer()
    return VideoPandaConfig(
        text_config=tiny_text_config(text),
        stab_config=tiny_stab(preset, **stab),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        initializer_range=0.2,
    )


def randomize(module: torch.nn.Module, seed: int = 0, scale: float = 0.3) -> None:
    """Give every parameter and buffer a random value, so that no zero initialisation hides a path."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if not tensor.is_floating_point() or "inv_freq" in name:
                continue
            noise = torch.randn(tensor.shape, generator=generator) * scale
            positive = name.endswith("running_var") or ("norm" in name and name.endswith("weight"))
            tensor.copy_(noise.abs() + 0.5 if positive else noise)


def tiny_model(
    preset: str = "released", text: str = "llama", seed: int = 0, **stab
) -> VideoPandaForConditionalGeneration:
    """Return a random model in eval mode whose STAB has no zero weights."""
    torch.manual_seed(seed)
    model = VideoPandaForConditionalGeneration(tiny_config(preset, text, **stab))
    randomize(model.model.stab, seed)
    randomize(model.model.projector, seed + 1)
    return model.eval()


def realign(model: torch.nn.Module) -> torch.nn.Module:
    """Copy every weight to memory of its own: kernels add up in another order where a file maps weights unaligned."""
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()
    return model


def tiny_processor(preset: str = "released", stab: VideoPandaStabConfig | None = None, **fields) -> VideoPandaProcessor:
    """Return a processor whose canvas and token counts fit `tiny_model(preset)`."""
    time_prompt = fields.pop("time_prompt", False)
    fields.setdefault("pad_frames", preset == "released")
    video_processor = VideoPandaVideoProcessor.for_stab(stab or tiny_stab(preset), **fields)
    return VideoPandaProcessor(video_processor, tiny_tokenizer(), time_prompt=time_prompt)


def save_wide(folder: Path) -> Path:
    """Save a model and processor that 4 bits fit: on a CPU bitsandbytes wants widths that are multiples of 64."""
    config = tiny_config()
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 1, "num_key_value_heads": 1}
    config.text_config = type(config.text_config)(**{**config.text_config.to_dict(), **sizes, "head_dim": 64})
    type(tiny_model())(config).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def layouts_of(placement: torch.Tensor, stab: VideoPandaStabConfig) -> list[torch.Tensor]:
    """Return the layout of the tokens of every placement row."""
    return [token_layout(row, stab.max_cells, stab.row_tokens, stab.context_token) for row in placement]


def clip(frames: int = 8, height: int = 30, width: int = 40, seed: int = 0) -> np.ndarray:
    """Return random uint8 frames (frames, height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
