"""Sums of squares, one layer's per-sample gradients at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

ENTRIES_AT_ONCE = 4_000_000
"""Per-sample gradients of a layer that are held at a time, unless one sample has more."""

PIECE = 1 << 17
"""Entries that are summed in their own precision; what is done with them stays in the cache."""

SMALL = 1 << 15
"""Entries of a parameter that waits for the others of its kind, since calls for each would cost more than what they compute."""


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
        self._small: dict[str, list[tuple[int, Tensor]]] = {}

    @property
    def seen(self) -> set[str]:
        """Parameters that got a gradient."""
        return self._traces.keys() | self._small.keys() | {self._names[number] for number in self._pending}

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
        """Square what was used more than once, and what waited for its like; nothing is taken afterwards."""
        for number, gradients in self._pending.items():
            self._add(self._names[number], gradients, 0)
        self._pending = {}
        if not self._small:
            return
        totals = [self._totals[name] for name in self._small]
        squares = torch.cat([self._of_all_samples(parts) for parts in self._small.values()], 1).double().square_()
        columns = [total.numel() for total in totals]
        for name, of_one in zip(self._small, torch.split(squares, columns, 1), strict=True):
            self._traces[name] = [(0, of_one.sum(1))]
        for total, added in zip(totals, torch.split(squares.sum(0), columns), strict=True):
            total.add_(added.reshape(total.shape), alpha=self._scale)
        self._small = {}

    def _of_all_samples(self, parts: list[tuple[int, Tensor]]) -> Tensor:
        """Gradients of one parameter, (samples, entries)."""
        if len(parts) == 1 and len(parts[0][1]) == self._samples:
            return parts[0][1]
        rows = parts[0][1].new_zeros(self._samples, parts[0][1].shape[1])
        for first, part in parts:
            rows[first : first + len(part)] = part
        return rows

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
        total = self._totals[name]
        if total.numel() <= SMALL:
            rows = gradients if isinstance(gradients, Tensor) else torch.stack(list(gradients))
            self._small.setdefault(name, []).append((first, _wide(rows.detach().reshape(len(rows), -1))))
            return
        flat = [_wide(gradient.detach()).reshape(-1) for gradient in gradients]
        dots: list[Tensor] = []
        buffer = torch.empty(min(PIECE, total.numel()), dtype=flat[0].dtype, device=total.device)
        # Piece by piece, so that what one step writes is in the cache when the next one reads it.
        plain = total if total.is_contiguous() else torch.zeros_like(total, memory_format=torch.contiguous_format)
        for of_total, *parts in zip(*(torch.split(one, PIECE) for one in (plain.view(-1), *flat)), strict=True):
            squared = buffer[: len(of_total)]
            torch.mul(parts[0], parts[0], out=squared)
            for part in parts[1:]:
                squared.addcmul_(part, part)
            dots.extend(torch.dot(part, part) for part in parts)
            of_total.add_(squared, alpha=self._scale)
        if plain is not total:
            total.add_(plain)
        self._traces.setdefault(name, []).append((first, torch.stack(dots).reshape(-1, len(flat)).sum(0, dtype=torch.float64)))


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
