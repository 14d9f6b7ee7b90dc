"""A forward pass under watch: which modules were called, with what, which parameters each used, and where gradients are to be caught."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mergekit3d.per_sample import norms
from mergekit3d.per_sample.calls import WIDENED, Call, Tap, Uses, detached, rule_of, takes_rule, versions_of

Arrived = Callable[[Call, int, Tensor], None]
"""Is handed the gradient of one output of a call: the call, the place of the output, the gradient."""


class Hook(Protocol):
    """What takes a hook away again."""

    def remove(self) -> None:
        """Take it away."""


class Recording:
    """Watches the forward passes of a network.

    Args:
        network: in evaluation mode.
        arrived: called on the way of the backward pass.

    Attributes:
        names: of the parameters, by `id`.
        modules: their names.
        calls: of the last forward pass, in the order of their ends, as far as they used parameters.
        uses: calls that used each parameter, by its `id`.
        distrusted: modules whose gradients cannot be told from what goes in and out of them.
        anchor: a scalar on which the graph of every output depends.
    """

    def __init__(self, network: nn.Module, arrived: Arrived) -> None:
        self.names = {id(parameter): name for name, parameter in network.named_parameters()}
        self.modules = {module: name for name, module in network.named_modules()}
        self.calls: list[Call] = []
        self.uses: dict[int, list[Call]] = {}
        self.distrusted: set[nn.Module] = set()
        self.anchor = torch.empty(0)
        self._network, self._arrived = network, arrived
        self._own = {module: dict(module.named_parameters(recurse=False)) for module in self.modules}
        self._rules = {module: rule for module, own in self._own.items() if (rule := rule_of(module, own)) is not None}
        self._active = False
        self._with_outputs = False
        self._stack: list[Call] = []

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Within the block, the network's modules report their calls, and its parameters need no gradient."""
        asked = {parameter: parameter.requires_grad for parameter in self._network.parameters()}
        hooks: list[Hook] = []
        changed: list[nn.Module] = []
        try:
            for parameter in asked:
                parameter.requires_grad_(False)
            for module, own in self._own.items():
                hooks.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
                hooks.append(module.register_forward_hook(self._after, with_kwargs=True, prepend=True))
                if type(module) in WIDENED and "forward" not in vars(module) and own:
                    vars(module)["forward"] = self._bound(module)
                    changed.append(module)
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for module in changed:
                del vars(module)["forward"]
            for parameter, wanted in asked.items():
                parameter.requires_grad_(wanted)

    @contextmanager
    def of_pass(self, device: torch.device, *, with_outputs: bool) -> Iterator[None]:
        """Within the block, a forward pass is recorded, in place of the last one.

        Args:
            device: of the images.
            with_outputs: keep copies of the outputs of modules without a fast rule, to compare them with others.
        """
        self.calls, self.uses, self._stack = [], {}, []
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        self._with_outputs = with_outputs
        with Uses(self._network.parameters(), self._note):
            self._active = True
            try:
                yield
            finally:
                self._active = False
                for call in reversed(self._stack):  # those that an error ended
                    _unshield(call)

    def forget(self) -> None:
        """Let go of the last forward pass."""
        self.calls, self.uses = [], {}

    def _note(self, number: int) -> None:
        if self._active and self._stack:
            self._stack[-1].used.add(number)

    def _before(self, module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """A module is about to be called."""
        if not self._active:
            return
        call = Call(module, self._own[module], (inputs, keywords), len(self._stack))
        self._stack.append(call)
        known = module in self._rules or type(module) in WIDENED
        if known and call.own and not keywords and len(inputs) == 1 and type(inputs[0]) is Tensor:
            # One of torch's own layers: what it uses is known, and watching its functions takes longer than small ones themselves.
            call.used.update(id(parameter) for parameter in call.own.values())
            if id(inputs[0]) in self.names:
                call.used.add(id(inputs[0]))
            call.shield = torch._C.DisableTorchFunction()  # noqa: SLF001  there is no public one that a hook can leave to another
            call.shield.__enter__()

    def _after(self, module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Any:
        """A module was called: keep what its parameters' gradients need, and ask for the gradient of its output."""
        if not self._active:
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
                self.uses.setdefault(number, []).append(call)
            return output
        call.rule = self._rules.get(call.module) if takes_rule(inputs, keywords) else None
        call.inputs = detached((inputs, keywords))
        call.versions = versions_of(call.inputs)
        self._keep(call)
        return self._hooked(call, output)

    def _widened(self, module: nn.Module, x: Tensor) -> Tensor:
        """What a norm computes, by leaves of its own while a forward pass is recorded."""
        ready = self._active and bool(self._stack) and self._stack[-1].module is module and norms.can_widen(module, x)
        if not ready:
            result: Tensor = type(module).forward(module, x)
            return result
        y, self._stack[-1].leaves = norms.widened(module, self._own[module], x)
        return y

    def _keep(self, call: Call) -> None:
        self.calls.append(call)
        for number in call.used:
            self.uses.setdefault(number, []).append(call)

    def _hooked(self, call: Call, output: Any) -> Any:
        """The output, whose gradient goes to the call."""
        if isinstance(output, Tensor):
            return self._tapped(call, output, 0)
        if type(output) in (tuple, list):
            return type(output)(self._tapped(call, part, place) if isinstance(part, Tensor) else part for place, part in enumerate(output))
        self.distrusted.add(call.module)
        return output

    def _tapped(self, call: Call, output: Tensor, place: int) -> Tensor:
        if output.is_floating_point() and not output.requires_grad:
            fresh = call.rule is not None and not output._is_view()  # noqa: SLF001  a tap on a view would reach its base
            output = Tap.apply(output if fresh else output.clone(), self.anchor)  # type: ignore[no-untyped-call]
        if output.requires_grad:
            output.register_hook(lambda gradient: self._arrived(call, place, gradient))  # type: ignore[no-untyped-call]
        elif output.is_floating_point():
            self.distrusted.add(call.module)  # in a block without gradients
        if call.rule is None and self._with_outputs:
            call.outputs.append(output.detach().clone())  # what follows may work in place
        return output

    def _bound(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        def forward(input: Tensor) -> Tensor:  # noqa: A002  torch's name
            return self._widened(module, input)

        return forward


def _unshield(call: Call) -> None:
    if call.shield is not None:
        call.shield.__exit__(None, None, None)
        call.shield = None
