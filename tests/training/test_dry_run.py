"""Protects the dry run: its plan adds up, and its trial makes two real steps on several processes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import videopanda
from media import write_video
from videopanda.models.load import load_checkpoint
from videopanda.training.build import make_checkpoint
from videopanda.training.dry_run import plan, try_steps
from videopanda.training.run import train

NANO = Path(videopanda.__file__).parent / "assets" / "nano"
SETTINGS = ["max_steps=10", "batch_size=2"]


def test_the_plan_counts_rows_steps_and_parameters():
    lines = plan("prealign", "nano", SETTINGS, NANO, 2)
    text = "\n".join(lines)
    assert '"max_steps": 10' in lines[0]
    assert "4 rows per step on 2 processes; 10 steps" in text
    assert [line.split()[0] for line in lines if "FROZEN" in line] == ["language_model"]


def test_the_plan_of_an_adapter_trains_the_adapter_alone():
    lines = plan("finetune", "nano", [*SETTINGS, "lora_rank=4", "align_weight=0", "vision_lr=0"], NANO, 1)
    (trained,) = [line for line in lines if "TRAINABLE" in line]
    assert trained.split()[0] == "language_model"
    assert trained.endswith("of them")


@pytest.mark.parametrize("make", [plan, lambda *a: train(*a[:4], Path("out-of-nothing"), False)])
@pytest.mark.parametrize("name", ["chat_template", "encoder"])
def test_what_only_a_new_model_takes_is_refused_for_a_trained_one(make, name):
    settings = [*SETTINGS, "compile=false", f"{name}=somewhere"]
    settings += ["whiten_patches=false"]
    with pytest.raises(ValueError, match=f"^{name} can only be set when a model is created, and .*nano has its own"):
        make("pretrain", "nano", settings, NANO, 1)


@pytest.mark.slow
def test_the_trial_makes_two_steps_on_two_processes():
    assert try_steps("pretrain", "nano", SETTINGS, NANO, 2).startswith(
        "trial            2 steps on 2 processes (ddp): losses "
    )


def test_a_plan_without_a_model_is_refused():
    with pytest.raises(ValueError, match="pass --model DIR"):
        plan("pretrain", "nano", SETTINGS, None, 2)


@pytest.mark.parametrize("make", [plan, lambda *a: train(*a[:4], Path("out-of-nothing"), False)])
def test_clips_longer_than_the_context_are_refused_before_the_model_is_loaded(make, monkeypatch):
    monkeypatch.setattr("videopanda.training.run._start", None)  # it reads the weights
    settings = [*SETTINGS, "num_frames=128", "max_length=8192", "compile=false"]
    with pytest.raises(ValueError, match=r"128 frames take at least 3,200 visual .* positions for 2,048: set"):
        make("pretrain", "nano", settings, NANO, 1)
    assert not Path("out-of-nothing").exists()


# -- straight from a bare language model -------------------------------------------------------------------------------
@pytest.fixture
def bare(tmp_path) -> Path:
    """A folder as a Llama is published: a vocabulary without placeholders, a tokenizer without a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(tmp_path / "llama")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(names), **sizes, max_position_embeddings=2048, bos_token_id=1, eos_token_id=2)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    for i in range(2):
        write_video(tmp_path / f"{i}.mp4", range(9), fps=3)
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "red"}]
    rows = [{"id": str(i), "video": f"{i}.mp4", "conversations": turns} for i in range(2)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return tmp_path


def settings_of(bare: Path, *more: str) -> list[str]:
    sizes = ("stab.hidden_size=16", "stab.patch_size=4", "stab.image_size=48", "num_frames=2", "data_share=1")
    machine = ("distill_weight=0", "dtype=float32", "batch_size=1", "global_batch=0", "strategy=ddp", "validation=0")
    return [f"data={bare / 'rows.json'}", *sizes, *machine, *more]


def test_prealign_starts_from_a_bare_language_model(bare):
    out = train("prealign", "paper", settings_of(bare, "chat_template=vicuna"), bare / "llama", bare / "out", False)
    model, processor = load_checkpoint(out, torch.float32)
    before = load_file(bare / "llama" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(model.model.language_model.layers[0].mlp.up_proj.weight, before)  # frozen in this stage
    assert (model.config.video_token_id, model.config.image_token_id) == (259, 260)
    assert processor.video_processor.num_frames == 2


def test_a_language_model_without_positions_has_no_limit(bare):
    from transformers import BloomConfig, BloomForCausalLM

    config = BloomConfig(vocab_size=259, hidden_size=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
    BloomForCausalLM(config).save_pretrained(bare / "llama")
    lines = make_checkpoint(bare / "out", bare / "llama", preset="nano", chat_template="vicuna")
    assert lines[-1].split()[:2] == ["context", "unlimited"]


def test_the_dry_run_starts_from_a_bare_language_model(bare):
    settings = settings_of(bare, "chat_template=vicuna", "distill_weight=1", "epochs=0.3")  # of two steps
    lines = plan("prealign", "paper", settings, bare / "llama", 1)
    assert "1 steps" in next(line for line in lines if line.startswith("data "))
    head = next(line for line in lines if "distillation head" in line)
    assert head.split()[2:4] == [f"{32 * 1024 + 1024:,}", "TRAINABLE"]  # one linear map to LanguageBind's width


@pytest.mark.slow
def test_the_trial_starts_from_a_bare_language_model(bare):
    settings = settings_of(bare, "chat_template=vicuna")
    assert "2 steps on 1 processes (ddp): losses " in try_steps("prealign", "paper", settings, bare / "llama", 1)


@pytest.mark.parametrize("make", [plan, lambda *a: train(*a[:4], a[3] / "out", False)])
def test_a_missing_chat_template_is_told(bare, make):
    with pytest.raises(ValueError, match="no chat template: pass --chat-template FILE, or vicuna"):
        make("prealign", "paper", settings_of(bare), bare / "llama", 1)
