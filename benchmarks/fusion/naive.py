"""The fusion that anyone would write in torch: all files loaded, a loop over the names, one file saved.

    python benchmarks/fusion/naive.py linear|imm OUT SOURCE... --ratios 0.7 0.3

For imm, eq. 2 as it stands: NaN where no source has information. The Fisher diagonals stand beside the sources.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from safetensors.torch import load_file, save_file
from torch import Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=("linear", "imm"))
    parser.add_argument("out")
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--ratios", type=float, nargs="+", required=True)
    chosen = parser.parse_args()
    sources = [load_file(path) for path in chosen.sources]
    fused = {}
    if chosen.method == "linear":
        for name in sources[0]:
            fused[name] = weighted_sum(chosen.ratios, [source[name] for source in sources])
    else:
        fishers = [load_file(path.replace(".safetensors", ".fisher.safetensors")) for path in chosen.sources]
        for name in sources[0]:
            weights = [ratio * fisher[name] for ratio, fisher in zip(chosen.ratios, fishers, strict=True)]
            fused[name] = weighted_sum(weights, [source[name] for source in sources])
            fused[name] /= weighted_sum([1] * len(weights), weights)
    save_file(fused, chosen.out)


def weighted_sum(weights: Sequence[Tensor | float], tensors: Sequence[Tensor]) -> Tensor:
    total = weights[0] * tensors[0]
    for weight, tensor in zip(weights[1:], tensors[1:], strict=True):
        total += weight * tensor
    return total


if __name__ == "__main__":
    main()
