"""Sums of squares, one layer's per-sample gradients at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

ENTRIES_AT_ONCE = 4_000_000
"""Per-sample gradients of a layer that are held at a time, unless one sample has more."""

PIECE = 1 << 17
"""Entries that are summed in their own precision."""

SMALL = 1 << 16
"""Entries of a parameter whose samples are squared together."""


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
        self._pending: dict[int, list[Tensor]] = {}
        self._traces: dict[str, list[tuple[int, Tensor]]] = {}

    @property
    def seen(self) -> set[str]:
        """Parameters that got a gradient."""
        return set(self._traces)

    def samples_at_once(self, parameters: Iterable[nn.Parameter]) -> int:
        """How many samples' gradients of a layer to hold at a time."""
        return max(1, ENTRIES_AT_ONCE // max(sum(parameter.numel() for parameter in parameters), 1))

    def take(self, parameter: nn.Parameter, gradients: Iterable[Tensor], *, alone: bool, first: int = 0) -> None:
        """Take gradients of some samples.

        Args:
            parameter: whose they are.
            gradients: one a sample, shaped like the parameter.
            alone: the parameter has no other use, so that they can be squared; else they are those of the whole batch.
            first: the first of these samples in the batch.
        """
        number = id(parameter)
        if alone:
            self._add(self._names[number], gradients, first)
        elif number in self._pending:
            self._pending[number] = [one + other for one, other in zip(self._pending[number], gradients, strict=True)]
        else:
            self._pending[number] = list(gradients)

    def finish(self) -> None:
        """Square what was used more than once."""
        for number, gradients in self._pending.items():
            self._add(self._names[number], gradients, 0)
        self._pending = {}

    def traces(self) -> list[dict[str, float]]:
        """The sum of the squared gradients of each parameter that got one, for every sample.

        Raises:
            NotFiniteError: one is not finite.
        """
        found: list[dict[str, float]] = [{} for _ in range(self._samples)]
        parts = [(name, first, part) for name, several in self._traces.items() for first, part in several]
        values = iter(torch.cat([part for _, _, part in parts]).tolist() if parts else [])  # at once: a device waits for its work here
        for name, first, part in parts:
            for sample in range(first, first + len(part)):
                value = next(values)
                if not math.isfinite(value):
                    raise NotFiniteError(name, sample)
                found[sample][name] = self._scale * value
        return found

    def _add(self, name: str, gradients: Iterable[Tensor], first: int) -> None:
        sums = self._traces.setdefault(name, [])
        total = self._totals[name]
        if total.numel() <= SMALL:
            rows = gradients if isinstance(gradients, Tensor) else torch.stack(list(gradients))
            squares = rows.detach().to(torch.promote_types(rows.dtype, torch.float32)).square().reshape(len(rows), -1)
            sums.append((first, squares.sum(1).double()))
            total.add_(squares.sum(0).reshape(total.shape), alpha=self._scale)
            return
        squared: Tensor | None = None
        for sample, given in enumerate(gradients, first):
            gradient = given.detach()
            if gradient.dtype in (torch.bfloat16, torch.float16):
                gradient = gradient.float()
            squared = gradient.square() if squared is None else squared.addcmul_(gradient, gradient)
            sums.append((sample, _sum_of_squares(gradient).reshape(1)))
        if squared is not None:
            total.add_(squared.reshape(total.shape), alpha=self._scale)


def _sum_of_squares(values: Tensor) -> Tensor:
    """In pieces, whose sums are float64."""
    parts = torch.split(values.reshape(-1), PIECE)
    return torch.stack([torch.dot(part, part) for part in parts]).sum(dtype=torch.float64)
