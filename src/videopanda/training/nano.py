"""The language side of the bundled model: a small tokenizer and a new Qwen3 of a few megabytes.

`videopanda train language` starts here; its output is an ordinary causal language model folder, in front of which
`videopanda train prealign` puts a new vision part, as the paper does with Vicuna.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, set_seed

from videopanda.data.worlds.scenes.dataset import frame_log
from videopanda.data.worlds.scenes.exact_times import exact_questions, part_of
from videopanda.data.worlds.scenes.questions import make_captions, make_questions
from videopanda.data.worlds.scenes.wordings import DECLINE, outside_question, reworded
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


def grow_vocabulary(model: Any, processor: Any, size: int, num_scenes: int = 1500, seed: int = 0) -> None:
    """Add tokens, up to `size`, for words that the tokenizer splits, such as those of rephrased questions.

    Existing ids and merges stay unchanged, and new merges are applied after them, as if byte-pair encoding had
    continued. The embedding of a new token starts as the mean of those of the two that it joins.
    """
    tokenizer = processor.tokenizer.backend_tokenizer
    state = json.loads(tokenizer.to_str())
    vocabulary, merges = state["model"]["vocab"], state["model"]["merges"]
    words: Counter[tuple[str, ...]] = Counter()
    for text in _reworded_texts(num_scenes, seed):
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text):
            words[tuple(token.value for token in tokenizer.model.tokenize(word))] += 1
    pairs: Counter[tuple[str, str]] = Counter()
    for pieces, count in words.items():
        pairs.update({pair: n * count for pair, n in Counter(itertools.pairwise(pieces)).items()})
    embeddings, free = [], max(processor.tokenizer.get_vocab().values()) + 1
    while free < size and pairs:
        pair = max(pairs, key=lambda pair: (pairs[pair], pair))
        _join(words, pairs, pair)
        merges.append(list(pair))
        if "".join(pair) not in vocabulary:
            vocabulary["".join(pair)] = free
            embeddings.append((free, *(vocabulary[piece] for piece in pair)))
            free += 1
    processor.tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    rows = len(model.get_input_embeddings().weight)
    model.resize_token_embeddings(max(rows, -(-free // 64) * 64), mean_resizing=False)
    weight = model.get_input_embeddings().weight.data
    for new, first, second in embeddings:
        weight[new] = (weight[first] + weight[second]) / 2


def _join(words: Counter[tuple[str, ...]], pairs: Counter[tuple[str, str]], pair: tuple[str, str]) -> None:
    """Join a pair wherever it occurs in `words`, and count the pairs again that this makes or breaks."""
    for pieces in [pieces for pieces in words if pair in itertools.pairwise(pieces)]:
        count, joined = words.pop(pieces), list[str]()
        for piece in pieces:
            if joined and (joined[-1], piece) == pair:
                joined[-1] += piece
            else:
                joined.append(piece)
        words[tuple(joined)] += count
        for sign, parts in ((-count, pieces), (count, tuple(joined))):
            for found in itertools.pairwise(parts):
                pairs[found] += sign
    del pairs[pair]


def _reworded_texts(num_scenes: int, seed: int) -> Iterator[str]:
    for index in range(num_scenes):
        rng = np.random.default_rng([seed, index, 5])
        questions = [reworded(q, "train", rng) for q in make_questions(make_scene(seed, "train", index), rng)]
        exact = exact_questions(part_of(make_scene(seed, "train", index), 8, rng), rng)[:3]
        for question in (*questions, *exact, *(outside_question("train", rng) for _ in range(4))):
            yield f"{'' if rng.random() < 0.3 else ' '}{question.question}"  # a question starts a line
        yield f" {DECLINE}"
        yield from (f" {question.answer}" for question in exact)


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
