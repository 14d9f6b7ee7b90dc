"""Random initialisation of tensors, seeded by name: one value for one (seed, name), whatever else is initialised.

Source: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010 (Xavier,
uniform), as the T-IMM paper uses for task-specific tensors.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mergekit3d.merging.partitions import kinds

if TYPE_CHECKING:
    import numpy as np

NONE: Mapping[str, float] = {}
XAVIER = "xavier"
TORCH = "torch"
"""PyTorch's default for convolutions and linear layers: uniform, bounded by 1 / sqrt(fan in).

Weights that a norm follows may be of any size, and a step of Adam is of one size whatever theirs: smaller weights learn faster.

Source: He et al., "Delving Deep into Rectifiers", ICCV 2015, for a leaky slope of sqrt(5), as torch.nn.Conv3d uses it.
"""
SLOPE = 0.25
"""Where the slope of a PReLU begins, as in PyTorch (He et al., ICCV 2015)."""
FOREGROUND_LOGIT = -4.0
"""Where the logit of a region begins: a probability of 0.018, about the share of voxels that a region fills.

From 0 (every voxel is half of every region) a bias needs thousands of steps of Adam to come down to it, and soft Dice of a small
region has hardly a gradient until then.

Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, section 4.1 (prior 0.01).
"""


def initial_tensors(
    names: Sequence[str],
    shapes: Mapping[str, Sequence[int]],
    seed: int,
    constants: Mapping[str, float] = NONE,
    initialisation: str = XAVIER,
) -> dict[str, np.ndarray]:
    """Initial values of some tensors of a network.

    Args:
        names: the tensors wanted.
        shapes: shape of every tensor of the network, from which their kinds are told.
        seed: together with a tensor's name, it decides the tensor's values.
        constants: values of tensors that begin neither random nor at 0, such as an architecture's `initial_biases`.
        initialisation: xavier, or torch (see `TORCH`).

    Returns:
        float32 arrays: random uniform weights, zero biases; norms begin as the identity.
    """
    kind_of = kinds(shapes)
    return {name: initial_tensor(name, tuple(shapes[name]), kind_of[name], seed, constants, initialisation) for name in names}


def initial_tensor(
    name: str, shape: tuple[int, ...], kind: str, seed: int, constants: Mapping[str, float] = NONE, initialisation: str = XAVIER
) -> np.ndarray:
    """Initial values of one tensor, whose kind (conv, norm, linear, activation or other) is known; see `initial_tensors`."""
    import numpy as np

    leaf = name.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf == "running_var" or (kind == "norm" and leaf == "weight"):
        return np.ones(shape, np.float32)
    if name in constants:
        return np.full(shape, constants[name], np.float32)
    if kind == "activation":
        return np.full(shape, SLOPE, np.float32)
    if len(shape) < 2:
        return np.zeros(shape, np.float32)
    receptive_field = math.prod(shape[2:])
    fan_in, fan_out = shape[1] * receptive_field, shape[0] * receptive_field
    bound = math.sqrt(6 / (fan_in + fan_out)) if initialisation == XAVIER else math.sqrt(1 / fan_in)
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return generator.uniform(-bound, bound, shape).astype(np.float32)
