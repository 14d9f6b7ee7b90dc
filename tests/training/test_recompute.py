"""Activations that are computed twice."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mergekit3d.architectures.networks.isensee2017 import Isensee2017
from mergekit3d.training.recompute import recomputable_blocks, recomputed


def batch_norms():
    return nn.Sequential(
        *[nn.Sequential(nn.Conv3d(channels, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.Dropout3d(0.5)) for channels in (2, 4)],
        nn.Conv3d(4, 2, 1),
    )


def step(network, *, enabled):
    """Output, gradients, running statistics, and bytes kept for the backward pass."""
    image = torch.randn((2, 2, 16, 16, 16), generator=torch.Generator().manual_seed(1))
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(3)
    with recomputed(network, enabled=enabled):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = network(image)
        bytes_kept = sum(kept.values())
        output.square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    network.zero_grad()
    return output.detach(), gradients, {name: buffer.clone() for name, buffer in network.named_buffers()}, bytes_kept


@pytest.mark.parametrize("make", [lambda: Isensee2017(2, 3, base_filters=4, depth=3), batch_norms])
def test_gradients_are_those_of_the_plain_network(make):
    """Bit for bit: dropout draws its masks again, running statistics move once; names stay, and after the block all is as before."""
    torch.manual_seed(0)
    network = make().train()
    torch.manual_seed(0)
    other = make().train()
    names = list(network.state_dict())
    output, gradients, buffers, _ = step(network, enabled=False)
    found, recomputed_gradients, moved, _ = step(other, enabled=True)
    assert torch.equal(output, found)
    assert all(torch.equal(gradients[name], recomputed_gradients[name]) for name in gradients)
    assert all(torch.equal(buffers[name], moved[name]) for name in buffers)
    assert names == list(other.state_dict())
    assert not any("forward" in vars(module) for module in other.modules())


def test_far_less_is_kept_for_the_backward_pass():
    """Of Isensee 2017, a third and less: inputs of levels, and what the heads need."""
    torch.manual_seed(0)
    network = Isensee2017(2, 3, base_filters=8, depth=4).train()
    plain, less = (step(network, enabled=enabled)[3] for enabled in (False, True))
    assert less < plain / 3


def test_blocks_are_the_largest_parts_of_up_to_three_convolutions():
    """Levels of Isensee 2017, units of MONAI's U-Net; convolutions alone have nothing to compute twice."""
    network = Isensee2017(2, 3, base_filters=2, depth=3)
    assert [*network.encoder, *network.decoder.values()] == recomputable_blocks(network)
    from monai.networks.nets import UNet

    unet = UNet(3, 2, 3, (2, 4, 8, 16, 32), (2, 2, 2, 2), num_res_units=1)
    blocks = recomputable_blocks(unet)
    assert len(blocks) > 5
    held = [parameter for block in blocks for parameter in block.parameters()]
    assert len({id(parameter) for parameter in held}) == len(held)
    assert [] == recomputable_blocks(nn.Sequential(nn.Conv3d(1, 1, 1)))


def test_validation_computes_once():
    """Without gradients there is nothing to keep."""
    network, calls = batch_norms().eval(), []
    network[0].register_forward_hook(lambda *_: calls.append(1))
    with recomputed(network), torch.no_grad():
        network(torch.zeros(1, 2, 4, 4, 4))
    assert [1] == calls
