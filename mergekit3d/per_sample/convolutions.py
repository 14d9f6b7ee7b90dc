"""Per-sample gradients of convolutions, transposed or not, along any number of axes.

The gradient of the weights of every sample of a batch is the gradient of a grouped convolution whose groups are the samples. That
is the fast way for 16 channels and more, contiguous in memory, with AVX-512, unless there are many weights for few voxels. In the
others, oneDNN's grouped kernels are slower than one sample after another, each as two slabs along the depth, padded beforehand: see
`mergekit3d.architectures.slabs`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mergekit3d.architectures.slabs import SlabConv3d, lacks_avx512
from mergekit3d.per_sample.products import rows_product

SMALL_VOLUME = 8
"""Voxels of output up to which a matrix product over an unfolded copy, sample after sample, is the fastest with AVX-512."""
HEAVY_VOLUME, HEAVY_WEIGHTS = 64, 1 << 18
"""Voxels of output up to which, and weights from which, two slabs of one sample after another are faster than grouped kernels."""
BLOCK = 16
"""Channels that oneDNN's fast kernels hold together."""
LARGE_PLANES = 20480
"""Channels x rows x columns above which torch calls oneDNN at batch 1."""


@dataclass(frozen=True)
class Geometry:
    """How a kernel moves; one number an axis.

    Args:
        stride: voxels from place to place.
        padding: zeros at both ends.
        dilation: voxels between the kernel's.
        transposed: the transposed convolution.
        output_padding: rows that a transposed convolution adds at the end.
        groups: groups of channels.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int

    def of_weight(self, x: Tensor, weight: Tensor, gradient: Tensor, *, groups: int | None = None) -> Tensor:
        """The gradient of the weights, summed over the batch."""
        how = (list(self.stride), list(self.padding), list(self.dilation), self.transposed, list(self.output_padding))
        found: Any = torch.ops.aten.convolution_backward.default(
            gradient, x, weight, None, *how, self.groups if groups is None else groups, [False, True, False]
        )
        result: Tensor = found[1]
        return result


def convolution(module: nn.Module, x: Tensor, gradient: Tensor, samples: int) -> dict[str, Iterable[Tensor]]:
    """Gradients of the weights and the bias of a convolution, sample by sample.

    Args:
        module: `torch.nn.Conv1d`, `Conv2d`, `Conv3d` or their transposed ones.
        x: its input, (samples * rows, C_in, ...).
        gradient: of its output, (samples * rows, C_out, ...).
        samples: in the batch; the rows of one stand together.

    Returns:
        weight: one a sample, computed as they are asked for; bias: (samples, C_out).
    """
    assert isinstance(module, nn.modules.conv._ConvNd)  # noqa: SLF001  the class that all share
    axes = len(module.kernel_size)
    if x.ndim == axes + 1:  # no batch: all of it is one sample's
        x, gradient = x[None], gradient[None]
    # Shape, dtype and memory format are all that is asked of the weights: in the format of the input, nothing is copied into another.
    weight = torch.empty_like(module.weight, dtype=gradient.dtype, memory_format=_format_of(x))
    x, geometry = _padded(module, x.to(gradient.dtype), gradient)
    found: dict[str, Iterable[Tensor]] = {"weight": _of_weights(x, weight, gradient, geometry, samples)}
    if module.bias is not None:
        of_rows = gradient.sum(list(range(2, gradient.ndim)))
        found["bias"] = of_rows if len(of_rows) == samples else of_rows.reshape(samples, -1, gradient.shape[1]).sum(1)
    return found


def _format_of(x: Tensor) -> torch.memory_format:
    if x.ndim == 5 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last_3d):
        return torch.channels_last_3d
    return torch.contiguous_format


def _padded(module: nn.modules.conv._ConvNd, x: Tensor, gradient: Tensor) -> tuple[Tensor, Geometry]:
    """The input with all padding that is not zeros at both ends, and the geometry of what remains."""
    axes = len(module.kernel_size)
    output_padding = (0,) * axes
    stride, dilation = tuple(module.stride), tuple(module.dilation)
    if module.transposed:
        padding = tuple(int(length) for length in module.padding)
        smallest = [
            (x.shape[2 + axis] - 1) * stride[axis] - 2 * padding[axis] + dilation[axis] * (module.kernel_size[axis] - 1) + 1
            for axis in range(axes)
        ]
        output_padding = tuple(gradient.shape[2 + axis] - smallest[axis] for axis in range(axes))
        return x, Geometry(stride, padding, dilation, True, output_padding, module.groups)
    if module.padding == "valid":
        before = after = (0,) * axes
    elif module.padding == "same":
        total = [dilation[axis] * (module.kernel_size[axis] - 1) for axis in range(axes)]
        before = tuple(length // 2 for length in total)
        after = tuple(length - length // 2 for length in total)
    else:
        before = after = tuple(int(length) for length in module.padding)
    if module.padding_mode != "zeros" or before != after:
        pads = [length for axis in reversed(range(axes)) for length in (before[axis], after[axis])]
        x = functional.pad(x, pads, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)
        before = (0,) * axes
    return x, Geometry(stride, before, dilation, False, output_padding, module.groups)


def _of_weights(x: Tensor, weight: Tensor, gradient: Tensor, geometry: Geometry, samples: int) -> Iterable[Tensor]:
    rows = x.shape[0] // samples
    if _is_matrix_product(weight, geometry):
        products = rows_product(gradient.flatten(2), x.flatten(2))
        return (products if rows == 1 else products.reshape(samples, rows, *products.shape[1:]).sum(1)).reshape(samples, *weight.shape)
    if samples == 1 and rows > 1:
        return geometry.of_weight(x, weight, gradient)[None]
    if rows > 1 or _one_by_one(x, weight, gradient):
        if rows == 1 and _slabs_pay(x, gradient, geometry):
            x, gradient, geometry, rows = *_slabs(x, gradient, weight.shape[2], geometry), 2
        pairs = zip(torch.split(x, rows), torch.split(gradient, rows), strict=True)
        return (geometry.of_weight(part, weight, of_part) for part, of_part in pairs)
    grouped = geometry.of_weight(
        x.reshape(1, -1, *x.shape[2:]),
        weight.new_empty(samples * weight.shape[0], *weight.shape[1:]),
        gradient.reshape(1, -1, *gradient.shape[2:]),
        groups=samples * geometry.groups,
    )
    return grouped.reshape(samples, *weight.shape)


def _is_matrix_product(weight: Tensor, geometry: Geometry) -> bool:
    plain = prod(weight.shape[2:]) == 1 and max(geometry.stride) == 1 and max(geometry.padding) == 0
    return plain and geometry.groups == 1 and not geometry.transposed


def _one_by_one(x: Tensor, weight: Tensor, gradient: Tensor) -> bool:
    """Whether one sample after another is faster than a group a sample; see the module."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.ndim != 5:
        return False
    volume = prod(gradient.shape[2:])
    if lacks_avx512():  # there, the grouped kernels are 2 to 10 times as slow as two slabs of one sample, whatever the channels
        return True
    heavy = volume <= HEAVY_VOLUME and weight.numel() > HEAVY_WEIGHTS
    return volume <= SMALL_VOLUME or heavy or min(weight.shape[:2]) < BLOCK or not (x.is_contiguous() and gradient.is_contiguous())


def _slabs_pay(x: Tensor, gradient: Tensor, geometry: Geometry) -> bool:
    """Whether torch is slow for one sample, so that two slabs of it are faster."""
    if x.ndim != 5 or x.device.type != "cpu" or x.dtype != torch.float32 or geometry.transposed or geometry.groups > 1:
        return False
    slow = x.shape[1] * prod(x.shape[2:4]) <= LARGE_PLANES or x.is_contiguous()
    large = prod(gradient.shape[2:]) > SMALL_VOLUME or lacks_avx512()
    return slow and large and gradient.shape[2] >= 4


def _slabs(x: Tensor, gradient: Tensor, kernel: int, geometry: Geometry) -> tuple[Tensor, Tensor, Geometry]:
    """Two halves of every sample, along the depth: input and gradient, (2 samples, ...), and a geometry that pads no depth.

    Source: `mergekit3d.architectures.slabs`.
    """
    stride, dilation, padding = geometry.stride[0], geometry.dilation[0], geometry.padding[0]
    rows, memory_format = gradient.shape[2], _format_of(x)
    height = -(-rows // 2)
    span = (height - 1) * stride + (kernel - 1) * dilation + 1
    gradients, volumes = _blank(gradient, height, memory_format), _blank(x, span, memory_format)
    for slab, start in enumerate((0, rows - height)):
        gradients[slab::2] = gradient[:, :, start : start + height]
        first = start * stride - padding
        inside = slice(max(first, 0), min(first + span, x.shape[2]))
        volumes[slab::2, :, : inside.start - first] = 0
        volumes[slab::2, :, inside.start - first : inside.stop - first] = x[:, :, inside]
        volumes[slab::2, :, inside.stop - first :] = 0
    if 2 * height > rows:  # the row that both hold counts once
        gradients[1::2, :, 0] = 0
    unpadded = Geometry(geometry.stride, (0, *geometry.padding[1:]), geometry.dilation, False, geometry.output_padding, 1)
    return volumes, gradients, unpadded


def _blank(like: Tensor, height: int, memory_format: torch.memory_format) -> Tensor:
    shape = (2 * like.shape[0], like.shape[1], height, *like.shape[3:])
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def convolution_types() -> Sequence[type[nn.Module]]:
    """The types that the rule is for."""
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, SlabConv3d)
