"""Video-Panda in front of any causal language model: the model behind it stays what it was, for every family.

The members are tiny and random, with the traits that real ones have; `tests/language_models.py` lists them.
"""

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    BertForMaskedLM,
)

import videopanda  # noqa: F401 - makes the Auto classes know our classes
from chat_templates import CHATML
from language_models import MEMBERS, NAMES, TURN_ENDS, text_tokenizer, write
from tiny import clip, randomize, realign, tiny_model, tiny_processor, tiny_stab
from videopanda.checkpoints.verify import verify
from videopanda.data.worlds.scenes.dataset import Clip
from videopanda.models.families import changed_config
from videopanda.models.prompts import VICUNA_CHAT_TEMPLATE
from videopanda.training.build import build_model, make_checkpoint


def tiny_fields(preset: str = "released") -> dict[str, int]:
    """The fields that make a fresh STAB that of `tiny_stab`."""
    stab = tiny_stab(preset)
    return {f"stab.{name}": getattr(stab, name) for name in ("hidden_size", "patch_size", "image_size", "num_heads")}


@pytest.fixture(scope="module", params=NAMES)
def family(request, tmp_path_factory):
    """The member, the folder of its language model, and the Video-Panda made of it, whose STAB has no zero weights."""
    member = MEMBERS[request.param]
    folder = write(tmp_path_factory.mktemp("backbone"), member)
    template = "vicuna" if member.template == "vicuna" else None
    model, processor = build_model(folder, seed=3, fields=tiny_fields(), chat_template=template)
    randomize(model.model.stab)
    randomize(model.model.projector, 1)
    return member, folder, realign(model).eval(), processor


def question(video, text="What moves?"):
    return [{"role": "user", "content": [{"type": "video", "video": video}, {"type": "text", "text": text}]}]


CONVERSATIONS = [question(clip(8, seed=1)), question(clip(3, 60, 20, seed=2), "Where is it now?")]


def inputs_of(processor, conversations):
    return processor.apply_chat_template(conversations, add_generation_prompt=True, tokenize=True, return_dict=True)


def test_chat_template_comes_from_the_tokenizer(family):
    member, _, _, processor = family
    if member.template == "vicuna":
        assert processor.chat_template == VICUNA_CHAT_TEMPLATE
        return
    turns = [*question(clip()), {"role": "assistant", "content": "A circle."}, {"role": "user", "content": "Sure?"}]
    plain = [{**turns[0], "content": "<video>\nWhat moves?"}, *turns[1:]]
    for count in (1, 3):
        expected = text_tokenizer(member.template).apply_chat_template(
            plain[:count], add_generation_prompt=True, tokenize=False, enable_thinking=False
        )
        assert processor.apply_chat_template(turns[:count], add_generation_prompt=True) == expected


def test_vocabulary(family):
    member, folder, model, processor = family
    size, original = len(text_tokenizer(None)), AutoConfig.from_pretrained(folder)
    assert [model.config.video_token_id, model.config.image_token_id] == [size, size + 1]
    rows = size + max(2, member.spare)
    assert model.config.text_config.vocab_size == model.get_input_embeddings().weight.shape[0] == rows
    tied = (model.lm_head.weight is model.get_input_embeddings().weight, model.config.tie_word_embeddings)
    assert tied == (original.tie_word_embeddings,) * 2
    assert processor.tokenizer.pad_token_id == model.generation_config.pad_token_id is not None
    ends = {original.eos_token_id, processor.tokenizer.eos_token_id}
    ends |= {processor.tokenizer.convert_tokens_to_ids(end) for end in TURN_ENDS if end in str(member.template)}
    assert model.generation_config.eos_token_id == (sorted(ends) if len(ends) > 1 else ends.pop())


def test_forward_is_that_of_the_language_model(family):
    _, folder, model, processor = family
    plain = realign(AutoModelForCausalLM.from_pretrained(folder))
    seen = {}
    handle = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    with torch.no_grad():
        logits = model(**inputs_of(processor, CONVERSATIONS)).logits
        handle.remove()
        expected = plain(inputs_embeds=seen["inputs_embeds"], attention_mask=seen["attention_mask"]).logits
        rows = plain.config.vocab_size
        torch.testing.assert_close(logits[..., :rows], expected, rtol=0, atol=1e-5)  # measured worst: 0
        ids = processor.tokenizer("The circle moves.", return_tensors="pt")["input_ids"]
        torch.testing.assert_close(model(ids).logits[..., :rows], plain(ids).logits, rtol=0, atol=1e-5)  # measured: 0


def test_generate_in_batches_and_with_cache(family):
    _, _, model, processor = family
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    together = model.generate(**inputs_of(processor, CONVERSATIONS), **settings)[:, -6:]
    without_cache = model.generate(**inputs_of(processor, CONVERSATIONS), **settings, use_cache=False)[:, -6:]
    assert together.tolist() == without_cache.tolist()
    alone = [model.generate(**inputs_of(processor, [one]), **settings)[0, -6:] for one in CONVERSATIONS]
    assert together.tolist() == [row.tolist() for row in alone]


def test_saved_model_gives_identical_logits(family, tmp_path):
    _, _, model, processor = family
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = realign(AutoModelForImageTextToText.from_pretrained(tmp_path))
    again = type(processor).from_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(**inputs_of(processor, CONVERSATIONS)).logits
        assert torch.equal(loaded(**inputs_of(again, CONVERSATIONS)).logits, expected)
    assert loaded.generation_config.eos_token_id == model.generation_config.eos_token_id
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == model.config.tie_word_embeddings


def test_lora_trains_merges_and_is_saved(family, tmp_path):
    _, _, model, processor = family
    config = LoraConfig(r=4, target_modules=r"model\.language_model\..*_proj", modules_to_save=["projector"])
    torch.manual_seed(0)
    tuned = get_peft_model(copy.deepcopy(model), config)
    trained = [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name or "projector.modules_to_save" in name for name in trained)
    inputs = inputs_of(processor, CONVERSATIONS)
    labels = inputs["input_ids"].clone()
    labels[:, :-6] = -100
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    tuned.train()
    losses = []
    for _ in range(4):
        loss = tuned(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    tuned.eval().save_pretrained(tmp_path)
    with torch.no_grad():
        logits = tuned(**inputs).logits
        loaded = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
        assert torch.equal(realign(loaded)(**inputs).logits, logits)
        merged = tuned.merge_and_unload()
        torch.testing.assert_close(merged(**inputs).logits, logits, rtol=0, atol=1e-4)  # measured worst: 1.2e-5


# -- a real language model ---------------------------------------------------------------------------------------------
STORIES = Path(__file__).parents[3] / "shared" / "lm" / "stories260K"


@pytest.mark.skipif(not STORIES.is_dir(), reason="no folder of pretrained models beside the checkout")
def test_a_pretrained_model_tells_its_story(tmp_path):
    """260K parameters, trained on TinyStories: its greedy text is known."""
    lines = make_checkpoint(tmp_path / "fresh", STORIES, chat_template="vicuna")
    assert lines[0].split() == ["language", "model,", "llama", "260,160"]
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "fresh")
    processor = AutoProcessor.from_pretrained(tmp_path / "fresh")
    expected = json.loads((STORIES / "greedy_from_bos.json").read_text())
    settings = {"max_new_tokens": len(expected) - 1, "do_sample": False}
    for use_cache in (True, False):
        ids = model.generate(torch.tensor([[1]]), **settings, use_cache=use_cache)[0].tolist()
        assert ids == expected
    text = processor.decode(ids, skip_special_tokens=True)
    assert text.strip() == (STORIES / "greedy_from_bos.txt").read_text().strip()
    assert {check.name: check.reasons for check in verify(tmp_path / "fresh").checks if check.status != "passed"} == {}


# -- mistakes ----------------------------------------------------------------------------------------------------------
def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def without_chat_template(folder):
    write(folder, MEMBERS["Vicuna v1.5"])


def blind_chat_template(folder):
    write(folder, MEMBERS["Qwen2.5"])
    (folder / "chat_template.jinja").write_text("Hello!")


def encoder(folder):
    sizes = {
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    BertForMaskedLM(AutoConfig.for_model("bert", **sizes)).save_pretrained(folder)


def no_head(folder):
    write(folder, MEMBERS["Qwen2.5"])
    AutoModel.from_pretrained(folder).save_pretrained(folder)


def a_video_panda(folder):
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)


def a_weight_is_missing(folder):
    write(folder, MEMBERS["Qwen3"])
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def no_weights(folder):
    write(folder, MEMBERS["Qwen3"])
    (folder / "model.safetensors").unlink()


def unknown_type(folder):
    write(folder, MEMBERS["Qwen3"])
    edit(folder / "config.json", model_type="wavelets")


def code_of_its_own(folder):
    write(folder, MEMBERS["Qwen3"])
    edit(folder / "config.json", model_type="wavelets", auto_map={"AutoConfig": "configuration_wavelets.Wavelets"})


def write_other(folder, model_type, **fields):
    tokenizer = text_tokenizer(CHATML)
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **sizes, **fields)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def a_head_with_a_bias(folder):
    write_other(folder, "phi")


def no_kv_cache(folder):
    write_other(folder, "mamba", state_size=8)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (without_chat_template, "pass --chat-template FILE"),
        (blind_chat_template, "drops the user"),
        (encoder, "BertForMaskedLM"),
        (no_head, "Qwen2Model"),
        (a_video_panda, "already has a vision part"),
        (a_weight_is_missing, "lacks model.layers.1.mlp.up_proj.weight"),
        (no_weights, "no language model at .*model.safetensors"),
        (unknown_type, "wavelets"),
        (code_of_its_own, "(?i)custom code"),
        (a_head_with_a_bias, "PhiForCausalLM has a bias"),
        (no_kv_cache, "MambaForCausalLM has no KV cache"),
        (Path.rmdir, "no language model at"),
    ],
)
def test_a_wrong_backbone_is_refused_in_one_line(tmp_path, write, message):
    folder = tmp_path / "backbone"
    folder.mkdir()
    write(folder)
    with pytest.raises(ValueError, match=message) as caught:
        build_model(folder, seed=0, fields=tiny_fields())
    assert str(caught.value).splitlines()[0]


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("gemma2", {"head_dim": 12, "num_key_value_heads": 4, "final_logit_softcapping": 1.0}),
        ("gemma3_text", {"head_dim": 12, "num_key_value_heads": 4, "final_logit_softcapping": 1.0}),
        ("cohere", {"logit_scale": 0.25, "num_key_value_heads": 4}),
        ("granite", {"logits_scaling": 4.0, "embedding_multiplier": 3.0, "num_key_value_heads": 4}),
    ],
)
def test_caps_and_scales_of_logits_and_embeddings(tmp_path, model_type, fields):
    """Logits are those of the language model itself; visual tokens go in as they are, words as it scales them."""
    write_other(tmp_path / "backbone", model_type, **fields)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "backbone").eval()
    model, processor = build_model(tmp_path / "backbone", seed=0, fields=tiny_fields())
    attention = model.get_decoder().config._attn_implementation
    assert (attention == "eager") is (model_type == "gemma2")  # which caps its attention scores too
    plain.set_attn_implementation(attention)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = plain(ids).logits
        assert not torch.equal(expected, plain.lm_head(plain.base_model(ids).last_hidden_state))
        assert torch.equal(model(ids).logits[..., : expected.shape[-1]], expected)
        inputs = processor(text="<video>What moves?", videos=[clip(8)])
        embeds = plain.get_input_embeddings()(inputs["input_ids"].clamp(max=expected.shape[-1] - 1))
        visual = (inputs["input_ids"] == processor.video_token_id)[0]
        embeds[0, visual] = model.encode(inputs)[0].tokens
        logits = model(**inputs).logits
        torch.testing.assert_close(  # measured worst: 0
            logits[..., : expected.shape[-1]], plain(inputs_embeds=embeds).logits, rtol=0, atol=1e-5
        )
    labels = torch.where(visual, -100, inputs["input_ids"])
    assert torch.isfinite(model.train()(**inputs, labels=labels).loss)


def test_wrong_arguments_are_refused(tmp_path):
    folder = write(tmp_path / "backbone", MEMBERS["Qwen2.5"])
    for arguments, message in [
        ({"backbone": tmp_path / "none"}, "no language model at"),
        ({"preset": "realeased"}, "released, paper, eve_star"),
        ({"family": "videopandas"}, "unknown family 'videopandas': did you mean 'videopanda'"),
        ({"fields": {"text.hidden_sise": "8"}}, "unknown setting 'text.hidden_sise': did you mean 'text.hidden_size'"),
        ({"fields": {"text.vocab_size": "many"}}, "text.vocab_size must be a whole number, got 'many'"),
        ({"fields": {"text.intermediate_size": "8"}}, "do not fit the changed fields"),
        ({"fields": {"row_tokens": "no"}}, "unknown setting 'row_tokens': did you mean 'stab.row_tokens'"),
        ({"chat_template": str(tmp_path / "none.jinja")}, "none.jinja"),
    ]:
        with pytest.raises((ValueError, OSError), match=message):
            make_checkpoint(tmp_path / "out", **{"backbone": folder, **arguments})
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="already exists"):
        make_checkpoint(folder, folder)


def test_every_field_is_set_by_its_name(tmp_path):
    """Of the vision part, of the language model and of the whole; the processor follows."""
    folder = write(tmp_path / "backbone", MEMBERS["Qwen2.5"])
    fields = {"stab.row_tokens": "false", "text.attention_dropout": "0.25", "initializer_range": "0.5"}
    fields |= {"stab.segment_frames": "none", "stab.image_size": "48"}
    model, processor = build_model(folder, seed=0, fields={**tiny_fields(), **fields})
    assert (model.config.stab_config.row_tokens, model.config.stab_config.segment_frames) == (False, None)
    assert model.config.text_config.attention_dropout == model.model.language_model.config.attention_dropout == 0.25
    assert model.model.projector.up.weight.std() > 0.3
    assert model.model.stab.row_token is None
    assert processor.video_processor.token_count(8, 30, 40) == 8 * (5 * 6 + 1)


def test_presets_seed_and_type(tmp_path):
    folder = write(tmp_path / "backbone", MEMBERS["Qwen2.5"])
    edit(folder / "config.json", dtype="bfloat16")
    models = [
        build_model(folder, seed=seed, preset=preset, fields=tiny_fields(preset), dtype="auto")[0]
        for preset, seed in (("paper", 0), ("paper", 0), ("paper", 1), ("eve_star", 0))
    ]
    weights = [model.model.projector.up.weight for model in models]
    assert weights[0].dtype == torch.bfloat16
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert models[3].model.stab.gstra is None
    assert {parameter.device.type for parameter in models[0].parameters()} == {"cpu"}


def test_other_names_of_the_embedding(tmp_path):
    """A model of another naming scheme is tied, saved and loaded alike."""
    tokenizer = text_tokenizer(CHATML)
    config = AutoConfig.for_model("gpt2", vocab_size=len(tokenizer), n_embd=48, n_layer=1, n_head=4)
    plain = AutoModelForCausalLM.from_config(config)
    plain.save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    model, _ = build_model(tmp_path / "backbone", seed=0, fields=tiny_fields())
    model.save_pretrained(tmp_path / "made")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "made")
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected = plain.eval()(ids).logits
        torch.testing.assert_close(loaded(ids).logits[..., : len(tokenizer)], expected, rtol=0, atol=1e-5)


def test_the_vision_part_of_a_trained_model_goes_in_front_of_another_language_model(tmp_path):
    """The block is taken bit for bit; the projector, of another width, is new; the result answers."""
    first, second = write(tmp_path / "a", MEMBERS["Qwen2.5"]), write(tmp_path / "b", MEMBERS["Llama 3"])
    fields = {**tiny_fields(), "stab.row_tokens": "false", "timestamps": "frame"}
    make_checkpoint(tmp_path / "trained", first, fields=fields)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "trained")
    randomize(model.model.stab)
    model.save_pretrained(tmp_path / "trained")
    wide = {"text.hidden_size": "32", "text.num_attention_heads": "4", "text.num_key_value_heads": "4"}
    AutoModelForCausalLM.from_config(changed_config(AutoConfig.from_pretrained(second), {
        name.removeprefix("text."): value for name, value in wide.items()
    })).save_pretrained(second)  # fmt: skip
    lines = make_checkpoint(tmp_path / "out", second, trained=tmp_path / "trained", chat_template="vicuna")
    assert [line.split()[:2] for line in lines[1:3]] == [["stab,", "pretrained"], ["projector,", "fresh"]]
    joined = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    for name, weight in joined.model.stab.state_dict().items():
        assert torch.equal(weight, model.model.stab.state_dict()[name])
    assert joined.config.get_text_config().hidden_size == 32
    assert joined.config.timestamps == "frame"
    assert not joined.config.stab_config.row_tokens
    assert AutoProcessor.from_pretrained(tmp_path / "out").timestamps == "frame"
    video = Clip(clip(8), tuple(range(8)), 8.0)
    inputs = AutoProcessor.from_pretrained(tmp_path / "out")(text="<video>What moves?", videos=[video])
    assert torch.isfinite(joined(**inputs).logits).all()
