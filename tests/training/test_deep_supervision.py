"""Networks with several outputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mergekit3d.training.deep_supervision import outputs_of, over_levels
from mergekit3d.training.loss import dice_cross_entropy_loss, dice_loss

from .conftest import small_network


def test_one_output_has_the_plain_loss():
    """To the bit."""
    logits, targets = torch.randn(1, 2, 4, 4, 4), torch.ones(1, 2, 4, 4, 4, dtype=torch.uint8)
    assert torch.equal(dice_loss(logits, targets, False), over_levels(dice_loss)(logits, targets, False))


@pytest.mark.parametrize("exclusive", [False, True])
def test_levels_are_weighted_by_halves_without_the_coarsest(exclusive):
    """Three levels: 2/3 and 1/3; targets of the second are every second voxel."""
    torch.manual_seed(0)
    levels = [torch.randn(2, 3, size, size, size) for size in (8, 4, 2)]
    targets = torch.randint(0, 2, (2, 8, 8, 8) if exclusive else (2, 3, 8, 8, 8), dtype=torch.uint8)
    coarse = targets[..., 1::2, 1::2, 1::2]
    fine, half = dice_cross_entropy_loss(levels[0], targets, exclusive), dice_cross_entropy_loss(levels[1], coarse, exclusive)
    found = over_levels(dice_cross_entropy_loss)(levels, targets, exclusive)
    assert float(2 / 3 * fine + 1 / 3 * half) == pytest.approx(float(found), rel=1e-6)


def test_all_levels_in_one_tensor_are_told_apart():
    """As MONAI's DynUNet gives them, at one size."""
    stacked = torch.randn(1, 3, 2, 4, 4, 4)
    assert [stacked[:, level].tolist() for level in range(3)] == [level.tolist() for level in outputs_of(stacked)]


class Heads(nn.Module):
    """Two outputs, in training alone."""

    def __init__(self):
        super().__init__()
        self.body, self.coarse = small_network(), nn.Conv3d(2, 2, 2, stride=2)

    def forward(self, x):
        logits = self.body(x)
        return [logits, self.coarse(x), self.coarse(x)] if self.training else logits


def test_a_network_with_several_outputs_is_trained(run):
    """Its coarse heads learn as well, and validation looks at the finest output."""
    training = run()
    training.network = Heads()
    before = training.network.coarse.weight.detach().clone()
    training.fit(epochs=4)
    losses = [float(row["validation_loss"]) for row in training.log()]
    assert losses[-1] < losses[0]
    assert not torch.equal(before, training.network.coarse.weight)
