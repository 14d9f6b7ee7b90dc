"""Exact squared gradients of every sample of a batch, at about the cost of one forward and one backward pass of the batch."""

from mergekit3d.per_sample.recorder import PerSampleGradients, per_sample_gradients
from mergekit3d.per_sample.squares import NotFiniteError

__all__ = ["NotFiniteError", "PerSampleGradients", "per_sample_gradients"]
