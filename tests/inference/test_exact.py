"""Protects exactness: one sequence alone, in a batch, and after a shared or kept prefix gets the tokens of `generate`.

For every kind of backbone, with windows shorter than the row, states, and layers without positions.
"""

import pytest
import torch
from backbones import BACKBONES, WINDOW, backbone_model
from engine_helpers import ask_for, by_transformers, finished

from tiny import clip, tiny_processor
from videopanda.data.worlds.scenes.dataset import Clip
from videopanda.inference import batch
from videopanda.inference.clip import encode_clips
from videopanda.inference.engine import Engine, Limits
from videopanda.inference.kv_prefix import CacheLayout
from videopanda.models.configuration import context_length

QUESTIONS = ["What colour is the circle?", "How many?", "Which way does the red circle move after it was green?"]
LENGTHS = [8, 2, 5]
VIDEOS = [
    Clip(clip(8, 30, 40, 0), tuple(range(8)), 8.0),
    Clip(clip(12, 40, 20, 1), tuple(range(12)), 12.0),
]


@pytest.mark.parametrize("name", BACKBONES)
def test_every_way_gives_the_tokens_of_generate(name, monkeypatch):
    model, processor = backbone_model(name), tiny_processor()
    clips = encode_clips(model, processor, VIDEOS)
    cases = [(text, [place]) for place in range(2) for text in QUESTIONS] + [("Why?", []), (QUESTIONS[2], [0, 1])]
    lengths = [LENGTHS[number % 3] for number in range(len(cases))]
    requests = [
        ask_for(processor, text, *(clips[place] for place in places), max_new_tokens=length)
        for (text, places), length in zip(cases, lengths)
    ]
    wanted = [
        by_transformers(model, processor, text, *(VIDEOS[place] for place in places), max_new_tokens=length)
        for (text, places), length in zip(cases, lengths)
    ]
    assert len(requests[0].prompt_ids) > 10 * WINDOW
    assert len(set(wanted)) > len(LENGTHS)  # the model looks at what it is shown

    def ids(engine):
        return [one.token_ids for one in finished(engine, requests)]

    alone = [finished(Engine(model, processor), [request])[0] for request in requests]
    assert [one.token_ids for one in alone] == wanted
    assert all(one.stats.cached_tokens == 0 for one in alone)
    assert ids(Engine(model, processor)) == wanted
    assert ids(Engine(model, processor, Limits(max_num_seqs=3))) == wanted  # rows join and leave
    keeping = Engine(model, processor, keep_prefixes=True)
    first = [finished(keeping, [request])[0] for request in requests]
    assert [one.token_ids for one in first] == wanted
    again = finished(keeping, requests)
    assert [one.token_ids for one in again] == wanted
    assert all(bool(one.stats.cached_tokens) == bool(request.clips) for one, request in zip(again, requests))
    monkeypatch.setattr(batch, "PASS_TOKENS", 100)  # a long prompt in passes
    assert ids(Engine(model, processor)) == wanted


def test_what_is_not_exact_is_refused_by_name():
    config = backbone_model("gemma3_text").config.text_config
    config.layer_types = ["chunked_attention", *config.layer_types[1:]]
    with pytest.raises(ValueError, match="gemma3_text: layers of type chunked_attention"):
        CacheLayout.of(config)


def test_rotary_positions_that_depend_on_the_batch_bound_the_context():
    config = backbone_model("phi3").config.text_config
    assert context_length(config) == config.max_position_embeddings
    config.rope_parameters = {"rope_type": "longrope", "original_max_position_embeddings": 512}
    assert context_length(config) == 512


def test_a_kept_prefix_is_not_changed_by_those_who_continue_it():
    model, processor = backbone_model("lfm2"), tiny_processor()
    (one,) = encode_clips(model, processor, VIDEOS[:1])
    engine = Engine(model, processor, keep_prefixes=True)
    finished(engine, [ask_for(processor, "What?", one, max_new_tokens=5)])
    (kept,) = one.kv_prefixes.values()
    before = [tensor.clone() for layer in kept.cache.layers for tensor in _tensors(layer)]
    finished(engine, [ask_for(processor, text, one, max_new_tokens=5) for text in QUESTIONS])
    finished(engine, [ask_for(processor, "Why?", one, max_new_tokens=5)])
    after = [tensor for layer in kept.cache.layers for tensor in _tensors(layer)]
    assert len(before) == len(after) == 6
    assert all(torch.equal(x, y) for x, y in zip(before, after))
    assert kept.num_bytes == sum(tensor.nbytes for tensor in after)


def _tensors(layer):
    from videopanda.plan.planner import cache_tensors

    return list(cache_tensors(layer))
