"""Loss and Dice on whole validation volumes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from math import isnan, nan
from typing import cast

import torch
from torch import nn

from mergekit3d.datasets.prefetch import prefetch
from mergekit3d.datasets.sampling import Batch
from mergekit3d.errors import InputError
from mergekit3d.training.devices import Runtime
from mergekit3d.training.inference import volume_logits
from mergekit3d.training.loss import Loss, hard_dice
from mergekit3d.training.sharing import Sharing, in_turn


@dataclass(frozen=True)
class Scores:
    """How well a network does on the validation subjects.

    Args:
        loss: mean over subjects.
        dice: mean over subjects of every region; NaN where neither truth nor prediction of any subject has it.
    """

    loss: float
    dice: tuple[float, ...]

    @property
    def mean_dice(self) -> float:
        """Mean over the regions that are defined."""
        return _mean_of_defined(self.dice)


def validate(
    network: nn.Module,
    batches: Iterable[Batch],
    loss: Loss,
    *,
    runtime: Runtime,
    exclusive: bool,
    patch_size: tuple[int, int, int] | None,
    after_subject: Callable[[], None],
    sharing: Sharing,
) -> Scores | None:
    """Loss and hard Dice of a network, in evaluation mode, over whole volumes without their padding.

    Args:
        network: put into evaluation mode.
        batches: one whole subject each, padded to sizes that the network takes; of several processes, those dealt to this one in turn.
        loss: of logits and targets.
        runtime: device and precision.
        exclusive: softmax in place of sigmoids.
        patch_size: of a sliding window, as prediction will use it; None: whole volumes at once.
        after_subject: called after each one; it may stop the work by raising.
        sharing: the processes that share the subjects.

    Returns:
        The scores over all subjects, the same in every process; None where there are none.

    Raises:
        InputError: a loss that is not finite; it names the subject's number.
    """
    network.eval()
    own: list[tuple[float, list[float]]] = []
    waiting = cast("Generator[Batch, None, None]", prefetch(batches))
    with closing(waiting), torch.no_grad():
        for batch in sharing.rounds(waiting):
            if batch is not None:
                with sharing.own_work():
                    own.append(_scored(network, batch, loss, runtime=runtime, exclusive=exclusive, patch_size=patch_size))
            after_subject()
    scored = in_turn(sharing.processes.gather(own))
    if not scored:
        return None
    losses, dice = zip(*scored, strict=True)
    return Scores(sum(losses) / len(losses), tuple(_mean_of_defined(values) for values in zip(*dice, strict=True)))


def _scored(
    network: nn.Module, batch: Batch, loss: Loss, *, runtime: Runtime, exclusive: bool, patch_size: tuple[int, int, int] | None
) -> tuple[float, list[float]]:
    """Loss and Dice of one subject."""
    assert batch.targets is not None
    x, y, z = batch.shapes[0]
    logits = volume_logits(network, batch.images.to(runtime.device), runtime=runtime, patch_size=patch_size, multiple_of=1)
    logits, targets = logits[..., :x, :y, :z], batch.targets.to(runtime.device)[..., :x, :y, :z]
    value = loss(logits, targets, exclusive)
    if not torch.isfinite(value):
        where = f"validation, subject {batch.numbers[0]}"
        raise InputError("the loss is not finite", where=where, todo="look at its images, or lower learning_rate")
    return float(value), hard_dice(logits, targets, exclusive=exclusive)[0].tolist()


def _mean_of_defined(values: Sequence[float]) -> float:
    defined = [value for value in values if not isnan(value)]
    return sum(defined) / len(defined) if defined else nan
