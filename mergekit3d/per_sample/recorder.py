"""Sums over samples of squared per-sample gradients, by one forward and one backward pass of the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mergekit3d.errors import UsageError
from mergekit3d.per_sample.batch_axis import check_batch_axis
from mergekit3d.per_sample.calls import Call, without_fast_path
from mergekit3d.per_sample.recording import Recording
from mergekit3d.per_sample.replay import loop_over_network, replay
from mergekit3d.per_sample.squares import Squares

Autocast = Callable[[], AbstractContextManager[object]]


class PerSampleGradients:
    """The squared gradients of every sample of a batch, summed over the samples; every parameter is exact, whatever its module.

    `forward` once, then `add_squares` once or more. Made by `per_sample_gradients`.

    Args:
        network: in evaluation mode; it takes one tensor and gives one.
        autocast: precision of the forward pass.
    """

    def __init__(self, network: nn.Module, autocast: Autocast = nullcontext) -> None:
        self._network = network
        self._autocast = autocast
        self.recording = Recording(network, self._arrived)
        """Of its forward passes."""
        self._parameters = dict(network.named_parameters())
        self._mixing: set[nn.Module] = set()
        self._constant: dict[nn.Module, tuple[bool, ...]] = {}
        self._checked = False
        self._fast: set[int] = set()
        self._replayed: dict[Call, list[int]] = {}
        self._slow: list[str] = []
        self._images = torch.empty(0)
        self._logits = torch.empty(0)
        self._squares: Squares | None = None
        self._last = True
        self._seen: set[str] = set()
        self._unused: set[str] = set()
        self._looped: set[str] = set()
        self.replayed: dict[str, list[str]] = {}
        """Modules without a fast rule, which were looped over the samples, and their parameters."""

    @property
    def looped(self) -> list[str]:
        """Parameters for which the whole network was run sample by sample."""
        return [name for name in self._parameters if name in self._looped]

    @property
    def unused(self) -> list[str]:
        """Parameters that took no part in any output so far: their gradients are 0."""
        return [name for name in self._parameters if name in self._unused]

    def forward(self, images: Tensor) -> Tensor:
        """The logits of a batch.

        Args:
            images: (samples, ...).

        Returns:
            (samples, ...), float32 at least; the scores of `add_squares` belong to them.

        Raises:
            UsageError: the samples of a batch affect one another.
        """
        self._images = images
        several = len(images) > 1 and not self._checked
        watched = self.recording.of_pass(images.device, with_outputs=several)
        with torch.enable_grad(), self._autocast(), without_fast_path(), watched:
            logits = self._network(images)
        self._logits = _wide(logits)
        if several:
            self._check()
        self._plan()
        return self._logits

    def add_squares(self, score: Tensor, totals: Mapping[str, Tensor], *, scale: float = 1.0, last: bool = True) -> list[dict[str, float]]:
        """Add the sum over samples of the squared gradients of <score of the sample, its logits>.

        Args:
            score: the gradient of the log-likelihoods with respect to the logits.
            totals: by name of parameter, float64; changed in place.
            scale: of what is added.
            last: no other score follows for this batch, so that its memory can go.

        Returns:
            For every sample, what it adds to the sum over each parameter's entries; unused parameters are left out.

        Raises:
            NotFiniteError: a gradient is not finite.
        """
        squares = self._squares = Squares(totals, self.recording.names, len(self._images), scale)
        self._last = last
        if self._logits.requires_grad:
            self._backward(score, squares)
        with torch.no_grad():
            self._replay_calls(squares)
        self._loop(score, squares)
        squares.finish()
        self._seen |= squares.seen
        self._unused = self._parameters.keys() - self._seen
        if last:
            self.recording.forget()
            self._logits = torch.empty(0)
        return squares.traces()

    # Which way each parameter goes

    def _check(self) -> None:
        """Whether the rows of each sample stand together in every call, by a forward pass of the last one alone."""
        wrong = check_batch_axis(self._network, self._images, self._logits, self.recording.calls, self._autocast, without_fast_path)
        if wrong is None:
            raise UsageError(
                "the samples of a batch affect one another", where=type(self._network).__name__, todo="use batches of one subject"
            )
        self._mixing = wrong
        self._constant = {call.module: call.constant for call in self.recording.calls}
        self._checked = True

    def _plan(self) -> None:
        """A parameter is fast where all its uses have a rule or where one replay has it all; else the network is looped."""
        self._fast, self._replayed, self._slow = set(), {}, []
        # A sample alone goes the same way whether larger batches came before it or not: runs that are resumed end with the same bits.
        distrusted = self.recording.distrusted | self._mixing if len(self._images) > 1 else self.recording.distrusted
        for number, name in self.recording.names.items():
            calls = self.recording.uses.get(number, [])
            trusted = all(call.depth > 0 and call.module not in distrusted for call in calls)
            if calls and trusted and all(call.ruled and self._owns(call, number) for call in calls):
                self._fast.add(number)
            elif trusted and len(calls) == 1 and not calls[0].ruled:
                self._replayed.setdefault(calls[0], []).append(number)
            elif calls or name not in self._unused:
                # One that no function was seen to use may still be used in a way that cannot be seen: the loop finds out, once.
                self._slow.append(name)
        for call in self.recording.calls:
            call.outputs, call.constant = [], self._constant.get(call.module, ())
            fast = call.rule is not None and any(id(parameter) in self._fast for parameter in call.own.values())
            if not fast and call not in self._replayed:
                call.inputs = None
        for call, numbers in self._replayed.items():
            self.replayed[self.recording.modules[call.module]] = [self.recording.names[number] for number in numbers]

    @staticmethod
    def _owns(call: Call, number: int) -> bool:
        return any(id(parameter) == number for parameter in call.own.values())

    # Gradients

    def _backward(self, score: Tensor, squares: Squares) -> None:
        """One backward pass: the rules are called on its way, and the leaves of norms get their gradients."""
        leaves = [(call.own[name], leaf) for call in self.recording.calls if call.leaves for name, leaf in call.leaves.by_name.items()]
        inputs = [self.recording.anchor, *(leaf for _, leaf in leaves)]
        found = torch.autograd.grad(self._logits, inputs, grad_outputs=score, retain_graph=not self._last, allow_unused=True)
        for (parameter, _), gradient in zip(leaves, found[1:], strict=True):
            if gradient is not None and id(parameter) in self._fast:
                rows = gradient.reshape(len(self._images), -1, *parameter.shape)
                rows = rows[:, 0] if rows.shape[1] == 1 else rows.sum(1)
                squares.take(parameter, rows, alone=len(self.recording.uses[id(parameter)]) == 1)

    def _arrived(self, call: Call, place: int, gradient: Tensor) -> None:
        squares = self._squares
        if squares is None or call.inputs is None:
            return
        if call.rule is None:
            call.gradients[place] = gradient
            return
        device = gradient.device.type
        mixed = torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
        with torch.no_grad(), mixed:
            self._by_rule(call, call.rule, gradient, squares)
        if self._last:
            call.inputs = None

    def _by_rule(self, call: Call, rule: Any, gradient: Tensor, squares: Squares) -> None:
        own = {name: parameter for name, parameter in call.own.items() if id(parameter) in self._fast}
        alone = {name: len(self.recording.uses[id(parameter)]) == 1 for name, parameter in own.items()}
        x, samples = call.taken()[0][0], len(self._images)
        step = squares.samples_at_once(own.values()) if all(alone.values()) else samples
        if samples == 1 or step >= samples:
            parts = [(x, gradient, samples)]
        else:
            rows = x.shape[0] // samples
            pairs = zip(torch.split(x, step * rows), torch.split(gradient, step * rows), strict=True)
            parts = [(part, of_part, part.shape[0] // rows) for part, of_part in pairs]
        done = 0
        for part, of_part, number in parts:
            found = rule(call.module, part, of_part, number)
            for name, parameter in own.items():
                squares.take(parameter, found[name], alone=alone[name], first=done)
            done += number

    def _replay_calls(self, squares: Squares) -> None:
        for call, numbers in self._replayed.items():
            if call.gradients:
                parameters = [self._parameters[self.recording.names[number]] for number in numbers]
                for sample, gradients in replay(call, parameters, len(self._images), self._autocast):
                    for parameter, gradient in zip(parameters, gradients, strict=True):
                        if gradient is not None:
                            squares.take(parameter, gradient[None], alone=True, first=sample)
            call.gradients = {}

    def _loop(self, score: Tensor, squares: Squares) -> None:
        parameters = [self._parameters[name] for name in self._slow]
        if not parameters:
            return
        for sample, gradients in loop_over_network(self._network, self._images, score, parameters, self._autocast):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    squares.take(parameter, gradient[None], alone=True, first=sample)
        self._slow = [name for name in self._slow if name in squares.seen]
        self._looped.update(self._slow)


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


@contextmanager
def per_sample_gradients(network: nn.Module, *, autocast: Autocast = nullcontext) -> Iterator[PerSampleGradients]:
    """Attach to a network, so that squared per-sample gradients can be had; inside the block its parameters need no gradient.

    Args:
        network: in evaluation mode, on the device of the images; it takes one tensor, (samples, ...), and gives one.
        autocast: precision of the forward pass.

    Yields:
        What computes them, batch after batch; see `PerSampleGradients`.

    Raises:
        UsageError: a module is in training mode.
    """
    training = [name or type(network).__name__ for name, module in network.named_modules() if module.training]
    if training:
        raise UsageError(
            "per-sample gradients need the network in evaluation mode", found=f"{training[0]} in training mode", todo="call network.eval()"
        )
    recorder = PerSampleGradients(network, autocast)
    with recorder.recording.attached():
        yield recorder
