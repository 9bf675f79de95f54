"""Protects the variants of ELVA's language model, all off by default: attention in both directions inside a frame,
parameters per modality, pre-buffer layers, other embeddings.

Values and gradients equal slow references; the cache, batches, packed rows and merging change nothing.
"""

from copy import deepcopy

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from tiny import tiny_tokenizer
from tiny_elva import TEMPLATE, batch, elva, frames, greedy_by_recompute, model_inputs
from videopanda.data.collate import Collator
from videopanda.data.row_masks import row_masks
from videopanda.data.sample import Sample
from videopanda.data.worlds.scenes.dataset import Clip
from videopanda.inference.answer import ask
from videopanda.models.elva import ElvaConfig, ElvaForConditionalGeneration, ElvaProcessor
from videopanda.models.modality import split_parts
from videopanda.training.build import build_model
from videopanda.training.freezing import recompute_activations
from videopanda.training.packing import set_rows

FAMILIES = ["llama", "qwen2", "qwen3", "phi3"]
QUESTIONS = ["What colour is the circle?", "How many?", "Which way does it go, and when?"]
CLIPS = [frames(1), frames(2, 3), frames(3, 7, 16, 16)]
VARIANTS = {
    "both directions": {"frame_attention": "both"},
    "norms": {"modality_split": "norm"},
    "norms and ffn": {"modality_split": "norm+ffn"},
    "all": {"modality_split": "all", "frame_attention": "both"},
    "pre-buffer": {"pre_buffer_layers": 1},
    "linear": {"embedding_fields": {"kind": "linear"}},
    "convolution": {"embedding_fields": {"kind": "convolution"}},
}
PLAIN = {"layers": []}
MERGING = {"layers": [1, 2], "keep": 0.5}


def variant(name: str, family: str = "qwen2", merge: dict | None = None):
    """A tiny model whose visual parameters differ from those of text."""
    model, processor = elva(family, PLAIN if merge is None else merge, **VARIANTS[name])
    if model.model.visual_parameters is not None:
        generator = torch.Generator().manual_seed(7)
        for weight in model.model.visual_parameters.parameters():
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    model.generation_config.eos_token_id = None  # so that all ways make as many tokens
    return model, processor


def positions_of(inputs) -> torch.Tensor:
    return (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)


@pytest.mark.parametrize("merge", [PLAIN, MERGING], ids=["plain", "merging"])
@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_cached_is_uncached_in_a_padded_batch_and_in_the_engine(name, merge):
    model, processor = variant(name, FAMILIES[len(name) % 4], merge)
    inputs = model_inputs(batch(processor, CLIPS, QUESTIONS))
    expected = greedy_by_recompute(model, inputs, 5)
    made = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert torch.equal(made[:, inputs["input_ids"].shape[1] :], expected)
    clip = Clip(frames(4, 6), tuple(range(6)), 6.0)
    for question, answer in zip(QUESTIONS, ask(model, processor, clip, QUESTIONS, max_new_tokens=6)):
        messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]
        text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        alone = model_inputs(processor(text=text, videos=clip, add_special_tokens=False))
        ids = greedy_by_recompute(model, alone, 6)[0]
        assert answer.answer == processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_packed_conversations_are_as_alone(name):
    model, processor = variant(name, merge=MERGING)
    texts = [f"user: <video>{question}" for question in QUESTIONS[:2]]
    rows = [model_inputs(batch(processor, [CLIPS[0]], [text[len("user: <video>") :]])) for text in texts]
    ids = [row["input_ids"][0] for row in rows]
    shared = int((ids[0] == processor.video_token_id).nonzero().max()) + 1
    tails = [one[shared:] for one in ids]
    joined = torch.cat([ids[0], tails[1]])[None]
    places = torch.tensor([[*range(len(ids[0])), *range(shared, len(ids[1]))]])
    segments = [0] * shared + [1] * len(tails[0]) + [2] * len(tails[1])
    mask = row_masks([[(segments, places[0].tolist())]], len(segments), {"full_attention": None})
    pixels = {name: x for name, x in rows[0].items() if name in ("pixel_values_videos", "video_placement")}
    packed = model(input_ids=joined, position_ids=places, attention_mask=mask, **pixels).logits[0]
    for row, part in zip(rows, (packed[: len(ids[0])], torch.cat([packed[:shared], packed[len(ids[0]) :]]))):
        torch.testing.assert_close(part, model(**row).logits[0], atol=1e-5, rtol=0)  # measured: 8e-7


@pytest.mark.parametrize("merge", [PLAIN, MERGING], ids=["plain", "merging"])
@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_clips_that_share_a_row_are_as_alone(name, merge):
    """Ragged frames, one to three questions a clip; where layers change masks, the row has one of all its tokens."""
    model, processor = variant(name, merge=merge)
    collator, samples = Collator(processor, 4096, fill_rows=True), []
    for count, pixels in enumerate(CLIPS, start=1):
        video = Clip(pixels, tuple(range(len(pixels))), float(len(pixels)))
        samples.append(Sample(str(count), (video,), tuple(((question, "red"),) for question in QUESTIONS[:count])))
    set_rows(collator, model)
    assert collator.by_clip is (merge is PLAIN and "frame_attention" not in VARIANTS[name])
    row = collator(samples)
    labels = row.pop("labels")
    assert len(labels) == 1
    found, start = model(**row).logits[0], 0
    for sample in samples:
        singles = [Collator(processor, 4096)([Sample("x", sample.videos, (turns,))]) for turns in sample.conversations]
        visual = processor.video_processor(videos=list(sample.videos), return_tensors="pt", return_metadata=True)
        part = collator.pack(sample, [processor.placeholder_text(visual, 0)])
        for k, single in enumerate(singles):
            columns = [start + i for i, segment in enumerate(part.segments) if segment in (0, k + 1)]
            del single["labels"]
            torch.testing.assert_close(found[columns], model(**single).logits[0], atol=1e-5, rtol=0)  # measured: 1.4e-6
        start += len(part)
    assert start == len(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_directions_equal_a_mask_made_with_loops(family):
    model, processor = variant("both directions", family)
    inputs = model_inputs(batch(processor, CLIPS[:2], QUESTIONS[:2]))
    ids, held = inputs["input_ids"], inputs["attention_mask"]
    layouts = iter(processor.video_processor.token_layout(inputs, i) for i in range(2))
    mask = torch.zeros(2, 1, ids.shape[1], ids.shape[1], dtype=torch.bool)
    for b in range(2):
        frame_of = iter(next(layouts)[:, 0].tolist())
        frame = [next(frame_of) if token == processor.video_token_id else None for token in ids[b].tolist()]
        for n in range(ids.shape[1]):
            for m in range(ids.shape[1]):
                same = frame[n] is not None and frame[n] == frame[m]
                mask[b, 0, n, m] = (bool(held[b, m]) and m <= n) or same or not held[b, n]
    plain, _ = elva(family, PLAIN)
    plain.load_state_dict(model.state_dict())
    kept = held.bool()
    results = []
    for network, given in ((model, held), (plain, mask)):
        network.zero_grad()
        output = network(**{**inputs, "attention_mask": given}, position_ids=positions_of(inputs)).logits[kept]
        (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
        results.append((output.detach(), [p.grad for p in network.parameters()]))
    causal = plain(**inputs, position_ids=positions_of(inputs)).logits[kept]
    assert (causal - results[0][0]).abs().max() > 1e-2
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=0)  # measured: 0
    for one, other in zip(results[0][1], results[1][1]):
        torch.testing.assert_close(one, other, atol=1e-5 * float(other.abs().max()), rtol=0)


class Blended(torch.nn.Module):
    """Both sets of parameters for all tokens, mixed by a mask, as the released code of EVEv2 computes it."""

    def __init__(self, text, visual, mask):
        super().__init__()
        self.text, self.visual, self.mask = text, visual, mask

    def forward(self, x):
        return torch.where(self.mask[..., None], self.visual(x), self.text(x))


@pytest.mark.parametrize("which", ["norm", "norm+ffn", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_per_modality_equal_a_blend_of_both(family, which):
    name = {"norm": "norms", "norm+ffn": "norms and ffn", "all": "all"}[which]
    model, processor = variant(name, family)
    inputs = model_inputs(batch(processor, CLIPS[:2], QUESTIONS[:2]))
    fields = {name: value for name, value in VARIANTS[name].items() if name != "modality_split"}
    plain, _ = elva(family, PLAIN, **fields)
    plain.load_state_dict(model.state_dict(), strict=False)
    is_visual = inputs["input_ids"] == processor.video_token_id
    twins = deepcopy(model.model.visual_parameters)
    for layer, own in zip(plain.model.language_model.layers, twins):
        for part, module in split_parts(layer, which).items():
            home = layer if hasattr(layer, part) else layer.self_attn
            setattr(home, part, Blended(module, own[part], is_visual))
    kept = inputs["attention_mask"].bool()
    outputs = []
    for network in (model, plain):
        output = network(**inputs, position_ids=positions_of(inputs)).logits[kept]
        output.square().sum().backward()
        outputs.append(output.detach())
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=0)  # measured: 0
    for (label, one), other in zip(model.model.visual_parameters.named_parameters(), twins.parameters()):
        assert one.grad.abs().max() > 0, label
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5 * float(other.grad.abs().max()), rtol=0)
    for own, text in zip(model.model.language_model.layers, plain.model.language_model.layers):
        one, other = own.input_layernorm.weight.grad, text.input_layernorm.text.weight.grad
        torch.testing.assert_close(one, other, atol=1e-5 * float(other.abs().max()), rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_equal_parameters_for_both_modalities_are_the_dense_model(family):
    model, processor = elva(family, MERGING, modality_split="all")
    plain, _ = elva(family, MERGING)
    plain.load_state_dict(model.state_dict(), strict=False)
    model.model.visual_parameters.copy_from(model.model.language_model)
    inputs = model_inputs(batch(processor, CLIPS[:2], QUESTIONS[:2]))
    logits = [network(**inputs, position_ids=positions_of(inputs)).logits for network in (model, plain)]
    kept = inputs["attention_mask"].bool()
    torch.testing.assert_close(logits[0][kept], logits[1][kept], atol=1e-5, rtol=0)  # measured: 0


@torch.no_grad()
def test_visual_parameters_leave_text_alone_and_a_copy_has_its_own():
    model, processor = variant("all")
    plain, _ = elva(merge=PLAIN)
    plain.load_state_dict(model.state_dict(), strict=False)
    ids = processor.tokenizer("Hello?", return_tensors="pt")["input_ids"]
    assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    inputs = model_inputs(batch(processor, CLIPS[:1], QUESTIONS[:1]))
    before, copy = model(**inputs).logits, deepcopy(model)
    for weight in copy.model.visual_parameters.parameters():
        weight.zero_()
    assert torch.equal(model(**inputs).logits, before)
    assert not torch.allclose(copy(**inputs).logits, before)


def test_recomputed_activations_take_the_same_parameters():
    gradients = []
    for recompute in (False, True):
        model, processor = variant("all", merge=MERGING)
        model.train()
        if recompute:
            recompute_activations(model)
        inputs = model_inputs(batch(processor, CLIPS[:2], QUESTIONS[:2]))
        model(**inputs, use_cache=False, position_ids=positions_of(inputs)).logits.square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * float(one.abs().max()), rtol=0)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """Folder of a pretrained language model."""
    folder, tokenizer = tmp_path_factory.mktemp("backbone"), tiny_tokenizer()
    torch.manual_seed(1)
    config = elva()[0].config.text_config
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def test_variants_start_as_the_pretrained_language_model(backbone, tmp_path):
    """Pre-buffer layers are the identity and visual parameters are copies; a saved model has its own layers."""
    fields = {"embedding.hidden_size": 32, "embedding.patch_size": 4, "embedding.num_heads": 4}
    new = {"pre_buffer_layers": "2", "modality_split": "norm+ffn", "frame_attention": "both", "merge.layers": "5"}
    given = {"seed": 0, "family": "elva", "chat_template": "vicuna"}
    model, processor = build_model(backbone, fields={**fields, **new}, **given)
    plain, _ = build_model(backbone, fields=fields, **given)
    plain.model.embedding.load_state_dict(model.model.embedding.state_dict())
    assert model.config.text_config.num_hidden_layers == 6
    assert [name for name in model.vision_modules() if name.startswith("pre_buffer")] == [
        "pre_buffer_0",
        "pre_buffer_1",
    ]
    ids = processor.tokenizer("Hello?", return_tensors="pt")["input_ids"]
    torch.testing.assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-6, rtol=0)
    pretrained = model.model.language_model.layers[2].mlp, model.model.visual_parameters[2]["mlp"]
    for one, other in zip(*(module.parameters() for module in pretrained)):
        assert torch.equal(one, other)
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert again.config.text_config.num_hidden_layers == 6
    clip = processor(text=["<video>What?"], videos=[frames(1)], video_metadata=[{"duration": 1.0}], return_tensors="pt")
    inputs = model_inputs(clip)
    model.model.embedding.float()
    torch.testing.assert_close(
        again(**inputs).logits, model.eval()(**inputs).logits, atol=2e-5, rtol=0
    )  # measured: 5e-6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"modality_split": "some"}, "`modality_split` must be one of none, norm"),
        ({"frame_attention": "left"}, "`frame_attention` must be one of causal, both"),
        ({"pre_buffer_layers": -1}, "`pre_buffer_layers` must be an integer of at least 0"),
        ({"pre_buffer_layers": 24}, "leave no layer"),
    ],
)
def test_a_variant_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ElvaConfig(**{"text_config": {"model_type": "qwen2", "vocab_size": 32002, "num_hidden_layers": 24}, **fields})


@pytest.mark.parametrize("fields", [{"modality_split": "norm"}, {"frame_attention": "both"}, {"merge_config": MERGING}])
def test_a_model_with_states_or_foreign_attention_is_refused(fields):
    text = {"model_type": "qwen3_next", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 32,
            "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
            "num_experts": 0, "layer_types": ["linear_attention"] * 3 + ["full_attention"]}  # fmt: skip
    made = {"embedding_config": {"hidden_size": 32, "patch_size": 4, "num_heads": 4}, "video_token_id": 3}
    with pytest.raises(ValueError, match="needs attention in every layer, and qwen3_next has linear_attention"):
        ElvaForConditionalGeneration(ElvaConfig(text_config=text, **made, **fields, image_token_id=4))


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "xglm"])
@pytest.mark.parametrize(
    ("fields", "purpose"),
    [
        ({"modality_split": "norm"}, "a split by modality needs decoder layers that take rotary positions"),
        ({"frame_attention": "both"}, "inside a frame needs decoder layers that take rotary positions"),
        ({"merge_config": MERGING}, "token merging needs decoder layers that take rotary positions"),
    ],
)
def test_layers_without_rotary_positions_or_under_other_names_are_refused(kind, fields, purpose):
    """Learned positions, layers with another name, a cache with another name."""
    with pytest.raises(ValueError, match=f"{purpose} and a cache, and those of {kind} do not"):
        ElvaForConditionalGeneration(of_another_scheme(kind, **fields))


def test_without_variants_any_language_model_serves():
    """Also one whose layers have another name: it is planned, and answers as `generate` does."""
    model = ElvaForConditionalGeneration(of_another_scheme("gpt2")).eval()
    processor = ElvaProcessor.for_config(model.config, tiny_tokenizer(), TEMPLATE)
    (told,) = ask(model, processor, Clip(frames(1, 4), (0.0, 0.25, 0.5, 0.75), 1.0), ["What?"], max_new_tokens=4)
    inputs = model_inputs(batch(processor, [frames(1, 4)], ["What?"]))
    made = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert told.answer == processor.tokenizer.decode(made, skip_special_tokens=True).strip()
    with pytest.raises(ValueError, match="pre_buffer_layers are not supported with gpt2"):
        ElvaForConditionalGeneration(of_another_scheme("gpt2", pre_buffer_layers=1))


def of_another_scheme(kind: str, **fields) -> ElvaConfig:
    names = {"gpt2": ("n_embd", "n_layer", "n_head"), "xglm": ("d_model", "num_layers", "attention_heads")}
    usual = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    text = {"model_type": kind, "vocab_size": 300, **ends, **dict(zip(names.get(kind, usual), (32, 4, 4)))}
    made = {"embedding_config": {"hidden_size": 32, "patch_size": 4, "num_heads": 4}, "video_token_id": 3}
    return ElvaConfig(text_config=text, **made, **fields, image_token_id=4)
