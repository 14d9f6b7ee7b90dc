"""The file of a Fisher diagonal: what stands in it, and what it tells of how it came to be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit3d.checkpoints import Metadata, open_checkpoint, save_tensors
from mergekit3d.merging.partitions import layer_of

if TYPE_CHECKING:
    from torch import Tensor

    from mergekit3d.fisher_estimation import FisherSums

FLOAT32, SQRT_FP16 = "float32", "sqrt-fp16"


@dataclass(frozen=True)
class FisherResult:
    """What an estimation wrote.

    Args:
        out: the Fisher diagonal.
        subjects: number of subjects.
        voxels: number of voxels in the likelihoods.
        trace: sum of the diagonal.
        trace_by_layer: sum over each layer.
        zero: parameters whose information is exactly 0.
        standard_error: of the trace, from its spread over subjects; None for one subject.
        standard_error_by_layer: of each layer's trace; empty for one subject.
    """

    out: Path
    subjects: int
    voxels: int
    trace: float
    trace_by_layer: Mapping[str, float]
    zero: Sequence[str]
    standard_error: float | None = None
    standard_error_by_layer: Mapping[str, float] = field(default_factory=dict)

    @property
    def relative_error(self) -> float | None:
        """The standard error of the trace beside the trace."""
        return None if self.standard_error is None else _relative(self.standard_error, self.trace)

    def as_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        relative = {layer: _relative(error, self.trace_by_layer[layer]) for layer, error in self.standard_error_by_layer.items()}
        return {
            **vars(self),
            "out": str(self.out),
            "trace_by_layer": dict(self.trace_by_layer),
            "zero": list(self.zero),
            "relative_error": self.relative_error,
            "standard_error_by_layer": dict(self.standard_error_by_layer),
            "relative_error_by_layer": relative,
        }

    def lines(self) -> list[str]:
        """Lines for people."""
        error = "" if self.relative_error is None else f" +- {100 * self.relative_error:.2g} %"
        subjects = f"{self.subjects} subject{'s' if self.subjects > 1 else ''}"
        zero = f", {len(self.zero)} biases before a norm have none" if self.zero else ""
        return [f"{self.out}: trace {self.trace:.4g}{error} over {subjects} and {self.voxels} voxels{zero}"]


def _relative(error: float, trace: float) -> float | None:
    return error / trace if trace > 0 else None


def write_fisher(out: Path, sums: FisherSums, zero: Sequence[str], metadata: Metadata, *, dtype: str) -> None:
    """Write the diagonal that sums over subjects give.

    Args:
        out: the file.
        sums: over all subjects, on the CPU.
        zero: parameters whose information is exactly 0, whatever rounding left in the sums.
        metadata: where it comes from; figures are added to its provenance.
        dtype: float32, or sqrt-fp16.

    Raises:
        OutputError: the file system refused.
    """
    from mergekit3d.fisher_estimation import silence_uninformed

    diagonal = silence_uninformed(sums.diagonal(), zero)
    figures = {"subjects": sums.subjects, "voxels": sums.voxels, "zero": list(zero), **_figures(sums, _traces(diagonal))}
    metadata = replace(metadata, provenance={**metadata.provenance, **figures})
    if dtype == SQRT_FP16:
        diagonal, scales = _roots_of(diagonal)
        metadata = replace(metadata, root_scales=scales)
    save_tensors(out, diagonal, metadata)


def read_result(out: Path) -> FisherResult:
    """What a file holds, and tells of how it came to be."""
    opened = open_checkpoint(out)
    assert opened.metadata is not None
    by_layer: dict[str, float] = {}
    for name in opened.owners:
        by_layer[layer_of(name)] = by_layer.get(layer_of(name), 0.0) + float(opened.read(name).sum(dtype="float64"))
    told = opened.metadata.provenance
    errors = {layer: error for layer, (_, error) in told["trace_by_layer"].items() if error is not None}
    trace, error = math.fsum(by_layer.values()), told["trace"][1]
    return FisherResult(out, told["subjects"], told["voxels"], trace, by_layer, told["zero"], error, errors)


def _roots_of(diagonal: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The diagonal as scaled square roots in float16, and their scales."""
    import torch

    from mergekit3d.checkpoints.roots import to_roots

    both = {name: to_roots(values.numpy()) for name, values in diagonal.items()}
    return {name: torch.from_numpy(roots) for name, (roots, _) in both.items()}, {name: scale for name, (_, scale) in both.items()}


def _traces(diagonal: Mapping[str, Any]) -> dict[str, float]:
    """The trace of every layer."""
    by_layer: dict[str, float] = {}
    for name, values in diagonal.items():
        by_layer[layer_of(name)] = by_layer.get(layer_of(name), 0.0) + float(values.double().sum())
    return by_layer


def _figures(sums: FisherSums, by_layer: Mapping[str, float]) -> dict[str, Any]:
    """Traces and their standard errors, rounded, for people who have the file alone."""
    from mergekit3d.fisher_estimation import WHOLE

    errors = sums.standard_errors()

    def rounded(layer: str, trace: float) -> list[float | None]:
        return [float(f"{trace:.4g}"), float(f"{errors[layer]:.3g}") if layer in errors else None]

    return {
        "trace": rounded(WHOLE, math.fsum(by_layer.values())),
        "trace_by_layer": {layer: rounded(layer, trace) for layer, trace in by_layer.items()},
    }
