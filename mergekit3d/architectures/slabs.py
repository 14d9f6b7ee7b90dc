"""3D convolutions that are fast on the CPU in float32, also at batch 1.

Two slow paths of torch (2.13) are avoided. At batch 1, volumes of up to 20,480 channels x rows x columns go to ``slow_conv3d``, one
large matrix product over an unfolded copy; at batch 2 they go to oneDNN. And oneDNN's AVX2 kernel for the gradient of the weights
refuses padding along the depth, and falls back to unfolding as well, at any batch size. So the forward pass calls oneDNN by name,
and the backward pass works on slabs along the depth, padded beforehand and stacked along the batch: two for a batch of one, whole
volumes otherwise. The results are the plain ones, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

Geometry = tuple[list[int], list[int], list[int]]
"""Stride, padding and dilation, along X, Y, Z each."""

SMALLEST_DEPTH = 4
"""Rows of output below which slabs would be halos for the most part."""


@contextmanager
def fast_cpu_convolutions(network: nn.Module) -> Iterator[None]:
    """Let the convolutions of a network take the fast path inside the block; see `use_fast_cpu_convolutions`."""
    changed = use_fast_cpu_convolutions(network)
    try:
        yield
    finally:
        for module in changed:
            module.__class__ = nn.Conv3d


def use_fast_cpu_convolutions(network: nn.Module) -> list[nn.Conv3d]:
    """Let every `torch.nn.Conv3d` of a network take the fast path from now on.

    Parameters, their names and the state dict stay as they are. On a GPU, under autocast, and for kernels, sizes and dtypes that
    have nothing to gain, the convolution is the plain one.

    Returns:
        The modules that were changed: those that are a `torch.nn.Conv3d` and no subclass of it.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return []
    changed = [module for module in network.modules() if type(module) is nn.Conv3d]
    for module in changed:
        module.__class__ = SlabConv3d
    return changed


class SlabConv3d(nn.Conv3d):
    """`torch.nn.Conv3d` with the fast path where it pays."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002  torch's name
        if self.padding_mode == "zeros" and isinstance(self.padding, tuple) and self.groups == 1 and _pays(input, weight, self):
            return slab_convolution(input, weight, bias, self.stride, self.padding, self.dilation)
        if _reads_beyond(input, self):
            with torch.autocast("cpu", enabled=False):
                return cast(Tensor, super()._conv_forward(input.float(), weight, bias))
        return cast(Tensor, super()._conv_forward(input, weight, bias))


def _reads_beyond(x: Tensor, module: nn.Conv3d) -> bool:
    """Whether bfloat16 would not do.

    oneDNN's kernels for AMX (torch 2.13) read memory that nobody wrote where an axis of the output has one voxel and the stride is
    not 1, and in the gradient of the weight where the output is less deep than the kernel: NaN comes out now and then. So small a
    volume costs nothing in float32.
    """
    if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu") or isinstance(module.padding, str):
        return False
    geometry = zip(x.shape[2:], module.kernel_size, module.stride, module.padding, module.dilation, strict=True)
    rows = [_rows_out(*axis) for axis in geometry]
    return 1 < module.kernel_size[0] > rows[0] or (max(module.stride) > 1 and min(rows) <= 1)


def _pays(x: Tensor, weight: Tensor, module: nn.Conv3d) -> bool:
    plain = x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32 or torch.is_autocast_enabled("cpu")
    # Kernels of one voxel are a matrix product in either path.
    if plain or x.ndim != 5 or max(module.kernel_size) == 1 or not x.is_contiguous():
        return False
    rows = _rows_out(x.shape[2], weight.shape[2], module.stride[0], int(module.padding[0]), module.dilation[0])
    return rows >= SMALLEST_DEPTH and (x.shape[0] == 1 or lacks_avx512())


def lacks_avx512() -> bool:
    """Whether the processor has nothing beyond AVX2: oneDNN's slow kernels are others there."""
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def slab_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """`torch.nn.functional.conv3d` by the fast path.

    Args:
        x: (B, C_in, X, Y, Z); X is the depth.
        weight: (C_out, C_in, kernel along X, Y, Z).
        bias: (C_out,) or None.
        stride: along X, Y, Z.
        padding: voxels of zeros at both ends, along X, Y, Z.
        dilation: along X, Y, Z.

    Returns:
        (B, C_out, X', Y', Z').
    """
    result = _SlabConvolution.apply(x, weight, bias, (list(stride), list(padding), list(dilation)))  # type: ignore[no-untyped-call]
    assert isinstance(result, Tensor)
    return result


def _rows_out(rows: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (rows + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


class _SlabConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.biased = geometry, bias is not None
        stride, padding, dilation = geometry
        if x.dtype == torch.float32:
            return torch.mkldnn_convolution(x, weight, bias, padding, stride, dilation, 1)
        return functional.conv3d(x, weight, bias, stride, padding, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding, dilation = ctx.geometry
        batch, rows = gradient.shape[0], gradient.shape[2]
        slabs = 2 if batch == 1 and rows > 1 else 1
        height = -(-rows // slabs)
        # An odd number of rows: the second slab begins with the last row of the first, whose gradient counts there alone.
        starts = [0, rows - height][:slabs]
        gradients = _joined([gradient[:, :, start : start + height] for start in starts])
        if slabs * height > rows:
            gradients[batch:, :, 0] = 0
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        if needs_weight:
            padded = functional.pad(x, (0, 0, 0, 0, padding[0], padding[0]))
        else:  # the gradient of the input takes no more than its shape
            padded = x.new_empty((*x.shape[:2], x.shape[2] + 2 * padding[0], *x.shape[3:]))
        span = (height - 1) * stride[0] + (weight.shape[2] - 1) * dilation[0] + 1
        places = [slice(start * stride[0], start * stride[0] + span) for start in starts]
        volumes = _joined([padded[:, :, place] for place in places])
        wanted = [needs_x, needs_weight, needs_bias and ctx.biased]
        how = (stride, [0, *padding[1:]], dilation, False, [0, 0, 0], 1)
        by_slab, of_weight, of_bias = torch.ops.aten.convolution_backward(gradients, volumes, weight, [weight.shape[0]], *how, wanted)
        of_x = None
        if needs_x:
            if slabs == 1 and span == padded.shape[2]:
                of_padded = by_slab
            else:
                of_padded = torch.zeros_like(padded)
                for place, part in zip(places, by_slab.split(batch), strict=True):
                    of_padded[:, :, place] += part
            of_x = of_padded[:, :, padding[0] : padding[0] + x.shape[2]]
        return of_x, of_weight, of_bias, None


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()
