"""A fresh STAB in front of a language model: where `prealign` starts.

model, processor = put_stab_in_front("out/language", nano.STAB, nano.INITIALIZER_RANGE, seed=0)
"""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

from videopanda.models.videopanda import (
    VideoPandaConfig,
    VideoPandaForConditionalGeneration,
    VideoPandaProcessor,
    VideoPandaStabConfig,
    VideoPandaVideoProcessor,
)


def is_video_panda(folder: str | Path) -> bool:
    """Whether a folder holds a Video-Panda, and not just a language model."""
    return AutoConfig.from_pretrained(folder).model_type == VideoPandaConfig.model_type


def load(folder: str | Path) -> tuple[VideoPandaForConditionalGeneration, VideoPandaProcessor]:
    """A Video-Panda folder, ready to be trained: weights in float32."""
    model = VideoPandaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model, VideoPandaProcessor.from_pretrained(folder)


def put_stab_in_front(
    backbone: str | Path, stab: VideoPandaStabConfig, initializer_range: float, seed: int
) -> tuple[VideoPandaForConditionalGeneration, VideoPandaProcessor]:
    """Join a causal language model folder with a fresh STAB and projector; weights in float32.

    `<video>` and `<image>` are added to the vocabulary where they are missing.
    """
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    language_model = AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float32)
    tokenizer.add_tokens(["<video>", "<image>"], special_tokens=True)
    if len(tokenizer) > language_model.config.vocab_size:
        language_model.resize_token_embeddings(len(tokenizer))
    config = VideoPandaConfig(
        text_config=language_model.config,
        stab_config=stab,
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        initializer_range=initializer_range,
        tie_word_embeddings=language_model.config.tie_word_embeddings,
    )
    model = VideoPandaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(language_model.get_decoder().state_dict())
    model.lm_head.load_state_dict(language_model.get_output_embeddings().state_dict())
    model.tie_weights()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    # Models without padding in their arithmetic get frames without padding, and are told how long the clip is.
    tight = {"canvas": "tight", "pad_frames": False} if stab.mask_padding else {}
    processor = VideoPandaProcessor(
        video_processor=VideoPandaVideoProcessor.for_stab(stab, **tight),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
        time_prompt=stab.mask_padding,
    )
    return model, processor
