"""Whether sources were trained from one another: weights of networks trained apart do not correspond, and fusing breaks them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mergekit3d.checkpoints import Checkpoint
from mergekit3d.engine.figures import Figures, dot
from mergekit3d.merging.correspondence import LOWEST_COSINE, SAMPLE_ENTRIES, comparable_weights, warnings_on
from mergekit3d.plan.fusion import FusionPlan
from mergekit3d.plan.outcomes import FUSED

__all__ = ["LOWEST_COSINE", "SAMPLE_ENTRIES", "exact_cosines", "sampled_cosines", "warnings_on", "weight_names"]


def weight_names(plan: FusionPlan) -> list[str]:
    """The fused weights whose cosine tells."""
    return comparable_weights([tensor.entry.name for tensor in plan.owners if tensor.outcome == FUSED], plan.shapes)


def sampled_cosines(plan: FusionPlan) -> dict[str, float]:
    """Cosine of each source's weights to the first one's, from the first entries of every weight; cheap, before any work.

    Returns:
        A cosine for every source but the first; none where nothing can be told.
    """
    figures = Figures(len(plan.sources))
    for name in weight_names(plan):
        thetas = [_first_entries(source.checkpoint, name) for source in plan.sources]
        figures.squares = [sum_of + dot(theta, theta) for sum_of, theta in zip(figures.squares, thetas, strict=True)]
        figures.dots = [sum_of + dot(thetas[0], theta) for sum_of, theta in zip(figures.dots, thetas, strict=True)]
    return _told(plan, figures)


def exact_cosines(plan: FusionPlan, figures: Mapping[str, Figures]) -> dict[str, float]:
    """The same over all entries, from the figures of a fusion."""
    total = Figures(len(plan.sources))
    for name in weight_names(plan):
        if name in figures:
            total.add(figures[name])
    return _told(plan, total)


def _told(plan: FusionPlan, figures: Figures) -> dict[str, float]:
    cosines = zip(plan.sources[1:], figures.cosines()[1:], strict=True)
    return {source.name: cosine for source, cosine in cosines if cosine is not None and np.isfinite(cosine)}


def _first_entries(checkpoint: Checkpoint, name: str) -> np.ndarray:
    return checkpoint.read_first(name, SAMPLE_ENTRIES).astype(np.float64)
