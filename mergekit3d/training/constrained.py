"""A network to train whole, held back where the recipe says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mergekit3d.errors import RecipeError
from mergekit3d.merging.partitions import BUFFERS
from mergekit3d.plan.constraints import Constraints
from mergekit3d.training.drop_transfer import DropTransfer, channel_axes
from mergekit3d.training.penalty import Penalty
from mergekit3d.training.trainable import Trainable

PENALTY = "penalty"
"""Column of log.csv: the penalty at the end of the epoch, which the losses leave out."""


def constrained(network: nn.Module, constraints: Constraints, state: Callable[[], dict[str, Tensor]]) -> Trainable:
    """What the loop trains.

    Args:
        network: with the values of its start, on its device; frozen parameters stop asking for a gradient.
        constraints: frozen tensors, rates, penalty, drop-transfer.
        state: as of `Trainable`.

    Returns:
        The network with parameter groups by rate, the penalty's gradient, and drop-transfer around each step.

    Raises:
        RecipeError: every parameter is frozen.
    """
    frozen_norms = _freeze(network, constraints.frozen)
    groups = _groups(network, constraints.rates)
    if not groups:
        raise RecipeError("nothing is left to train", where="freeze", todo="freeze fewer tensors")
    penalty, drop_transfer = _penalty(network, constraints), None
    if constraints.dropped:
        drop_transfer = DropTransfer(channel_axes(network, constraints.dropped), constraints.drop_rate)

    def before_forward() -> None:
        for module in frozen_norms:
            module.eval()
        if drop_transfer is not None:
            drop_transfer.drop()

    return Trainable(
        network=network,
        parameter_groups=groups,
        state=state,
        before_forward=before_forward,
        after_backward=(lambda: None) if drop_transfer is None else drop_transfer.restore,
        before_step=(lambda: None) if penalty is None else penalty.add_gradient,
        before_validation=lambda: None,
        columns=dict if penalty is None else lambda: {PENALTY: penalty.value()},
    )


def _freeze(network: nn.Module, names: frozenset[str]) -> list[nn.Module]:
    """Take parameters out of the training; returns the modules whose running statistics must stay as well."""
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if name in names:
            parameter.requires_grad_(False)
    owners = {name.rpartition(".")[0] for name in names if name.rpartition(".")[2] in BUFFERS}
    return [network.get_submodule(owner) for owner in sorted(owners)]


def _groups(network: nn.Module, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Parameters by rate; those without one of their own first."""
    groups: dict[float | None, list[nn.Parameter]] = {None: [], **{rate: [] for rate in rates.values()}}
    own = {id(parameter): rates[name] for name, parameter in network.named_parameters(remove_duplicate=False) if name in rates}
    for parameter in network.parameters():
        if parameter.requires_grad:
            groups[own.get(id(parameter))].append(parameter)
    return [{"params": group, **({} if rate is None else {"lr": rate})} for rate, group in groups.items() if group]


def _penalty(network: nn.Module, constraints: Constraints) -> Penalty | None:
    named = dict(network.named_parameters())
    held = {name: values for name, values in constraints.anchors.items() if name in named}
    if not held:
        return None
    weights = [None if values is None else torch.from_numpy(values) for values in held.values()]
    return Penalty([named[name] for name in held], weights, constraints.strength)
