"""The language side of the bundled model: a small tokenizer and a new Qwen3 of a few megabytes.

`videopanda train language` starts here; its output is an ordinary causal language model folder, in front of which
`videopanda train prealign` puts a new vision part, as the paper does with Vicuna.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, set_seed

from videopanda.data.worlds.scenes.dataset import frame_log
from videopanda.data.worlds.scenes.questions import make_captions, make_questions
from videopanda.data.worlds.scenes.world import make_scene
from videopanda.models.fields import with_fields

MAX_VOCAB_SIZE = 1024
SPECIAL_TOKENS = ["<pad>", "<s>", "</s>", "<video>", "<image>"]

INITIALIZER_RANGE = 0.06  # 1 / √256, where transformers' 0.02 suits widths of a thousand and more

# Vicuna's turns without its system sentence: every token counts at this size. vLLM tells by the loop over
# `message['content']` that parts may be videos.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- set blank = ' ' if message['role'] == 'assistant' else '' -%}"
    "{%- if message['role'] not in ('user', 'assistant') -%}"
    "{{- raise_exception('Unknown role ' ~ message['role'] ~ ': use user or assistant.') -}}"
    "{%- endif -%}"
    "{{- 'USER: ' if message['role'] == 'user' else ' ASSISTANT:' -}}"
    "{%- if message['content'] is string -%}{{- blank ~ message['content'] -}}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{{- blank ~ part['text'] if part['type'] == 'text' else '<' ~ part['type'] ~ '>\n' -}}"
    "{%- endfor -%}{%- endif -%}"
    "{{- '</s>' if message['role'] == 'assistant' -}}"
    "{%- endfor -%}"
    "{{- ' ASSISTANT:' if add_generation_prompt -}}"
)


def make_tokenizer(num_scenes: int = 4000, seed: int = 0) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the text of Scenes: any text can be encoded; its words are single tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(num_scenes, seed), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<video>", "<image>"],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _texts(num_scenes: int, seed: int) -> Iterator[str]:
    for index in range(num_scenes):
        scene = make_scene(seed, "train", index)
        yield "USER: " + frame_log(scene, 8)
        for q in make_questions(scene, np.random.default_rng([seed, index])) + make_captions(scene, 8)[:2]:
            yield f"\n{q.question} ASSISTANT: {q.answer}"


def make_language_model(
    tokenizer: PreTrainedTokenizerFast, seed: int = 0, fields: Mapping[str, Any] | None = None
) -> Qwen3ForCausalLM:
    """A new Qwen3, without changed `fields` (`text.hidden_size`, …) of about 5.2M parameters.

    Raises:
        ValueError: an unknown field, or a wrong value.
    """
    set_seed(seed)
    values = {
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "initializer_range": INITIALIZER_RANGE,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return Qwen3ForCausalLM(Qwen3Config(**with_fields(Qwen3Config, values, fields or {}, "text.")))
