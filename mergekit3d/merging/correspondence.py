"""Whether weights correspond, told from their cosine: those of networks trained apart do not, and fusing breaks them.

Without pydantic and torch, so that ``inspect`` stays quick.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mergekit3d.merging.partitions import kinds

LOWEST_COSINE = 0.1
SAMPLE_ENTRIES = 1 << 12
"""Of a tensor: enough to tell a cosine near 0 (its spread is 1 / sqrt(entries)) without reading the file."""


def comparable_weights(names: Iterable[str], shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """Those of the names that are weights of convolutions and linear layers.

    Norms correspond whatever the training, since they all begin at 1.
    """
    kind_of = kinds(shapes)
    return [name for name in names if kind_of[name] in ("conv", "linear") and len(shapes[name]) > 1]


def warnings_on(cosines: Mapping[str, float | None], first: str) -> list[str]:
    """A line on every network whose weights do not correspond to the first one's; None is a cosine that is not defined."""
    return [
        f"{name} was not trained from {first}, nor {first} from it: the cosine of their weights is {cosine:.3f}; "
        "fusing networks that were trained apart breaks them"
        for name, cosine in cosines.items()
        if cosine is not None and abs(cosine) < LOWEST_COSINE
    ]
