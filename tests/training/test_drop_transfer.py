"""Dropout around the weights of the task before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mergekit3d.training.drop_transfer import DropTransfer, channel_axes


@pytest.fixture
def moved():
    """A convolution that has moved by 1 from its start, and drop-transfer around that start."""
    torch.manual_seed(0)
    layer = nn.Conv3d(2, 6, 1)
    start = [parameter.detach().clone() for parameter in (layer.weight, layer.bias)]
    drop = DropTransfer([[(layer.weight, 0), (layer.bias, 0)]], 0.25)
    layer.weight.data += 1
    layer.bias.data += 1
    return layer, start, drop


def test_dropped_channels_are_the_start_and_the_others_make_up(moved):
    """With p = 1/4 a channel that moved by 1 stands at 0 or at 4/3 from its start; its bias goes with it."""
    layer, (weight, bias), drop = moved
    torch.manual_seed(1)
    drop.drop()
    by_channel = (layer.bias - bias).tolist()

    assert {0.0, round(4 / 3, 5)} == {round(value, 5) for value in by_channel}
    torch.testing.assert_close(layer.weight - weight, torch.tensor(by_channel).view(-1, 1, 1, 1, 1).expand_as(weight))
    assert all(torch.equal(layer.weight[at], weight[at]) for at, value in enumerate(by_channel) if value == 0)


def test_expectation_is_theta(moved):
    """Over many masks the mean of theta' is theta."""
    layer, _, drop = moved
    theta, total = layer.weight.detach().clone(), torch.zeros_like(layer.weight)
    torch.manual_seed(0)
    for _ in range(4000):
        drop.drop()
        total += layer.weight.detach()
        drop.restore()

    torch.testing.assert_close(total / 4000, theta, rtol=0, atol=0.05)


def test_theta_is_restored_and_gets_its_gradient(moved):
    """Theta comes back bit for bit; its gradient is autograd's through theta', 0 where the channel was dropped."""
    layer, _, drop = moved
    theta = [parameter.detach().clone() for parameter in (layer.weight, layer.bias)]
    torch.manual_seed(1)
    drop.drop()
    layer(torch.ones(1, 2, 1, 1, 1)).square().sum().backward()
    through = layer.bias.grad.clone()
    scale = torch.where(layer.bias == drop._starts[1], 0.0, 4 / 3)
    drop.restore()

    assert all(torch.equal(before, after) for before, after in zip(theta, (layer.weight, layer.bias), strict=True))
    torch.testing.assert_close(layer.bias.grad, through * scale)
    assert {0.0} < {float(value) for value in scale}


def test_masks_follow_the_generator(moved):
    """The same seed gives the same theta'."""
    layer, _, drop = moved
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drop.drop()
        found.append(layer.weight.detach().clone())
        drop.restore()

    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_output_channels_of_a_transposed_convolution_run_along_axis_1():
    """Weights of others along axis 0, biases too; a layer that is not named takes no part."""
    network = nn.Sequential(nn.ConvTranspose3d(2, 3, 1), nn.Conv3d(3, 4, 1), nn.Conv3d(4, 5, 1))
    layers = channel_axes(network, ["0.weight", "0.bias", "1.weight"])

    assert [[(3, 1), (3, 0)], [(4, 0)]] == [[(parameter.shape[axis], axis) for parameter, axis in layer] for layer in layers]
