"""Sums of squares, one layer's per-sample gradients at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

ENTRIES_AT_ONCE = 4_000_000
"""Per-sample gradients of a layer that are held at a time, unless one sample has more."""


class NotFiniteError(ArithmeticError):
    """A gradient is not finite.

    Args:
        name: of the parameter.
        sample: in the batch, from 0.
    """

    def __init__(self, name: str, sample: int) -> None:
        super().__init__(f"the gradient of {name} is not finite for sample {sample}")
        self.name = name
        self.sample = sample


class Squares:
    """Adds squared per-sample gradients to totals.

    Args:
        totals: by name of parameter, float64; changed in place.
        names: of the parameters, by `id`.
        samples: in the batch.
        scale: of what is added.
    """

    def __init__(self, totals: Mapping[str, Tensor], names: Mapping[int, str], samples: int, scale: float) -> None:
        self._totals = totals
        self._names = names
        self._samples = samples
        self._scale = scale
        self._pending: dict[int, Tensor] = {}
        self.seen: set[str] = set()

    def samples_at_once(self, parameters: Iterable[nn.Parameter]) -> int:
        """How many samples' gradients of a layer to hold at a time."""
        return max(1, ENTRIES_AT_ONCE // max(sum(parameter.numel() for parameter in parameters), 1))

    def take(self, parameter: nn.Parameter, gradients: Tensor, *, alone: bool, first: int = 0) -> None:
        """Take gradients of some samples.

        Args:
            parameter: whose they are.
            gradients: (samples, *parameter.shape); may be overwritten.
            alone: the parameter has no other use, so that they can be squared.
            first: the first of these samples in the batch.

        Raises:
            NotFiniteError: one is not finite.
        """
        number = id(parameter)
        if number not in self._names:
            return
        if alone:
            self._add(self._names[number], gradients, first)
        elif number in self._pending:
            self._pending[number] += gradients
        else:
            self._pending[number] = gradients

    def finish(self) -> None:
        """Square what was used more than once.

        Raises:
            NotFiniteError: one is not finite.
        """
        for number, gradients in self._pending.items():
            self._add(self._names[number], gradients, 0)
        self._pending = {}

    def _add(self, name: str, gradients: Tensor, first: int) -> None:
        gradients = gradients.detach()
        if gradients.dtype in (torch.bfloat16, torch.float16):
            gradients = gradients.float()
        total = gradients[0].square()
        for sample in gradients[1:]:
            total.addcmul_(sample, sample)
        if not bool(torch.isfinite(total.sum())):
            sums = gradients.double().square().flatten(1).sum(1) if gradients.ndim > 1 else gradients.double().square()
            wrong = (~torch.isfinite(sums)).nonzero().flatten().tolist()
            if wrong:
                raise NotFiniteError(name, first + int(wrong[0]))
            total = gradients.double().square().sum(0)  # too large for the squares' own precision alone
        self._totals[name].add_(total.reshape(self._totals[name].shape), alpha=self._scale)
        self.seen.add(name)
