"""The pull back to the start."""

from __future__ import annotations

import pytest
import torch

from mergekit3d.training.penalty import Penalty


def parameters_of():
    """Two parameters in float64, with a start that they have left."""
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in ((2, 3), (4,))]


@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_is_that_of_autograd(weighted):
    """Added to what the loss left, it is the gradient of 1/2 strength sum w (theta - start)^2."""
    parameters = parameters_of()
    starts = [parameter.detach().clone() for parameter in parameters]
    weights = [torch.rand_like(start) if weighted else None for start in starts]
    penalty = Penalty(parameters, weights, 0.3)
    for parameter in parameters:
        parameter.data += 0.5
        parameter.grad = torch.full_like(parameter, 2.0)
    penalty.add_gradient()

    parts = zip(parameters, starts, weights, strict=True)
    value = sum(0.15 * ((theta - start) ** 2 * (1 if weight is None else weight)).sum() for theta, start, weight in parts)
    for parameter, expected in zip(parameters, torch.autograd.grad(value, parameters), strict=True):
        torch.testing.assert_close(parameter.grad, expected + 2, rtol=1e-14, atol=1e-14)
    assert penalty.value() == pytest.approx(value.item(), rel=1e-14)


def test_weights_broadcast_over_input_channels():
    """An unknown channel is free: 0 there, and 1 elsewhere."""
    weight = torch.nn.Parameter(torch.zeros(2, 2, 1))
    penalty = Penalty([weight], [torch.tensor([1.0, 0.0]).view(1, 2, 1)], 2.0)
    weight.data += 3
    weight.grad = torch.zeros_like(weight)
    penalty.add_gradient()

    assert [[[6.0], [0.0]], [[6.0], [0.0]]] == weight.grad.tolist()
    assert 18.0 == penalty.value()


def test_a_parameter_without_a_gradient_is_left_alone():
    """It took no part in the loss, so it stands at its start."""
    parameters = parameters_of()
    penalty = Penalty(parameters, [None, torch.ones(4, dtype=torch.float64)], 1.0)
    parameters[1].grad = torch.ones_like(parameters[1])
    penalty.add_gradient()

    assert parameters[0].grad is None
    assert [1.0] * 4 == parameters[1].grad.tolist()
    assert 0.0 == penalty.value()
