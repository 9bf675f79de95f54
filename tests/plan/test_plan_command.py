"""`videopanda plan`: it prints what the model does, refuses what does not fit, and says where its times stand."""

import json
import sys

import pytest
import torch
from transformers import Gemma3Config

from tiny import TEXT, tiny_model, tiny_processor
from videopanda.cli import app as cli
from videopanda.data.worlds.scenes.make import ensure_clip
from videopanda.inference.answer import ask
from videopanda.inference.load import load
from videopanda.plan import machine as machines
from videopanda.plan.machine import ASSUMED, Machine
from videopanda.plan.planner import Planner
from videopanda.plan.report import lines, training_hours


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    tiny_processor(frame_sampling="released").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(machines.Path, "home", lambda: tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["videopanda", "plan", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return int(exit_.value.code or 0), *capsys.readouterr()

    return call


def report(run, *arguments):
    code, out, _ = run("--device", "cpu", "--json", *arguments)
    assert code == 0
    return json.loads(out)


def test_a_saved_model_and_a_clip(run, checkpoint, tmp_path):
    clip = ensure_clip(tmp_path, 0, "test", 0)
    plan = report(run, "--model", checkpoint, "--video", str(clip))
    (answer,) = ask(*load(checkpoint, device="cpu"), clip, ["What?"], max_new_tokens=1)
    assert plan["visual_tokens"] == answer.visual_tokens
    assert plan["frames"] == len(answer.frame_times)
    assert plan["context"] == 2048
    assert plan["memory_bytes"]["peak"] > plan["memory_bytes"]["weights"] > 0
    assert plan["machine"]["measured"] is None
    more = report(run, "--model", checkpoint, "--video", str(clip), "--num-frames", "16")
    (answer,) = ask(*load(checkpoint, device="cpu"), clip, ["What?"], num_frames=16, max_new_tokens=1)
    assert (more["frames"], more["visual_tokens"]) == (len(answer.frame_times), answer.visual_tokens)


def test_a_fresh_model_and_a_length(run):
    plan = report(run, "--backbone", "qwen2.5-0.5b", "--duration", "1.5m", "--fps", "0.2", "--resolution", "1920x1080")
    assert plan["frames"] == 18
    assert plan["visual_tokens"] == 18 * 154
    assert plan["canvas"] == 448
    assert "training" not in plan
    half = report(run, "--backbone", "qwen2.5-0.5b", "--set", "stab.image_size=224", "--set", "stab.row_tokens=false")
    assert (half["canvas"], half["visual_tokens"]) == (224, 8 * (8 * 5 + 1))
    assert report(run, "--set", "stab.image_size=60")["canvas"] == 60  # of the bundled model, had it smaller frames
    paper = report(run, "--backbone", "qwen2.5-0.5b", "--preset", "paper", "--num-frames", "2", "--samples", "1000")
    assert paper["visual_tokens"] == 2 * 154  # and no frame that fills a short clip
    assert paper["training"]["gpu_hours"] > 0


def test_a_language_model_that_is_part_of_a_larger_one(run, tmp_path):
    """As Gemma 3 is published; `init` takes its language model, so does the plan."""
    text = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 300}
    Gemma3Config(text_config={**text, "num_attention_heads": 4, "head_dim": 16}).save_pretrained(tmp_path / "gemma")
    found = report(run, "--backbone", str(tmp_path / "gemma"))
    assert len(found["layer_tokens"]) == 2


def test_fit_finds_frames_or_canvas(run, tmp_path):
    text = tiny_model().config.text_config
    text.max_position_embeddings = 16384
    text.save_pretrained(tmp_path)
    wanted = ("--backbone", str(tmp_path), "--resolution", "448x224", "--fit", "300MiB")
    most = report(run, *wanted)
    assert most["memory_bytes"]["peak"] <= 300 * 2**20
    smaller = report(run, *wanted, "--num-frames", str(2 * most["frames"]))
    assert smaller["frames"] == 2 * most["frames"]
    assert smaller["canvas"] < 448
    code, _, err = run("--device", "cpu", "--backbone", str(tmp_path), "--fit", "100MiB")
    assert code == 2
    assert "not even one frame fits" in err


def test_what_does_not_fit_the_context_is_refused(run, checkpoint):
    code, out, err = run("--model", checkpoint, "--num-frames", "500000")
    assert code == 2
    assert out == ""
    assert err.startswith("videopanda: error: 500000 frames of 1280x720 take")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--backbone", "gpt-9"), "no language model 'gpt-9'"),
        (("--backbone", "qwen3-8b", "--model", "x"), "mutually exclusive"),
        (("--backbone", "qwen3-8b", "--preset", "x"), "preset must be one of released, paper, eve_star, nano, got 'x'"),
        (("--preset", "paper"), "require --backbone"),
        (
            ("--family", "videopanda2", "--backbone", "qwen3-8b"),
            "unknown family 'videopanda2': did you mean 'videopanda'",
        ),
        (("--set", "stab.image_sise=448"), "unknown setting 'stab.image_sise': did you mean 'stab.image_size'"),
        (("--set", "stab.image_size=big"), "stab.image_size must be a whole number, got 'big'"),
        (("--num-frames", "3", "--fps", "1"), "mutually exclusive"),
        (("--fps", "1"), "--fps needs"),
        (("--fps", "-1", "--duration", "3s"), "--fps must be at least 0.001"),
        (("--resolution", "big"), "--resolution must be a size"),
        (("--duration", "long"), "--duration: expected a time"),
        (("--device", "tpu"), "--device must be cpu or cuda"),
        (("--dtype", "int3"), "--dtype must be float32, bfloat16 or float16"),
        (("--quantize", "int3"), "--quantize must be int8 or nf4"),
        (("--quantize", "nf4", "--samples", "9"), "--samples plans training"),
        (("--fit", "much"), "24GiB"),
        (("--model", "nowhere"), "no model folder"),
    ],
)
def test_wrong_requests(run, arguments, message):
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_seven_billion_weights_answer_in_8_gb_of_4_bits_and_16_gb_of_16_bits(run):
    asked = ("--device", "cuda", "--json", "--backbone", "vicuna-7b-v1.5", "--max-new-tokens", "256")
    small, plain = (json.loads(run(*asked, *more)[1]) for more in (("--quantize", "nf4"), ()))
    assert (small["dtype"], small["quantize"], plain["quantize"]) == ("bfloat16", "nf4", "")
    assert small["memory_bytes"]["peak"] < 6e9 < 8e9  # planned: 5.8e9
    assert plain["memory_bytes"]["peak"] < 15.5e9 < 16e9  # planned: 15.1e9
    assert small["tokens_per_second"] > 2 * plain["tokens_per_second"]


# -- times -------------------------------------------------------------------------------------------------------------
def test_times_follow_from_the_rates():
    planner = Planner(tiny_model().config, tiny_processor().video_processor, torch.float32)
    plan = planner.plan(8, 30, 40)
    machine = Machine("cpu", "float32", "m", 2, 9600.0, 1e6, 2e6, 1e6, "2026-11-21")
    seconds = machine.first_token_seconds(plan)
    assert seconds["prepare"] == 1.0
    assert seconds["vision"] == plan.flops["vision"] / 1e6
    assert seconds["prefill"] == plan.flops["prefill"] / 2e6
    assert seconds["total"] == pytest.approx(seconds["prepare"] + seconds["vision"] + seconds["prefill"])
    text = planner.model.model.language_model
    read = (
        sum(p.nbytes for p in text.parameters()) - text.embed_tokens.weight.nbytes + planner.model.lm_head.weight.nbytes
    )
    assert machine.tokens_per_second(plan) == pytest.approx(1e6 / (read + plan.kv_bytes))
    assert "measured 2026-11-21" in lines(plan, machine)[-1]
    assert "NOT MEASURED: times assume 100 GFLOP/s, 10 GB/s" in lines(plan, ASSUMED["cpu"])[-1]
    flops = plan.flops["vision"] + plan.flops["prefill"]
    assert training_hours(plan, 50, 1e9, 0.5) == pytest.approx(4 * 50 * flops / 0.5e9 / 3600)


def test_a_measured_profile_is_kept_and_used(run, monkeypatch, tmp_path, checkpoint):
    tiny = tiny_model().config.text_config.to_dict()
    monkeypatch.setattr(machines, "TEXT", {**tiny, **TEXT["llama"]})
    monkeypatch.setattr(machines, "REPEATS", 1)
    monkeypatch.setattr(machines, "HEIGHT", 36)
    code, out, err = run("--measure", "--device", "cpu", "--model", checkpoint, "--json")
    assert code == 0
    machine = json.loads(out)["machine"]
    assert machine["measured"]
    assert all(machine[rate] > 0 for rate in ("pixels", "vision_flops", "prefill_flops", "bytes"))
    file = tmp_path / ".cache" / "videopanda" / "machine-cpu-float32.json"
    assert str(file) in err
    assert report(run, "--model", checkpoint)["machine"] == machine == json.loads(file.read_text())
    assert report(run, "--model", checkpoint, "--dtype", "bfloat16")["machine"]["measured"] is None
    file.write_text("{")
    code, _, err = run("--device", "cpu", "--model", checkpoint)
    assert code == 2
    assert "measure again" in err
