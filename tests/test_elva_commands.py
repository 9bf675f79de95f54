"""Protects ELVA on the command line: init, answer, verify, plan, export; merging as a switch of any checkpoint."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from command import run
from media import write_video
from tiny import tiny_model, tiny_processor, tiny_tokenizer
from tiny_elva import elva
from videopanda.inference.answer import ask
from videopanda.inference.load import BUNDLED_MODEL, load
from videopanda.plan.planner import planner_for

DEMO = BUNDLED_MODEL.parent / "demo.mp4"
SMALL = ("embedding.hidden_size=32", "embedding.patch_size=4", "embedding.num_heads=4", "max_frame_cells=12")


def sets(*settings):
    return [word for setting in settings for word in ("--set", setting)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A language model, and a new ELVA that merges after its first layer."""
    folder = tmp_path_factory.mktemp("world")
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(elva()[0].config.text_config).save_pretrained(folder / "text")
    tiny_tokenizer().save_pretrained(folder / "text")
    given = ("--backbone", folder / "text", "--chat-template", "vicuna", "--family", "elva")
    code, out, err = run("init", folder / "fresh", *given, *sets(*SMALL, "merge.layers=1"))
    assert (code, "embedding, fresh" in out) == (0, True), err
    return folder


def test_it_answers_verifies_plans_and_exports(world, tmp_path):
    fresh = world / "fresh"
    model, processor = load(fresh, device="cpu")
    (expected,) = ask(model, processor, DEMO, ["What moves?"], num_frames=6, max_new_tokens=6)
    given = ("answer", DEMO, "What moves?", "--model", fresh, "--num-frames", 6, "--max-new-tokens", 6, "--json")
    code, out, err = run(*given)
    assert code == 0, err
    assert json.loads(out)["answer"] == expected.answer
    whole = json.loads(out)["visual_tokens"]
    code, out, err = run(*given, *sets("hybrid.every=3", "merge.keep=0.3"))
    assert code == 0, err
    assert json.loads(out)["visual_tokens"] < 0.8 * whole
    code, out, _ = run("verify", fresh, "--json")
    checks = {check["name"]: check["status"] for check in json.loads(out)["checks"]}
    assert (code, checks["keys"], checks["greedy"], checks["checksums"]) == (0, "passed", "passed", "passed"), out
    code, out, err = run("plan", "--model", fresh, "--num-frames", 6, "--resolution", "40x24", "--json")
    assert code == 0, err
    tokens = json.loads(out)["layer_tokens"]
    assert tokens[1] < tokens[0] == json.loads(out)["visual_tokens"]
    code, _, err = run("export", fresh, tmp_path / "out")
    assert code == 0, err
    assert {"merge_schedule.py", "modality.py", "modeling_elva.py"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }


def test_vllm_refuses_a_model_whose_length_changes_inside(world, tmp_path):
    """vLLM builds the model with its own attention, which takes no masks of ours; without merging it may."""
    assert run("export", world / "fresh", tmp_path / "out")[0] == 0
    ALL_ATTENTION_FUNCTIONS.register("vllm", ALL_ATTENTION_FUNCTIONS["sdpa"])  # as vLLM does
    config = AutoConfig.from_pretrained(tmp_path / "out", trust_remote_code=True)
    config.text_config._attn_implementation = "vllm"
    with pytest.raises(
        ValueError, match="token merging needs attn_implementation sdpa or eager, and the model uses vllm"
    ):
        AutoModelForImageTextToText.from_config(config, trust_remote_code=True)
    config.merge_config.layers = []
    assert AutoModelForImageTextToText.from_config(config, trust_remote_code=True)


def test_any_checkpoint_merges_by_a_switch(tmp_path):
    """A Video-Panda merges without training: the same answer as with its schedule set by hand, and planned as it is."""
    model, processor = tiny_model("paper"), tiny_processor("paper")
    model.save_pretrained(tmp_path / "panda")
    processor.save_pretrained(tmp_path / "panda")
    merging, rules = load(tmp_path / "panda", "cpu", settings={"merge.layers": [1], "merge.keep": 0.5})
    plain, _ = load(tmp_path / "panda", "cpu")
    (one,), (other,) = (
        ask(net, rules, DEMO, ["What moves?"], num_frames=8, max_new_tokens=8) for net in (merging, plain)
    )
    planned = [planner_for(net, rules.video_processor).plan(8, 90, 160) for net in (merging, plain)]
    assert planned[0].layer_tokens[1] < planned[0].layer_tokens[0] == planned[1].layer_tokens[1]
    assert planned[0].flops["prefill"] < planned[1].flops["prefill"]
    given = ("answer", DEMO, "What moves?", "--model", tmp_path / "panda", "--num-frames", 8, "--max-new-tokens", 8)
    assert run(*given, *sets("merge.layers=1", "merge.keep=0.5"))[1].strip() == one.answer
    assert run(*given)[1].strip() == other.answer
    code, out, _ = run(*given, *sets("merge.layers=1", "merge.mode=threshold", "merge.threshold=1.01"))
    assert (code, out.strip()) == (0, other.answer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["merge.layers=9"], "merge layers must be increasing numbers in [0, 3], got [9]"),
        (["merge.layers=-1"], "merge layers must be increasing numbers in [0, 3], got [-1]"),
        (["merge.layers=2,1"], "merge layers must be increasing numbers in [0, 3], got [2, 1]"),
        (["merge.layers=1.5"], "merge layers must be increasing numbers in [0, 3], got [1.5]"),
        (["merge.layers=first"], "merge.layers must be a list"),
        (["merge.keep=0"], "merge keep must be in (0, 1], got 0.0"),
        (["merge.keep=-0.5"], "merge keep must be in (0, 1], got -0.5"),
        (["merge.keep=nan"], "merge keep must be in (0, 1], got nan"),
        (["merge.keep=half"], "merge.keep must be a number, got 'half'"),
        (["merge.kep=0.5"], "unknown setting 'merge.kep': did you mean 'merge.keep'?"),
        (["merge.keep"], "--set merge.keep: write it as key=value"),
        (["merge.mode=best"], "merge mode must be ratio, threshold or drop, got 'best'"),
        (["merge.mode=threshold", "merge.threshold=nan"], "merge threshold must be a number, got nan"),
        (["merge.mode=threshold", "merge.deep_layers=2"], "merge deep_layers [2] must be among the layers [1]"),
        (["merge.threshold=0.9"], "merge.threshold has no effect without merge.mode=threshold"),
        (["merge.mode=threshold", "merge.keep=0.9"], "merge.keep has no effect without merge.deep_layers"),
        (["merge.layers=[]", "merge.keep=0.9"], "merge.keep has no effect without merge.layers"),
        (["hybrid.every=-1"], "`every` must be an integer of at least 0, got -1"),
        (["hybrid.every=2.5"], "hybrid.every must be a whole number, got '2.5'"),
        (["hybrid.every=3", "hybrid.scale=0"], "hybrid.scale must be in (0, 1], got 0.0"),
        (["hybrid.every=3", "hybrid.scale=nan"], "hybrid.scale must be in (0, 1], got nan"),
        (["hybrid.every=3", "hybrid.policy=some"], "hybrid.policy must be one of every, ends, change, random"),
        (["hybrid.policy=ends"], "hybrid.policy has no effect while hybrid.every is 0"),
        (["max_frame_cells=0"], "`max_frame_cells` must be a positive integer"),
        (["max_frame_pixels=9"], "must be at least one cell, 8 × 8 pixels, got 9"),
        (["num_frames=0"], "`num_frames` must be a positive integer"),
        (["patch_size=8"], "unknown setting 'patch_size'"),
    ],
)
def test_a_setting_that_makes_no_sense_is_one_line(world, settings, message):
    code, _, err = run("answer", DEMO, "What?", "--model", world / "fresh", *sets(*settings))
    assert (code, message in err, len(err.strip().splitlines())) == (2, True, 1), err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("merge.layers=4", "in [0, 3], got [4]"),
        ("merge.keep=0", "merge keep must be in (0, 1]"),
        ("merge.threshold=nan", "merge threshold must be a number, got nan"),
        ("merge.random_keep=2", "merge.random_keep must be in [0, 1]"),
        ("merge.wher=1", "unknown setting 'merge.wher'"),
        ("hybrid.scale=0", "hybrid.scale must be in (0, 1]"),
        ("max_frame_pixels=9", "must be at least one cell, 8 × 8 pixels"),
        ("hybrid.every=-2", "every` must be"),
    ],
)
def test_a_new_model_that_makes_no_sense_is_one_line(world, tmp_path, setting, message):
    given = ("--backbone", world / "text", "--chat-template", "vicuna", "--family", "elva")
    code, _, err = run("init", tmp_path / "new", *given, *sets(*SMALL, "merge.layers=1", setting))
    assert (code, message in err, len(err.strip().splitlines())) == (2, True, 1), err


def test_a_clip_smaller_than_a_patch_is_one_line(world, tmp_path):
    clip = write_video(tmp_path / "flat.mp4", range(8), size=(64, 6))
    code, _, err = run("answer", clip, "What?", "--model", world / "fresh")
    message = "a frame of 64 × 6 pixels is smaller than a patch of 8 × 8"
    assert (code, message in err, len(err.strip().splitlines())) == (2, True, 1), err


def test_the_bundled_model_merges_by_its_name():
    """Fewer tokens are read by the layers after the merge, the answer is that of the schedule set by hand."""
    settings = {"merge.layers": [2], "merge.keep": 0.5}
    model, processor = load(None, "cpu", settings=settings)
    (expected,) = ask(model, processor, DEMO, ["What moves?"], max_new_tokens=8)
    code, out, err = run("answer", DEMO, "What moves?", "--model", "nano", "--max-new-tokens", 8,
                         *sets("merge.layers=2", "merge.keep=0.5"))  # fmt: skip
    assert (code, out.strip()) == (0, expected.answer), err
    plan = planner_for(model, processor.video_processor).plan(8, 120, 160)
    assert plan.layer_tokens[2] < 0.7 * plan.layer_tokens[1] == 0.7 * plan.visual_tokens


def test_a_language_model_that_cannot_merge_is_refused_before_its_weights_are_read(world, tmp_path):
    config = AutoConfig.for_model(
        "gpt2", vocab_size=len(tiny_tokenizer()), n_embd=32, n_layer=4, n_head=4, architectures=["GPT2LMHeadModel"]
    )
    config.save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer().save_pretrained(tmp_path / "gpt2")
    given = ("--backbone", tmp_path / "gpt2", "--chat-template", "vicuna", "--family", "elva")
    code, _, err = run("init", tmp_path / "new", *given, *sets(*SMALL, "merge.layers=1"))
    wanted = "token merging needs decoder layers that take rotary positions and a cache, and those of gpt2 do not"
    assert (code, wanted in err, len(err.strip().splitlines())) == (2, True, 1), err


def test_a_language_model_with_states_is_refused_by_the_switch(tmp_path):
    """A gated delta rule keeps a state of all tokens, from which merged ones cannot be taken."""
    text = {"model_type": "qwen3_5_text", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"]}  # fmt: skip
    model, processor = elva(merge={"layers": []})
    fields = {**model.config.to_dict(), "text_config": text}
    type(model)(type(model.config)(**fields)).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="token merging needs attention in every layer, and qwen3_5_text has linear_att"
    ):
        load(tmp_path, "cpu", settings={"merge.layers": [1]})
