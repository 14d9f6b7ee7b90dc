"""Eq. 2 and the gradient of its ratios over parts of the weights that stay in the processor's cache.

Between two steps nothing but the ratios a^t changes. With d^t = phi^t (theta^t - theta^1), computed once, a step is

    z = sum_t a^t phi^t         theta = theta^1 + ( sum_t a^t d^t ) / z
    u = dL/dtheta / z           dL/da^t = < u, d^t > - < u (theta - theta^1), phi^t >

which is `fuse_relative` and `ratio_gradient` of merging/fusion.py up to rounding, in half their operations. For two sources
phi^t (theta^t - theta) is a^s phi^s phi^t (theta^t - theta^s) / z, so that one product, e = phi^1 d^2, has all of it:

    dL/da^2 = a^1 < u, e / z >         dL/da^1 = -a^2 < u, e / z >

Arrays as large as a network do not fit into a cache, and each of these operations alone takes less time than reading them: so they
run over some ten thousand entries at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CACHED_ENTRIES = 65536
"""Entries of a chunk on the CPU: 256 KiB an array in float32, some eight arrays at once in a cache of 2 MiB."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """A part of a block.

    Args:
        place: rows and entries of the block.
        weights: theta, (rows, entries), a view of the network's weights.
        first: theta^1, as `weights`.
        moves: d^t for every source but the first, (sources - 1, rows, entries).
        phis: relative Fisher diagonals, (sources, rows, entries); None for F = 1.
        normaliser: z, as `weights`, as the last fusion left it: to read it takes less time than to compute it again; None for F = 1.
        product: e, as `weights`, for two sources; else None.
        work: two arrays as `weights`, which other chunks use as well.
    """

    place: tuple[slice, slice]
    weights: Tensor
    first: Tensor
    moves: Tensor
    phis: Tensor | None
    normaliser: Tensor | None
    product: Tensor | None
    work: tuple[Tensor, Tensor]

    def fuse(self, ratios: Tensor) -> None:
        """Fill the weights.

        Args:
            ratios: a^t of every row, (sources, rows).
        """
        moved = _mixed(ratios[1:], self.moves, out=self.work[0])
        if self.phis is None or self.normaliser is None:
            torch.addcdiv(self.first, moved, ratios.sum(0)[:, None], out=self.weights)
            return
        torch.addcdiv(self.first, moved, _mixed(ratios, self.phis, out=self.normaliser), out=self.weights)

    def ratio_gradient(self, gradient: Tensor, ratios: Tensor) -> Tensor:
        """dL/da of every row, the ratios taken as free, at the weights that the last fusion left.

        Args:
            gradient: dL/dtheta, as the weights.
            ratios: those of the last fusion, (sources, rows).

        Returns:
            (sources, rows).
        """
        scaled, shift = self.work
        torch.div(gradient, ratios.sum(0)[:, None] if self.normaliser is None else self.normaliser, out=scaled)
        if self.product is not None and self.normaliser is not None:
            # Both parts are finite at the smallest ratio, where 1 / z^2 is not.
            along = _dots(torch.div(self.product, self.normaliser, out=shift)[None], scaled)[0]
            return torch.stack([-ratios[1] * along, ratios[0] * along])
        torch.sub(self.weights, self.first, out=shift).mul_(scaled)
        found = -(shift.sum(1)[None].expand_as(ratios) if self.phis is None else _dots(self.phis, shift))
        found[1:] += _dots(self.moves, scaled)
        return found


@dataclass(frozen=True, eq=False)
class Block:
    """Weights of some tensors, with the ratios that they use.

    Args:
        columns: of every row, which ratio it uses: (rows,) int64.
        chunks: the parts, in order.
    """

    columns: Tensor
    chunks: tuple[Chunk, ...]

    def fuse(self, ratios: Tensor) -> None:
        """Fill the weights from all ratios, (sources, ratios)."""
        own = ratios[:, self.columns]
        for chunk in self.chunks:
            chunk.fuse(own[:, chunk.place[0]])

    def add_ratio_gradient(self, gradient: Tensor, ratios: Tensor, total: Tensor) -> None:
        """Add this block's part of dL/da.

        Args:
            gradient: dL/dtheta, (rows, entries).
            ratios: all of them at the last fusion, (sources, ratios).
            total: dL/da, as `ratios`; changed in place.
        """
        own = ratios[:, self.columns]
        found = torch.zeros_like(own)
        for chunk in self.chunks:
            rows, _ = chunk.place
            found[:, rows] += chunk.ratio_gradient(gradient[chunk.place], own[:, rows])
        total.index_add_(1, self.columns, found)


def make_block(weights: Tensor, thetas: Sequence[Tensor], phis: Sequence[Tensor] | None, columns: Tensor) -> Block:
    """A block, with all that does not change computed.

    Args:
        weights: (rows, entries), a view of the network's weights.
        thetas: those of the sources, as `weights`.
        phis: relative Fisher diagonals, as `weights`; None for F = 1.
        columns: of every row, which ratio it uses.
    """
    rows, entries = weights.shape
    at_once = CACHED_ENTRIES if weights.device.type == "cpu" else max(1, weights.numel())
    if rows == 1:
        places = [(slice(None), slice(start, start + at_once)) for start in range(0, entries, at_once)]
    else:
        step = max(1, at_once // entries)
        places = [(slice(start, start + step), slice(None)) for start in range(0, rows, step)]
    chunks: list[Chunk] = []
    for place in places:
        first = thetas[0][place].clone()
        moves = torch.stack([theta[place] - first for theta in thetas[1:]])
        largest = chunks[0].work if chunks else [torch.empty_like(first) for _ in range(2)]
        work = (largest[0][: first.shape[0], : first.shape[1]], largest[1][: first.shape[0], : first.shape[1]])
        relative = normaliser = product = None
        if phis is not None:
            relative = torch.stack([phi[place] for phi in phis])
            moves *= relative[1:]
            normaliser = torch.empty_like(first)
            product = relative[0] * moves[0] if len(thetas) == 2 else None
        chunks.append(Chunk(place, weights[place], first, moves, relative, normaliser, product, work))
    return Block(columns, tuple(chunks))


def _mixed(ratios: Tensor, arrays: Tensor, out: Tensor) -> Tensor:
    """sum_t a^t x^t; ratios (sources, rows), arrays (sources, rows, entries)."""
    if arrays.shape[1] == 1:
        torch.mv(arrays[:, 0].t(), ratios[:, 0], out=out[0])
        return out
    torch.mul(arrays[0], ratios[0][:, None], out=out)
    for ratio, array in zip(ratios[1:], arrays[1:], strict=True):
        out.addcmul_(array, ratio[:, None])
    return out


def _dots(arrays: Tensor, other: Tensor) -> Tensor:
    """< x^t, y > by row: (sources, rows) from (sources, rows, entries) and (rows, entries)."""
    if other.shape[0] == 1:
        return torch.mv(arrays[:, 0], other[0])[:, None]
    return (arrays * other).sum(-1)
