"""What people do with a model of transformers: later turns on a kept cache, embeddings, assistants, batches, export."""

from copy import deepcopy

import pytest
import torch
from transformers import AutoModelForCausalLM, pipeline

from tiny import clip, tiny_config, tiny_model, tiny_processor
from videopanda.models.generation import CACHE_NAME
from videopanda.models.videopanda import VideoPandaVision
from videopanda.models.visual import VISUAL_INPUTS

GREEDY = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(scope="module")
def pair():
    return tiny_model(), tiny_processor()


@pytest.fixture(scope="module")
def second_turn(pair):
    """Cache of a first turn, ids of both turns, inputs of the second clip and of both, and the right reply."""
    model, processor = pair
    clips = [clip(8, seed=1), clip(3, 20, 40, seed=2)]
    first = processor(text="<video>What?", videos=clips[:1])
    said = model.generate(**first, return_dict_in_generate=True, **GREEDY)
    more = processor(text="<video>And?", videos=clips[1:])
    ids = torch.cat([said.sequences, more["input_ids"]], dim=1)
    prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    new = {name: more[name] for name in ("pixel_values_videos", "video_placement")}
    both = processor.video_processor(clips, return_tensors="pt")
    expected = model.generate(**prompt, **both, **GREEDY)
    blind = {**both, "pixel_values_videos": torch.zeros_like(both["pixel_values_videos"])}
    assert not torch.equal(model.generate(**prompt, **blind, **GREEDY), expected)
    return said[CACHE_NAME], prompt, new, dict(both), expected


@pytest.mark.parametrize("given", ["new", "both"])
def test_a_new_video_in_a_later_turn_is_read(pair, second_turn, given):
    """With the clip of the new turn alone, or with all clips: what the cache holds is not spliced again."""
    cache, prompt, new, both, expected = second_turn
    visuals = new if given == "new" else both
    assert torch.equal(pair[0].generate(**prompt, **visuals, **{CACHE_NAME: deepcopy(cache)}, **GREEDY), expected)


def test_a_video_that_does_not_fit_a_later_turn_is_refused(pair, second_turn):
    cache, prompt, new, _, _ = second_turn
    with pytest.raises(ValueError, match=r"281 of them after the cached part, but the videos give 0"):
        pair[0].generate(**prompt, **{CACHE_NAME: deepcopy(cache)}, **GREEDY)
    three = {name: torch.cat([value] * 3) for name, value in new.items()}
    with pytest.raises(ValueError, match=r"pass the videos of the new text only, or those of the whole text"):
        pair[0].generate(**prompt, **three, **{CACHE_NAME: deepcopy(cache)}, **GREEDY)


def test_placeholders_after_a_cache_are_not_left_unfilled(pair, second_turn):
    """Also where `forward` is called without `generate`."""
    cache, prompt, _, _, _ = second_turn
    rest = prompt["input_ids"][:, cache.get_seq_length() :]
    with pytest.raises(ValueError, match=r"281 <video> tokens but the videos give 0"):
        pair[0](rest, attention_mask=prompt["attention_mask"], **{CACHE_NAME: deepcopy(cache)})


def test_generation_from_embeddings(pair):
    model, processor = pair
    inputs = processor(text="<video>What?", videos=[clip(8)])
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    embeds[inputs["input_ids"] == processor.video_token_id] = model.encode(inputs)[0].tokens.detach()
    reply = model.generate(inputs_embeds=embeds, attention_mask=inputs["attention_mask"], **GREEDY)
    assert torch.equal(reply, model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :])


def test_assistants(pair):
    """A model of the same sizes assists and changes nothing; any other is refused, with what to do."""
    model, processor = pair
    inputs = processor(text="<video>What?", videos=[clip(8)])
    expected = model.generate(**inputs, **GREEDY)
    assert torch.equal(model.generate(**inputs, assistant_model=tiny_model(seed=3), **GREEDY), expected)
    assert torch.equal(model.generate(**inputs, prompt_lookup_num_tokens=3, **GREEDY), expected)
    text_only = AutoModelForCausalLM.from_config(tiny_config().text_config)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM cannot assist: .*prompt_lookup_num_tokens=4"):
        model.generate(**inputs, assistant_model=text_only, **GREEDY)


def test_a_batched_pipeline_answers_as_single_questions(pair):
    """The pipeline pads by the tokenizer's own side."""
    model, processor = pair
    answerer = pipeline("image-text-to-text", model=model, processor=processor)
    questions = [("What?", clip(8, seed=1)), ("Which of them moves up there, and how fast?", clip(3, seed=2))]
    messages = [
        [{"role": "user", "content": [{"type": "video", "video": video}, {"type": "text", "text": text}]}]
        for text, video in questions
    ]
    single = [answerer(text=message, return_full_text=False, max_new_tokens=6)[0] for message in messages]
    batch = answerer(text=messages, return_full_text=False, max_new_tokens=6, batch_size=2)
    assert [row[0]["generated_text"] for row in batch] == [row["generated_text"] for row in single]
    assert len({row["generated_text"] for row in single}) == 2


@pytest.mark.parametrize("kind", ["video", "image"])
def test_the_vision_part_can_be_exported(pair, kind):
    model, processor = pair
    pictures = [clip(8), clip(3, 20, 40)] if kind == "video" else [clip(1)[0], clip(1, 40, 20)[0]]
    inputs = processor(text=f"<{kind}><{kind}>", **{f"{kind}s": pictures})
    pixels, placement = (inputs[name] for name in VISUAL_INPUTS[kind])
    pixels = pixels if kind == "video" else pixels.unsqueeze(1)
    vision = VideoPandaVision(model, placement, pixels.shape, is_image=kind == "image")
    with torch.no_grad():
        exported = torch.export.export(vision, (pixels,)).module()
        expected = torch.cat([visual.tokens for visual in model.encode(inputs, kind)])
        torch.testing.assert_close(exported(pixels), expected, rtol=0, atol=1e-6)  # measured worst: 0
