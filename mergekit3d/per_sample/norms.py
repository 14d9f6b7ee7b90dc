"""Instance and group norm with weights and biases of their own for every sample: the same values, and per-sample gradients for free.

torch computes an instance norm as a batch norm over a (1, N * C) view with repeated weights, and sums their gradients over N. Here
the repeated weights are the leaves of the graph, so that nothing is summed. A group norm goes the same way, with N times the groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

INSTANCE_NORMS: tuple[type[nn.Module], ...] = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


class Leaves:
    """Weights and biases of a norm, repeated for every row of a batch.

    Args:
        own: the norm's parameters by name.
        rows: of the batch.
    """

    def __init__(self, own: Mapping[str, nn.Parameter], rows: int) -> None:
        self.by_name = {name: torch.cat([parameter.detach()] * rows).requires_grad_() for name, parameter in own.items()}

    @property
    def weight(self) -> Tensor | None:
        """(rows * C,)."""
        return self.by_name.get("weight")

    @property
    def bias(self) -> Tensor | None:
        """(rows * C,)."""
        return self.by_name.get("bias")


def widened(module: nn.Module, own: Mapping[str, nn.Parameter], x: Tensor) -> tuple[Tensor, Leaves]:
    """What the norm computes, by leaves of its own for every row.

    Args:
        module: `torch.nn.InstanceNorm1d` to `3d` or `GroupNorm`.
        own: its parameters by name.
        x: (rows, C, ...).

    Returns:
        The norm's output, and the leaves.
    """
    leaves = Leaves(own, x.shape[0])
    view = x.reshape(1, x.shape[0] * x.shape[1], *x.shape[2:])
    if isinstance(module, nn.GroupNorm):
        groups = x.shape[0] * module.num_groups
        y = torch.group_norm(view, groups, leaves.weight, leaves.bias, module.eps, torch.backends.cudnn.enabled)
        return y.reshape(x.shape), leaves
    assert isinstance(module, nn.modules.instancenorm._InstanceNorm)  # noqa: SLF001  the class that all share
    tracked = module.running_mean is not None and module.running_var is not None
    if not tracked and prod(x.shape[2:]) <= 1:  # torch refuses one value a channel, with a text that says why
        functional.instance_norm(x)
    mean = module.running_mean.repeat(x.shape[0]) if module.running_mean is not None and tracked else None
    variance = module.running_var.repeat(x.shape[0]) if module.running_var is not None and tracked else None
    y = torch.batch_norm(view, leaves.weight, leaves.bias, mean, variance, not tracked, 0.0, module.eps, torch.backends.cudnn.enabled)
    return y.reshape(x.shape), leaves


def can_widen(module: nn.Module, x: object) -> bool:
    """Whether the input has a batch axis in front."""
    if not isinstance(x, Tensor):
        return False
    if isinstance(module, nn.GroupNorm):
        return x.ndim >= 3
    return x.ndim == INSTANCE_NORMS.index(type(module)) + 3
