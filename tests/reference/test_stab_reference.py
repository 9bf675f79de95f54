"""The fast STAB equals the slow one on random configurations, forward and backward."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stab_reference import slow_stab

from tiny import randomize
from videopanda.models.videopanda.configuration_videopanda import STAB_PRESETS, VideoPandaStabConfig
from videopanda.models.videopanda.modeling_videopanda import encode_frames
from videopanda.models.videopanda.modeling_videopanda_stab import VideoPandaStab

MAX_CELLS = 3
SIZES = st.builds(
    lambda hidden_size, patch_size: {
        "hidden_size": hidden_size,
        "patch_size": patch_size,
        "image_size": MAX_CELLS * 2 * patch_size,
    },
    *(st.sampled_from((6, 12)), st.sampled_from((1, 2, 3))),
)


def free_fields() -> dict[str, st.SearchStrategy]:
    """A strategy for every field that is not a size."""
    choices = {
        "num_heads": (1, 2, 3),
        "segment_frames": (None, 1, 2, 4),
        "lste_bottleneck": (None, 5),
        "gstra_input": ("full", "downsampled"),
        "lsd_query": ("pooled", "learned"),
        "attention_scale": ("width", "head"),
        "fusion": ("gated", "linear"),
        "downsampling": ("lsd", "lsd", "average", "half_resolution", "perceiver"),
        "layer_norm_eps": (1e-5, 1e-2),
        "dropout": (0.5,),  # has no effect in eval mode
    }
    switches = (
        *("lste", "lste_batch_norm", "lste_depthwise", "dense_connection", "mask_padding", "gstra", "gstra_mlp"),
        *("fsra", "query_residual", "downsample_first", "row_tokens", "coordinates"),
    )
    return {name: st.sampled_from(values) for name, values in choices.items()} | dict.fromkeys(switches, st.booleans())


@st.composite
def placements(draw, config: VideoPandaStabConfig, is_image: bool):
    """Canvas size in cells, and for each video where its picture lies and how many of its frames are real."""
    canvas = draw(st.integers(1, MAX_CELLS)), draw(st.integers(1, MAX_CELLS))
    videos = []
    for _ in range(draw(st.integers(1, 2))):
        sizes = [draw(st.integers(1, side)) for side in canvas]
        corner = [draw(st.integers(0, side - size)) for side, size in zip(canvas, sizes)]
        frames = 1 if is_image else draw(st.integers(1, 6))
        least = 1
        if config.mask_padding and config.segment_frames:  # the last segment needs a real frame
            least = (frames - 1) // config.segment_frames * config.segment_frames + 1
        videos.append([*corner, *sizes, frames, draw(st.integers(least, frames))])
    return canvas, videos


def compare(config: VideoPandaStabConfig, canvas: tuple[int, int], videos: list[list[int]], is_image: bool) -> float:
    """Largest difference between fast and slow tokens and gradients, relative to the largest value of each tensor."""
    stab = VideoPandaStab(config).double().eval()
    randomize(stab)
    generator = torch.Generator().manual_seed(3)
    frames = max(row[4] for row in videos)
    sides = (side * config.cell_size for side in canvas)
    pixels = torch.randn(len(videos), frames, 3, *sides, generator=generator).double()
    for row, clip in zip(videos, pixels):
        clip[row[5] :] = 0  # padding frames are black
    placement = torch.tensor(videos)
    fast_pixels, slow_pixels = pixels.clone().requires_grad_(), pixels.clone().requires_grad_()
    weights = {name: tensor.detach().clone().requires_grad_() for name, tensor in stab.state_dict().items()}
    with torch.no_grad():
        lean = encode_frames(stab, torch.nn.Identity(), pixels, placement, is_image)
    fast = stab(fast_pixels, placement, is_image)
    slow = slow_stab(config, weights, slow_pixels, placement, is_image)
    assert fast.shape == slow.shape
    loss_weights = torch.randn(fast.shape, generator=generator)
    (fast * loss_weights).sum().backward()
    (slow * loss_weights).sum().backward()
    pairs = [(fast, slow), (lean, slow), (fast_pixels.grad, slow_pixels.grad)]
    for name, parameter in stab.named_parameters():
        zero = torch.zeros_like(parameter)
        pairs.append(tuple(zero if g is None else g for g in (parameter.grad, weights[name].grad)))
    return max(((one - two).abs().max() / two.abs().max().clamp(min=1)).item() for one, two in pairs)


@settings(max_examples=30)
@given(st.data())
@pytest.mark.parametrize("preset", ["released", "paper", "any"])
def test_fast_equals_slow(preset, data):
    is_image, sizes = data.draw(st.integers(0, 5)) == 0, data.draw(SIZES)
    if preset == "any":
        config = VideoPandaStabConfig(**sizes, **data.draw(st.fixed_dictionaries(free_fields())))
    elif preset == "released":
        config = VideoPandaStabConfig(**sizes, num_heads=data.draw(st.sampled_from((2, 3))))
    else:
        config = VideoPandaStabConfig(**{**STAB_PRESETS["paper"], **sizes})
    error = compare(config, *data.draw(placements(config, is_image)), is_image)
    assert error <= 1e-5  # measured worst: 2.0e-6 in 1200 examples; batch norm and waves are computed in float32


def test_every_field_is_drawn():
    fields = set(vars(VideoPandaStabConfig)["__annotations__"])
    assert fields == free_fields().keys() | {"hidden_size", "patch_size", "image_size"}
