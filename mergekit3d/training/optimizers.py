"""Optimizers by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from mergekit3d.registry import Registry
from mergekit3d.training.settings import TrainingSettings

Groups = Sequence[dict[str, Any]]

OPTIMIZERS: Registry[Callable[[Groups], Optimizer]] = Registry("optimizer")


@OPTIMIZERS.register("adam")
def adam(groups: Groups) -> Optimizer:
    """Adam (Kingma and Ba 2015), the paper's."""
    return torch.optim.Adam(groups, fused=True)


@OPTIMIZERS.register("adamw")
def adamw(groups: Groups) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019) with a weight decay of 0.01."""
    return torch.optim.AdamW(groups, weight_decay=1e-2, fused=True)


@OPTIMIZERS.register("sgd")
def sgd(groups: Groups) -> Optimizer:
    """SGD with Nesterov momentum 0.99 and a weight decay of 3e-5, as in nnU-Net."""
    return torch.optim.SGD(groups, momentum=0.99, nesterov=True, weight_decay=3e-5, fused=True)


def make_optimizer(groups: Sequence[dict[str, Any]], settings: TrainingSettings) -> Optimizer:
    """The optimizer of the settings.

    Args:
        groups: parameter groups; the rate of one that has no ``lr`` is `settings.learning_rate`.
        settings: optimizer and rate.

    Returns:
        The optimizer, with each group's first rate under ``initial_lr``.
    """
    rated = []
    for group in groups:
        rate = group.get("lr", settings.learning_rate)
        rated.append({**group, "params": list(group["params"]), "lr": rate, "initial_lr": rate})
    return OPTIMIZERS.get(settings.optimizer)([group for group in rated if group["params"]])


def set_rate(optimizer: Optimizer, part: float) -> None:
    """Set every group's learning rate to `part` of its first one."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * part
