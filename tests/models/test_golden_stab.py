"""The golden numbers notice each fact about STAB, hold for other frame counts and in any company."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from golden_checks.stab import TOLERANCE, Vision, read_pixels, to_cells
from videopanda.models.videopanda import VideoPandaStabConfig
from videopanda.models.videopanda.layout_videopanda import token_layout
from videopanda.models.videopanda.modeling_videopanda_stab import VideoPandaStab

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="module")
def weights():
    return load_file(GOLDEN / "stab_small_weights_a.safetensors")


@pytest.fixture(scope="module")
def wide():
    """The wide clip: its pixels (8, 3, 112, 112), its placement row and its tokens (8, 16, 96)."""
    golden = load_file(GOLDEN / "stab_wide_8f.safetensors")
    tokens = torch.stack([golden[f"tokens.v0.f{t:02}"] for t in range(8)])
    return read_pixels(golden, 0, 8), to_cells(golden["placement.v0"], 8, 28), tokens


def row(placement, frames):
    return torch.tensor([[*placement[:4].tolist(), frames, frames]])


# What the outputs (up to 7) change by, at least, when one fact of the released arithmetic is given up.
# Measured, from top to bottom: 3.6, 2.1, 2.4, 1.4, 0.44, 2.1, 4.3, 4.5, 4.0, 0.89, 4.2.
@pytest.mark.parametrize(
    ("change", "least"),
    [
        pytest.param({"segment_frames": None}, 1.0, id="D1-one-summary-per-video"),
        pytest.param({"lste_batch_norm": False}, 1.0, id="D2-no-batch-norm"),
        pytest.param({"dense_connection": False}, 1.0, id="D3-no-dense-connection"),
        pytest.param({"gstra_input": "downsampled"}, 0.1, id="D4-gstra-on-tokens"),
        pytest.param({"mask_padding": True}, 0.1, id="D5-padding-excluded"),
        pytest.param({"attention_scale": "head"}, 0.5, id="D6-scale-of-one-head"),
        pytest.param({"num_heads": 1}, 0.5, id="D6-one-head"),
        pytest.param({"query_residual": False}, 1.0, id="D7-D8-query-not-added"),
        pytest.param({"downsampling": "average"}, 0.5, id="D7-average-alone"),
        pytest.param({"gstra_mlp": False}, 0.5, id="D9-no-mlp"),
        pytest.param({"fusion": "linear"}, 0.5, id="D10-free-weight"),
    ],
)
def test_the_numbers_notice(weights, wide, change, least):
    pixels, placement, tokens = wide
    vision = Vision.from_official(weights, 112)
    changed = VideoPandaStab(VideoPandaStabConfig(**{"hidden_size": 64, "image_size": 112, **change})).eval()
    changed.load_state_dict(vision.stab.state_dict(), strict=False)
    vision.stab = changed
    effect = (vision(pixels[None], placement[None]) - tokens.flatten(0, 1)).abs().max().item()
    assert effect >= least


@pytest.mark.parametrize("frames", [4, 8, 12, 16])
def test_frame_counts_of_the_official_code(weights, wide, frames):
    """Segments of four frames know nothing of each other, so longer clips are made of known ones."""
    pixels, placement, tokens = wide
    chosen = [t % 8 for t in range(frames)]
    found = Vision.from_official(weights, 112)(pixels[chosen][None], row(placement, frames))
    error = (found - tokens[chosen].flatten(0, 1)).abs().max().item()
    assert error <= TOLERANCE  # measured worst: 5.4e-6


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 6, 7, 9, 10, 11])
def test_frame_counts_that_the_official_code_cannot_take(weights, wide, frames):
    """Segments of four frames, the last one shorter; each as if it stood alone (docs/architecture.md, Segments)."""
    pixels, placement, tokens = wide
    vision = Vision.from_official(weights, 112)
    chosen = [t % 8 for t in range(frames)]
    found = vision(pixels[chosen][None], row(placement, frames)).view(frames, -1, 96)
    whole = frames // 4 * 4
    last = vision(pixels[chosen[whole:]][None], row(placement, frames - whole)).view(frames - whole, -1, 96)
    error = (found - torch.cat([tokens[chosen[:whole]], last])).abs().max().item()
    assert error <= TOLERANCE  # measured worst: 5.4e-6


def test_mixed_aspect_ratios_in_one_batch(weights, wide):
    """The wide clip has its golden tokens among tall, square and short clips, and these are as they are alone."""
    pixels, placement, tokens = wide
    vision = Vision.from_official(weights, 112)
    generator = torch.Generator().manual_seed(0)
    rows = torch.tensor([[0, 1, 4, 2, 8, 8], placement.tolist(), [0, 0, 4, 4, 8, 6], [1, 0, 1, 4, 8, 1]])
    batch = torch.randn(4, 8, 3, 112, 112, generator=generator)
    batch[1] = pixels
    for clip, real in zip(batch, rows[:, 5].tolist()):
        clip[real:] = 0
    counts = [len(token_layout(row, 4, True, True)) for row in rows]
    assert counts == [8 * 13, 8 * 16, 8 * 21, 6 + 7 * 21]
    together = vision(batch, rows).split(counts)
    assert (together[1] - tokens.flatten(0, 1)).abs().max().item() <= TOLERANCE  # measured worst: 5.4e-6
    for clip, placed, found in zip(batch, rows, together):
        error = (vision(clip[None], placed[None]) - found).abs().max().item()
        assert error <= TOLERANCE  # measured worst: 5.0e-6
