"""Sources to fuse: safetensors files with the names and shapes of nnU-Net's PlainConvUNet, of any width.

    python benchmarks/fusion/inputs.py FOLDER --millions 31 --sources 2 [--fisher]

A script of its own, so that the benchmark's process stays small (`processes.py` says why).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

FEATURES = (32, 64, 128, 256, 320, 320)
"""Channels by stage of nnU-Net's usual 3D network, which has 31.2 million parameters."""

MODALITIES, CLASSES = 4, 4
NOISE = 0.05  # of the weights' own deviation: as far apart as networks trained from one another
ZEROS = 0.03  # of the Fisher diagonals


def shapes_of(millions: float) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor by name, of the U-Net whose width comes closest to `millions` of parameters."""
    width = math.sqrt(millions / (parameters(_u_net(FEATURES)) / 1e6))
    return _u_net(tuple(max(8, round(channels * width / 8) * 8) for channels in FEATURES))


def parameters(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(map(math.prod, shapes.values()))


def _u_net(features: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    inputs = MODALITIES
    for stage, outputs in enumerate(features):
        shapes |= _two_convolutions(f"encoder.stages.{stage}.0", inputs, outputs)
        inputs = outputs
    skips = features[-2::-1]
    for stage, outputs in enumerate(skips):
        shapes |= _two_convolutions(f"decoder.stages.{stage}", 2 * outputs, outputs)
    for stage, (below, outputs) in enumerate(zip(features[:0:-1], skips, strict=True)):
        shapes |= {f"decoder.transpconvs.{stage}.weight": (below, outputs, 2, 2, 2), f"decoder.transpconvs.{stage}.bias": (outputs,)}
    for stage, channels in enumerate(skips):
        shapes |= {f"decoder.seg_layers.{stage}.weight": (CLASSES, channels, 1, 1, 1), f"decoder.seg_layers.{stage}.bias": (CLASSES,)}
    return shapes


def _two_convolutions(stage: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for index, channels in enumerate((inputs, outputs)):
        block = f"{stage}.convs.{index}"
        shapes[f"{block}.conv.weight"] = (outputs, channels, 3, 3, 3)
        shapes |= dict.fromkeys((f"{block}.conv.bias", f"{block}.norm.weight", f"{block}.norm.bias"), (outputs,))
    return shapes


def largest_tensor_bytes(millions: float) -> int:
    return 4 * max(map(math.prod, shapes_of(millions).values()))


def source_path(folder: Path, millions: float, source: int) -> Path:
    return folder / f"{millions:g}M" / f"m{source + 1}.safetensors"


def fisher_path(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.stem}.fisher.safetensors")


def write_inputs(folder: Path, millions: float, sources: int, *, with_fisher: bool) -> None:
    """Write what is not there yet; the same numbers give the same bytes, however many sources there are."""
    for source in range(sources):
        path = source_path(folder, millions, source)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _write(path, _weights(millions, source))
        if with_fisher and not fisher_path(path).exists():
            _write(fisher_path(path), _fisher(millions, source))


def _weights(millions: float, source: int) -> Iterator[tuple[str, np.ndarray]]:
    """What all sources share, as initialised by He, and this source's own noise."""
    import numpy as np

    for index, (name, shape) in enumerate(shapes_of(millions).items()):
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 100
        scale = np.float32(math.sqrt(2 / fan_in))
        weights = np.random.default_rng([index, 0]).standard_normal(shape, np.float32)
        weights += np.float32(NOISE) * np.random.default_rng([index, 1, source]).standard_normal(shape, np.float32)
        weights *= scale
        if name.endswith("norm.weight"):
            weights += 1
        yield name, weights


def _fisher(millions: float, source: int) -> Iterator[tuple[str, np.ndarray]]:
    """Squares of normal values (chi-squared, one degree of freedom) at a scale of each tensor's own, a few of them 0."""
    import numpy as np

    for index, (name, shape) in enumerate(shapes_of(millions).items()):
        random = np.random.default_rng([index, 2, source])
        values = np.square(random.standard_normal(shape, np.float32))
        values *= np.float32(10 ** random.uniform(-6, -2))
        values[random.random(shape, np.float32) < ZEROS] = 0
        yield name, values


def _write(path: Path, tensors: Iterator[tuple[str, np.ndarray]]) -> None:
    from safetensors.numpy import save_file

    incomplete = path.with_name(f"{path.name}.incomplete")
    save_file(dict(tensors), incomplete)
    incomplete.replace(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--millions", type=float, required=True)
    parser.add_argument("--sources", type=int, required=True)
    parser.add_argument("--fisher", action="store_true")
    chosen = parser.parse_args()
    write_inputs(chosen.folder, chosen.millions, chosen.sources, with_fisher=chosen.fisher)
