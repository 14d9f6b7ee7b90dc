"""One optimizer step: forward and backward passes over its batches, gradients added up, scaled, clipped and used."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mergekit3d.datasets.sampling import Batch
from mergekit3d.errors import UsageError
from mergekit3d.training.average import Average
from mergekit3d.training.devices import Runtime
from mergekit3d.training.objective import StepLoss
from mergekit3d.training.settings import TrainingSettings
from mergekit3d.training.sharing import Sharing, step_seed
from mergekit3d.training.taking import taking

SMALLEST_SCALE = 1.0
"""Of the loss in fp16: where gradients overflow even so, they are not finite in truth."""

MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}
"""By their names in recipes."""

Hook = Callable[[], None]


@dataclass(frozen=True)
class Taken:
    """A step.

    Args:
        loss: mean over all of its batches, before it.
        own: the part of it that is of this process's samples.
        good: whether loss and gradient were finite, so that it was taken; or, in fp16, left out for a smaller scale of the loss.
    """

    loss: float
    own: float
    good: bool


def _compiled(network: nn.Module) -> Callable[[Tensor], Any]:
    """The network by torch.compile, whose failures are told in one line.

    Raises:
        UsageError: when it is called and cannot be compiled.
    """
    from torch._dynamo.exc import TorchDynamoException

    compiled = torch.compile(network)

    def forward(images: Tensor) -> Any:
        try:
            return compiled(images)
        except TorchDynamoException as error:
            found = str(error).strip().partition("\n")[0][:200]
            raise UsageError("torch.compile cannot compile the network", found=found, todo="leave out compile") from error

    return forward


class Stepper:
    """Takes steps.

    Args:
        network: on the runtime's device.
        optimizer: of all that is trained.
        parameters: the same, as one list.
        settings: accumulation, clipping, averaging.
        runtime: device and precision.
        loss: of the logits of a batch and its targets.
        exclusive: softmax in place of sigmoids.
        seed: of the dropout.
        sharing: the processes that share the step.
        before_forward: see `Trainable`, as the next two.
        after_backward: called once a step.
        before_step: called once a step.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        parameters: Sequence[Tensor],
        settings: TrainingSettings,
        *,
        runtime: Runtime,
        loss: StepLoss,
        exclusive: bool,
        seed: int,
        sharing: Sharing,
        before_forward: Hook,
        after_backward: Hook,
        before_step: Hook,
    ) -> None:
        self.network, self.optimizer, self.parameters, self.settings = network, optimizer, list(parameters), settings
        self.forward = _compiled(network) if settings.compile else network
        self.memory_format = MEMORY_FORMATS[settings.memory_format]
        self.runtime, self.loss, self.exclusive, self.seed, self.sharing = runtime, loss, exclusive, seed, sharing
        self.before_forward, self.after_backward, self.before_step = before_forward, after_backward, before_step
        self.average = Average(self.parameters, settings.ema)
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == "fp16")

    def step(self, group: Sequence[Batch], epoch: int, step: int) -> Taken:
        """One step, unless it would spoil the weights.

        Args:
            group: its batches, this process's share of them.
            epoch: from 0.
            step: of the epoch, from 0.
        """
        with self.sharing.own_work():
            own = self._backward(group, epoch, step)
        loss = self.sharing.add_up(own, sum(batch.part for batch in group) / len(group))
        self.scaler.unscale_(self.optimizer)
        self.before_step()
        norm = nn.utils.get_total_norm([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        finite = bool(torch.isfinite(norm))
        if not math.isfinite(loss) or (not finite and not self._may_overflow()):
            return Taken(loss, own, good=False)
        if self.settings.gradient_clip is not None and finite:
            nn.utils.clip_grads_with_norm_(self.parameters, self.settings.gradient_clip, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if finite:
            self.average.update()
        return Taken(loss, own, good=True)

    def _may_overflow(self) -> bool:
        """Whether a smaller scale may help; the scaler then leaves the step out."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > SMALLEST_SCALE

    def _backward(self, group: Sequence[Batch], epoch: int, step: int) -> float:
        """Gradients of the mean loss of a step, as far as it is of this process's samples; returns that part of the mean loss."""
        position, rank = (self.seed, epoch, step), self.sharing.processes.rank
        torch.manual_seed(step_seed(*position))
        self.before_forward()
        if not self.sharing.processes.is_first:
            torch.manual_seed(step_seed(*position, rank))
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for batch in group:
            if not batch.numbers:
                continue
            images = batch.images.to(self.runtime.device, non_blocking=True, memory_format=self.memory_format)
            targets = None if batch.targets is None else batch.targets.to(self.runtime.device, non_blocking=True)
            with self.runtime.autocast(), taking(images):
                logits = self.forward(images)
            loss = self.loss(logits, targets, self.exclusive)
            torch.autograd.backward(self.scaler.scale(loss / (len(group) / batch.part)))
            losses.append(loss.detach() * batch.part)
        self.after_backward()
        return float(torch.stack(losses).mean()) * len(losses) / len(group) if losses else 0.0
