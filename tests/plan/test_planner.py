"""A plan holds what the model really does: tokens, FLOPs and caches exactly, memory within a stated factor."""

import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tiny import TEXT, clip, tiny_config, tiny_model, tiny_processor, tiny_stab
from videopanda.models.families import processor_class
from videopanda.models.generation import CACHE_NAME
from videopanda.models.videopanda import VideoPandaConfig, VideoPandaStabConfig, VideoPandaVideoProcessor
from videopanda.plan.backbones import BACKBONES, config_of
from videopanda.plan.planner import DoesNotFitError, Planner, _largest_within, budget, planner_for

SIDES = st.integers(1, 130)


@cache
def setup(preset, row_tokens, pad_frames, downsampling="lsd"):
    stab = tiny_stab(preset, row_tokens=row_tokens, downsampling=downsampling)
    canvas = "tight" if stab.mask_padding and not pad_frames else "square"
    processor = tiny_processor(preset, stab, pad_frames=pad_frames, canvas=canvas)
    model = tiny_model(preset, row_tokens=row_tokens, downsampling=downsampling)
    return model, processor, Planner(model.config, processor.video_processor, torch.float32)


# -- exactly what the model does ---------------------------------------------------------------------------------------
@settings(deadline=None, max_examples=40)
@given(
    frames=st.integers(1, 12),
    height=SIDES,
    width=SIDES,
    preset=st.sampled_from(["released", "paper", "eve_star"]),
    row_tokens=st.booleans(),
    pad_frames=st.booleans(),
    downsampling=st.sampled_from(["lsd", "average"]),
)
def test_planned_tokens_are_those_of_prompt_and_model(
    frames, height, width, preset, row_tokens, pad_frames, downsampling
):
    model, processor, planner = setup(preset, row_tokens, pad_frames, downsampling)
    plan = planner.plan(frames, height, width, text_tokens=3, new_tokens=2)
    inputs = processor(text=["<video>"], videos=[clip(frames, height, width)], do_sample_frames=False)
    assert (inputs["input_ids"] == processor.video_token_id).sum() == plan.visual_tokens
    with torch.inference_mode():
        features = model.get_video_features(inputs["pixel_values_videos"], inputs["video_placement"])
    assert len(features.pooler_output[0]) == plan.visual_tokens
    assert plan.tokens == plan.visual_tokens + 5


@pytest.mark.parametrize("text", TEXT)
def test_flops_and_caches_are_those_of_a_real_run(text):
    model, processor = tiny_model(text=text), tiny_processor()
    plan = Planner(model.config, processor.video_processor, torch.float32).plan(8, 30, 40, text_tokens=10, new_tokens=2)
    inputs = processor(text=["<video>"], videos=[clip(8, 30, 40)])
    length = plan.visual_tokens + 10

    def counted(call):
        # Torch counts a fused attention on a CPU as nothing, so it is taken apart.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            result = call()
        return result, counter.get_total_flops()

    _, vision = counted(lambda: model.get_video_features(inputs["pixel_values_videos"], inputs["video_placement"]))
    embeds = torch.zeros(1, length, 48)
    read, prefill = counted(lambda: model(inputs_embeds=embeds, use_cache=True, logits_to_keep=1))
    cache_, one = read[CACHE_NAME], torch.tensor([[5]])
    _, step = counted(lambda: model(input_ids=one, cache=cache_, use_cache=True))
    assert plan.flops == {"vision": vision, "prefill": prefill, "per_token": step}
    model(input_ids=one, cache=cache_, use_cache=True)
    assert plan.kv_bytes == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache_.layers)
    assert plan.weight_bytes == sum(x.nbytes for x in (*model.parameters(), *model.buffers()))


MEASURE = """
import gc
from pathlib import Path
import torch
from videopanda.models.videopanda import *
from videopanda.plan.planner import Planner

def status(field):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":"))
    return 1024 * int(line.split()[1])

text = {"model_type": "qwen3", "vocab_size": 512, "hidden_size": 512, "intermediate_size": 1536, "head_dim": 64,
        "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4}
config = VideoPandaConfig(text_config=text, video_token_id=510, image_token_id=511)
processor = VideoPandaVideoProcessor.for_stab(config.stab_config)
plan = Planner(config, processor, torch.float32).plan(8, 224, 448, text_tokens=16, new_tokens=1)
model = VideoPandaForConditionalGeneration(config).eval()
inputs = processor.layout([(8, 224, 448)])
inputs["pixel_values_videos"] = torch.rand(inputs["pixel_values_videos"].shape)
with torch.inference_mode():
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    features = model.encode(inputs)[0].tokens
    embeds = torch.cat([features, features[:16]])[None]
    model(inputs_embeds=embeds, use_cache=True, logits_to_keep=1)
    measured = status("VmHWM") - before + inputs["pixel_values_videos"].nbytes
print(measured / (max(plan.phase_bytes["vision"], plan.phase_bytes["prefill"]) - 8 * 224 * 448 * 3))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell peak memory")
def test_planned_memory_is_near_the_measured_one():
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0.7 <= float(done.stdout) <= 1.4  # measured in six runs: 0.97 to 1.03


# -- what fits ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def planner():
    return setup("released", True, False)[2]


@pytest.mark.parametrize("largest", ["prepare", "vision", "prefill", "generate"])
@pytest.mark.parametrize("on_host", [False, True])
def test_the_peak_is_the_largest_phase(largest, on_host):
    """Whichever it is; what the host prepares counts where the model is on the host."""
    real = planned(on_host)
    sizes = {"prepare": 2000, "vision": 3000, "prefill": 5000, "generate": 4000} | {largest: 9000}
    plan = replace(real, phase_bytes=sizes)
    assert plan.peak_bytes - plan.weight_bytes == (9000 if on_host or largest != "prepare" else 5000)
    counted = [size for name, size in real.phase_bytes.items() if on_host or name != "prepare"]
    assert real.peak_bytes == real.weight_bytes + sorted(counted)[-1]


@cache
def planned(on_host):
    model, processor, _ = setup("released", True, False)
    return Planner(model.config, processor.video_processor, torch.float32, on_host=on_host).plan(8, 30, 40)


def test_no_more_frames_than_asked_for(planner):
    context = planner.most_frames(30, 40)
    assert context > 10
    assert [planner.most_frames(30, 40, at_most=most) for most in (1, 3, 4, 10)] == [1, 3, 4, 10]
    assert planner.most_frames(30, 40, at_most=10 * context) == context


@pytest.mark.parametrize("sizes", [range(0, 1000, 10), [n * n for n in range(100)], [0] + [500] * 50 + [900] * 49])
def test_the_search_for_the_largest_size_ends_at_it(sizes):
    """Of even, uneven and stepped sizes, with few calls."""
    calls = []

    def size(n: int) -> int:
        calls.append(n)
        return sizes[n]

    for limit in range(1, 1001, 37):
        calls.clear()
        assert _largest_within(size, limit, 99) == max((n for n in range(1, 100) if sizes[n] <= limit), default=0)
        assert len(calls) <= 18


def test_what_exceeds_the_context_is_refused_with_what_would_fit(planner):
    plan = planner.plan(100, 30, 40, text_tokens=20, new_tokens=10)
    with pytest.raises(
        DoesNotFitError, match=r"100 frames of 40x30 take 3,600 visual tokens.*2,048.*at most (\d+)"
    ) as told:
        plan.require()
    assert isinstance(told.value, ValueError)
    most = int(str(told.value).split("at most ")[1].split()[0])
    planner.plan(most, 30, 40, text_tokens=20, new_tokens=10).require()
    with pytest.raises(DoesNotFitError):
        planner.plan(most + 1, 30, 40, text_tokens=20, new_tokens=10).require()
    with pytest.raises(DoesNotFitError, match="not even one frame fits"):
        planner.plan(1, 30, 40, text_tokens=2048).require()


def test_what_exceeds_the_memory_is_refused_with_what_would_fit(planner):
    full = planner.plan(40, 60, 80)
    full.require(full.peak_bytes)
    limit = planner.plan(23, 60, 80).peak_bytes
    with pytest.raises(DoesNotFitError, match=r"40 frames of 80x60 need .* MiB of memory.*at most 23 frames fit"):
        full.require(limit)
    with pytest.raises(DoesNotFitError, match="not even one frame fits"):
        full.require(planner.weight_bytes)


def test_the_largest_number_of_frames_is_the_largest(planner):
    peaks = [planner.plan(frames, 30, 40).peak_bytes for frames in range(1, 11)]
    assert peaks == sorted(peaks)
    for limit in (peaks[0] - 1, *peaks, peaks[-1] + 1):
        most = planner.most_frames(30, 40, limit, at_most=10)
        assert [peak <= limit for peak in peaks] == [True] * most + [False] * (10 - most)


def test_a_loaded_model_has_one_planner_and_a_budget():
    model, processor, _ = setup("released", True, True)
    planner = planner_for(model, processor.video_processor)
    assert planner is planner_for(model, processor.video_processor)
    exact = setup("released", True, True)[2].plan(8, 30, 40)
    rounded = planner.plan(8, 30, 40)
    assert rounded.visual_tokens == exact.visual_tokens
    assert exact.flops["prefill"] < rounded.flops["prefill"]
    assert exact.peak_bytes <= rounded.peak_bytes < budget(model)
    with torch.inference_mode():  # as inference plans
        assert Planner(model.config, processor.video_processor, torch.float32).plan(8, 30, 40) == exact


# -- published shapes --------------------------------------------------------------------------------------------------
# Billions of parameters, from the model cards and reports.
PUBLISHED = {
    "llama-2-7b": 6.738, "llama-2-13b": 13.016, "vicuna-7b-v1.5": 6.738, "vicuna-13b-v1.5": 13.016,
    "qwen2-1.5b": 1.544,
    "qwen2-7b": 7.616,
    "qwen2.5-0.5b": 0.494, "qwen2.5-1.5b": 1.544, "qwen2.5-3b": 3.086, "qwen2.5-7b": 7.616, "qwen2.5-14b": 14.770,
    "qwen3-0.6b": 0.596, "qwen3-1.7b": 1.721, "qwen3-4b": 4.022, "qwen3-8b": 8.191, "qwen3-14b": 14.768,
    "smollm2-135m": 0.1345,
    "phi-3-mini-4k": 3.821, "phi-3-mini-128k": 3.821, "phi-3-medium-4k": 13.960,
}  # fmt: skip


def test_backbones_have_their_published_sizes():
    assert set(PUBLISHED) == set(BACKBONES)
    stab = tiny_stab()
    for name, billions in PUBLISHED.items():
        planner = Planner(config_of(name), VideoPandaVideoProcessor.for_stab(stab), torch.bfloat16)
        vision = (planner.model.model.stab, planner.model.model.projector)
        own = sum(p.numel() for part in vision for p in part.parameters())
        assert (planner.weight_bytes / 2 - own) / 1e9 == pytest.approx(billions, abs=1.5e-3)  # two rows and buffers


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("gemma2", {}),  # caps its attention scores, which SDPA cannot
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
        (
            "phi3",
            {
                "pad_token_id": 0,
                "original_max_position_embeddings": 512,
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "short_factor": [1.0] * 6,
                    "long_factor": [2.0] * 6,
                    "original_max_position_embeddings": 512,
                },
            },
        ),
    ],
)
def test_language_models_that_are_computed_in_their_own_way(kind, fields):
    sizes = {"vocab_size": 301, "num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 96, "head_dim": 12}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    text = {"model_type": kind, **sizes, **heads, "max_position_embeddings": 2048, **fields}
    config = VideoPandaConfig(**{**tiny_config("paper").to_dict(), "text_config": text})
    planner = Planner(config, tiny_processor("paper").video_processor, torch.float32)
    assert planner.context == (512 if kind == "phi3" else 2048)
    assert planner.plan(4, 40, 40).flops["prefill"] > 2 * 2 * 48 * 48 * planner.plan(4, 40, 40).tokens


def test_the_released_model_takes_the_published_macs():
    stab = VideoPandaStabConfig()
    planner = Planner(config_of("vicuna-7b-v1.5"), VideoPandaVideoProcessor.for_stab(stab), torch.bfloat16)
    plan = planner.plan(8, 448, 448)
    assert plan.visual_tokens == 2184
    assert plan.flops["vision"] / 2 == pytest.approx(68.70e9, rel=1e-3)  # as `videopanda bench efficiency` counts


def test_a_folder_is_a_backbone(tmp_path):
    config_of("qwen3-0.6b").text_config.save_pretrained(tmp_path / "text")
    assert config_of(str(tmp_path / "text")).text_config.num_hidden_layers == 28
    tiny_model().config.save_pretrained(tmp_path / "panda")
    with pytest.raises(ValueError, match="--model"):
        config_of(str(tmp_path / "panda"))
    with pytest.raises(ValueError, match=r"no language model 'gpt-9'.*qwen3-8b"):
        config_of("gpt-9")


@pytest.mark.parametrize(
    ("fields", "tokens", "tera_flops"),
    [
        ({}, 5024, 76.0),
        ({"merge.layers": "3,9,17", "merge.keep": "0.5"}, 5024, 27.7),
        ({"merge.layers": "3,9,17", "merge.keep": "0.5", "hybrid.every": "3"}, 2744, 15.2),
    ],
)
def test_the_figures_of_elva(fields, tokens, tera_flops):
    """32 frames on Qwen2-7B: the paper gives 75, 25 and 14 TFLOPs (docs/elva.md)."""
    config = config_of("qwen2-7b", "elva", "", fields)
    planner = Planner(config, processor_class(config).video_processor_for(config), torch.bfloat16)
    plan = planner.plan(32, 336, 336)
    assert plan.visual_tokens == tokens
    assert plan.as_dict()["flops"]["prefill_clip"] == pytest.approx(tera_flops * 1e12, rel=0.02)
    assert (plan.layer_tokens[3] < plan.layer_tokens[2] == tokens) == bool(fields)
