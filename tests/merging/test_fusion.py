"""Eq. 2: closed-form numbers, the reference vectors, and what must hold for any weights and any scale of F."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergekit3d.merging.fusion import fuse, fuse_relative, ratio_gradient, relative_fisher
from mergekit3d.merging.ratios import mixing_ratios

VECTORS = json.loads(Path(__file__).with_name("fusion_vectors.json").read_text())
CASES = VECTORS["fusion"]
TOLERANCES = {"float64": 1e-12, "float32": 5e-7}
KINDS = ["numpy", "torch"]


def array(kind, values, dtype="float64"):
    values = np.asarray(values, dtype)
    return torch.from_numpy(values.copy()) if kind == "torch" else values


def arrays(kind, rows, dtype="float64"):
    return [array(kind, row, dtype) for row in rows]


def exact(thetas, fishers, ratios):
    """Eq. 2 in float64, entry by entry, by sums that do not round."""
    result = []
    for entry in range(len(thetas[0])):
        information = [float(fisher[entry]) for fisher in fishers]
        largest = max(information)
        weights = [float(ratio) * (value / largest if largest > 0 else 1.0) for ratio, value in zip(ratios, information, strict=True)]
        total = math.fsum(weight * float(theta[entry]) for weight, theta in zip(weights, thetas, strict=True))
        result.append(total / math.fsum(weights))
    return np.array(result)


@pytest.mark.parametrize("kind", KINDS)
def test_two_sources_by_hand(kind):
    """(0.25 * 3 * 1 + 0.75 * 1 * 5) / (0.25 * 3 + 0.75 * 1) = 3, and so on."""
    thetas = arrays(kind, [[1.0, 2.0, 0.0], [5.0, 4.0, 8.0]])
    fishers = arrays(kind, [[3.0, 1.0, 0.0], [1.0, 1.0, 7.0]])

    assert [3.0, 3.5, 8.0] == fuse(thetas, fishers, [0.25, 0.75]).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_entry_without_information_is_the_ratio_average(kind):
    """Where F is 0 for all sources, theta = sum_t a^t theta^t, and nothing is NaN."""
    fused = fuse(arrays(kind, [[1.0], [5.0]]), arrays(kind, [[0.0], [0.0]]), [0.25, 0.75])

    assert [4.0] == fused.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_without_fisher_it_is_the_weighted_average(kind):
    """None stands for F = 1 (mean-IMM)."""
    assert [2.0, 8.0] == fuse(arrays(kind, [[1.0, 10.0], [5.0, 2.0]]), None, [0.75, 0.25]).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_ratios_may_differ_by_kernel(kind):
    """A column of ratios weighs every output channel on its own."""
    thetas = arrays(kind, [[[0.0, 0.0], [0.0, 0.0]], [[4.0, 8.0], [4.0, 8.0]]])
    ratios = arrays(kind, [[[0.75], [0.25]], [[0.25], [0.75]]])

    assert [[1.0, 2.0], [3.0, 6.0]] == fuse(thetas, None, ratios).tolist()


def test_single_source_is_returned_as_it_is():
    """There is nothing to compute, whatever its F."""
    theta = np.array([1.0, np.pi], np.float32)

    assert theta is fuse([theta], [np.zeros(2, np.float32)], [1.0])


def test_relative_fisher_has_the_largest_at_one():
    """Phi = F / max F per entry, and 1 for all where nothing is known."""
    phis = relative_fisher([np.array([4.0, 0.0, 0.0]), np.array([1.0, 3.0, 0.0])])

    assert [[1.0, 0.0, 1.0], [0.25, 1.0, 1.0]] == [phi.tolist() for phi in phis]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_reference_vectors(case, kind, dtype):
    """Fused weights and their derivatives by the ratios agree with the independent float64 evaluation."""
    thetas, fishers = arrays(kind, case["theta"], dtype), arrays(kind, case["fisher"], dtype)
    phis = relative_fisher(fishers)
    fused, normaliser = fuse_relative(thetas, phis, case["alpha"])
    derivatives = ratio_gradient(array(kind, np.ones(6), dtype), fused, thetas, phis, normaliser)

    scale = np.abs(case["theta"]).max()
    np.testing.assert_allclose(case["fused"], fuse(thetas, fishers, case["alpha"]), rtol=0, atol=TOLERANCES[dtype] * scale)
    np.testing.assert_allclose(case["fused"], fused, rtol=0, atol=TOLERANCES[dtype] * scale)
    # The derivative divides the distance from the fused weights by the normaliser, and with it the rounding of both.
    amplified = scale / min(case["alpha"])
    np.testing.assert_allclose(
        case["dfused_dalpha"], [row.tolist() for row in derivatives], rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype] * amplified
    )


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_vectors_from_delta(case):
    """The whole way from delta, as adaptation goes it, gives the reference too."""
    ratios = mixing_ratios(np.array(case["delta"]))

    np.testing.assert_allclose(
        case["fused"], fuse(arrays("numpy", case["theta"]), arrays("numpy", case["fisher"]), list(ratios)), rtol=0, atol=1e-11
    )


def test_ratio_gradient_is_what_autograd_finds():
    """dL/da in closed form equals autograd through eq. 2 as it is written."""
    generator = torch.Generator().manual_seed(0)
    thetas = torch.randn((3, 7), generator=generator, dtype=torch.float64)
    fishers = torch.rand((3, 7), generator=generator, dtype=torch.float64)
    ratios = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64, requires_grad=True)
    weighted = ratios[:, None] * fishers
    gradient = torch.randn(7, generator=generator, dtype=torch.float64)
    ((weighted * thetas).sum(0) / weighted.sum(0)).backward(gradient)

    phis = relative_fisher(list(fishers))
    fused, normaliser = fuse_relative(list(thetas), phis, [0.2, 0.5, 0.3])
    summands = ratio_gradient(gradient, fused, list(thetas), phis, normaliser)
    torch.testing.assert_close(ratios.grad, torch.stack([summand.sum() for summand in summands]), rtol=1e-12, atol=1e-12)


def test_ratio_gradient_without_fisher():
    """With F = 1 it is dL/dtheta (theta^t - theta), since the ratios sum to 1."""
    thetas = [np.array([1.0, 2.0]), np.array([3.0, 6.0])]
    fused, normaliser = fuse_relative(thetas, None, [0.5, 0.5])

    assert [[-2.0, -6.0], [2.0, 6.0]] == [row.tolist() for row in ratio_gradient(np.array([2.0, 3.0]), fused, thetas, None, normaliser)]


@st.composite
def fusions(draw):
    """Weights, Fisher diagonals of any scale (with zeros and subnormals), and ratios, for 2 to 4 sources, in float32."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.integers(2, 4)), draw(st.integers(1, 6))
    thetas = generator.normal(size=shape) * 10.0 ** draw(st.integers(-6, 6))
    # Either all entries of one scale, or each of its own: from subnormal numbers to almost the largest.
    exponent = generator.integers(-38, 38, size=shape, endpoint=True) if draw(st.booleans()) else draw(st.integers(-44, 38))
    information = generator.uniform(0.1, 3.0, shape) * 10.0 ** np.asarray(exponent, np.float64)
    information[generator.random(shape) < draw(st.sampled_from([0.0, 0.2, 0.8]))] = 0
    delta = generator.normal(scale=draw(st.sampled_from([0.1, 3.0, 40.0])), size=shape[0])
    return thetas.astype(np.float32), information.astype(np.float32), mixing_ratios(delta)


@given(fusions())
def test_any_scale_of_fisher_is_as_good_as_float64(fusion):
    """Finite, and within 5e-7 of the weights' size, from F of 1e-38 (subnormal too) to 1e38."""
    thetas, fishers, ratios = fusion
    fused = fuse(list(thetas), list(fishers), ratios.tolist())

    assert np.isfinite(fused).all()
    assert np.float32 == fused.dtype
    np.testing.assert_allclose(exact(thetas, fishers, ratios), fused, rtol=0, atol=5e-7 * max(float(np.abs(thetas).max()), 1e-30))


@given(fusions())
def test_numpy_and_torch_are_bit_equal(fusion):
    """The product's two ways to fuse, on files and in training, give the same bits."""
    thetas, fishers, ratios = fusion
    ratios = ratios.astype(np.float32)
    numpy_fused, numpy_normaliser = fuse_relative(list(thetas), relative_fisher(list(fishers)), list(ratios))
    as_torch = [[torch.from_numpy(row) for row in rows] for rows in (thetas, fishers)]
    torch_fused, torch_normaliser = fuse_relative(as_torch[0], relative_fisher(as_torch[1]), list(torch.from_numpy(ratios)))

    assert numpy_fused.tobytes() == torch_fused.numpy().tobytes()
    assert numpy_normaliser.tobytes() == torch_normaliser.numpy().tobytes()


@given(fusions())
def test_identical_sources_return_themselves(fusion):
    """Bit for bit, whatever F and the ratios are."""
    thetas, fishers, ratios = fusion

    assert thetas[0].tobytes() == fuse([thetas[0]] * len(fishers), list(fishers), ratios.tolist()).tobytes()
    assert thetas[0].tobytes() == fuse([thetas[0]] * len(fishers), None, ratios.tolist()).tobytes()


@given(fusions(), st.randoms(use_true_random=False))
def test_order_of_sources_does_not_matter(fusion, random):
    """Up to rounding."""
    thetas, fishers, ratios = fusion
    order = list(range(len(thetas)))
    random.shuffle(order)
    fused = fuse(list(thetas), list(fishers), ratios.tolist())
    again = fuse([thetas[at] for at in order], [fishers[at] for at in order], [float(ratios[at]) for at in order])

    np.testing.assert_allclose(fused, again, rtol=0, atol=1e-6 * max(float(np.abs(thetas).max()), 1e-30))


@given(fusions())
def test_result_lies_between_the_sources(fusion):
    """A weighted average cannot leave their range, but for rounding."""
    thetas, fishers, ratios = fusion
    fused = fuse(list(thetas), list(fishers), ratios.tolist())
    slack = 5e-7 * max(float(np.abs(thetas).max()), 1e-30)

    assert (thetas.min(0) - slack <= fused).all()
    assert (fused <= thetas.max(0) + slack).all()


@given(fusions(), st.sampled_from([2.0**-20, 2.0**20]))
def test_a_common_scale_of_fisher_changes_nothing(fusion, factor):
    """Eq. 2 is homogeneous in F, where neither end under- or overflows."""
    thetas, _, ratios = fusion
    fishers = np.random.default_rng(0).chisquare(1, thetas.shape).astype(np.float32)

    assert (
        fuse(list(thetas), list(fishers), ratios.tolist()).tobytes()
        == fuse(list(thetas), list(fishers * np.float32(factor)), ratios.tolist()).tobytes()
    )
