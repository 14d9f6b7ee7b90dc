"""T-IMM's adaptation stage: shared weights that follow learned mixing ratios, at the cost of a plain training step."""

from mergekit3d.adaptation.fused_weights import FusedWeights, SharedTensor, delta_of_ratios
from mergekit3d.adaptation.penalties import PENALTIES, RatioPenalty
from mergekit3d.adaptation.starts import inverse_trace_ratios

__all__ = ["PENALTIES", "FusedWeights", "RatioPenalty", "SharedTensor", "delta_of_ratios", "inverse_trace_ratios"]
