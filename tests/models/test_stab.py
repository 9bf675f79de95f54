"""STAB never mixes clips or padding, and counts its tokens; protects every ablation. Numbers: `test_golden_stab.py`."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from golden_checks.stab import Vision, real_shapes
from tiny import randomize, tiny_stab
from videopanda.models.videopanda.configuration_videopanda import (
    STAB_PRESETS,
    VideoPandaConfig,
    VideoPandaStabConfig,
    placement_for_size,
    visual_token_count,
)
from videopanda.models.videopanda.convert.names import official_to_ours
from videopanda.models.videopanda.layout_videopanda import token_layout
from videopanda.models.videopanda.modeling_videopanda import VideoPandaForConditionalGeneration, encode_frames
from videopanda.models.videopanda.modeling_videopanda_layers import MaskedBatchNorm
from videopanda.models.videopanda.modeling_videopanda_stab import VideoPandaStab
from videopanda.plan.backbones import config_of


def test_parameter_count_of_the_released_model():
    with torch.device("meta"):
        model = VideoPandaForConditionalGeneration(config_of("vicuna-7b-v1.5", preset="released"))
    count = sum(p.numel() for part in (model.model.stab, model.model.projector) for p in part.parameters())
    assert count == 45_066_578
    official = {official_to_ours(name): shape for name, shape in real_shapes().items()}
    ours = {name: tuple(tensor.shape) for name, tensor in model.model.state_dict().items() if "language" not in name}
    assert {name: np.prod(shape) for name, shape in official.items()} == {n: np.prod(s) for n, s in ours.items()}


@pytest.mark.parametrize(
    ("preset", "fields", "count"),
    [
        ("paper", {}, 38_061_056),
        ("paper", {"gstra_mlp": True}, 46_456_832),  # the MLP of GSTRA, with its norm, is most of the difference
        ("eve_star", {}, 29_982_720),  # the 30 M of the paper's Table 1
    ],
)
def test_parameter_counts_of_the_other_presets(preset, fields, count):
    """STAB and projector, as the paper counts its 45 M; no language model is needed for that."""
    text = {"model_type": "llama", "vocab_size": 4, "num_hidden_layers": 0, "hidden_size": 4096}
    stab = VideoPandaStabConfig(**{**STAB_PRESETS[preset], **fields})
    with torch.device("meta"):
        model = VideoPandaForConditionalGeneration(
            VideoPandaConfig(text_config=text, stab_config=stab, video_token_id=0, image_token_id=1)
        )
    assert sum(p.numel() for part in model.vision_modules().values() for p in part.parameters()) == count


def test_multiply_accumulates_of_the_released_model():
    """105.43 G for eight square frames: what the paper calls FLOPs. A weight multiplies once for every place it sees.

    Folded attention needs fewer; the count is that of the plain equations.
    """
    frames, segments = 8, 2
    patches, cells, tokens = frames * 32 * 32, frames * 16 * 16, frames * (16 * 17 + 1)
    places = {
        **dict.fromkeys(("patch_embedding", "lste", "lsd.kv_proj"), patches),
        **dict.fromkeys(("lsd.query_proj", "lsd.out_proj", "fsra.kv_proj"), cells),
        **dict.fromkeys(("fsra.query_proj", "fsra.out_proj", "fusion.proj"), frames),
        "gstra.in_proj": (2 * patches + segments) / 3,  # rows of keys and values, and of the query
        "gstra": segments,
        "projector": tokens,
    }
    with torch.device("meta"):
        vision = Vision(VideoPandaStabConfig(), 4096)
    total = 0.0
    for name, weight in vision.named_parameters():
        if weight.ndim > 1:
            total += weight.numel() * next(n for part, n in places.items() if part in name)
    assert total == pytest.approx(105.43e9, rel=5e-4)  # measured: 105.415e9


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
        lean = encode_frames(stab, torch.nn.Identity(), batch, torch.tensor(placements))
        alone = [stab(clip[None], torch.tensor([row])) for clip, row in zip(clips_, placements)]
    # measured worst: 5.8e-6 on values up to 16
    torch.testing.assert_close(lean, together, rtol=1e-5, atol=1e-4)
    counts = [len(token_layout(row, 6, config.row_tokens, config.context_token)) for row in placements]
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
        pixels = torch.randn(2, 1, 3, 48, 48)
        tokens = stab(pixels, placement, is_image=True)
        lean = encode_frames(stab, torch.nn.Identity(), pixels, placement, is_image=True)
    # measured worst: 4.8e-7
    torch.testing.assert_close(lean, tokens, rtol=1e-5, atol=1e-5)
    context, rows = config.image_context_token, config.row_tokens
    assert len(tokens) == 6 * (4 + rows) + context + 4 * (6 + rows) + context


@pytest.mark.parametrize("preset", ["released", "paper"])
def test_a_missing_summary_leaves_the_other_one(preset):
    """Without FSRA the video summary alone goes through f_proj; without GSTRA the frame summary stands as it is."""
    frames, rows, columns = 4, 4, 6
    placement = torch.tensor([[0, 0, rows, columns, frames, frames]])
    pixels = torch.randn(1, frames, 3, rows * 8, columns * 8, generator=torch.Generator().manual_seed(3))

    def run(**fields):
        """The parts that exist, what the summaries returned, and the first token of each frame."""
        stab = VideoPandaStab(tiny_stab(preset, **fields)).eval()
        randomize(stab)
        seen = {}
        for name in ("gstra", "fsra"):
            if (part := getattr(stab, name)) is not None:
                part.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
        with torch.no_grad():
            tokens = stab(pixels, placement).view(frames, -1, 32)
        return stab, seen, tokens

    stab, seen, tokens = run(fsra=False)
    assert stab.fsra is None
    assert stab.fusion.balance is None
    with torch.no_grad():
        expected = stab.fusion.proj(stab.fusion.norm(seen["gstra"]))
    # measured worst: 7.2e-7 on values up to 6
    torch.testing.assert_close(tokens[:, 0], expected.expand(frames, -1), rtol=1e-5, atol=1e-5)

    stab, seen, tokens = run(gstra=False)
    assert stab.gstra is None
    assert stab.fusion is None
    assert torch.equal(tokens[:, 0], seen["fsra"][0])
    assert tokens.shape[1] == 1 + rows * (columns + 1)

    stab, seen, tokens = run(gstra=False, fsra=False)
    assert seen == {}
    assert tokens.shape[1] == rows * (columns + 1)


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


def test_eve_star_sends_frame_after_frame():
    """A frame's tokens are those of the frame alone, and nothing stands between frames."""
    stab = VideoPandaStab(tiny_stab("eve_star")).eval()
    randomize(stab)
    pixels = torch.randn(3, 3, 32, 48, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        tokens = stab(pixels[None], torch.tensor([[0, 0, 4, 6, 3, 3]]))
        alone = [stab(frame[None, None], torch.tensor([[0, 0, 4, 6, 1, 1]])) for frame in pixels]
    assert len(tokens) == 3 * (1 + 4 * 7)  # a context token, and a row token at the end of each row
    # measured worst: 7.2e-7 on values up to 7
    torch.testing.assert_close(tokens, torch.cat(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("preset", ["released", "paper"])
def test_half_resolution_averages_pixels(preset):
    """It is the arithmetic without downsampling, on a picture of half the side whose pixels are means of 2 × 2."""
    stab = VideoPandaStab(tiny_stab(preset, downsampling="half_resolution")).eval()
    randomize(stab)
    pixels = torch.randn(1, 4, 3, 48, 48, generator=torch.Generator().manual_seed(5))
    halved = (pixels[..., ::2, ::2] + pixels[..., 1::2, ::2] + pixels[..., ::2, 1::2] + pixels[..., 1::2, 1::2]) / 4
    placement = torch.tensor([[0, 0, 6, 6, 4, 4]])
    with torch.no_grad():
        tokens = stab(pixels, placement)
        twice = halved.repeat_interleave(2, -1).repeat_interleave(2, -2)  # each mean in the place of its four pixels
        # measured worst: 8.1e-6 on values up to 39
        torch.testing.assert_close(stab(twice, placement), tokens, rtol=1e-5, atol=1e-4)
        patches = stab.patch_embedding(halved)
    assert patches.shape[2:4] == (6, 6)  # one patch, one token
    assert len(tokens) == 4 * (1 + 6 * 7)


def test_batch_norm_excludes_padding():
    norm = MaskedBatchNorm(3).train()
    reference = torch.nn.BatchNorm1d(3).train()
    x = torch.randn(2, 4, 2, 2, 3) + 5
    mask = torch.rand(2, 4, 2, 2, 1) > 0.4
    expected = reference(x[mask.squeeze(-1)])
    # measured worst: 7.2e-7
    torch.testing.assert_close(norm(x, mask)[mask.squeeze(-1)], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(norm.running_mean, reference.running_mean)
    torch.testing.assert_close(norm.running_var, reference.running_var)


def test_batch_norm_without_positions_keeps_its_statistics():
    norm = MaskedBatchNorm(3).train()
    x, mask = torch.randn(1, 2, 2, 2, 3), torch.zeros(1, 2, 2, 2, 1, dtype=torch.bool)
    norm(x + 5, ~mask)
    before = norm.running_mean.clone(), norm.running_var.clone()
    found = norm(x, mask)
    assert torch.equal(norm.running_mean, before[0])
    assert torch.equal(norm.running_var, before[1])
    assert torch.equal(found, norm.eval()(x, mask))


@pytest.mark.parametrize("preset", ["released", "paper", "eve_star"])
@pytest.mark.parametrize("name", ABLATIONS)
def test_a_clip_of_no_frames_is_nothing(name, preset):
    """It gives no token, and every parameter that can have a gradient one of zero."""
    stab = VideoPandaStab(tiny_stab(preset, **ABLATIONS[name])).train()
    randomize(stab)
    tokens = stab(torch.zeros(1, 1, 3, 8, 8), torch.tensor([[0, 0, 1, 1, 0, 0]]))
    assert tokens.shape == (0, 32)
    tokens.sum().backward()
    gradients = [parameter.grad for parameter in stab.parameters() if parameter.grad is not None]
    assert len(gradients) == len(list(stab.parameters()))
    assert not any(gradient.any() for gradient in gradients)  # NaN is not zero


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


def test_inference_is_one_graph():
    """With a layout nothing waits for the device and nothing depends on data."""
    stab = VideoPandaStab(tiny_stab()).eval()
    pixels, placement = torch.randn(2, 8, 3, 48, 48), torch.tensor([[1, 0, 4, 6, 8, 8], [0, 1, 6, 4, 8, 8]])
    layout = stab.plan(placement, 8, 6, 6, False, pixels.device)
    with torch.no_grad():
        one_graph = torch.compile(stab, backend="eager", fullgraph=True)(pixels, placement, layout=layout)
        # measured worst: 0
        torch.testing.assert_close(one_graph, stab(pixels, placement, layout=layout))


def test_inference_computes_only_what_tokens_need():
    """Pictures decide the box; a row token is there once; training takes no layout."""
    stab = VideoPandaStab(tiny_stab()).eval()
    layout = stab.plan(torch.tensor([[2, 0, 2, 6, 8, 8]]), 8, 6, 6, False, torch.device("cpu"))
    assert layout.box == (2, 4, 0, 6)
    assert layout.visible is None
    assert len(layout.kept) == 8 * (2 * 6 + 1) + 1
    assert len(layout.order) == 8 * (2 * 7 + 1)
    both = torch.tensor([[2, 0, 2, 6, 8, 8], [0, 1, 6, 4, 4, 4]])
    mixed = stab.plan(both, 8, 6, 6, False, torch.device("cpu"))
    assert mixed.box == (0, 6, 0, 6)
    assert mixed.visible is not None
    assert len(mixed.kept) == 8 * 13 + 4 * 25 + 1
    with pytest.raises(AssertionError):
        stab.train()(torch.randn(1, 8, 3, 48, 48), both[:1], layout=layout)


@pytest.mark.slow
def test_only_the_final_selection_depends_on_data():
    stab = VideoPandaStab(tiny_stab()).eval()
    pixels, placement = torch.randn(2, 8, 3, 48, 48), torch.tensor([[0, 0, 6, 6, 8, 8], [1, 0, 4, 6, 8, 8]])
    with torch.no_grad():
        reasons = [str(reason) for reason in torch._dynamo.explain(stab)(pixels, placement).break_reasons]
    assert reasons
    assert all("nonzero" in reason for reason in reasons)
