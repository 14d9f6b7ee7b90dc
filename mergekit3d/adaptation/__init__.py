"""T-IMM's adaptation stage: shared weights that follow learned mixing ratios, at the cost of a plain training step."""

from mergekit3d.adaptation.fused_weights import FusedWeights, SharedTensor
from mergekit3d.adaptation.starts import delta_of_ratios, inverse_trace_ratios

__all__ = ["FusedWeights", "SharedTensor", "delta_of_ratios", "inverse_trace_ratios"]
