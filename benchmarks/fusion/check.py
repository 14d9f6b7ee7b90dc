"""The largest error of a fused file against the formula in float64, relative to the largest weight of each tensor.

    python benchmarks/fusion/check.py linear|imm OUT SOURCE... --ratios 0.7 0.3 [--nan-without-information]

Prints one number. Where no source has information, imm has to give the average; --nan-without-information lets NaN pass there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from inputs import fisher_path
from safetensors import safe_open


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=("linear", "imm"))
    parser.add_argument("out", type=Path)
    parser.add_argument("sources", type=Path, nargs="+")
    parser.add_argument("--ratios", type=float, nargs="+", required=True)
    parser.add_argument("--nan-without-information", action="store_true")
    chosen = parser.parse_args()
    sources = [safe_open(path, "np") for path in chosen.sources]
    fishers = [safe_open(fisher_path(path), "np") for path in chosen.sources] if chosen.method == "imm" else []
    fused = safe_open(chosen.out, "np")
    names = set(sources[0].keys())
    if names != set(fused.keys()):
        sys.exit(f"{len(names ^ set(fused.keys()))} tensors are missing or too many")
    largest = 0.0
    for name in names:
        expected, known = reference(name, sources, fishers, chosen.ratios)
        found = fused.get_tensor(name)
        if found.shape != expected.shape:
            sys.exit(f"{name}: shape {found.shape}, wanted {expected.shape}")
        if chosen.nan_without_information:
            found = np.where(np.isnan(found) & ~known, expected, found)
        difference = np.abs(found - expected).max() / np.abs(expected).max()
        if not np.isfinite(difference):
            sys.exit(f"{name}: values that are not finite")
        largest = max(largest, float(difference))
    print(largest)


def reference(name: str, sources: list[Any], fishers: list[Any], ratios: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """The fused tensor in float64, and where some source has information."""
    thetas = [source.get_tensor(name).astype(np.float64) for source in sources]
    average = sum(ratio * theta for ratio, theta in zip(ratios, thetas, strict=True)) / sum(ratios)
    if not fishers:
        return average, np.ones(average.shape, bool)
    weights = [ratio * fisher.get_tensor(name).astype(np.float64) for ratio, fisher in zip(ratios, fishers, strict=True)]
    total = sum(weights)
    moment = sum(weight * theta for weight, theta in zip(weights, thetas, strict=True))
    return np.divide(moment, total, out=average, where=total > 0), total > 0


if __name__ == "__main__":
    main()
