"""Protects the start of the patch embedding: what it sends on has the same variance in every direction."""

import numpy as np
import pytest
import torch

from videopanda.data.collate import Collator
from videopanda.data.worlds.scenes.dataset import ScenesDataset
from videopanda.models.videopanda import VideoPandaProcessor, VideoPandaStabConfig, VideoPandaVideoProcessor
from videopanda.models.videopanda.configuration_videopanda import STAB_PRESETS
from videopanda.training import nano
from videopanda.training.whiten import whiten_patch_embedding

SIZE, EPSILON = 10, 0.02


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    """Six clips of Scenes on a common canvas, (6, 4, 3, 100, 100); smaller pictures have black borders."""
    visual = VideoPandaVideoProcessor.for_stab(
        VideoPandaStabConfig(**STAB_PRESETS["nano"]), canvas="tight", pad_frames=False
    )
    processor = VideoPandaProcessor(visual, nano.make_tokenizer(20), chat_template=nano.CHAT_TEMPLATE)
    data = ScenesDataset(6, num_frames=4)
    pixels = Collator(processor, 1, text=False)([data[i] for i in range(6)])["pixel_values_videos"]
    assert (pixels == 0).all(dim=(1, 2)).any()
    return pixels


def patches_of(frames: torch.Tensor) -> np.ndarray:
    """Every patch that shows something, in plain loops: (patches, 300) float64."""
    rows = []
    for clip in frames.numpy():
        for frame in clip:
            for y in range(0, frame.shape[1], SIZE):
                for x in range(0, frame.shape[2], SIZE):
                    patch = frame[:, y : y + SIZE, x : x + SIZE]
                    if patch.any():
                        rows.append(patch.ravel())
    return np.array(rows, dtype=np.float64)


def whitened(frames: torch.Tensor, width: int = 256, **settings) -> torch.Tensor:
    weight = torch.full((width, 3, SIZE, SIZE), float("nan"))
    whiten_patch_embedding(weight, frames, **settings)
    return weight


def test_embedded_patches_have_unit_variance_in_the_leading_directions(frames):
    """A direction of variance v comes out with v / (v + epsilon). Measured: within 2.1e-7 of that in all 256."""
    patches = patches_of(frames)
    variances = np.linalg.eigvalsh(patches.T @ patches / len(patches))[::-1][:256]
    embedded = patches @ whitened(frames).flatten(1).double().numpy().T
    found = np.linalg.eigvalsh(embedded.T @ embedded / len(embedded))[::-1]
    np.testing.assert_allclose(found, np.sort(variances / (variances + EPSILON))[::-1], rtol=0, atol=2e-6)
    strong = int((variances > 1).sum())
    assert strong >= 10
    assert found[:strong].min() > 0.98  # measured: 0.9824
    assert variances[0] > 100 * variances[strong - 1]  # before, one direction had nearly everything


def test_no_channel_is_special(frames):
    """The rotation spreads the directions: the strongest channel has 1.27 times the mean energy."""
    embedded = patches_of(frames) @ whitened(frames).flatten(1).double().numpy().T
    energy = (embedded**2).mean(0)
    assert energy.max() < 2 * energy.mean()


def test_it_depends_on_frames_and_seed_only(frames):
    assert torch.equal(whitened(frames), whitened(frames.clone()))
    assert not torch.equal(whitened(frames), whitened(frames, seed=1))
    state = torch.random.get_rng_state()
    whitened(frames)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_black_frames_change_nothing(frames):
    padded = torch.cat([frames, torch.zeros_like(frames)], dim=1)
    torch.testing.assert_close(whitened(padded), whitened(frames), rtol=0, atol=1e-6)  # measured: 0


def test_more_channels_than_pixels(frames):
    """What is left over gets no direction of its own; the rotation still fills every channel."""
    patches = patches_of(frames)
    weight = whitened(frames, width=320)
    assert weight.isfinite().all()
    embedded = patches @ weight.flatten(1).double().numpy().T
    assert np.linalg.matrix_rank(embedded.T @ embedded / len(embedded), tol=1e-6) <= 300
    assert weight.flatten(1).abs().amax(1).min() > 0


def test_patches_that_the_processor_has_cut_are_whitened_alike(frames):
    size = 2 * SIZE
    cells = frames.unfold(3, size, size).unfold(4, size, size).permute(0, 1, 3, 4, 2, 5, 6)
    patches = (
        cells.unfold(5, SIZE, SIZE).unfold(6, SIZE, SIZE).permute(0, 1, 2, 3, 5, 6, 4, 7, 8).flatten(6).flatten(4, 5)
    )
    weight = torch.full((256, 3 * SIZE**2), float("nan"))
    whiten_patch_embedding(weight, patches.flatten(0, 3))
    torch.testing.assert_close(weight, whitened(frames).flatten(1), rtol=0, atol=1e-4)
