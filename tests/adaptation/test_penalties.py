"""Penalties on ratios: closed forms, and the gradient of delta with them."""

from __future__ import annotations

import math

import pytest
import torch

from mergekit3d.adaptation import FusedWeights, RatioPenalty
from mergekit3d.errors import UsageError
from mergekit3d.merging.ratios import delta_gradient, mixing_ratios
from tests.adaptation.test_fused_weights import setting


@pytest.mark.parametrize(
    ("by", "ratios", "expected"),
    [
        ("entropy", [[0.5], [0.5]], 0.0),
        ("uniform", [[0.5], [0.5]], 0.0),
        ("entropy", [[1.0, 0.5], [1e-30, 0.5]], 3 * math.log(2) / 2),
        ("uniform", [[1.0, 0.5], [0.0, 0.5]], 3 * 0.5 / 2),
    ],
)
def test_penalty_is_the_mean_over_ratios(by, ratios, expected):
    """0 for uniform ratios; log 2 and 1/2 where one of two sources has everything; times the strength."""
    assert expected == pytest.approx(RatioPenalty(by, 3.0).value(torch.tensor(ratios, dtype=torch.float64)), abs=1e-12)


@pytest.mark.parametrize("by", ["entropy", "uniform"])
def test_gradient_of_delta_is_that_of_autograd(by):
    """Through eq. 3, in float64."""
    delta = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ratios = delta.sigmoid() / delta.sigmoid().sum(0)
    apart = (ratios * torch.log(3 * ratios)).sum(0) if by == "entropy" else (ratios - 1 / 3).square().sum(0)
    (expected,) = torch.autograd.grad(0.7 * apart.mean(), delta)

    values = delta.detach()
    found = delta_gradient(values, mixing_ratios(values), RatioPenalty(by, 0.7).gradient(mixing_ratios(values)))
    torch.testing.assert_close(expected, found, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("by", ["entropy", "uniform"])
def test_penalty_draws_ratios_towards_uniform(by):
    """With nothing else to learn from; a negative strength drives them apart."""
    for strength, nearer in ((1.0, True), (-1.0, False)):
        network, tensors = setting()
        start = {tensor.group: [0.3, 0.7] for tensor in tensors}
        fused = FusedWeights(network, tensors, initial_ratios=start, penalty=RatioPenalty(by, strength))
        optimizer = torch.optim.Adam([fused.delta], lr=0.05)
        for _ in range(20):
            fused.fuse()
            fused.backward()
            fused.add_penalty()
            optimizer.step()
        apart = (fused.ratios() - 0.5).abs()
        assert bool((apart < 0.2).all() if nearer else (apart > 0.2).all())


def test_unknown_penalty_is_told_with_a_guess():
    """By its name."""
    with pytest.raises(UsageError, match="entropy"):
        RatioPenalty("entropie", 1.0).value(torch.ones(2, 1))
