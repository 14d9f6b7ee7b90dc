"""Per-sample gradients of linear layers, layer and batch norm, and PReLU: what a layer's input and its output's gradient give."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mergekit3d.per_sample.products import rows_product


def linear(module: nn.Module, x: Tensor, gradient: Tensor, samples: int) -> dict[str, Tensor]:
    """Of `torch.nn.Linear` with any axes before the last: weight (samples, C_out, C_in) and bias (samples, C_out)."""
    assert isinstance(module, nn.Linear)
    of_rows = gradient.reshape(samples, -1, gradient.shape[-1])
    rows = x.to(gradient.dtype).reshape(samples, -1, x.shape[-1])
    found = {"weight": rows_product(of_rows.transpose(1, 2), rows.transpose(1, 2))}
    if module.bias is not None:
        found["bias"] = of_rows.sum(1)
    return found


def layer_norm(module: nn.Module, x: Tensor, gradient: Tensor, samples: int) -> dict[str, Tensor]:
    """Of `torch.nn.LayerNorm`: weight and bias, (samples, *normalized_shape) each."""
    assert isinstance(module, nn.LayerNorm)
    shape = (samples, -1, *module.normalized_shape)
    of_rows = gradient.to(module.weight.dtype).reshape(shape)
    normalized = functional.layer_norm(x.to(module.weight.dtype), module.normalized_shape, eps=module.eps).reshape(shape)
    found = {"weight": (of_rows * normalized).sum(1)}
    if module.bias is not None:
        found["bias"] = of_rows.sum(1)
    return found


def batch_norm(module: nn.Module, x: Tensor, gradient: Tensor, samples: int) -> dict[str, Tensor]:
    """Of batch norm by its running statistics: weight and bias, (samples, C) each."""
    assert isinstance(module, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001  the class that all share
    assert module.running_mean is not None
    assert module.running_var is not None
    dtype = module.weight.dtype
    of_bias = gradient.to(dtype).reshape(*gradient.shape[:2], -1).sum(2)
    mean, scale = module.running_mean.to(dtype), (module.running_var.to(dtype) + module.eps).rsqrt()
    centred = x.to(dtype) - mean.reshape(1, -1, *[1] * (x.ndim - 2))
    of_weight = (centred * gradient).reshape(*x.shape[:2], -1).sum(2) * scale
    return {"weight": _by_sample(of_weight, samples), "bias": _by_sample(of_bias, samples)}


def prelu(module: nn.Module, x: Tensor, gradient: Tensor, samples: int) -> dict[str, Tensor]:
    """Of `torch.nn.PReLU`: weight, (samples, 1) for one slope or (samples, C)."""
    assert isinstance(module, nn.PReLU)
    products = torch.where(x > 0, 0, x * gradient).to(module.weight.dtype)
    if x.ndim < 2 or module.num_parameters == 1:
        return {"weight": products.reshape(samples, -1).sum(1, keepdim=True)}
    return {"weight": _by_sample(products.reshape(*x.shape[:2], -1).sum(2), samples)}


def _by_sample(of_rows: Tensor, samples: int) -> Tensor:
    """(samples * rows, C) to (samples, C)."""
    return of_rows.reshape(samples, -1, of_rows.shape[1]).sum(1)
