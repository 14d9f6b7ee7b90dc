"""What goes into a training and what comes out of it, beside its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mergekit3d.datasets.sampling import Batch


@dataclass(frozen=True)
class TrainingData:
    """Where batches come from.

    Args:
        train: the batches of an epoch (from 0), a pure function of it, but for as many at its start as are done already.
        validation: one whole subject a batch; none at all: no validation, and training runs its full length.
        region_names: names of the regions or classes, without the background.
    """

    train: Callable[[int, int], Iterable[Batch]]
    validation: Callable[[], Iterable[Batch]]
    region_names: tuple[str, ...]


@dataclass(frozen=True)
class Trainable:
    """What is trained, and how it gets its gradient.

    Args:
        network: on the runtime's device.
        parameter_groups: for the optimizer; a group may carry its own ``lr``. Gradients of these alone are cleared by the loop.
        state: what best and last keep, as tensors on the CPU that nothing changes any more.
        before_forward: called before the forward pass of every step.
        after_backward: called once a step, when the gradients of all batches of this process are summed. Where several processes share
            the step, theirs are added up after it: what it makes of them must be linear in them.
        before_step: called once a step, when the gradients are those of the whole step: penalties belong here.
        before_validation: called before validation; None: `before_forward` is.
        columns: further columns of log.csv.
    """

    network: nn.Module
    parameter_groups: Sequence[dict[str, Any]]
    state: Callable[[], dict[str, Tensor]]
    before_forward: Callable[[], None] = lambda: None
    after_backward: Callable[[], None] = lambda: None
    before_step: Callable[[], None] = lambda: None
    before_validation: Callable[[], None] | None = None
    columns: Callable[[], Mapping[str, float]] = dict


@dataclass(frozen=True)
class FitResult:
    """How a training ended.

    Args:
        epochs: trained.
        best_epoch: the one whose weights are kept as best, from 1.
        best_validation_loss: at that epoch; None without validation.
        best_validation_dice: mean over regions, at that epoch; None without validation.
        stopped: why, for people.
    """

    epochs: int
    best_epoch: int
    best_validation_loss: float | None
    best_validation_dice: float | None
    stopped: str
