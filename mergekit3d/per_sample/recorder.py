"""Sums over samples of squared per-sample gradients, by one forward and one backward pass of the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mergekit3d.errors import UsageError
from mergekit3d.per_sample import norms
from mergekit3d.per_sample.batch_axis import check_batch_axis
from mergekit3d.per_sample.calls import WIDENED, Call, Tap, Uses, detached, rule_of, takes_rule, versions_of, without_fast_path
from mergekit3d.per_sample.replay import loop_over_network, replay
from mergekit3d.per_sample.squares import Squares

Autocast = Callable[[], AbstractContextManager[object]]


class Hook(Protocol):
    """What takes a hook away again."""

    def remove(self) -> None:
        """Take it away."""


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
        self._names = {id(parameter): name for name, parameter in network.named_parameters()}
        self._parameters = dict(network.named_parameters())
        self._modules = {module: name for name, module in network.named_modules()}
        self._own = {module: dict(module.named_parameters(recurse=False)) for module in self._modules}
        self._rules = {module: rule for module, own in self._own.items() if (rule := rule_of(module, own)) is not None}
        self._recording = False
        self._stack: list[Call] = []
        self._calls: list[Call] = []
        self._uses: dict[int, list[Call]] = {}
        self._distrusted: set[nn.Module] = set()
        self._mixing: set[nn.Module] = set()
        self._constant: dict[nn.Module, tuple[bool, ...]] = {}
        self._checked = False
        self._fast: set[int] = set()
        self._replayed: dict[Call, list[int]] = {}
        self._slow: list[str] = []
        self._anchor = torch.empty(0)
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
        self._calls, self._uses, self._stack = [], {}, []
        self._anchor = torch.zeros((), device=images.device, requires_grad=True)
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(self._autocast())
            stack.enter_context(without_fast_path())
            stack.enter_context(Uses(self._network.parameters(), self._note))
            self._recording = True
            stack.callback(self._stop)
            logits = self._network(images)
        self._logits = _wide(logits)
        if len(images) > 1 and not self._checked:
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
        squares = self._squares = Squares(totals, self._names, len(self._images), scale)
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
            self._calls, self._uses, self._logits = [], {}, torch.empty(0)
        return squares.traces()

    # Recording

    def _stop(self) -> None:
        self._recording = False
        for call in reversed(self._stack):  # those that an error ended
            _unshield(call)

    def _note(self, number: int) -> None:
        if self._recording and self._stack:
            self._stack[-1].used.add(number)

    def before(self, module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """A module is about to be called."""
        if not self._recording:
            return
        call = Call(module, self._own[module], (inputs, keywords), len(self._stack))
        self._stack.append(call)
        known = module in self._rules or type(module) in WIDENED
        if known and call.own and not keywords and len(inputs) == 1 and type(inputs[0]) is Tensor:
            # One of torch's own layers: what it uses is known, and watching its functions takes longer than small ones themselves.
            call.used.update(id(parameter) for parameter in call.own.values())
            if id(inputs[0]) in self._names:
                call.used.add(id(inputs[0]))
            call.shield = torch._C.DisableTorchFunction()  # noqa: SLF001  there is no public one that a hook can leave to another
            call.shield.__enter__()

    def after(self, module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Any:
        """A module was called: keep what its parameters' gradients need, and ask for the gradient of its output."""
        if not self._recording:
            return output
        call = self._stack.pop()
        assert call.module is module
        try:
            return self._kept(call, inputs, keywords, output)
        finally:
            _unshield(call)

    def _kept(self, call: Call, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Any:
        if call.leaves is not None:
            call.inputs = detached(call.inputs)
            self._keep(call)
            return output
        if not call.used or call.depth == 0:
            for number in call.used:  # of the network itself
                self._uses.setdefault(number, []).append(call)
            return output
        call.rule = self._rules.get(call.module) if takes_rule(inputs, keywords) else None
        call.inputs = detached((inputs, keywords))
        call.versions = versions_of(call.inputs)
        self._keep(call)
        return self._hooked(call, output)

    def widened(self, module: nn.Module, x: Tensor) -> Tensor:
        """What a norm computes, by leaves of its own while a forward pass is recorded."""
        ready = self._recording and bool(self._stack) and self._stack[-1].module is module and norms.can_widen(module, x)
        if not ready:
            result: Tensor = type(module).forward(module, x)
            return result
        y, self._stack[-1].leaves = norms.widened(module, self._own[module], x)
        return y

    def _keep(self, call: Call) -> None:
        self._calls.append(call)
        for number in call.used:
            self._uses.setdefault(number, []).append(call)

    def _hooked(self, call: Call, output: Any) -> Any:
        """The output, whose gradient goes to the call."""
        if isinstance(output, Tensor):
            return self._tapped(call, output, 0)
        if type(output) in (tuple, list):
            return type(output)(self._tapped(call, part, place) if isinstance(part, Tensor) else part for place, part in enumerate(output))
        self._distrusted.add(call.module)
        return output

    def _tapped(self, call: Call, output: Tensor, place: int) -> Tensor:
        if output.is_floating_point() and not output.requires_grad:
            fresh = call.rule is not None and not output._is_view()  # noqa: SLF001  a tap on a view would reach its base
            output = Tap.apply(output if fresh else output.clone(), self._anchor)  # type: ignore[no-untyped-call]
        if output.requires_grad:
            output.register_hook(lambda gradient: self._arrived(call, place, gradient))  # type: ignore[no-untyped-call]
        elif output.is_floating_point():
            self._distrusted.add(call.module)  # in a block without gradients
        if call.rule is None and not self._checked and len(self._images) > 1:
            call.outputs.append(output.detach().clone())  # what follows may work in place
        return output

    # Which way each parameter goes

    def _check(self) -> None:
        """Whether the rows of each sample stand together in every call, by a forward pass of the last one alone."""
        wrong = check_batch_axis(self._network, self._images, self._logits, self._calls, self._autocast, without_fast_path)
        if wrong is None:
            raise UsageError(
                "the samples of a batch affect one another", where=type(self._network).__name__, todo="use batches of one subject"
            )
        self._mixing = wrong
        self._constant = {call.module: call.constant for call in self._calls}
        self._checked = True

    def _plan(self) -> None:
        """A parameter is fast where all its uses have a rule or where one replay has it all; else the network is looped."""
        self._fast, self._replayed, self._slow = set(), {}, []
        # A sample alone goes the same way whether larger batches came before it or not: runs that are resumed end with the same bits.
        distrusted = self._distrusted | self._mixing if len(self._images) > 1 else self._distrusted
        for number, name in self._names.items():
            calls = self._uses.get(number, [])
            trusted = all(call.depth > 0 and call.module not in distrusted for call in calls)
            if calls and trusted and all(call.ruled and self._owns(call, number) for call in calls):
                self._fast.add(number)
            elif trusted and len(calls) == 1 and not calls[0].ruled:
                self._replayed.setdefault(calls[0], []).append(number)
            elif calls or name not in self._unused:
                # One that no function was seen to use may still be used in a way that cannot be seen: the loop finds out, once.
                self._slow.append(name)
        for call in self._calls:
            call.outputs, call.constant = [], self._constant.get(call.module, ())
            fast = call.rule is not None and any(id(parameter) in self._fast for parameter in call.own.values())
            if not fast and call not in self._replayed:
                call.inputs = None
        for call, numbers in self._replayed.items():
            self.replayed[self._modules[call.module]] = [self._names[number] for number in numbers]

    @staticmethod
    def _owns(call: Call, number: int) -> bool:
        return any(id(parameter) == number for parameter in call.own.values())

    # Gradients

    def _backward(self, score: Tensor, squares: Squares) -> None:
        """One backward pass: the rules are called on its way, and the leaves of norms get their gradients."""
        leaves = [(call.own[name], leaf) for call in self._calls if call.leaves for name, leaf in call.leaves.by_name.items()]
        inputs = [self._anchor, *(leaf for _, leaf in leaves)]
        found = torch.autograd.grad(self._logits, inputs, grad_outputs=score, retain_graph=not self._last, allow_unused=True)
        for (parameter, _), gradient in zip(leaves, found[1:], strict=True):
            if gradient is not None and id(parameter) in self._fast:
                rows = gradient.reshape(len(self._images), -1, *parameter.shape)
                rows = rows[:, 0] if rows.shape[1] == 1 else rows.sum(1)
                squares.take(parameter, rows, alone=len(self._uses[id(parameter)]) == 1)

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
        alone = {name: len(self._uses[id(parameter)]) == 1 for name, parameter in own.items()}
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
                parameters = [self._parameters[self._names[number]] for number in numbers]
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


def _unshield(call: Call) -> None:
    if call.shield is not None:
        call.shield.__exit__(None, None, None)
        call.shield = None


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
    asked = {parameter: parameter.requires_grad for parameter in network.parameters()}
    hooks: list[Hook] = []
    changed: list[nn.Module] = []
    try:
        for parameter in asked:
            parameter.requires_grad_(False)
        for module in network.modules():
            hooks.append(module.register_forward_pre_hook(recorder.before, with_kwargs=True))
            hooks.append(module.register_forward_hook(recorder.after, with_kwargs=True, prepend=True))
            if type(module) in WIDENED and "forward" not in vars(module) and any(True for _ in module.parameters(recurse=False)):
                vars(module)["forward"] = _bound(recorder, module)
                changed.append(module)
        yield recorder
    finally:
        for hook in hooks:
            hook.remove()
        for module in changed:
            del vars(module)["forward"]
        for parameter, wanted in asked.items():
            parameter.requires_grad_(wanted)


def _bound(recorder: PerSampleGradients, module: nn.Module) -> Callable[[Tensor], Tensor]:
    def forward(input: Tensor) -> Tensor:  # noqa: A002  torch's name
        return recorder.widened(module, input)

    return forward
