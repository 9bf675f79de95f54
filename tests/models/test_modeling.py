"""The whole model: splice, loss, generation in batches and with cache, saving, gradients, other language models."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForImageTextToText, DynamicCache

import videopanda  # noqa: F401 - makes the Auto classes know our classes
from tiny import TEXT, clip, realign, tiny_config, tiny_model, tiny_processor
from videopanda.models.videopanda import VideoPandaConfig, VideoPandaForConditionalGeneration, VideoPandaStabConfig
from videopanda.models.visual import CELL, CONTEXT, PADDING, ROW_END

PRESETS = ["released", "paper", "eve_star"]


def ask(text: str, *parts) -> list[dict]:
    content = [
        {"type": "video" if part.ndim == 4 else "image", "video" if part.ndim == 4 else "image": part} for part in parts
    ]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


CONVERSATIONS = [
    ask("What colour is it?", clip(8, seed=1)),
    ask("And here?", clip(3, 60, 20, seed=2), clip(1, 20, 20, seed=3)[0]),
    ask("Hi"),
    ask("Which one?", clip(5, 10, 40, seed=4), clip(8, 48, 48, seed=5), clip(1, seed=6)[0], clip(1, 50, 20, seed=7)[0]),
    [
        *ask("First?", clip(8, seed=8)),
        {"role": "assistant", "content": "red"},
        *ask("Second?", clip(2, 30, 30, seed=9)),
    ],
]


def batch(processor, conversations, **kwargs):
    return processor.apply_chat_template(
        conversations, add_generation_prompt=True, tokenize=True, return_dict=True, processor_kwargs=kwargs
    )


def example(model, processor, frames=8):
    """Return inputs with labels on the last ten tokens."""
    inputs = batch(processor, [ask("What colour is it?", clip(frames, seed=n)) for n in (1, 2)])
    labels = inputs["input_ids"].clone()
    labels[:, :-10] = -100
    return inputs, labels


@pytest.mark.parametrize("preset", PRESETS)
def test_greedy_answers_do_not_depend_on_batch_or_cache(preset):
    model, processor = tiny_model(preset), tiny_processor(preset)
    settings = {"max_new_tokens": 8, "do_sample": False}
    alone = [model.generate(**batch(processor, [one]), **settings)[0, -8:] for one in CONVERSATIONS]
    together = model.generate(**batch(processor, CONVERSATIONS), **settings)[:, -8:]
    without_cache = model.generate(**batch(processor, CONVERSATIONS), **settings, use_cache=False)[:, -8:]
    assert len({tuple(row.tolist()) for row in alone}) > 1
    for one, row in zip(alone, together):
        assert one.tolist() == row.tolist()
    assert without_cache.tolist() == together.tolist()


@pytest.mark.parametrize("preset", ["released", "paper"])
def test_logits_do_not_depend_on_the_batch(preset):
    model, processor = tiny_model(preset), tiny_processor(preset)
    with torch.no_grad():
        together = model(**batch(processor, CONVERSATIONS)).logits[:, -1]
        for row, one in zip(together, CONVERSATIONS):
            alone = model(**batch(processor, [one])).logits[0, -1]
            # measured worst: 1.8e-5 on values up to 5
            torch.testing.assert_close(row, alone, rtol=0, atol=1e-4)


def test_visuals_are_encoded_once(monkeypatch):
    model, processor = tiny_model(), tiny_processor()
    calls = []
    original = model.model.stab.forward
    monkeypatch.setattr(
        model.model.stab, "forward", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs)
    )
    model.generate(**batch(processor, CONVERSATIONS), max_new_tokens=4)
    assert len(calls) == 2  # videos and images


def test_beams_keep_videos_with_their_question():
    model, processor = tiny_model(), tiny_processor()
    settings = {"max_new_tokens": 6, "do_sample": False, "num_beams": 3}
    together = model.generate(**batch(processor, CONVERSATIONS[:2]), **settings)
    for row, one in zip(together, CONVERSATIONS[:2]):
        assert row[-6:].tolist() == model.generate(**batch(processor, [one]), **settings)[0, -6:].tolist()


def test_placeholders_are_never_generated():
    model, processor = tiny_model(), tiny_processor()
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[model.config.video_token_id] = 0  # all equal: greedy would take any
    ids = model.generate(**batch(processor, [CONVERSATIONS[0]]), max_new_tokens=5, do_sample=True)
    assert not {model.config.video_token_id, model.config.image_token_id} & set(ids[0, -5:].tolist())


@pytest.mark.parametrize("tied", [False, True])
def test_saved_model_gives_identical_logits(tmp_path, tied):
    model = tiny_model()
    if tied:
        config = tiny_config()
        config.tie_word_embeddings = True
        model = VideoPandaForConditionalGeneration(config).eval()
        assert model.lm_head.weight is model.get_input_embeddings().weight
    inputs = batch(tiny_processor(), CONVERSATIONS[:2])
    model.save_pretrained(tmp_path)
    loaded = realign(AutoModelForImageTextToText.from_pretrained(tmp_path))
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, loaded(**inputs).logits)
    assert {**loaded.config.stab_config.to_dict(), "dtype": None} == model.config.stab_config.to_dict()
    assert loaded.generation_config.suppress_tokens == model.generation_config.suppress_tokens


@pytest.mark.parametrize("text", TEXT)
def test_language_models(text, tmp_path):
    model, processor = tiny_model(text=text), tiny_processor()
    assert model.model.language_model.config.model_type == text
    inputs = batch(processor, CONVERSATIONS[:2])
    ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert ids.tolist() == model.generate(**inputs, max_new_tokens=5, do_sample=False, use_cache=False).tolist()
    model.save_pretrained(tmp_path)
    loaded = realign(AutoModelForImageTextToText.from_pretrained(tmp_path))
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, loaded(**inputs).logits)


def test_labels_that_hold_placeholders_are_ignored_there():
    """A copy of the input as labels, as many trainers make it: the loss was infinite."""
    model, processor = tiny_model(), tiny_processor()
    inputs, _ = example(model, processor)
    labels = inputs["input_ids"].clone()
    visual = torch.isin(labels, torch.tensor([processor.video_token_id, processor.image_token_id]))
    assert visual.any()
    model.train()
    model.model.stab.eval()
    loss = model(**inputs, labels=labels).loss
    assert loss.isfinite()
    assert torch.equal(loss, model(**inputs, labels=labels.masked_fill(visual, -100)).loss)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_loss_is_the_mean_over_answer_tokens():
    model, processor = tiny_model(), tiny_processor()
    inputs, labels = example(model, processor)
    with torch.no_grad():
        out = model(**inputs, labels=labels)
        logits = out.logits[:, -11:-1].flatten(0, 1).double()
        logits[:, [processor.video_token_id, processor.image_token_id]] = float("-inf")  # inputs, never answers
        expected = F.cross_entropy(logits, labels[:, -10:].flatten())
        # measured: 1.2e-7
        assert out.loss.item() == pytest.approx(expected.item(), abs=1e-5)
        summed = model(**inputs, labels=labels, num_items_in_batch=5)
        assert summed.loss.item() == pytest.approx(expected.item() * 20 / 5, abs=1e-4)
        assert model(**inputs, labels=torch.full_like(labels, -100)).loss.item() == 0.0
        assert model(**inputs, logits_to_keep=1).logits.shape[1] == 1
        model.train()
        assert model(**inputs, labels=labels).logits is None
        assert model(**inputs).logits is not None


ABLATIONS = {
    "full": {},
    "no_row_tokens": {"row_tokens": False},
    "no_fsra": {"fsra": False},
    "no_gstra": {"gstra": False},
    "average": {"downsampling": "average"},
    "perceiver": {"downsampling": "perceiver"},
    "learned_query": {"lsd_query": "learned"},
}


@pytest.mark.parametrize(
    ("preset", "ablation"),
    [("eve_star", "full"), *((preset, name) for preset in ("released", "paper") for name in ABLATIONS)],
)
def test_gradients_reach_every_parameter(preset, ablation):
    model, processor = tiny_model(preset, **ABLATIONS[ablation]).train(), tiny_processor(preset)
    processor.video_processor.row_tokens = model.config.stab_config.row_tokens
    inputs, labels = example(model, processor)
    model(**inputs, labels=labels).loss.backward()
    key_bias = slice(32, 64)  # cancels in the softmax
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if name.endswith("gstra.in_proj.bias"):
            assert not parameter.grad[key_bias].any()
        if name == "model.language_model.embed_tokens.weight":
            continue
        assert parameter.grad.any(), name


def test_fresh_weights():
    model = VideoPandaForConditionalGeneration(tiny_config())
    stab = model.model.stab
    assert not stab.gstra.query.any()
    assert not stab.fusion.balance.any()
    assert not stab.lste.expand.weight.any()
    assert not stab.lste.position.bias.any()
    assert stab.lste.position.weight.any()
    # The official constructor zeroes these, but its loader draws them anew, and so the released training began.
    for linear in (stab.gstra.out_proj, stab.gstra.mlp_up, stab.gstra.mlp_down, stab.fusion.proj):
        assert linear.weight.std().item() == pytest.approx(model.config.initializer_range, rel=0.1)
        assert not linear.bias.any()
    assert stab.fsra.query.std() > 0.5
    assert stab.row_token.std() > 0.5
    assert stab.lste.norm.running_var.eq(1).all()
    assert VideoPandaForConditionalGeneration(tiny_config("paper")).model.stab.fusion.balance.eq(0.5).all()


def test_wrong_inputs_are_refused():
    model, processor = tiny_model(), tiny_processor()
    inputs = dict(batch(processor, [CONVERSATIONS[0]]))
    count = (inputs["input_ids"] == model.config.video_token_id).sum().item()
    short = {**inputs, "input_ids": inputs["input_ids"].clone()}
    short["input_ids"][0, (inputs["input_ids"][0] == model.config.video_token_id).nonzero()[0]] = 5
    with pytest.raises(ValueError, match=rf"{count - 1} <video> tokens.*{count}"):
        model(**short)
    with pytest.raises(ValueError, match=rf"{count} <video> tokens.* 0 "):
        model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    with pytest.raises(ValueError, match="video_placement"):
        model(input_ids=inputs["input_ids"], pixel_values_videos=inputs["pixel_values_videos"])
    with pytest.raises(ValueError, match="six numbers"):
        model(**{**inputs, "video_placement": inputs["video_placement"][:, :4]})
    with pytest.raises(ValueError, match="multiple of 8"):
        model(**{**inputs, "pixel_values_videos": inputs["pixel_values_videos"][..., :-1]})
    with pytest.raises(ValueError, match="either"):
        model(**inputs, inputs_embeds=torch.zeros(1, 3, 48))
    with pytest.raises(ValueError, match="input_ids"):
        model(inputs_embeds=torch.zeros(1, 3, 48), **{k: v for k, v in inputs.items() if "video" in k})


def test_features_and_precomputed_features():
    model, processor = tiny_model(), tiny_processor()
    inputs = batch(processor, [CONVERSATIONS[3]])
    with torch.no_grad():
        videos = model.get_video_features(inputs["pixel_values_videos"], inputs["video_placement"])
        images = model.get_image_features(inputs["pixel_values"], inputs["image_placement"])
    counts = [len(processor.video_processor.token_layout(inputs, i)) for i in range(len(inputs["video_placement"]))]
    assert [len(part) for part in videos.pooler_output] == counts
    with torch.no_grad():
        direct = model(**inputs).logits
        text = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        again = model(**text, mm_encoder_outputs={"video": videos, "image": images}).logits
    assert torch.equal(direct, again)


def test_four_dimensional_mask_is_handed_on():
    model, processor = tiny_model(), tiny_processor()
    inputs = dict(batch(processor, [CONVERSATIONS[0]]))
    n = inputs["input_ids"].shape[1]
    mask = torch.ones(n, n).tril().bool()[None, None]
    with torch.no_grad():
        expected = model(**inputs).logits
        # measured: 0
        torch.testing.assert_close(model(**{**inputs, "attention_mask": mask}).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_goes_by_both_of_its_names(name):
    """transformers renamed the argument in 5.24; what is written for either release runs on both."""
    model, processor = tiny_model(), tiny_processor()
    inputs = dict(batch(processor, [CONVERSATIONS[0]]))
    cache, token = DynamicCache(config=model.config.text_config), torch.tensor([[5]])
    longer = {**inputs, "input_ids": torch.cat([inputs["input_ids"], token], 1)}
    longer["attention_mask"] = torch.ones_like(longer["input_ids"])
    with torch.no_grad():
        output = model(**inputs, use_cache=True, **{name: cache})
        assert output[model.cache_name] is cache
        assert cache.get_seq_length() == inputs["input_ids"].shape[1]
        step = model(input_ids=token, attention_mask=longer["attention_mask"], **{name: cache}).logits[:, -1]
        # measured: 2.4e-7
        torch.testing.assert_close(step, model(**longer).logits[:, -1], rtol=0, atol=1e-5)


def test_bfloat16_stays_close():
    model, processor = tiny_model(), tiny_processor()
    inputs = batch(processor, CONVERSATIONS[:2])
    with torch.no_grad():
        expected = model(**inputs).logits[:, -1]
        half = model.to(torch.bfloat16)(**inputs).logits[:, -1].float()
        assert half.isfinite().all()
        assert F.cosine_similarity(half, expected).min() > 0.97  # measured: 0.9993


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_heads": 3}, "multiple"),
        ({"image_size": 450}, "multiple"),
        ({"segment_frames": 0}, "segment_frames"),
        ({"lste": 1}, "lste"),
        ({"gstra_input": "half"}, "full, downsampled"),
        ({"lsd_query": "none"}, "pooled"),
        ({"attention_scale": "x"}, "width"),
        ({"fusion": "sum"}, "gated"),
        ({"downsampling": "max"}, "perceiver"),
        ({"dropout": 1.0}, "dropout"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps"),
    ],
)
def test_stab_fields_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        VideoPandaStabConfig(**fields)


def test_configuration_is_checked():
    with pytest.raises(ValueError, match="model_type"):
        VideoPandaConfig(text_config={"vocab_size": 10})
    with pytest.raises(ValueError, match="vocabulary of 100"):
        VideoPandaConfig(text_config={"model_type": "llama", "vocab_size": 100})
    with pytest.raises(ValueError, match="different ids"):
        VideoPandaConfig(video_token_id=5, image_token_id=5)


@pytest.mark.parametrize("kind", ["video", "image"])
def test_encoded_visuals_know_where_their_tokens_come_from(kind):
    """`encode` takes the processor's batch; its layout has one row per token, known to the processor beforehand."""
    model, processor = tiny_model(), tiny_processor()
    pictures = [clip(3), clip(8, 40, 20)] if kind == "video" else [clip(1)[0], clip(1, 40, 20)[0]]
    inputs = processor(text=f"<{kind}><{kind}>", **{f"{kind}s": pictures})
    visuals = model.encode(inputs, kind)
    count = processor.video_processor.token_count
    frames = [3, 8] if kind == "video" else [1, 1]
    for i, (visual, size) in enumerate(zip(visuals, ((30, 40), (40, 20)), strict=True)):
        assert len(visual.tokens) == len(visual.layout) == count(frames[i], *size, kind=kind)
        assert torch.equal(visual.layout, processor.video_processor.token_layout(inputs, i, kind))
        assert processor.placeholder_text(inputs, i, kind) == f"<{kind}>" * len(visual.tokens)
    first = visuals[0].layout[visuals[0].layout[:, 0] == 0].tolist()  # 30 × 40 pixels: rows 0 to 4 of 6 columns
    row = [[0, 0, c, CELL] for c in range(6)] + [[0, -1, -1, ROW_END]]
    assert first[:8] == [[0, -1, -1, CONTEXT], *row]
    assert sum(kind_ == CELL for *_, kind_ in first) == 5 * 6
    if kind == "video":  # five frames of padding fill the short clip
        kinds = visuals[0].layout[visuals[0].layout[:, 0] >= 3][:, 3]
        assert set(kinds.tolist()) == {CONTEXT, ROW_END, PADDING}
