"""Protects ELVA as a model: decoding after a merged prefill equals a full recompute, batched and by every way in;
training goes through merging; folders load by the Auto classes."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from tiny import tiny_model, tiny_processor
from tiny_elva import batch, elva, frames, greedy_by_recompute, model_inputs
from videopanda.inference.answer import ask
from videopanda.models.elva import ElvaConfig, ElvaForConditionalGeneration
from videopanda.models.layer_cache import MergedCache
from videopanda.models.merge_schedule import MergeSchedule

FAMILIES = ["llama", "qwen2", "qwen3", "phi3"]
QUESTIONS = ["What colour is the circle?", "How many?", "Which way does it go, and when?"]


@pytest.mark.parametrize("merge", [{"layers": [1, 2]}, {"layers": [0, 3], "mode": "threshold", "threshold": 0.2}])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_decoding_after_a_merged_prefill_equals_full_recompute(family, merge):
    model, processor = elva(family, merge)
    inputs = model_inputs(batch(processor, [frames(1), frames(2, 3), frames(3, 7, 16, 16)], QUESTIONS))
    assert int((inputs["attention_mask"] == 0).sum()) > 0  # rows of different lengths, padded on the left
    expected = greedy_by_recompute(model, inputs, 6)
    made = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert torch.equal(made[:, inputs["input_ids"].shape[1] :], expected)
    output = model(**inputs, use_cache=True, position_ids=(inputs["attention_mask"].cumsum(1) - 1).clamp(min=0))
    lengths = {layer.keys.shape[2] for layer in output[model.cache_name].layers}
    assert isinstance(output[model.cache_name], MergedCache)
    assert len(lengths) == 3 or merge["layers"][0] == 0  # layers really differ


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_of_a_step_equal_those_of_a_recompute(family):
    model, processor = elva(family)
    inputs = model_inputs(batch(processor, [frames(1), frames(2, 3)], QUESTIONS[:2]))
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    whole = model(**inputs, position_ids=positions, use_cache=False).logits
    cut = ids.shape[1] - 3  # the last three tokens are text
    first = {**inputs, "input_ids": ids[:, :cut], "attention_mask": mask[:, :cut]}
    cache = model(**first, position_ids=positions[:, :cut], use_cache=True)[model.cache_name]
    for n in range(cut, ids.shape[1]):
        step = model(
            input_ids=ids[:, n : n + 1],
            attention_mask=mask[:, : n + 1],
            position_ids=positions[:, n : n + 1],
            cache=cache,
            use_cache=True,
        )
        torch.testing.assert_close(step.logits[:, 0], whole[:, n], atol=1e-4, rtol=0)  # measured: 4e-6


@torch.no_grad()
def test_merging_that_never_happens_changes_no_bit():
    plain, processor = elva(merge={"layers": []})
    never, _ = elva(merge={"layers": [1, 2], "mode": "threshold", "threshold": 1.01})
    inputs = model_inputs(batch(processor, [frames(1), frames(2, 3)], QUESTIONS[:2]))
    assert torch.equal(plain(**inputs).logits, never(**inputs).logits)


@torch.no_grad()
def test_beams_follow_their_rows():
    model, processor = elva()
    inputs = model_inputs(batch(processor, [frames(1), frames(2, 3)], QUESTIONS[:2]))
    together = model.generate(**inputs, max_new_tokens=5, num_beams=3, do_sample=False)
    for row, clip in enumerate((frames(1), frames(2, 3))):
        alone = model_inputs(batch(processor, [clip], [QUESTIONS[row]]))
        single = model.generate(**alone, max_new_tokens=5, num_beams=3, do_sample=False)
        new = single[0, alone["input_ids"].shape[1] :]
        assert torch.equal(together[row, inputs["input_ids"].shape[1] :][: len(new)], new)


class Clip:
    """What `ask` takes for a decoded video."""

    def __init__(self, pixels: np.ndarray):
        self.frames, self.timestamps, self.duration = pixels, np.arange(len(pixels)) / 4, len(pixels) / 4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_gives_the_words_of_generate(family):
    model, processor = elva(family)
    clip = Clip(frames(1, 6))
    answers = ask(model, processor, clip, QUESTIONS, max_new_tokens=8)
    for question, answer in zip(QUESTIONS, answers):
        messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]
        text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        inputs = model_inputs(processor(text=text, videos=clip, add_special_tokens=False))
        made = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        expected = processor.tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answer.answer == expected.strip()


def test_a_loss_goes_through_merging():
    model, processor = elva(merge={"layers": [1, 2], "random_keep": 0.5})
    inputs = model_inputs(batch(processor, [frames(1), frames(2, 3)], QUESTIONS[:2]))
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    model.train()
    loss = model(**inputs, labels=labels).loss
    loss.backward()
    assert torch.isfinite(loss)
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == []


def test_a_folder_loads_by_the_auto_classes(tmp_path):
    model, processor = elva(hybrid_config={"every": 3})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).merge_config.layers == [1, 2]
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    read = AutoProcessor.from_pretrained(tmp_path)
    assert read.video_processor.hybrid_every == 3
    assert not [name for name in again.state_dict() if "guidance" in name or "teacher" in name]
    inputs = model_inputs(batch(read, [frames(1)], QUESTIONS[:1]))
    torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_video_panda_merges_without_training():
    model, processor = tiny_model("paper"), tiny_processor("paper")
    metadata = {"duration": 2.0, "fps": 4.0, "total_num_frames": 8}
    inputs = processor(text="<video>\nWhat is it?", videos=frames(4, 8), video_metadata=metadata)
    inputs = model_inputs(inputs)
    plain = model(**inputs).logits
    model.model.merge_schedule = MergeSchedule((1,), 0.5)
    merged = model(**inputs, use_cache=True)
    lengths = [layer.keys.shape[2] for layer in merged[model.cache_name].layers]
    assert lengths[1] < lengths[0]
    assert merged.logits.shape == plain.shape
    made = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    expected = greedy_by_recompute(model, inputs, 4)
    assert torch.equal(made[:, inputs["input_ids"].shape[1] :], expected)


def test_a_model_with_states_is_refused():
    text = {"model_type": "lfm2", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]}  # fmt: skip
    config = ElvaConfig(text_config=text, embedding_config={"hidden_size": 32, "patch_size": 4, "num_heads": 4},
                        merge_config={"layers": [1]}, video_token_id=3, image_token_id=4)  # fmt: skip
    with pytest.raises(ValueError, match="lfm2 has conv"):
        ElvaForConditionalGeneration(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"merge_config": {"layers": [9]}}, r"in \[0, 3\]"),
        ({"merge_config": {"layers": [1], "keep": 0.0}}, "keep must be in"),
        ({"hybrid_config": {"every": -1}}, "every. must be an integer of at least 0"),
        ({"embedding_config": {"num_heads": 7}}, "not a multiple of num_heads"),
        ({"max_frame_cells": 0}, "must be a positive integer"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(fields, message):
    text = {"model_type": "qwen2", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 32,
            "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    with pytest.raises(ValueError, match=message):
        ElvaForConditionalGeneration(ElvaConfig(text_config=text, video_token_id=3, image_token_id=4, **fields))
