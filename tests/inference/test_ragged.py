"""Protects KV caches whose layers differ in length: what a model that merges tokens inside its layers leaves behind.

A loop that runs every sequence alone, layer by layer with its own keys and positions, says what is right.
"""

import pytest
import torch
from backbones import WINDOW, backbone_model
from engine_helpers import ask_for, finished

from tiny import clip, tiny_processor
from videopanda.data.worlds.scenes.dataset import Clip
from videopanda.inference.batch import Batch, Prompt, prefill
from videopanda.inference.clip import encode_clips
from videopanda.inference.engine import Engine
from videopanda.inference.kv_prefix import PADDING, CacheLayout, KVPrefix
from videopanda.models.generation import CACHE_NAME
from videopanda.models.layer_cache import layer_masks

VIDEOS = [Clip(clip(8, 30, 40, 0), tuple(range(8)), 8.0), Clip(clip(8, 40, 20, 1), tuple(range(8)), 8.0)]
QUESTIONS = ["What colour is the circle?", "How many?"]


def dropped(kv: KVPrefix, seed: int) -> KVPrefix:
    """A prefix without some of its positions, others in every layer: deeper layers keep fewer."""
    generator = torch.Generator().manual_seed(seed)
    length = kv.columns
    cache = kv.clone().cache
    for i, layer in enumerate(cache.layers):
        kept = torch.randperm(length, generator=generator)[: length - 40 * i - 7 * seed].sort().values
        layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]
        layer.positions = kept[None]
    return KVPrefix(cache, [layer.positions for layer in cache.layers], kv.num_tokens)


def alone(model, windows, kv: KVPrefix, ids, steps: int) -> tuple[list[int], list[torch.Tensor]]:
    """Tokens and logits by a loop over the layers, one token at a time, without any mask of a batch."""
    decoder = model.get_decoder()
    states = [[layer.keys, layer.values, positions[0]] for layer, positions in zip(kv.cache.layers, kv.positions)]
    position, tokens, found = kv.num_tokens[0], list(ids), []

    class OneLayer:
        """The part of a cache that a layer sees, without what its window hides."""

        def __init__(self, window):
            self.window = window

        def update(self, keys, values, layer_idx, *args, **kwargs):
            state = states[layer_idx]
            state[0], state[1] = torch.cat([state[0], keys], 2), torch.cat([state[1], values], 2)
            state[2] = torch.cat([state[2], torch.tensor([position])])
            seen = state[2] > position - (self.window or 10**9)
            return state[0][:, :, seen], state[1][:, :, seen]

    for step in range(len(ids) + steps - 1):
        hidden = decoder.embed_tokens(torch.tensor([[tokens[step]]]))
        place = torch.tensor([[position]])
        for i, layer in enumerate(decoder.layers):
            kinds = getattr(decoder.config, "layer_types", None)
            typed = (kinds[i],) if decoder.config.model_type.startswith("gemma3") else ()
            rotary = decoder.rotary_emb(hidden, place, *typed)
            out = layer(
                hidden,
                attention_mask=None,
                position_ids=place,
                position_embeddings=rotary,
                **{CACHE_NAME: OneLayer(windows[i])},
            )
            hidden = out[0] if isinstance(out, tuple) else out
        position += 1
        if step >= len(ids) - 1:
            found.append(model.compute_logits(decoder.norm(hidden))[0, -1])
            scores = found[-1].clone()
            scores[model.generation_config.suppress_tokens] = -torch.inf
            tokens.append(int(scores.argmax()))
    return tokens[len(ids) :], found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "smollm3", "mistral", "gemma3_text"])
@torch.inference_mode()
def test_sequences_with_layers_of_different_lengths_are_continued_exactly(name, attention):
    """Prefixes of different clips and lengths, continued in one batch, beside one whose layers are equal."""
    model, processor = backbone_model(name), tiny_processor()
    model.set_attn_implementation(attention)
    layout = CacheLayout.of(model.config.text_config)
    clips = encode_clips(model, processor, VIDEOS)
    engine = Engine(model, processor, keep_prefixes=True)
    finished(engine, [ask_for(processor, "What?", one, max_new_tokens=1) for one in clips])
    kept = [next(iter(one.kv_prefixes.values())) for one in clips]
    prefixes = [dropped(kept[0], 0), dropped(kept[1], 1), dropped(kept[0], 2), kept[1]]
    assert [prefix.is_ragged for prefix in prefixes] == [True, True, True, False]
    questions = [[7, 9, 11, 8], [30, 31], [12, 40, 41], [9]]
    wanted = [
        alone(model, layout.windows, one if one.is_ragged else spread(one), ids, 5)
        for one, ids in zip(prefixes, questions)
    ]
    kvs, logits = prefill(model, layout, [Prompt(ids, (), kv) for ids, kv in zip(questions, prefixes)])
    batch: Batch[int] = Batch(model, layout)
    rows = list(range(4))
    batch.join(rows, kvs)
    tokens = {row: [] for row in rows}
    worst = 0.0
    for step in range(5):
        for row, own in zip(rows, logits):
            worst = max(worst, float((own - wanted[row][1][step]).abs().max()))
            tokens[row].append(wanted[row][0][step])
        if step == 2:  # one leaves
            rows = [0, 1, 3]
            batch.keep(rows)
        if step < 4:
            logits = batch.step([tokens[row][-1] for row in rows])
    assert worst < 1e-4  # measured: at most 2.8e-5 on logits up to 5.6
    assert prefixes[0].columns == kept[0].columns  # what is kept stays as it was


def spread(kv: KVPrefix) -> KVPrefix:
    """The same prefix with a list of positions per layer."""
    return KVPrefix(kv.cache, kv.positions * len(kv.cache.layers), kv.num_tokens)


def test_padding_of_a_layer_is_masked_in_that_layer():
    """A shorter layer is not filled with zeros that everybody may look at."""
    model, processor = backbone_model("llama"), tiny_processor()
    clips = encode_clips(model, processor, VIDEOS)
    engine = Engine(model, processor, keep_prefixes=True)
    finished(engine, [ask_for(processor, "What?", one, max_new_tokens=1) for one in clips])
    kept = [next(iter(one.kv_prefixes.values())) for one in clips]
    stacked = KVPrefix.stack([dropped(kept[0], 0), dropped(kept[1], 1)])
    lengths = [[int((positions[row] != PADDING).sum()) for positions in stacked.positions] for row in range(2)]
    assert lengths == [[kept[row].columns - 40 * i - 7 * row for i in range(4)] for row in range(2)]
    assert stacked.columns == max(map(max, lengths))
    assert stacked.num_tokens == [kv.num_tokens[0] for kv in kept]
    again = stacked.rows()
    assert [row.columns for row in again] == [max(row) for row in lengths]
    for row, own in enumerate(again):
        for layer, positions, length in zip(own.cache.layers, own.positions, lengths[row]):
            assert layer.keys.shape[2] == positions.shape[1] == length
            assert (positions != PADDING).all()
    assert min(map(min, lengths)) > WINDOW


def test_masks_of_layers_need_an_attention_that_takes_them():
    model = backbone_model("llama")
    model.config.text_config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="sdpa or eager, and the model uses flash_attention_2"):
        layer_masks(model.get_decoder(), [None] * 4, [torch.zeros(1, 3)] * 4, torch.zeros(1, 1))
