"""A trained network on a whole volume: at once or by a sliding window, with mirrored copies where asked for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mergekit3d.errors import UsageError
from mergekit3d.training.deep_supervision import outputs_of
from mergekit3d.training.devices import Runtime, memory_advice
from mergekit3d.training.taking import taking

Size = tuple[int, int, int]

SIGMA_SCALE = 0.125
"""Width of the Gaussian weights of a window, as a part of the window."""

LEAST_WEIGHT = 1e-3
"""Of a voxel in the corner of a window, which no other window may cover."""


@torch.no_grad()
def predict_volume(
    network: nn.Module,
    image: Tensor,
    *,
    runtime: Runtime,
    patch_size: Size | None,
    multiple_of: int,
    exclusive: bool,
    overlap: float = 0.5,
    mirror_axes: Sequence[int] = (),
    batch_size: int = 1,
) -> Tensor:
    """Probabilities of every voxel.

    Args:
        network: in evaluation mode, on the runtime's device.
        image: (M, X, Y, Z) float32, on any device.
        runtime: device and precision.
        patch_size: voxels of the sliding window; None: the whole volume at once.
        multiple_of: input sizes that the network takes.
        exclusive: softmax in place of sigmoids.
        overlap: of neighbouring windows, 0 to 1.
        mirror_axes: of 0, 1, 2; the probabilities are averaged over the copies mirrored along each subset of them.
        batch_size: windows at once.

    Returns:
        (C, X, Y, Z) float32, on the runtime's device.

    Raises:
        MachineError: out of memory, with what to change.

    Source: nnU-Net's inference (Isensee et al. 2021): Gaussian weights with sigma = window / 8, logits averaged over the windows,
    probabilities over the mirrored copies.
    """
    batch = image[None].to(runtime.device)
    axes_of_batch = [axis + 2 for axis in mirror_axes]
    subsets = [axes for count in range(len(axes_of_batch) + 1) for axes in itertools.combinations(axes_of_batch, count)]
    total: Tensor | None = None
    for axes in subsets:
        flipped = batch.flip(axes) if axes else batch
        logits = volume_logits(
            network, flipped, runtime=runtime, patch_size=patch_size, multiple_of=multiple_of, overlap=overlap, batch_size=batch_size
        )
        # In place, where it can be: logits and probabilities of a whole volume are large.
        probabilities = logits.softmax(1) if exclusive else logits.sigmoid_()
        del logits
        probabilities = probabilities.flip(axes) if axes else probabilities
        total = probabilities if total is None else total.add_(probabilities)
    assert total is not None
    return total[0] if len(subsets) == 1 else total[0].div_(len(subsets))


@torch.no_grad()
def volume_logits(
    network: nn.Module,
    images: Tensor,
    *,
    runtime: Runtime,
    patch_size: Size | None,
    multiple_of: int,
    overlap: float = 0.5,
    batch_size: int = 1,
) -> Tensor:
    """Logits of every voxel.

    Args:
        network: in evaluation mode.
        images: (1, M, X, Y, Z) float32, on the runtime's device.
        runtime: device and precision.
        patch_size: window; None: the whole volume at once, padded with zeros at the end of the axes.
        multiple_of: input sizes that the network takes.
        overlap: of neighbouring windows.
        batch_size: windows at once.

    Returns:
        (1, C, X, Y, Z) float32.

    Raises:
        UsageError: a window that the network does not take.
        MachineError: out of memory, with what to change.
    """
    if patch_size is not None and any(edge % multiple_of for edge in patch_size):
        raise UsageError("the network does not take this patch_size", wanted=f"multiples of {multiple_of}", found=list(patch_size))
    shape = images.shape[2:]
    whole = [-(-size // multiple_of) * multiple_of for size in shape]
    window = whole if patch_size is None else [min(sizes) for sizes in zip(whole, patch_size, strict=True)]
    room = [max(size, edge) for size, edge in zip(shape, window, strict=True)]
    missing_x, missing_y, missing_z = (want - size for want, size in zip(room, shape, strict=True))
    # Nothing to pad would be a copy.
    padded = images if room == list(shape) else functional.pad(images, (0, missing_z, 0, missing_y, 0, missing_x))

    def run(part: Tensor) -> Tensor:
        with runtime.autocast(), taking(part):
            return outputs_of(network(part))[0]

    with memory_advice(runtime, patch_size=patch_size, batch_size=batch_size):
        logits = run(padded).float() if room == window else _windows(padded, window, run, overlap, batch_size)
    if logits.untyped_storage().data_ptr() == images.untyped_storage().data_ptr():
        # A network that hands its input through: nobody may write into that.
        logits = logits.clone()
    return logits[..., : shape[0], : shape[1], : shape[2]]


def _windows(images: Tensor, window: Sequence[int], run: Callable[[Tensor], Tensor], overlap: float, batch_size: int) -> Tensor:
    """The weighted mean of the windows' logits, float32.

    MONAI's ``sliding_window_inference`` gives the same and is what this is tested against. Its import would be most of the time that a
    small prediction takes, and it weighs logits in the precision that they come in.
    """
    shape = images.shape[2:]
    starts = [window_starts(size, edge, overlap) for size, edge in zip(shape, window, strict=True)]
    corners = itertools.product(*starts)
    places: list[tuple[Any, ...]] = [(..., *map(_block, corner, window)) for corner in corners]
    weights = window_weights(window).to(images.device)
    total, count = None, images.new_zeros((1, 1, *shape))
    for first in range(0, len(places), batch_size):
        here = places[first : first + batch_size]
        logits = run(images[here[0]] if len(here) == 1 else torch.cat([images[place] for place in here]))
        if total is None:
            total = images.new_zeros((1, logits.shape[1], *shape))
        for place, of_window in zip(here, logits, strict=True):
            total[place].addcmul_(of_window.float(), weights)
            count[place].add_(weights)
    assert total is not None
    return total.div_(count)


def _block(first: int, edge: int) -> slice:
    return slice(first, first + edge)


def window_starts(size: int, edge: int, overlap: float) -> list[int]:
    """First voxels of the windows along an axis: equal steps, the last one as far as the axis goes."""
    step = max(1, int(edge * (1 - overlap)))
    return [min(number * step, size - edge) for number in range(-(-(size - edge) // step) + 1)]


def window_weights(window: Sequence[int]) -> Tensor:
    """Gaussian weights of a window's voxels, float32, 1 in the middle and nowhere below `LEAST_WEIGHT`."""
    weights = torch.ones(())
    for edge in window:
        places = torch.arange(edge) - (edge - 1) / 2
        weights = weights[..., None] * torch.exp(-(places**2) / (2 * (SIGMA_SCALE * edge) ** 2))
    return weights.clamp_(min=LEAST_WEIGHT)
