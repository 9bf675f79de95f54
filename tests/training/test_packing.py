"""Protects what a language model sees in training: for every family a packed conversation is what it is alone, a batch
is its single rows, cached is uncached, and training computes the logits that `generate` does.

Members are tiny and random; their windows (16) are far shorter than the rows (about 130 tokens).
"""

import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from language_models import where_known
from tiny import clip, randomize, tiny_config, tiny_processor
from videopanda.data.collate import IGNORE, Collator, filled
from videopanda.data.row_masks import ALL_LAYERS
from videopanda.data.sample import Sample
from videopanda.models.videopanda import VideoPandaConfig, VideoPandaForConditionalGeneration
from videopanda.training.packing import (
    attends_by_clip,
    attention_windows,
    checked_windows,
    for_backbone,
    packing_report,
    set_rows,
)
from videopanda.training.stages import CUSTOM

WINDOW = 16
BY_TYPE = {"full_attention": None, "sliding_attention": WINDOW}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW, "head_dim": 16}
# model type, fields, windows that packed rows are masked with (None: one conversation per row)
FAMILIES = {
    "llama": ({}, {ALL_LAYERS: None}),
    "qwen2": ({}, {"full_attention": None}),
    "qwen3": ({"head_dim": 12}, {"full_attention": None}),
    "smollm3": ({"pad_token_id": 0, "no_rope_layers": [1, 0]}, {"full_attention": None}),
    "mistral": ({"sliding_window": WINDOW}, {ALL_LAYERS: WINDOW}),
    "phi3": ({"sliding_window": WINDOW, "pad_token_id": 0}, {ALL_LAYERS: WINDOW}),
    "gemma3_text": ({**SLIDING, "query_pre_attn_scalar": 16}, BY_TYPE),
    "gemma4_text": ({**SLIDING, "global_head_dim": 32, "num_global_key_value_heads": 2, "num_kv_shared_layers": 0,
                     "hidden_size_per_layer_input": 0, "final_logit_softcapping": None}, BY_TYPE),
    "qwen3_5_text": ({"layer_types": ["linear_attention", "full_attention"], "head_dim": 16, "linear_num_key_heads": 2,
                      "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16}, None),
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, None),
    "lfm3": ({"layer_types": ["conv", "full_attention"], "head_dim": 16}, None),
}  # fmt: skip
CLIP = clip(3, 30, 40, seed=1)
CONVERSATIONS = (
    (("What colour is the circle?", "The circle is red."),),
    (("What shape?", "round"), ("And where?", "left of the square")),
    (("How many?", "2"),),
)
SAMPLE = Sample("clip", (CLIP,), CONVERSATIONS)
OTHER = Sample("other", (clip(5, 48, 24, seed=2),), ((("How many circles?", "none at all"),),))
# Float32. Worst measured: 8.7e-5 in logits of up to 5.9 (Qwen3.5 with cache; 9.3e-6 for all others), 1.6e-5 relative.
LOGITS, GRADIENTS = 3e-4, 1e-4


@pytest.fixture(scope="module", params=[where_known(kind, kind) for kind in FAMILIES])
def family(request):
    """Name, model in evaluation mode, processor and the windows that belong to it."""
    fields, windows = FAMILIES[request.param]
    config = tiny_config("paper")
    text = {**config.text_config.to_dict(), **fields, "model_type": request.param}
    if "head_dim" not in fields:
        text.pop("head_dim", None)
    for name in ("rope_parameters", "rope_scaling", "architectures"):
        text.pop(name, None)
    torch.manual_seed(0)
    model = VideoPandaForConditionalGeneration(VideoPandaConfig(**{**config.to_dict(), "text_config": text}))
    randomize(model.model.stab, 0)
    randomize(model.model.projector, 1)
    return request.param, model.eval(), tiny_processor("paper"), windows


def logits(model, batch) -> torch.Tensor:
    """Logits of every token, (B, N, W)."""
    with torch.no_grad():
        return model(**{name: value for name, value in batch.items() if name != "labels"}).logits


def alone(processor, sample: Sample, k: int) -> dict:
    """Conversation k as an ordinary row, as `generate` would get it: no padding, no packing, no mask."""
    one = Sample("alone", sample.videos, sample.conversations[k : k + 1], images=sample.images)
    batch = Collator(processor, 4096)([one])
    del batch["attention_mask"], batch["position_ids"]
    return batch


def row_of(processor, windows, sample: Sample, k: int) -> tuple[int, list[int]]:
    """Which row of `sample`'s own, and which places of it, hold the tokens of conversation k."""
    single = alone(processor, sample, k)["input_ids"]
    if windows is None:
        return k, list(range(single.shape[1]))
    packed = Collator(processor, 4096).pack(sample, ["<video>" * int((single == processor.video_token_id).sum())])
    return 0, [i for i, segment in enumerate(packed.segments) if segment in (0, k + 1)]


def test_the_model_decides_what_a_row_may_hold(family):
    name, model, processor, windows = family
    assert attention_windows(model.config) == windows
    assert checked_windows(model) == windows
    expected = f"one conversation each: {name} cannot keep several apart in one row"
    if windows is not None:
        window = f", attention window {WINDOW}" if any(windows.values()) else ""
        expected = f"conversations about one clip share a row{window}"
    collator = Collator(processor, 4096)
    set_rows(collator, model)
    assert collator.windows == windows
    assert packing_report(model.config, collator) == f"rows            {expected}"


def test_packed_is_alone(family):
    """Logits of every token, and the gradients of the mean loss over all answers of a batch."""
    _, model, processor, windows = family
    batch = Collator(processor, 4096, windows=windows)([OTHER, SAMPLE])
    assert len(batch["input_ids"]) == (4 if windows is None else 2)
    places = {("other", 0): row_of(processor, windows, OTHER, 0)}
    for k in range(3):
        number, columns = row_of(processor, windows, SAMPLE, k)
        places["clip", k] = (1 + number, columns)
    compare(model, processor, batch, [OTHER, SAMPLE], places)


def compare(model, processor, batch, samples, places) -> None:
    """Each conversation in a batch, at its row and columns, against itself alone: logits, and gradients of the loss."""
    together = logits(model, batch)
    singles = [(sample, k) for sample in samples for k in range(len(sample.conversations))]
    for sample, k in singles:
        single = alone(processor, sample, k)
        number, columns = places[sample.id, k]
        assert batch["input_ids"][number, columns].tolist() == single["input_ids"][0].tolist()
        torch.testing.assert_close(together[number, columns], logits(model, single)[0], rtol=0, atol=LOGITS)
    model.model.language_model.train()
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    count, total = 0, 0.0
    for sample, k in singles:
        count += (alone(processor, sample, k)["labels"][:, 1:] != IGNORE).sum()
    for sample, k in singles:
        one = model(**alone(processor, sample, k), num_items_in_batch=count).loss
        one.backward()
        total += one.item()
    model.model.language_model.eval()
    assert loss.item() == pytest.approx(total, abs=3e-6)  # of about 7; measured worst: 6.2e-7
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            error = (found[name] - parameter.grad).abs().max() / parameter.grad.abs().max().clamp(min=1e-3)
            assert error <= GRADIENTS, name


# Clips of several lengths with one question and with several, a chat of text, and an image.
MIXED = [
    OTHER,
    SAMPLE,
    Sample("text", (), ((("Who are you?", "A model."), ("Really?", "Yes")),)),
    Sample("image", (), ((("What is this?", "a square"),), (("How many?", "one"),)), images=(CLIP[0],)),
    Sample("long", (clip(9, 40, 30, seed=3),), ((("How long?", "nine frames"), ("And now?", "still nine")),)),
]
ROOM = 640  # tokens of a row: MIXED needs three


@pytest.mark.parametrize("way", ["one mask", "by clip"])
def test_several_clips_in_one_row_are_as_alone(family, way):
    name, model, processor, windows = family
    collator = Collator(processor, ROOM, fill_rows=True)
    if windows is None:
        with pytest.raises(ValueError, match=f"{name} cannot keep several clips apart in one row: --set pack_rows=fal"):
            set_rows(collator, model)
        return
    set_rows(collator, model)
    assert collator.by_clip
    collator.by_clip = way == "by clip"
    batch = collator(MIXED)
    packed = [collator.pack(s, expansions(processor, s)) for s in MIXED]
    rows = [packed] if collator.by_clip else filled(packed, ROOM)
    assert len(batch["input_ids"]) == len(rows) == (1 if collator.by_clip else 3)
    if collator.by_clip:
        assert batch["input_ids"].shape[1] == sum(map(len, packed))  # no padding
    places, samples = {}, iter(MIXED)
    for number, row in enumerate(rows):
        start = 0
        for part in row:
            sample = next(samples)
            for k in range(len(sample.conversations)):
                columns = [start + i for i, segment in enumerate(part.segments) if segment in (0, k + 1)]
                places[sample.id, k] = (number, columns)
            start += len(part)
    try:
        compare(model, processor, batch, MIXED, places)
    finally:
        model.get_decoder().set_attn_implementation("sdpa")


def expansions(processor, sample: Sample) -> list[str]:
    """What the collator puts at the markers of a sample."""
    single = Collator(processor, 4096)([Sample("x", sample.videos, sample.conversations[:1], images=sample.images)])
    count = {kind: int((single["input_ids"] == getattr(processor, f"{kind}_token_id")).sum()) for kind in KINDS}
    return [f"<{kind}>" * count[kind] for kind in KINDS if count[kind]]


KINDS = ("video", "image")


def test_no_conversation_sees_another(family):
    _, model, processor, windows = family
    batch = Collator(processor, 4096, windows=windows)([SAMPLE])
    row = batch["input_ids"].clone()
    number, places = row_of(processor, windows, SAMPLE, 0)
    row[number, places[-12:-6]] = 20
    before, after = logits(model, batch), logits(model, {**batch, "input_ids": row})
    for k in range(3):
        number, places = row_of(processor, windows, SAMPLE, k)
        error = (before[number, places] - after[number, places]).abs().max()
        assert error > 0.01 if k == 0 else error <= LOGITS


def test_a_window_is_narrower_than_the_row(family):
    """The comparisons above would hold for any window if it changed nothing."""
    _, model, processor, windows = family
    if windows is None or not any(windows.values()):
        pytest.skip("no window")
    wide = dict.fromkeys(windows)
    found, wrong = (logits(model, Collator(processor, 4096, windows=w)([SAMPLE])) for w in (windows, wide))
    assert (found - wrong).abs().max() > 0.01


def language_model(kind: str, **fields):
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=100, **sizes, **fields)).eval()


@pytest.mark.parametrize(
    ("kind", "fields", "by_config", "on_the_model", "by_clip"),
    [
        ("gpt2", {"n_embd": 48, "n_head": 4, "n_layer": 2}, {ALL_LAYERS: None}, {ALL_LAYERS: None}, True),
        ("bloom", {"n_layer": 2, "n_head": 4}, {ALL_LAYERS: None}, None, False),  # positions from the mask (ALiBi)
        ("gemma2", {**SLIDING, "num_key_value_heads": 2, "attn_implementation": "eager"}, BY_TYPE, BY_TYPE, False),
        ("mamba", {"state_size": 8}, None, None, False),
    ],
)
def test_other_language_models_are_tried(kind, fields, by_config, on_the_model, by_clip):
    model = language_model(kind, **fields)
    assert attention_windows(model.config) == by_config
    assert checked_windows(model) == on_the_model
    assert (on_the_model is not None and attends_by_clip(model, on_the_model)) is by_clip


@pytest.mark.parametrize(("kind", "context"), [("gpt2", 1024), ("bloom", sys.maxsize), ("mamba", sys.maxsize)])
def test_rows_end_where_the_positions_of_a_model_do(kind, context):
    collator = Collator(tiny_processor("paper"), 1 << 20)
    set_rows(collator, language_model(kind))
    assert collator.context == context


def test_a_model_that_sees_the_future_is_refused():
    with pytest.raises(ValueError, match="bert cannot be trained: a padded row does not give what the same tokens"):
        checked_windows(language_model("bert"))


@pytest.mark.parametrize(("kind", "grouped"), [("lfm2", False), ("llama", True)])
def test_clips_are_grouped_only_where_rows_may_be_shared(tmp_path, caplog, kind, grouped):
    AutoConfig.for_model(kind, num_hidden_layers=2, **FAMILIES[kind][0]).save_pretrained(tmp_path)
    with caplog.at_level("INFO"):
        assert for_backbone(CUSTOM["finetune"], tmp_path).group_by_clip is grouped
    assert ("group_by_clip is off: this language model needs one conversation per row" in caplog.text) is not grouped
    assert for_backbone(CUSTOM["finetune"], None).group_by_clip


def test_training_computes_the_logits_of_generate(family):
    """`generate` is made to say the answers; the logits it had at each of them are those of the packed row."""
    _, model, processor, windows = family
    batch = Collator(processor, 4096, windows=windows)([SAMPLE])
    model.model.language_model.train()
    trained = logits(model, batch)
    model.model.language_model.eval()
    for k, use_cache in ((0, True), (2, True), (2, False)):
        single = alone(processor, SAMPLE, k)
        start = int((single.pop("labels")[0] != IGNORE).nonzero()[0])
        ids = single.pop("input_ids")
        said = generated(model, {**single, "input_ids": ids[:, :start]}, ids, use_cache)
        number, places = row_of(processor, windows, SAMPLE, k)
        torch.testing.assert_close(trained[number, places][start - 1 : -1], said[0], rtol=0, atol=LOGITS)


def test_a_batch_is_its_single_rows(family):
    """Greedy generation with left padding, with and without cache."""
    _, model, processor, _ = family
    singles = [alone(processor, OTHER, 0), alone(processor, SAMPLE, 0)]
    rows = [single["input_ids"][:, :-4] for single in singles]
    pixels = [single["pixel_values_videos"] for single in singles]
    longest, frames = max(row.shape[1] for row in rows), max(len(p[0]) for p in pixels)
    pad = torch.nn.functional.pad
    batch = {
        "input_ids": torch.cat([pad(row, (longest - row.shape[1], 0)) for row in rows]),
        "attention_mask": torch.cat([pad(torch.ones_like(row), (longest - row.shape[1], 0)) for row in rows]),
        "pixel_values_videos": torch.cat([pad(p, (0, 0) * 3 + (0, frames - len(p[0]))) for p in pixels]),
        "video_placement": torch.cat([single["video_placement"] for single in singles]),
    }
    forced = torch.full((2, longest + 6), 20)
    together = {use_cache: generated(model, batch, forced, use_cache) for use_cache in (True, False)}
    torch.testing.assert_close(together[True], together[False], rtol=0, atol=LOGITS)
    for i, (single, row) in enumerate(zip(singles, rows, strict=True)):
        visual = {name: single[name] for name in ("pixel_values_videos", "video_placement")}
        found = generated(model, {**visual, "input_ids": row}, forced[:1, : row.shape[1] + 6], True)
        torch.testing.assert_close(together[True][i], found[0], rtol=0, atol=LOGITS)


def generated(model, inputs, forced: torch.Tensor, use_cache: bool) -> torch.Tensor:
    """Raw logits (B, steps, W) of `generate`, which says the tokens of `forced` (B, N) after its prompt."""
    start, stop = inputs["input_ids"].shape[1], forced.shape[1]
    out = model.generate(
        **inputs,
        max_new_tokens=stop - start,
        do_sample=False,
        use_cache=use_cache,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
        prefix_allowed_tokens_fn=lambda row, ids: [int(forced[row, len(ids)])],
    )
    assert out.sequences[:, start:].tolist() == forced[:, start:].tolist()
    return torch.stack(out.logits, 1)
