"""The fast convolutions of the CPU against the plain ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from mergekit3d.architectures.networks.isensee2017 import Isensee2017
from mergekit3d.architectures.slabs import SlabConv3d, fast_cpu_convolutions, slab_convolution, use_fast_cpu_convolutions


def relative_error(wanted, found):
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(wanted, found, strict=True))


def with_gradients(convolve, tensors, *geometry):
    result = convolve(*tensors, *geometry)
    weights = torch.sin(torch.arange(result.numel(), dtype=result.dtype)).view(result.shape)
    return [result.detach(), *torch.autograd.grad(result, [tensor for tensor in tensors if tensor is not None], weights)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 5e-6)])
@pytest.mark.parametrize("depth", [4, 5, 8])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(3, 1, 1, 1), (3, 2, 1, 1), (3, 2, 0, 1), (5, 1, 2, 1), (1, 2, 0, 1), (3, 1, 2, 2), (3, 3, 4, 1)],
)
def test_values_and_gradients_are_those_of_the_plain_convolution(dtype, tolerance, depth, batch, kernel, stride, padding, dilation):
    """Even and odd depths, strides, kernels and dilations: values and all three gradients agree up to rounding."""
    if depth + 2 * padding < dilation * (kernel - 1) + 1:
        pytest.skip("the kernel is larger than the volume")
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, 2, depth, 6, 7), (3, 2, kernel, kernel, kernel), (3,)]
    tensors = [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]
    geometry = [(value,) * 3 for value in (stride, padding, dilation)]
    plain = with_gradients(functional.conv3d, tensors, *geometry)
    assert relative_error(plain, with_gradients(slab_convolution, tensors, *geometry)) < tolerance


def test_a_convolution_without_bias_or_image_gradient_is_served():
    """Only the gradients that are asked for are made."""
    x, weight = torch.randn(1, 2, 5, 4, 4), torch.randn(3, 2, 3, 3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(slab_convolution(x, weight, None, (1,) * 3, (1,) * 3, (1,) * 3).square().sum(), weight)
    (plain,) = torch.autograd.grad(functional.conv3d(x, weight, None, 1, 1).square().sum(), weight)
    assert relative_error([plain], [gradient]) < 5e-6


def test_a_float64_gradient_check_passes():
    """The backward pass is the derivative of the forward pass."""
    x, weight, bias = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in [(1, 1, 5, 3, 2), (2, 1, 3, 3, 3), (2,)])
    assert torch.autograd.gradcheck(lambda *tensors: slab_convolution(*tensors, (2, 1, 1), (1, 1, 1), (1, 1, 1)), (x, weight, bias))


def test_a_network_keeps_its_names_and_result_and_is_restored():
    """State dict, output and gradients are the plain ones; after the block the modules are, too."""
    torch.manual_seed(0)
    network, image = Isensee2017(2, 3, base_filters=2, depth=2).eval(), torch.randn(1, 2, 8, 8, 8)
    names = list(network.state_dict())
    plain = torch.autograd.grad(network(image).square().mean(), list(network.parameters()))
    with fast_cpu_convolutions(network):
        assert {SlabConv3d} == {type(module) for module in network.modules() if isinstance(module, nn.Conv3d)}
        assert names == list(network.state_dict())
        fast = torch.autograd.grad(network(image).square().mean(), list(network.parameters()))
        twin = copy.deepcopy(network)
    largest = max(float(gradient.abs().max()) for gradient in plain)
    assert max(float((a - b).abs().max()) for a, b in zip(plain, fast, strict=True)) < 1e-5 * largest
    assert {nn.Conv3d} == {type(module) for module in network.modules() if isinstance(module, nn.Conv3d)}
    assert torch.equal(twin(image), twin(image))


def test_a_block_inside_a_permanent_change_leaves_it():
    """Only what the block itself changed is put back."""
    network = nn.Sequential(nn.Conv3d(1, 1, 3))
    use_fast_cpu_convolutions(network)
    with fast_cpu_convolutions(network):
        pass
    assert type(network[0]) is SlabConv3d


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv3d(2, 2, 3, padding=1, groups=2),
        nn.Conv3d(2, 2, 3, padding="same"),
        nn.Conv3d(2, 2, 3, padding=1, padding_mode="reflect"),
        nn.Conv3d(2, 2, 1),
        nn.Conv3d(2, 2, 3, padding=1).double(),
    ],
)
def test_what_has_nothing_to_gain_is_the_plain_convolution(module, monkeypatch):
    """Groups, other paddings, kernels of one voxel and float64 never take the fast path."""
    image = torch.randn(1, 2, 6, 6, 6, dtype=module.weight.dtype)
    wanted = module(image)
    use_fast_cpu_convolutions(module)
    monkeypatch.setattr("mergekit3d.architectures.slabs.slab_convolution", pytest.fail)
    assert torch.equal(wanted, module(image))


def test_autocast_is_left_alone(monkeypatch):
    """Under bf16 autocast oneDNN is taken anyway."""
    module = nn.Conv3d(1, 1, 3)
    use_fast_cpu_convolutions(module)
    monkeypatch.setattr("mergekit3d.architectures.slabs.slab_convolution", pytest.fail)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(torch.randn(1, 1, 6, 6, 6)).dtype == torch.bfloat16


def test_without_onednn_nothing_changes(monkeypatch):
    """A torch built without oneDNN keeps its own convolutions."""
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    network = nn.Sequential(nn.Conv3d(1, 1, 3))
    assert [] == use_fast_cpu_convolutions(network)
    assert type(network[0]) is nn.Conv3d


@pytest.mark.parametrize("size", [(2, 4, 2), (2, 2, 2), (1, 4, 4)])
def test_tiny_strided_convolutions_do_not_read_what_nobody_wrote(size):
    """In bfloat16 a kernel of oneDNN does, and gives NaN where memory was left with it; they are computed in float32."""
    network = nn.Sequential(nn.Conv3d(128, 256, 3, 2, 1))
    x = torch.randn((2, 128, *size), generator=torch.Generator().manual_seed(0))
    with fast_cpu_convolutions(network):
        for _ in range(5):
            left = [torch.full((2**power + 17 * step,), float("nan")) for power in range(4, 20) for step in range(8)]
            del left
            with torch.autocast("cpu", dtype=torch.bfloat16):
                result = network(x)
            assert bool(torch.isfinite(result).all())
    torch.testing.assert_close(network(x), result, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kernel", "edge"), [(3, 2), (5, 3), (5, 4)])
def test_gradients_of_small_volumes_do_not_read_what_nobody_wrote(kernel, edge):
    """Nor does the gradient of a weight where the volume is less deep than the kernel."""
    network = nn.Sequential(nn.Conv3d(16, 16, kernel, 1, kernel // 2))
    x = torch.randn((1, 16, edge, edge, edge), generator=torch.Generator().manual_seed(0))
    with fast_cpu_convolutions(network):
        for _ in range(20):
            left = [torch.full((2**power,), float("nan")) for power in range(8, 19)]
            del left
            with torch.autocast("cpu", dtype=torch.bfloat16):
                result = network(x)
            (gradient,) = torch.autograd.grad(result.sum(), network[0].weight)
            assert bool(torch.isfinite(gradient).all())
