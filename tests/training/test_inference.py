"""Whole volumes and sliding windows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mergekit3d.errors import UsageError
from mergekit3d.training.devices import Runtime
from mergekit3d.training.inference import predict_volume, volume_logits, window_starts

RUNTIME = Runtime(torch.device("cpu"))


class Recorder(nn.Module):
    """Doubles its input and notes the sizes that it saw."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, x):
        self.sizes.append(tuple(x.shape[2:]))
        return 2 * x


def predict(network, image, **options):
    return predict_volume(network, image, **{"runtime": RUNTIME, "patch_size": None, "multiple_of": 4, "exclusive": False, **options})


def test_a_whole_volume_is_padded_to_what_the_network_takes():
    """And the padding is cut off again."""
    network, image = Recorder(), torch.randn(2, 5, 8, 3)
    found = predict(network, image)
    assert [(8, 8, 4)] == network.sizes
    assert torch.allclose((2 * image).sigmoid(), found)


def test_exclusive_classes_are_a_softmax():
    """Probabilities sum to 1 over the channels."""
    image = torch.randn(3, 4, 4, 4)
    assert torch.allclose((2 * image).softmax(0), predict(Recorder(), image, exclusive=True))


def test_a_sliding_window_gives_what_a_local_network_gives_at_once():
    """Windows of 8, 4 and 8 (not larger than the volume needs) are blended without a seam."""
    network, image = Recorder(), torch.randn(1, 13, 3, 9)
    found = predict(network, image, patch_size=(8, 8, 8))
    assert {(8, 4, 8)} == set(network.sizes)
    assert len(network.sizes) > 2
    assert torch.allclose((2 * image).sigmoid(), found, atol=1e-6)


def test_a_volume_that_fits_a_window_is_taken_at_once():
    """No more is padded than the network needs."""
    network = Recorder()
    predict(network, torch.randn(1, 5, 7, 8), patch_size=(16, 16, 16))
    assert [(8, 8, 8)] == network.sizes


def test_mirrored_copies_average_their_probabilities():
    """A network that copies the first half of the first axis onto the second gives the mean with its mirror image."""

    class Lopsided(nn.Module):
        def forward(self, x):
            half = x[:, :, : x.shape[2] // 2]
            return torch.cat([half, half], 2)

    image = torch.randn(1, 4, 4, 4)
    plain, mirrored = Lopsided()(image[None])[0], Lopsided()(image[None].flip(2))[0].flip(1)
    found = predict(Lopsided(), image, mirror_axes=(0, 1))
    assert torch.allclose((plain.sigmoid() + mirrored.sigmoid()) / 2, found, atol=1e-6)


def test_all_subsets_of_the_axes_are_mirrored():
    """Three axes give eight copies."""
    network = Recorder()
    predict(network, torch.randn(1, 4, 4, 4), mirror_axes=(0, 1, 2))
    assert 8 == len(network.sizes)


def test_a_window_that_the_network_does_not_take_is_refused():
    """Before anything is computed."""
    with pytest.raises(UsageError, match=r"wanted multiples of 4, found \[8, 6, 8\]"):
        predict(Recorder(), torch.randn(1, 9, 9, 9), patch_size=(8, 6, 8))


def test_bf16_logits_come_back_as_float32():
    """The blending and what follows stay exact."""
    logits = volume_logits(
        nn.Conv3d(1, 1, 1), torch.randn(1, 1, 4, 4, 4), runtime=Runtime(torch.device("cpu"), "bf16"), patch_size=None, multiple_of=1
    )
    assert torch.float32 == logits.dtype


@pytest.mark.parametrize(("overlap", "batch_size"), [(0.5, 1), (0.25, 3), (0.0, 2), (0.7, 5)])
def test_windows_are_monais(overlap, batch_size):
    """The same places and weights, whatever the number at once: a network that tells voxels by their place in the window."""

    class Placed(nn.Module):
        def forward(self, x):
            return x * torch.arange(x.shape[2]).view(-1, 1, 1) + torch.arange(x.shape[4])

    monai = pytest.importorskip("monai.inferers")
    image = torch.randn(1, 2, 23, 17, 12)
    wanted = monai.sliding_window_inference(image, (8, 8, 8), 1, Placed(), overlap=overlap, mode="gaussian", sigma_scale=0.125)
    found = volume_logits(Placed(), image, runtime=RUNTIME, patch_size=(8, 8, 8), multiple_of=1, overlap=overlap, batch_size=batch_size)
    assert torch.allclose(wanted, found, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "edge", "overlap", "expected"),
    [(8, 8, 0.5, [0]), (9, 8, 0.5, [0, 1]), (20, 8, 0.5, [0, 4, 8, 12]), (10, 4, 0.99, [*range(7)])],
)
def test_windows_cover_the_axis(size, edge, overlap, expected):
    """In equal steps; the last one ends where the axis does."""
    assert expected == window_starts(size, edge, overlap)


def test_windows_in_bf16_are_weighed_in_float32():
    """The mean of windows that agree is what each of them says."""
    runtime = Runtime(torch.device("cpu"), "bf16")
    network = nn.Conv3d(1, 1, 1)
    image = torch.randn(1, 1, 12, 12, 12)
    whole = volume_logits(network, image, runtime=runtime, patch_size=None, multiple_of=1)
    found = volume_logits(network, image, runtime=runtime, patch_size=(8, 8, 8), multiple_of=1)
    assert torch.float32 == found.dtype
    assert torch.allclose(whole, found, rtol=1e-6, atol=0)


def test_image_is_left_as_it_is():
    """Whole or by windows: what is summed and squashed in place is the prediction's own."""
    image = torch.randn(2, 12, 12, 12)
    before = image.clone()
    for patch_size in (None, (8, 8, 8)):
        predict(nn.Identity(), image, patch_size=patch_size)
        assert torch.equal(before, image)
