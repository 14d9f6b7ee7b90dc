"""Random initialisation: Xavier's bounds, and values that depend on seed and name alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mergekit3d.architectures import NetworkSpec, network_shapes
from mergekit3d.architectures.initialise import initial_tensor, initial_tensors
from mergekit3d.plan.network import random_start
from tests.builders import spec_of

GOLDEN = [[-0.20252049, 0.284218729], [-0.535467625, 0.462084621]]


def test_weights_are_xavier_uniform():
    """Within sqrt(6 / (fan in + fan out)), filling it, with mean 0."""
    values = initial_tensor("conv.weight", (32, 16, 3, 3, 3), "conv", 0)
    bound = math.sqrt(6 / ((32 + 16) * 27))

    assert np.float32 == values.dtype
    assert 0.999 * bound < np.abs(values).max() <= np.float32(bound)
    assert abs(float(values.mean())) < 0.03 * bound
    assert float(values.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize(
    ("expected", "name", "shape", "kind"),
    [
        (0, "conv.bias", (3,), "conv"),
        (1, "norm.weight", (3,), "norm"),
        (0, "norm.bias", (3,), "norm"),
        (1, "norm.running_var", (3,), "norm"),
        (0, "norm.running_mean", (3,), "norm"),
    ],
)
def test_biases_are_zero_and_norms_the_identity(expected, name, shape, kind):
    """Also their running statistics."""
    values = initial_tensor(name, shape, kind, 5)

    assert (np.float32, [expected] * 3) == (values.dtype, values.tolist())


def test_counter_stays_an_integer():
    """`num_batches_tracked` is an int64 scalar."""
    values = initial_tensor("norm.num_batches_tracked", (), "norm", 5)

    assert (np.int64, 0) == (values.dtype, values.item())


def test_values_depend_on_seed_and_name_alone():
    """Whatever else is initialised beside, and in whatever order."""
    shapes = network_shapes(spec_of())
    names = list(shapes)
    whole = initial_tensors(names, shapes, 3)
    part = initial_tensors(names[10:3:-1], shapes, 3)

    assert names == list(whole)
    assert all(np.array_equal(whole[name], part[name]) for name in part)
    assert {shapes[name] == values.shape for name, values in whole.items()} == {True}


def test_other_seeds_and_names_give_other_values():
    """No two tensors share their numbers."""
    draws = [initial_tensor(name, (2, 2), "linear", seed) for name in ("a.weight", "b.weight") for seed in (0, 1)]

    assert 4 == len({values.tobytes() for values in draws})


def test_values_stay_as_they_are():
    """Another release must not give another network for the same seed."""
    np.testing.assert_array_equal(np.array(GOLDEN, np.float32), initial_tensor("encoder.0.input.conv.weight", (2, 2), "conv", 0))


def test_regions_begin_as_background():
    """The finest head's bias gives every region a probability of about 2 %, whatever the start; the other heads add nothing."""
    spec = NetworkSpec("isensee2017", 2, 3, {"base_filters": 2, "depth": 3, "segmentation_levels": 2})
    values = random_start(spec, 0).values

    np.testing.assert_array_equal([-4, -4, -4], values["segmentation.0.bias"])
    np.testing.assert_array_equal([0, 0, 0], values["segmentation.1.bias"])


def test_torch_initialisation_is_bounded_by_the_fan_in():
    """1 / sqrt(fan in), whatever the outputs; the same draws as Xavier's, scaled."""
    shape = (32, 16, 3, 3, 3)
    values = initial_tensor("conv.weight", shape, "conv", 0, initialisation="torch")
    xavier = initial_tensor("conv.weight", shape, "conv", 0)

    assert 0.99 / np.sqrt(16 * 27) < np.abs(values).max() <= 1 / np.sqrt(16 * 27)
    np.testing.assert_allclose(values * np.sqrt(6 * 16 / 48), xavier, rtol=1e-5)
