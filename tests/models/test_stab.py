"""STAB equals the reference numbers, never mixes clips or padding, and counts its tokens; protects every ablation."""

import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tiny import randomize, tiny_stab
from videopanda.models.videopanda.configuration_videopanda import (
    VideoPandaConfig,
    VideoPandaStabConfig,
    placement_for_size,
    visual_token_count,
)
from videopanda.models.videopanda.convert_videopanda import official_to_ours
from videopanda.models.videopanda.modeling_videopanda import VideoPandaForConditionalGeneration, VideoPandaProjector
from videopanda.models.videopanda.modeling_videopanda_stab import MaskedBatchNorm, VideoPandaStab

GOLDEN = Path(__file__).parent.parent / "golden"
SMALL = {"hidden_size": 64}
TOLERANCE = 1e-4  # of the golden files; the measured worst case stands beside each comparison


class Vision(torch.nn.Module):
    """Tower and projector under the names of the whole model."""

    def __init__(self, config: VideoPandaStabConfig, output_size: int):
        super().__init__()
        self.stab = VideoPandaStab(config)
        self.projector = VideoPandaProjector(config.hidden_size, output_size)

    def load_official(self, weights: dict[str, torch.Tensor]) -> "Vision":
        ours = self.state_dict()
        renamed = {official_to_ours(name): tensor for name, tensor in weights.items()}
        renamed.pop(None, None)
        self.load_state_dict({name: tensor.reshape(ours[name].shape) for name, tensor in renamed.items()})
        return self.eval()

    @torch.no_grad()
    def forward(self, pixels, placement, is_image=False):
        return self.projector(self.stab(pixels, placement, is_image))


def read_clip(golden: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rebuild pixels (1, T, 3, S, S) and our placement from a golden file."""
    top, left, height, width, side, real = golden["placement.v0"].tolist()
    frames = golden["patch_hw"].shape[1]
    if "frames_q.v0" in golden:
        pixels = golden["frames_q.v0"].float() / 64
    else:
        if "valid_half_q.v0" in golden:
            valid = golden["valid_half_q.v0"].repeat_interleave(2, 2).repeat_interleave(2, 3)
        else:
            valid = golden["valid_q.v0"]
        pixels = torch.zeros(frames, 3, side, side)
        pixels[:real] = golden["pad_q"].float().view(3, 1, 1) / 64
        pixels[:real, :, top : top + height, left : left + width] = valid.float() / 64
    placement = torch.tensor([[top // 28, left // 28, height // 28, width // 28, frames, real]])
    return pixels[None], placement


def golden_tokens(golden):
    return torch.cat([golden[name] for name in sorted(golden) if name.startswith("tokens.v0")])


@pytest.fixture(scope="module")
def small() -> Vision:
    weights = load_file(GOLDEN / "stab_small_weights_a.safetensors")
    return Vision(VideoPandaStabConfig.released(**SMALL), 96).load_official(weights)


@pytest.mark.parametrize(
    "name", ["stab_wide_8f", "stab_square_8f", "stab_short_clip_4f_1pad", "stab_full448_wide_8f", "stab_image_t1"]
)
def test_released_tokens(small, name):
    golden = load_file(GOLDEN / f"{name}.safetensors")
    pixels, placement = read_clip(golden)
    tokens = small(pixels, placement, is_image=name == "stab_image_t1")
    error = (tokens - golden_tokens(golden)).abs().max()
    assert error <= TOLERANCE  # measured worst: 2.2e-5 (stab_full448_wide_8f), others 5.4e-6


def test_released_intermediates(small):
    golden = load_file(GOLDEN / "stab_wide_8f.safetensors")
    pixels, placement = read_clip(golden)
    stab, seen = small.stab, {}
    names = ("patch_embedding", "lste", "gstra", "lsd", "fsra", "fusion.norm", "fusion")
    hooks = [
        stab.get_submodule(name).register_forward_hook(lambda _, args, out, name=name: seen.update({name: (args, out)}))
        for name in names
    ]
    with torch.no_grad():
        stab(pixels, placement)
        for hook in hooks:
            hook.remove()
        x, mask = seen["lste"][0]
        branch = stab.lste.temporal_branch(x, mask)
        position = stab.lste.position_branch(x + branch)
    every_frame = range(8)
    top, left, rows, columns, _, _ = placement[0].tolist()
    window = slice(2 * top, 2 * (top + rows)), slice(2 * left, 2 * (left + columns))
    cells = slice(top, top + rows), slice(left, left + columns)
    pairs = {
        "patch_embed": seen["patch_embedding"][1][0].permute(0, 3, 1, 2),
        "lmhra_branch": branch.permute(0, 4, 1, 2, 3),
        "dpe_branch": position.permute(0, 4, 1, 2, 3),
        "gstra_keys": seen["gstra"][0][0].transpose(0, 1),
        "gstra_out": seen["gstra"][1][None],
        **{f"lsd_in.f{t:02}": seen["lsd"][0][0][0, t][window].permute(2, 0, 1)[None] for t in every_frame},
        **{f"lsd_out.f{t:02}": seen["lsd"][1][0, t][cells].flatten(0, 1)[None] for t in every_frame},
        **{f"fsra_out.f{t:02}": seen["fsra"][1][:, t][None] for t in every_frame},
        **{f"context_in.f{t:02}": seen["fusion.norm"][0][0][:, t] for t in every_frame},
        **{f"context_out.f{t:02}": seen["fusion"][1][:, t] for t in every_frame},
    }
    stored = {name.removeprefix("inter.") for name in golden if name.startswith("inter.")}
    assert stored == set(pairs)
    worst = {name: (value - golden[f"inter.{name}"]).abs().max().item() for name, value in pairs.items()}
    assert max(worst.values()) <= TOLERANCE, worst  # measured worst: 8.6e-6 (lsd_in.f00)


def formula(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The pseudo-random numbers of the golden README, section 3: r in [-0.5, 0.5) and the raw integers."""
    i = np.arange(1, np.prod(shape, dtype=np.int64) + 1, dtype=np.uint32)
    u = np.uint32(zlib.crc32(key.encode())) + np.uint32(0x9E3779B1) * i
    u = (u ^ (u >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    u = (u ^ (u >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return (u ^ (u >> np.uint32(16))).reshape(shape)


def formula_weight(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    if key.endswith("running_var"):
        offset, gain = 1.25, 1.0
    elif key.endswith(("running_mean", "bias")):
        offset, gain = 0.0, 0.4
    elif key.rsplit(".", 1)[-1] in ("class_embedding", "split_embedding", "temporal_cls_token", "balance"):
        offset, gain = 0.0, 2.0
    elif len(shape) == 1:
        offset, gain = 1.0, 0.5
    else:
        strong = key.endswith((".q.1.weight", ".kv.1.weight", "in_proj_weight"))
        offset, gain = 0.0, (6.0 if strong else 3.5) / np.sqrt(np.prod(shape[1:]))
    r = formula(key, shape).astype(np.float64) / 2**32 - 0.5
    return torch.from_numpy((offset + gain * r).astype(np.float32))


def real_shapes() -> dict[str, tuple[int, ...]]:
    """Official keys and shapes of the 7B tower and projector, from the small file: 64 → 1024, 42 → 682, 96 → 4096."""
    width = {64: 1024, 128: 2048, 192: 3072, 256: 4096, 42: 682, 96: 4096}
    small = load_file(GOLDEN / "stab_small_weights_a.safetensors")
    return {
        name: tuple(width.get(n, n) for n in tensor.shape) for name, tensor in small.items() if "lmhra2" not in name
    }


def test_real_size():
    golden = load_file(GOLDEN / "real_1024_wide_8f.safetensors")
    shapes = {name: shape for name, shape in real_shapes().items() if official_to_ours(name) is not None}
    weights = {name: formula_weight(name, shape) for name, shape in shapes.items()}
    for name in ("video_tower.balance", "video_tower.dec.attn.in_proj_weight"):
        assert torch.equal(weights[name].flatten()[:8], golden[f"check.{name}.first8"])
    vision = Vision(VideoPandaStabConfig.released(), 4096).load_official(weights)
    del weights
    top, left, height, width, side, real = golden["placement.v0"].tolist()
    valid = (formula("pixels.real_1024_wide_8f", (real, 3, height, width)) >> np.uint32(24)).astype(np.float32)
    pixels = torch.empty(1, real, 3, side, side)
    pixels[:] = torch.tensor([-1.0, 2.0, -3.0]).view(3, 1, 1) / 64
    pixels[0, :, :, top : top + height, left : left + width] = torch.from_numpy((valid - 128) / 64)
    assert torch.equal(pixels[0, 0, 0, top, left : left + 8], golden["check.frames.f00.first8_valid"])
    placement = torch.tensor([[top // 28, left // 28, height // 28, width // 28, real, real]])
    frames = vision(pixels, placement).view(real, -1, 4096)
    assert vision.stab.token_counts(placement, 16, 16).tolist() == [8 * 154]
    worst = {}
    for t, frame in enumerate(frames):
        worst[f"l2 {t}"] = (frame.norm(dim=1) / golden[f"token_l2.f{t:02}"] - 1).abs().max().item()
        worst[f"sum {t}"] = (frame.sum(1) - golden[f"token_sum.f{t:02}"]).abs().max().item() / 64
        if f"rows.f{t:02}" in golden:
            rows = frame[golden[f"rows.f{t:02}"]]
            worst[f"rows {t}"] = (rows - golden[f"tokens_rows.f{t:02}"]).abs().max().item()
    assert max(worst.values()) <= TOLERANCE, worst  # measured worst: 3.6e-5 (rows of frame 3)


def test_parameter_count_of_the_released_model():
    with torch.device("meta"):
        model = VideoPandaForConditionalGeneration(VideoPandaConfig.released())
    count = sum(p.numel() for part in (model.model.stab, model.model.projector) for p in part.parameters())
    assert count == 45_066_578
    official = {official_to_ours(name): shape for name, shape in real_shapes().items()}
    official.pop(None)
    ours = {name: tuple(tensor.shape) for name, tensor in model.model.state_dict().items() if "language" not in name}
    assert {name: np.prod(shape) for name, shape in official.items()} == {n: np.prod(s) for n, s in ours.items()}


ABLATIONS = {
    "full": {},
    "no_row_tokens": {"row_tokens": False},
    "no_fsra": {"fsra": False},
    "no_lste": {"lste": False},
    "no_gstra": {"gstra": False},
    "no_context": {"gstra": False, "fsra": False},
    "average": {"downsampling": "average"},
    "half_resolution": {"downsampling": "half_resolution"},
    "perceiver": {"downsampling": "perceiver"},
    "downsample_first": {"downsample_first": True},
    "average_first": {"downsampling": "average", "downsample_first": True},
    "no_dense_connection": {"dense_connection": False, "segment_frames": 4},
    "coordinates": {"coordinates": True},
    "other_choices": {"attention_scale": "head", "fusion": "linear", "lste_batch_norm": False, "gstra_mlp": False},
}


@st.composite
def clips(draw):
    """A source size, a number of frames and of all-padding frames."""
    return draw(st.integers(1, 90)), draw(st.integers(1, 90)), draw(st.integers(1, 9)), draw(st.integers(0, 9))


def place(height, width, frames, pad_to, max_cells, tight=False):
    return [*placement_for_size(height, width, max_cells, tight), max(frames, pad_to), frames]


def random_clip(placement, cell, side_rows, side_columns, frames, generator):
    """Random pixels in the picture, a constant around it, zeros in padding frames."""
    top, left, rows, columns, _, real = placement
    pixels = torch.zeros(frames, 3, side_rows * cell, side_columns * cell)
    pixels[:real] = 0.3
    window = slice(top * cell, (top + rows) * cell), slice(left * cell, (left + columns) * cell)
    pixels[:real, :, window[0], window[1]] = torch.randn(real, 3, rows * cell, columns * cell, generator=generator)
    return pixels


@settings(deadline=None, max_examples=12)
@given(st.lists(clips(), min_size=1, max_size=4), st.sampled_from(["released", "paper", "eve_star"]))
@pytest.mark.parametrize("name", ABLATIONS)
def test_clips_are_independent_and_counted(name, shapes, preset):
    """A clip's tokens are the same alone and in any batch, and their number is that of `visual_token_count`."""
    config = tiny_stab(preset, **ABLATIONS[name])
    stab = VideoPandaStab(config).eval()
    randomize(stab)
    generator = torch.Generator().manual_seed(0)
    pads = preset != "paper"
    placements = [place(h, w, t, pad if pads else 0, 6) for h, w, t, pad in shapes]
    clips_ = [random_clip(row, 8, 6, 6, row[4], generator) for row in placements]
    longest = max(row[4] for row in placements) + 1
    batch = torch.stack([torch.cat([clip, clip.new_zeros(longest - len(clip), 3, 48, 48)]) for clip in clips_])
    batch[0, placements[0][4] :] = 7.0  # frames behind the end never count, whatever they hold
    with torch.no_grad():
        together = stab(batch, torch.tensor(placements))
        alone = [stab(clip[None], torch.tensor([row])) for clip, row in zip(clips_, placements)]
    counts = stab.token_counts(torch.tensor(placements), 6, 6).tolist()
    assert counts == [
        visual_token_count(
            t,
            h,
            w,
            image_size=48,
            patch_size=4,
            row_tokens=config.row_tokens,
            context_token=config.context_token,
            pad_to_frames=pad if pads else 0,
        )
        for h, w, t, pad in shapes
    ]
    for one, other, count in zip(alone, together.split(counts), counts):
        assert one.shape == (count, 32)
        # measured worst: 4.8e-6 on values up to 108
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


@settings(deadline=None, max_examples=10)
@given(clips(), st.integers(0, 2), st.integers(0, 2))
@pytest.mark.parametrize("name", ABLATIONS)
def test_padding_never_matters_to_the_paper(name, shape, right, below):
    """With `mask_padding` a tight canvas, a square one and any larger one give the same tokens."""
    stab = VideoPandaStab(tiny_stab("paper", **ABLATIONS[name])).eval()
    randomize(stab)
    height, width, frames, _ = shape
    results = []
    for tight in (True, False):
        row = place(height, width, frames, 0, 6, tight)
        rows, columns = (row[2] + below, row[3] + right) if tight else (6, 6)
        pixels = random_clip(row, 8, rows, columns, frames, torch.Generator().manual_seed(1))
        with torch.no_grad():
            results.append(stab(pixels[None], torch.tensor([row])))
    # measured worst: 5.7e-6 on values up to 107
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ABLATIONS)
def test_images(name):
    config = tiny_stab(**ABLATIONS[name])
    stab = VideoPandaStab(config).eval()
    placement = torch.tensor([[0, 1, 6, 4, 1, 1], [1, 0, 4, 6, 1, 1]])
    with torch.no_grad():
        tokens = stab(torch.randn(2, 1, 3, 48, 48), placement, is_image=True)
    counts = stab.token_counts(placement, 6, 6, is_image=True).tolist()
    context, rows = config.image_context_token, config.row_tokens
    assert counts == [6 * (4 + rows) + context, 4 * (6 + rows) + context]
    assert len(tokens) == sum(counts)


def test_coordinates_are_waves_over_the_picture_and_the_clip():
    """Each cell's token grows by the projected waves of its own centre; context and row tokens stay as they are."""
    stab = VideoPandaStab(tiny_stab("paper", coordinates=True)).eval()
    randomize(stab)
    frames, rows, columns = 3, 4, 6
    placement = torch.tensor([[1, 0, rows, columns, frames, frames]])
    pixels = random_clip(placement[0].tolist(), 8, 6, 6, frames, torch.Generator().manual_seed(4))[None]
    with torch.no_grad():
        found = stab(pixels, placement)
        weight, stab.coordinates = stab.coordinates.projection.weight, None
        expected = stab(pixels, placement).view(frames, -1, 32)
        for t in range(frames):
            for r in range(rows):
                for c in range(columns):
                    waves = [
                        wave(math.pi * k * x)
                        for x in ((t + 0.5) / frames, (r + 0.5) / rows, (c + 0.5) / columns)
                        for wave in (math.cos, math.sin)
                        for k in range(1, 9)
                    ]
                    expected[t, 1 + r * (columns + 1) + c] += weight @ torch.tensor(waves)
    # measured worst: 1.4e-6 on values up to 9
    torch.testing.assert_close(found, expected.flatten(0, 1), rtol=1e-5, atol=1e-4)


def test_paper_equals_a_naive_implementation():
    """The paper's equations once more, frame by frame and window by window, with torch's own convolutions."""
    stab = VideoPandaStab(tiny_stab("paper")).eval()
    randomize(stab)
    frames, rows, columns, d = 5, 4, 6, 32
    pixels = torch.randn(frames, 3, rows * 8, columns * 8, generator=torch.Generator().manual_seed(2))

    def attend(query, keys, values):
        return torch.softmax(keys @ query / d**0.5, 0) @ values

    with torch.no_grad():
        p = F.conv2d(pixels, stab.patch_embedding.weight, stride=4).transpose(0, 1)[None]  # (1, D, T, H, W)
        lste, lsd, fsra, gstra = stab.lste, stab.lsd, stab.fsra, stab.gstra
        x = p + lste.expand(lste.temporal(lste.reduce(p)))
        x = (x + lste.position(x))[0].permute(1, 2, 3, 0)  # (T, H, W, D)
        wk, wv = lsd.kv_proj.weight.chunk(2)
        query = lsd.query_proj(lsd.query_norm(lsd.query))
        tokens = torch.empty(frames, rows, columns, d)
        for t in range(frames):
            for r in range(rows):
                for c in range(columns):
                    window = lsd.key_norm(x[t, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].reshape(4, d))
                    tokens[t, r, c] = lsd.out_proj(attend(query, window @ wk.T, window @ wv.T))
        wq, wk, wv = gstra.in_proj.weight.chunk(3)
        bq, bk, bv = gstra.in_proj.bias.chunk(3)
        keys = gstra.key_norm(tokens.reshape(-1, d))
        query = wq @ gstra.query_norm(gstra.query) + bq
        video = gstra.out_proj(attend(query, keys @ wk.T + bk, keys @ wv.T + bv))
        wk, wv = fsra.kv_proj.weight.chunk(2)
        query = fsra.query_proj(fsra.query_norm(fsra.query))
        expected = []
        for t in range(frames):
            keys = fsra.key_norm(tokens[t].reshape(-1, d))
            frame = fsra.out_proj(attend(query, keys @ wk.T, keys @ wv.T))
            alpha = stab.fusion.balance
            expected.append(stab.fusion.proj(alpha * frame + (1 - alpha) * video))
            for r in range(rows):
                expected += [*tokens[t, r], stab.row_token]
        ours = stab(pixels[None], torch.tensor([[0, 0, rows, columns, frames, frames]]))
    # measured worst: 4.1e-6 on values up to 9
    torch.testing.assert_close(ours, torch.stack(expected), rtol=1e-5, atol=1e-4)


def test_batch_norm_sees_only_what_takes_part():
    norm = MaskedBatchNorm(3).train()
    reference = torch.nn.BatchNorm1d(3).train()
    x = torch.randn(2, 4, 2, 2, 3) + 5
    mask = torch.rand(2, 4, 2, 2, 1) > 0.4
    expected = reference(x[mask.squeeze(-1)])
    # measured worst: 7.2e-7
    torch.testing.assert_close(norm(x, mask)[mask.squeeze(-1)], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(norm.running_mean, reference.running_mean)
    torch.testing.assert_close(norm.running_var, reference.running_var)


def test_short_last_segment():
    """Ten frames are segments of 4, 4 and 2: the last two frames know nothing of the first eight."""
    stab = VideoPandaStab(tiny_stab()).eval()
    randomize(stab)
    pixels = torch.randn(1, 10, 3, 48, 48, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        whole = stab(pixels, torch.tensor([[0, 0, 6, 6, 10, 10]]))
        end = stab(pixels[:, 8:], torch.tensor([[0, 0, 6, 6, 2, 2]]))
    # measured worst: 9.6e-7 on values up to 14
    torch.testing.assert_close(whole[-len(end) :], end, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
def test_only_the_final_selection_depends_on_data():
    stab = VideoPandaStab(tiny_stab()).eval()
    pixels, placement = torch.randn(2, 8, 3, 48, 48), torch.tensor([[0, 0, 6, 6, 8, 8], [1, 0, 4, 6, 8, 8]])
    with torch.no_grad():
        reasons = [str(reason) for reason in torch._dynamo.explain(stab)(pixels, placement).break_reasons]
    assert reasons
    assert all("nonzero" in reason for reason in reasons)
