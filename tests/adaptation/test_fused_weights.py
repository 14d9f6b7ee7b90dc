"""The shared weights as a function of delta: what autograd would find, and what fuse will compute from the file."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.func import functional_call

from mergekit3d.adaptation import FusedWeights, SharedTensor, delta_of_ratios, inverse_trace_ratios
from mergekit3d.architectures import build_network
from mergekit3d.engine.values import combine
from mergekit3d.merging.methods import METHODS
from mergekit3d.merging.partitions import ratio_groups
from mergekit3d.merging.ratios import mixing_ratios
from tests.builders import spec_of


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Of torch, in all of these tests."""


def setting(granularity="layer", dtype=torch.float32, sources=2, *, with_fisher=True):
    """A small network without dropout, and the shared tensors of its sources: all its convolutions but the heads."""
    torch.manual_seed(0)
    network = build_network(spec_of(depth=2, dropout=0.0)).to(dtype)
    generator = torch.Generator().manual_seed(1)
    names = [name for name, _ in network.named_parameters() if ".conv." in name]
    groups, tensors = ratio_groups(names, granularity), []
    for name in names:
        shape = (sources, *network.get_parameter(name).shape)
        thetas = torch.randn(shape, generator=generator, dtype=dtype)
        fishers = torch.rand(shape, generator=generator, dtype=dtype) * (torch.rand(shape, generator=generator) < 0.8)
        tensors.append(SharedTensor(name, groups[name], thetas, fishers if with_fisher else None))
    return network, tensors


def plain_fusion(tensors, delta, columns, *, by_kernel):
    """Eq. 3 and 2 as they are written, for autograd."""
    sigmoid = delta.sigmoid()
    ratios = sigmoid / sigmoid.sum(0)
    fused = {}
    for tensor in tensors:
        chosen = ratios[:, columns[tensor.group]]
        trailing = [1] * (tensor.thetas.ndim - 2)
        shaped = chosen.reshape(len(chosen), -1, *trailing) if by_kernel else chosen.reshape(len(chosen), *[1] * (tensor.thetas.ndim - 1))
        if tensor.fishers is None:
            weighted = shaped.expand_as(tensor.thetas)
        else:
            known = tensor.fishers.sum(0, keepdim=True) > 0
            weighted = shaped * torch.where(known, tensor.fishers, torch.ones_like(tensor.fishers))
        fused[tensor.name] = (weighted * tensor.thetas).sum(0) / weighted.sum(0)
    return fused


@pytest.mark.parametrize("with_fisher", [True, False])
@pytest.mark.parametrize("sources", [2, 3])
@pytest.mark.parametrize("granularity", ["model", "layer", "tensor", "kernel", {"encoder": ["encoder.*"], "rest": ["*"]}])
def test_gradient_of_delta_is_that_of_autograd(granularity, sources, with_fisher):
    """Through a whole network in float64, and the gradients of the private tensors with it."""
    network, tensors = setting(granularity, torch.float64, sources, with_fisher=with_fisher)
    fused = FusedWeights(network, tensors, by_kernel=granularity == "kernel")
    fused.delta.data.normal_(generator=torch.Generator().manual_seed(2))
    image = torch.randn((1, 2, 4, 4, 4), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    target = torch.randn((1, 3, 4, 4, 4), generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    fused.fuse()
    loss = (network(image) * target).sum()
    loss.backward()
    fused.backward()

    delta = fused.delta.detach().clone().requires_grad_()
    private = {name: value.detach().clone().requires_grad_() for name, value in network.named_parameters() if ".conv." not in name}
    weights = plain_fusion(tensors, delta, fused.columns, by_kernel=granularity == "kernel")
    expected = (functional_call(network, {**private, **weights}, (image,)) * target).sum()
    expected.backward()

    torch.testing.assert_close(expected.detach(), loss.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(delta.grad, fused.delta.grad, rtol=1e-8, atol=1e-8 * float(delta.grad.abs().max()))
    for name, value in private.items():
        torch.testing.assert_close(value.grad, network.get_parameter(name).grad, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("sources", [2, 4])
@pytest.mark.parametrize("with_fisher", [True, False])
@pytest.mark.parametrize("granularity", ["layer", "kernel"])
def test_shared_weights_are_what_fuse_computes(granularity, with_fisher, sources):
    """From the ratios written to JSON and read back; up to rounding, and in double precision to its last digits."""
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        network, tensors = setting(granularity, dtype, sources, with_fisher=with_fisher)
        fused = FusedWeights(network, tensors, by_kernel=granularity == "kernel")
        fused.delta.data.normal_(std=3, generator=torch.Generator().manual_seed(2))
        fused.fuse()
        layers = json.loads(json.dumps(fused.ratios_by_group()))

        method = METHODS.get("timm" if with_fisher else "mean-imm")
        named = [SimpleNamespace(name=f"m{number}") for number in range(sources)]
        plan = SimpleNamespace(method=method, parameters=method.parameters(), sources=named, seed=0)
        for tensor in tensors:
            fishers = None if tensor.fishers is None else [fisher.numpy() for fisher in tensor.fishers]
            expected = combine(plan, tensor.name, [theta.numpy() for theta in tensor.thetas], fishers, None, layers[tensor.group])
            found = network.get_parameter(tensor.name).detach().numpy()
            np.testing.assert_allclose(expected, found, rtol=0, atol=tolerance * float(tensor.thetas.abs().max()))


@pytest.mark.parametrize("sources", [2, 3])
@pytest.mark.parametrize("granularity", ["layer", "kernel"])
def test_identical_sources_come_back_bit_for_bit(granularity, sources):
    """Whatever the ratios, in the pass that trains too."""
    network, tensors = setting(granularity, sources=sources)
    alike = [SharedTensor(t.name, t.group, t.thetas[:1].expand_as(t.thetas), t.fishers) for t in tensors]
    fused = FusedWeights(network, alike, by_kernel=granularity == "kernel")
    fused.delta.data.normal_(std=3, generator=torch.Generator().manual_seed(2))
    fused.fuse()

    for tensor in alike:
        assert torch.equal(tensor.thetas[0], network.get_parameter(tensor.name).detach())


@pytest.mark.parametrize("sources", [2, 3])
@pytest.mark.parametrize("size", [3, 7, 10**9])
def test_gradient_does_not_depend_on_the_chunks(monkeypatch, size, sources):
    """Rows and entries that do not divide evenly, in float64."""
    found = []
    for entries in (size, 10**9):
        monkeypatch.setattr("mergekit3d.adaptation.blocks.CACHED_ENTRIES", entries)
        monkeypatch.setattr("mergekit3d.adaptation.fused_weights.SMALL_ENTRIES", 5)
        for granularity in ("layer", "kernel"):
            network, tensors = setting(granularity, torch.float64, sources)
            fused = FusedWeights(network, tensors, by_kernel=granularity == "kernel")
            fused.delta.data.normal_(generator=torch.Generator().manual_seed(2))
            fused.fuse()
            for tensor in tensors:
                parameter = network.get_parameter(tensor.name)
                parameter.grad = parameter.detach().sin()
            fused.backward()
            found.append(fused.delta.grad)

    torch.testing.assert_close(found[0], found[2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[1], found[3], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("sources", [2, 4])
def test_gradient_of_delta_in_single_precision(sources, scale):
    """Within 2e-5 of float64, at any scale of F."""
    network, tensors = setting(dtype=torch.float64, sources=sources)
    drawn = torch.randn(sources, len({tensor.group for tensor in tensors}), generator=torch.Generator().manual_seed(2)) * 2
    gradients = []
    for dtype in (torch.float64, torch.float32):
        network.to(dtype)
        scaled = [SharedTensor(t.name, t.group, t.thetas.to(dtype), (t.fishers * scale).to(dtype)) for t in tensors]
        fused = FusedWeights(network, scaled)
        fused.delta.data.copy_(drawn)
        fused.fuse()
        generator = torch.Generator().manual_seed(5)
        for tensor in tensors:
            parameter = network.get_parameter(tensor.name)
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
        fused.backward()
        gradients.append(fused.delta.grad.double())

    assert float((gradients[1] - gradients[0]).norm() / gradients[0].norm()) < 2e-5


@pytest.mark.parametrize("sources", [2, 3])
def test_extreme_delta_leaves_everything_finite(sources):
    """Where a source alone has information and its ratio is the smallest there is, too."""
    network, tensors = setting(sources=sources)
    known = [
        SharedTensor(t.name, t.group, t.thetas, t.fishers * torch.eye(sources)[1].reshape(-1, *[1] * (t.thetas.ndim - 1))) for t in tensors
    ]
    fused = FusedWeights(network, known)
    fused.delta.data[0], fused.delta.data[1:] = 100.0, -110.0
    fused.fuse()
    for tensor in known:
        network.get_parameter(tensor.name).grad = torch.ones_like(network.get_parameter(tensor.name))
    fused.backward()

    assert bool(torch.isfinite(fused.buffer).all())
    assert bool(torch.isfinite(fused.delta.grad).all())


def test_weights_without_a_gradient_count_for_nothing():
    """A shared tensor that took no part in the forward pass."""
    network, tensors = setting()
    fused = FusedWeights(network, tensors)
    fused.fuse()
    fused.backward()

    assert 0 == int(fused.delta.grad.count_nonzero())


def test_starts_at_imm():
    """Delta is 0, the ratios are uniform."""
    network, tensors = setting(sources=3)
    fused = FusedWeights(network, tensors)

    assert 0 == int(fused.delta.count_nonzero())
    np.testing.assert_allclose(np.full((3, len(fused.groups)), 1 / 3), fused.ratios(), rtol=1e-6)


def test_weight_and_bias_share_a_ratio():
    """One column a layer; by kernel one an output channel."""
    network, tensors = setting()
    assert len(tensors) == 2 * len(FusedWeights(network, tensors).groups)

    network, tensors = setting("kernel")
    fused = FusedWeights(network, tensors, by_kernel=True)
    assert fused.delta.shape[1] == sum(len(tensor.thetas[0]) for tensor in tensors if tensor.name.endswith("bias"))
    assert {2, 4} == {columns.stop - columns.start for columns in fused.columns.values()}


def test_only_delta_and_private_tensors_move():
    """Shared parameters are filled from delta each time, whatever an optimizer did to them."""
    network, tensors = setting()
    fused = FusedWeights(network, tensors)
    fused.fuse()
    before = fused.buffer.clone()
    with torch.no_grad():
        network.get_parameter(tensors[0].name).add_(1)
    assert not torch.equal(before, fused.buffer)
    fused.fuse()

    assert torch.equal(before, fused.buffer)
    assert all(network.get_parameter(tensor.name).grad is None for tensor in tensors)


def test_parameters_stay_the_networks_own():
    """They are views of one buffer: same objects, same names, same shapes."""
    network, tensors = setting()
    parameters = dict(network.named_parameters())
    fused = FusedWeights(network, tensors)
    fused.fuse()

    assert all(parameter is parameters[name] for name, parameter in network.named_parameters())
    assert fused.buffer.numel() == sum(parameters[tensor.name].numel() for tensor in tensors)
    with torch.no_grad():
        fused.buffer.fill_(7)
    assert all(bool((parameters[tensor.name] == 7).all()) for tensor in tensors)


def test_gradients_of_several_batches_add_up():
    """With accumulated batches the ratios see the sum."""
    network, tensors = setting(dtype=torch.float64)
    fused = FusedWeights(network, tensors)
    images = torch.randn((2, 1, 2, 4, 4, 4), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    single = []
    for image in images:
        fused.fuse()
        network(image).square().sum().backward()
        fused.backward()
        single.append(fused.delta.grad.clone())
    fused.fuse()
    for image in images:
        network(image).square().sum().backward()
    fused.backward()

    torch.testing.assert_close(single[0] + single[1], fused.delta.grad, rtol=1e-9, atol=1e-9)


def test_descent_finds_the_better_source():
    """Towards a target that the second source alone gives, its ratios grow."""
    network, tensors = setting()
    for parameter in network.parameters():
        parameter.requires_grad_()
    fused = FusedWeights(network, tensors)
    optimizer = torch.optim.Adam([fused.delta], lr=0.1)
    goal = torch.cat([tensor.thetas[1].flatten() for tensor in tensors])
    for _ in range(30):
        fused.fuse()
        sum(
            (network.get_parameter(tensor.name).flatten() - goal_part).square().sum()
            for tensor, goal_part in zip(tensors, goal.split([tensor.thetas[0].numel() for tensor in tensors]), strict=True)
        ).backward()
        fused.backward()
        optimizer.step()

    assert float(fused.ratios()[1].min()) > 0.6


@pytest.mark.parametrize("ratios", [[0.5, 0.5], [0.2, 0.3, 0.5], [1e-4, 1.0]])
def test_delta_of_ratios_inverts_equation_3(ratios):
    """Up to the sum, which is 1; uniform ratios are delta 0."""
    ratios = torch.tensor(ratios, dtype=torch.float64)
    delta = delta_of_ratios(ratios)

    torch.testing.assert_close(ratios / ratios.sum(), mixing_ratios(delta), rtol=1e-9, atol=1e-12)
    assert 0 == float(delta.max())


def test_ratio_of_zero_has_a_finite_delta():
    """Taken as 1e-6 of the largest, so that it can still be learned."""
    delta = delta_of_ratios(torch.tensor([0.0, 1.0], dtype=torch.float64))

    assert bool(torch.isfinite(delta).all())
    assert float(mixing_ratios(delta)[0]) == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.parametrize("granularity", ["layer", "kernel"])
def test_initial_ratios(granularity):
    """Where the recipe starts them, for every group."""
    network, tensors = setting(granularity)
    groups = dict.fromkeys(tensor.group for tensor in tensors)
    fused = FusedWeights(network, tensors, by_kernel=granularity == "kernel", initial_ratios={group: [0.2, 0.8] for group in groups})

    np.testing.assert_allclose(np.tile([[0.2], [0.8]], fused.delta.shape[1]), fused.ratios(), rtol=1e-5)


def test_inverse_traces_weigh_sources_alike():
    """A source whose F is 9 times the other's gets a tenth; where one has none, both get half."""
    ones = torch.ones(2, 2)
    tensors = [
        SharedTensor("a.weight", "a", ones, torch.tensor([[9.0, 4.0], [1.0, 1.0]])),
        SharedTensor("a.bias", "a", ones, torch.tensor([[5.0, 0.0], [0.0, 0.0]])),
        SharedTensor("b.weight", "b", ones, torch.tensor([[1.0, 0.0], [0.0, 0.0]])),
        SharedTensor("c.weight", "c", ones, None),
    ]
    rows = inverse_trace_ratios(tensors)

    np.testing.assert_allclose([0.1, 0.9], rows["a"])
    assert [0.5, 0.5] == rows["b"]
    assert "c" not in rows
