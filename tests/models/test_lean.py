"""Protects what inference leaves out or does in another order: numbers stay, and memory stays with long videos."""

import weakref
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tiny import randomize, tiny_stab
from videopanda.models.videopanda import modeling_videopanda, modeling_videopanda_layers, modeling_videopanda_stab
from videopanda.models.videopanda.modeling_videopanda import VideoPandaProjector, encode_frames
from videopanda.models.videopanda.modeling_videopanda_layers import Linear, linear
from videopanda.models.videopanda.modeling_videopanda_stab import VideoPandaStab


@pytest.fixture
def small_passes(monkeypatch):
    """Eight frames of 6 × 6 cells a pass, one row of windows a time, all products as convolutions."""
    monkeypatch.setattr(modeling_videopanda, "PATCHES_PER_PASS", 8 * 4 * 36)
    monkeypatch.setattr(modeling_videopanda_stab, "WINDOWS_PER_PASS", 6)
    monkeypatch.setattr(modeling_videopanda_layers, "CONVOLUTION_FROM", 1)


@pytest.mark.parametrize("preset", ["released", "paper", "eve_star"])
@pytest.mark.parametrize("frames", [3, 8, 18])
def test_passes_change_nothing(small_passes, preset, frames):
    """Many short videos a pass, and many passes for a long one, with short last segments and missing frames."""
    stab = VideoPandaStab(tiny_stab(preset, coordinates=True)).eval()
    randomize(stab)
    projector = VideoPandaProjector(32, 48).eval()
    pixels = torch.randn(4, frames, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    placement = torch.tensor(
        [[0, 0, 6, 6, frames, frames], [1, 0, 4, 6, frames, frames - 1], [0, 1, 6, 4, 2, 2], [2, 0, 2, 6, frames, 1]]
    )
    plain = projector(stab(pixels, placement))
    with torch.no_grad():
        lean = encode_frames(stab, projector, pixels, placement)
    # measured worst: 1.4e-6 on values up to 5.7
    torch.testing.assert_close(lean, plain.detach(), rtol=1e-5, atol=1e-4)


def test_a_convolution_is_a_linear_map(small_passes):
    """Also without rows; with gradients, and where another kind of weight took its place, it is `F.linear`."""
    layer = Linear(20, 12)
    for shape in ((3, 5, 20), (0, 20), (20,)):
        x = torch.randn(shape)
        expected = F.linear(x, layer.weight, layer.bias)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), expected)  # measured worst: 0
            torch.testing.assert_close(linear(x, layer.weight), F.linear(x, layer.weight))
        assert torch.equal(layer(x), expected)


class LiveBytes(TorchDispatchMode):
    """The most bytes that results of operators hold at one time, beside `given`."""

    def __init__(self, given: torch.Tensor):
        super().__init__()
        self.holders, self.now, self.most = Counter([given.untyped_storage().data_ptr()]), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key, size = storage.data_ptr(), storage.nbytes()
                self.now += size * (self.holders[key] == 0)
                self.holders[key] += 1
                self.most = max(self.most, self.now)
                weakref.finalize(tensor, self.drop, key, size)
        return result

    def drop(self, key: int, size: int) -> None:
        self.holders[key] -= 1
        self.now -= size * (self.holders[key] == 0)


def test_memory_is_that_of_a_pass(monkeypatch):
    """512 frames take what 8 take, beside the tokens, which are there before the second pass, and their indices."""
    monkeypatch.setattr(modeling_videopanda, "PATCHES_PER_PASS", 8 * 4 * 36)
    stab, projector = VideoPandaStab(tiny_stab()).eval(), VideoPandaProjector(32, 48).eval()
    taken = {}
    for frames in (8, 512):
        pixels, placement = torch.zeros(1, frames, 3, 48, 48), torch.tensor([[0, 0, 6, 6, frames, frames]])
        with torch.no_grad(), LiveBytes(pixels) as live:
            tokens = encode_frames(stab, projector, pixels, placement)
        taken[frames] = live.most - (tokens.nbytes + 2 * 8 * len(tokens) if frames > 8 else 0)
        assert len(tokens) == frames * 43
    assert taken[8] > 2**18
    assert taken[512] <= 1.15 * taken[8]  # measured: 1.0 times
