"""What happens in a forward pass: which modules are called, with what, and where each parameter is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from mergekit3d.per_sample import convolutions, layers, norms

Rule = Callable[[nn.Module, Tensor, Tensor, int], Mapping[str, Iterable[Tensor]]]
"""Module, input, gradient of the output, samples -> gradients of its parameters by name, one a sample."""

WIDENED = (*norms.INSTANCE_NORMS, nn.GroupNorm)
"""Norms that get a weight and a bias for every sample."""


@cache
def rules() -> Mapping[type[nn.Module], Rule]:
    """The fast rules by the exact type of the module: a subclass may compute something else."""
    linears = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)
    batch_norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    return {
        **dict.fromkeys(convolutions.convolution_types(), convolutions.convolution),
        **dict.fromkeys(linears, layers.linear),
        **dict.fromkeys(batch_norms, layers.batch_norm),
        nn.LayerNorm: layers.layer_norm,
        nn.PReLU: layers.prelu,
    }


@dataclass(eq=False)
class Call:
    """One call of one module.

    Args:
        module: that is called.
        own: the parameters of the module itself, by their names in it.
        inputs: positional and keyword arguments, detached; None once they are no longer needed.
        depth: of the call in the calls around it; 0 for the network.
        rule: the fast rule, where the module has one.
        leaves: of a norm that was widened.
        used: parameters that functions called in this very call have used, by `id`.
        shield: keeps torch's functions from being watched during the call, where it is known what they use.
        versions: of the inputs' tensors, to find out whether they were changed in place.
        gradients: of the outputs' tensors, by their place, as far as they arrived.
        outputs: its tensors, while they are compared with those of a sample alone.
        constant: whether each tensor of the inputs is the same for all samples; empty where none is.
    """

    module: nn.Module
    own: Mapping[str, nn.Parameter]
    inputs: tuple[tuple[Any, ...], dict[str, Any]] | None
    depth: int
    rule: Rule | None = None
    leaves: norms.Leaves | None = None
    used: set[int] = field(default_factory=set)
    shield: AbstractContextManager[None] | None = None
    versions: list[int] = field(default_factory=list)
    gradients: dict[int, Tensor] = field(default_factory=dict)
    outputs: list[Tensor] = field(default_factory=list)
    constant: tuple[bool, ...] = ()

    @property
    def ruled(self) -> bool:
        """Whether the gradients of all samples come at once."""
        return self.rule is not None or self.leaves is not None

    def taken(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inputs.

        Raises:
            RuntimeError: one was changed in place after the call; plain autograd refuses that as well.
        """
        assert self.inputs is not None
        if self.versions != versions_of(self.inputs):
            name = type(self.module).__name__
            raise RuntimeError(f"an input of {name} was changed in place after the call, so that its gradient cannot be computed")
        return self.inputs


def detached(values: Any) -> Any:
    """The same tensors, without a graph; modules that are handed around stay."""
    if _is_one_tensor(values):
        return (values[0][0].detach(),), {}
    return tree_map(lambda value: value.detach() if isinstance(value, Tensor) else value, values)


def _is_one_tensor(values: Any) -> bool:
    """Whether they are the inputs of most modules, one positional tensor, for which walking through containers takes too long."""
    if type(values) is not tuple or len(values) != 2 or type(values[0]) is not tuple or type(values[1]) is not dict:
        return False
    return not values[1] and len(values[0]) == 1 and isinstance(values[0][0], Tensor)


def tensors_in(values: Any) -> list[Tensor]:
    """All tensors of nested containers."""
    if isinstance(values, Tensor):
        return [values]
    if _is_one_tensor(values):
        return [values[0][0]]
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def versions_of(values: Any) -> list[int]:
    """How often each tensor was changed in place."""
    return [tensor._version for tensor in tensors_in(values)]  # noqa: SLF001  there is no other way to ask


def rule_of(module: nn.Module, own: Mapping[str, nn.Parameter]) -> Rule | None:
    """The fast rule of a module with these parameters, or None."""
    rule = rules().get(type(module))
    if rule is None or not own.keys() <= {"weight", "bias"} or "forward" in vars(module):
        return None
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:  # noqa: SLF001  the class that all share
        return None
    return rule


def takes_rule(inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> bool:
    """Whether a module is called as its fast rule supposes: with a tensor in front."""
    return not keywords and bool(inputs) and isinstance(inputs[0], Tensor)


class Uses(TorchFunctionMode):
    """Notes which call uses which parameters: the innermost one around each function of torch that is handed one.

    Args:
        parameters: to look for.
        note: is told the `id` of each.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], note: Callable[[int], None]) -> None:
        super().__init__()
        self._ids = {id(parameter) for parameter in parameters}
        self._note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, and note the parameters among its arguments if it gives a tensor."""
        keywords = kwargs or {}
        found = func(*args, **keywords)
        given = [*self._given(args), *self._given(keywords.values())]
        if given and (found is None or tensors_in(found)):
            for number in given:
                self._note(number)
        return found

    def _given(self, values: Iterable[Any]) -> Iterator[int]:
        """The parameters among arguments: the ids of what lives are its own, and every function of torch comes by here."""
        for value in values:
            if id(value) in self._ids:
                yield id(value)
            elif isinstance(value, tuple | list):
                yield from self._given(value)
            elif isinstance(value, dict):
                yield from self._given(value.values())


class Tap(torch.autograd.Function):
    """The tensor itself, in a graph that begins here: its gradient arrives although no parameter asks for one."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor) -> Tensor:  # noqa: ARG004
        """The output, now part of the graph of the anchor."""
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:  # noqa: ARG004
        """Nothing goes further."""
        return None, None


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Let torch's transformer layers call their modules, in place of one fused function for them all."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
