"""Products of long rows, the gradients of weights that see one voxel or one token at a time."""

from __future__ import annotations

import torch
from torch import Tensor

PIECE = 65536
"""Columns at once: the float32 copies stay small beside the activations, and in cache."""


def rows_product(a: Tensor, b: Tensor) -> Tensor:
    """a b^T of every pair of matrices, summed in float32 at least.

    On a CPU, matrices of bfloat16 are multiplied in float32: oneDNN's product of them (3.12 within torch 2.13, with AMX) divides by
    zero, which ends the process, for 8 rows of 196608 columns among others.

    Args:
        a: (B, M, K).
        b: (B, N, K), of the dtype of `a`.

    Returns:
        (B, M, N).
    """
    if a.device.type != "cpu" or a.dtype not in (torch.bfloat16, torch.float16):
        return torch.bmm(a, b.transpose(1, 2))
    total = torch.zeros(a.shape[0], a.shape[1], b.shape[1])
    for start in range(0, a.shape[2], PIECE):
        piece = slice(start, start + PIECE)
        total.baddbmm_(a[..., piece].float(), b[..., piece].float().transpose(1, 2))
    return total
