"""One tensor of several sources combined by a plan's method, in pieces small enough for the processor's cache."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from mergekit3d.merging.fusion import relative_fisher
from mergekit3d.merging.methods import MergeMethod, Parameters
from mergekit3d.merging.piece import Piece
from mergekit3d.plan.fusion import FusionPlan
from mergekit3d.plan.ratios import GroupRatios

PIECE_ENTRIES = 1 << 16
"""Entries of a piece: a multiple of 4, which the random draws are cut at."""


@dataclass(frozen=True)
class Combined:
    """One piece, combined.

    Args:
        values: the merged entries.
        shares: how much each source weighs after the Fisher, a^t phi^t / sum_s a^s phi^s, one array or number a source; None where
            the method is no average.
        unknown: number of entries where no source has information; None without a Fisher diagonal.
    """

    values: np.ndarray
    shares: Sequence[Any] | None
    unknown: int | None


@dataclass(frozen=True)
class Combiner:
    """How the entries of one tensor become one, ready for its pieces; sources of ratio 0 take no part.

    Args:
        method: the merge method.
        parameters: what it takes.
        shape: of the tensor.
        dtype: of the arithmetic, float32 or float64.
        active: numbers of the sources that take part.
        ratios: their ratios, one number each, or one array over the output channels.
        keys: of their random draws.
        surveys: what the method's survey found of each of them; None where it makes none.
    """

    method: MergeMethod
    parameters: Parameters
    shape: tuple[int, ...]
    dtype: Any
    active: tuple[int, ...]
    ratios: tuple[np.ndarray, ...]
    keys: tuple[bytes, ...]
    surveys: Sequence[Any] | None = None

    def combine(self, start: int, thetas: Sequence[np.ndarray], fishers: Sequence[np.ndarray] | None, base: np.ndarray | None) -> Combined:
        """Combine the entries that begin at `start` of the flat tensor.

        Args:
            start: number of the first entry; a multiple of 4.
            thetas: (entries,) weights of the active sources.
            fishers: (entries,) their Fisher diagonals, or None.
            base: (entries,) weights of the base, or None.
        """
        thetas = [np.asarray(theta, self.dtype) for theta in thetas]
        phis = None if fishers is None else relative_fisher([np.asarray(fisher, self.dtype) for fisher in fishers])
        ratios = [self._spread(ratio, start, thetas[0].size) for ratio in self.ratios]
        piece = Piece(
            thetas=thetas,
            ratios=ratios,
            phis=phis,
            base=None if base is None else np.asarray(base, self.dtype),
            surveys=self.surveys,
            uniform=lambda index: _uniform(self.keys[index], start, thetas[0].size),
        )
        values = np.asarray(self.method.combine(piece, self.parameters), self.dtype)
        unknown = None if fishers is None else _unknown(fishers)
        return Combined(values, _shares(*piece.weights) if self.method.learnable else None, unknown)

    def _spread(self, ratio: np.ndarray, start: int, size: int) -> Any:
        """A ratio of each kernel, repeated for the kernel's entries."""
        if ratio.ndim == 0:
            return ratio
        entries = math.prod(self.shape[1:])
        return ratio[np.arange(start, start + size) // entries]


def _shares(weights: Sequence[Any], normaliser: Any) -> list[Any]:
    shares = [weight / normaliser for weight in weights[1:]]
    return [1 - sum(shares[1:], start=shares[0]) if shares else np.ones(()), *shares]


def _unknown(fishers: Sequence[np.ndarray]) -> int:
    """Number of entries where every Fisher diagonal is 0."""
    if any(np.minimum.reduce(fisher) > 0 for fisher in fishers):
        return 0
    return int(np.count_nonzero(reduce(np.maximum, fishers) == 0))


def _uniform(key: bytes, start: int, size: int) -> np.ndarray:
    """Entries `start` to `start + size` of an endless row of uniform numbers in [0, 1); one row for one key."""
    generator = np.random.Philox(key=int.from_bytes(key, "little"))
    generator.advance(start // 4)  # it makes four numbers at a time
    return np.random.Generator(generator).random(size)


def combiner(
    plan: FusionPlan, name: str, shape: tuple[int, ...], dtype: Any, row: GroupRatios, names: Sequence[str] | None = None
) -> Combiner:
    """A combiner without surveys; they are added where the tensors can be read.

    Args:
        plan: whose method combines.
        name: of the tensor, for random draws.
        shape: of the tensor.
        dtype: of the arithmetic.
        row: one ratio a source, or one list over the output channels a source.
        names: of the sources; by default all of the plan.
    """
    names = [source.name for source in plan.sources] if names is None else names
    active = tuple(index for index, ratio in enumerate(row) if np.any(np.asarray(ratio) != 0))
    keys = tuple(hashlib.sha256(f"{plan.seed}\0{names[index]}\0{name}".encode()).digest()[:16] for index in active)
    ratios = tuple(np.asarray(row[index], dtype) for index in active)
    return Combiner(plan.method, plan.parameters, shape, dtype, active, ratios, keys)


def surveys_of(plan: FusionPlan, thetas: Sequence[Callable[[], np.ndarray]], base: Callable[[], np.ndarray] | None) -> list[Any] | None:
    """What the method must know of whole tensors, one source at a time.

    Args:
        plan: whose method surveys.
        thetas: functions that read the tensor of each active source.
        base: reads that of the base; None where the method has none: the first source stands for it.
    """
    survey = plan.method.survey
    if survey is None:
        return None
    reference = (thetas[0] if base is None else base)()
    return [survey(read(), reference, plan.parameters) for read in thetas]


def cuts(entries: int, size: int) -> Iterator[slice]:
    """A row of entries cut into parts of a size; the last one may be shorter."""
    for start in range(0, entries, size):
        yield slice(start, min(start + size, entries))


def widened(values: np.ndarray) -> np.ndarray:
    """float32 or wider: fusion never computes in half precision."""
    return values.astype(np.float32) if values.dtype.itemsize < 4 else values


def arithmetic_dtype(dtypes: Sequence[str]) -> Any:
    """float64 where a tensor comes in it, else float32."""
    return np.float64 if "F64" in dtypes else np.float32
