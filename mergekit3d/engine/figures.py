"""Figures on a fused tensor that help a person judge a merge, gathered piece by piece."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mergekit3d.engine.combining import Combined

ROW = 1 << 13
"""Entries that are summed in their own dtype before float64 takes over; short enough that BLAS starts no threads of its own."""


def dot(left: np.ndarray, right: np.ndarray) -> float:
    """< left, right > of two flat float arrays, summed over rows in float64; infinite where a row's own sum is too large."""
    whole = left.size // ROW * ROW
    if whole == left.size:
        return float(np.add.reduce(np.vecdot(left.reshape(-1, ROW), right.reshape(-1, ROW)), dtype=np.float64))
    return dot(left[:whole], right[:whole]) + float(np.vecdot(left[whole:], right[whole:]))


def _ones(like: np.ndarray) -> np.ndarray:
    """Ones of an array's shape and dtype, which take no memory."""
    return np.broadcast_to(np.ones((), like.dtype), like.shape)


@dataclass
class Figures:
    """Sums over a tensor, or over several.

    Args:
        sources: their number.
        entries: fused entries.
        squares: |theta^t|^2 of each source.
        dots: < theta^1, theta^t > of each source.
        moved: |theta - theta^t|^2 of each source.
        shares: summed share of each source after the Fisher; None where the method is no average.
        unknown: entries where no source has information; None without a Fisher diagonal.
    """

    sources: int
    entries: int = 0
    squares: list[float] = field(default_factory=list)
    dots: list[float] = field(default_factory=list)
    moved: list[float] = field(default_factory=list)
    shares: list[float] | None = None
    unknown: int | None = None

    def __post_init__(self) -> None:
        for name in ("squares", "dots", "moved"):
            if not getattr(self, name):
                setattr(self, name, [0.0] * self.sources)

    def add_piece(self, thetas: Sequence[np.ndarray], squares: Sequence[float], combined: Combined, active: Sequence[int]) -> None:
        """Add a piece: weights of all sources, their squares, and what became of them; `active` are the sources that took part."""
        size = combined.values.size
        self.entries += size
        for index, (theta, square) in enumerate(zip(thetas, squares, strict=True)):
            difference = combined.values - theta
            self.squares[index] += square
            self.dots[index] += square if index == 0 else dot(thetas[0], theta)
            self.moved[index] += dot(difference, difference)
        if combined.shares is not None:
            self.shares = self.shares or [0.0] * self.sources
            for index, share in zip(active, combined.shares, strict=True):
                self.shares[index] += dot(share, _ones(share)) if np.ndim(share) else float(share) * size
        if combined.unknown is not None:
            self.unknown = (self.unknown or 0) + combined.unknown

    def add(self, other: Figures) -> None:
        """Add the sums of another tensor."""
        self.entries += other.entries
        for name in ("squares", "dots", "moved"):
            setattr(self, name, [mine + theirs for mine, theirs in zip(getattr(self, name), getattr(other, name), strict=True)])
        if other.shares is not None:
            self.shares = [mine + theirs for mine, theirs in zip(self.shares or [0.0] * self.sources, other.shares, strict=True)]
        if other.unknown is not None:
            self.unknown = (self.unknown or 0) + other.unknown

    def as_json(self, names: Sequence[str]) -> dict[str, Any]:
        """The figures as the report tells them.

        Args:
            names: of the sources.

        Returns:
            ``distance``: |theta - theta^t| / |theta^t| by source; ``cosine`` of each source to the first; ``share``: mean of
            a^t F^t / sum_s a^s F^s; ``no_information``: share of the entries where every F^t is 0.
        """
        content: dict[str, Any] = {
            "distance": self._by_source(names, [_relative(*pair) for pair in zip(self.moved, self.squares, strict=True)])
        }
        content["cosine"] = self._by_source(names, self.cosines())
        if self.shares is not None and self.entries:
            content["share"] = self._by_source(names, [share / self.entries for share in self.shares])
        if self.unknown is not None and self.entries:
            content["no_information"] = _rounded(self.unknown / self.entries)
        return content

    def cosines(self) -> list[float | None]:
        """Cosine of each source's weights to the first one's; None where one of them is 0 everywhere."""
        scales = [math.sqrt(self.squares[0]) * math.sqrt(square) for square in self.squares]
        return [inner / scale if scale > 0 else None for inner, scale in zip(self.dots, scales, strict=True)]

    @staticmethod
    def _by_source(names: Sequence[str], values: Sequence[float | None]) -> dict[str, float | None]:
        return {name: _rounded(value) for name, value in zip(names, values, strict=True)}


def by_layer(figures: Mapping[str, Figures], layer_of: Mapping[str, str]) -> dict[str, Figures]:
    """The figures of tensors added up by layer, in order."""
    layers: dict[str, Figures] = {}
    for name, of_tensor in figures.items():
        layers.setdefault(layer_of[name], Figures(of_tensor.sources)).add(of_tensor)
    return layers


def _relative(moved: float, square: float) -> float | None:
    return math.sqrt(moved / square) if square > 0 else None


def _rounded(value: float | None) -> float | None:
    """Six digits, and nothing that JSON cannot say."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
