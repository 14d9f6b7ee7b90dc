"""Whether the first axis of what each module is given is the batch: a network may fold it, move it, or mix the samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from mergekit3d.per_sample.calls import Call, tensors_in

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}
"""Relative difference of a sample alone and in a batch, which is rounding; others are of half precision."""


def check_batch_axis(
    network: nn.Module,
    images: Tensor,
    logits: Tensor,
    calls: Sequence[Call],
    *contexts: Callable[[], AbstractContextManager[object]],
) -> set[nn.Module] | None:
    """Compare a forward pass of a batch with one of its last sample alone.

    Tells each call which of its tensors are the same for all samples.

    Args:
        network: without a recorder at work.
        images: (samples, ...).
        logits: of the batch.
        calls: that were recorded, in the order of their ends.
        contexts: to enter for the forward pass.

    Returns:
        Modules whose inputs or outputs do not hold the rows of each sample together, from the first to the last; None where a
        sample's logits depend on the others.
    """
    wrong: set[nn.Module] = set()
    waiting = iter(calls)
    modules = {call.module for call in calls}
    samples = len(images)

    def compare(module: nn.Module, inputs: Any, keywords: Any, output: Any) -> None:
        call = next(waiting, None)
        if call is None or call.module is not module:
            wrong.update(modules)  # another sequence of modules for other data
            return
        pairs = list(zip(tensors_in(call.inputs), tensors_in((inputs, keywords)), strict=True)) if call.inputs else []
        kinds = [_kind(batch, alone, samples) for batch, alone in pairs]
        outputs = (
            [_kind(batch, alone, samples) for batch, alone in zip(call.outputs, tensors_in(output), strict=True)] if call.outputs else []
        )
        call.constant = tuple(kind == "constant" for kind in kinds)
        rows = kinds[:1] if call.ruled else []
        if "unknown" in kinds or any(kind != "batched" for kind in [*outputs, *rows]):
            wrong.add(module)

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for context in contexts:
            stack.enter_context(context())
        for module in modules:
            hook = module.register_forward_hook(compare, with_kwargs=True, prepend=True)
            stack.callback(hook.remove)
        alone = network(images[-1:])
    return wrong if _kind(logits, alone, samples) == "batched" else None


def _kind(batch: Tensor, alone: Tensor, samples: int) -> str:
    if batch.shape == alone.shape and _near(batch, alone):
        return "constant"
    rows = alone.shape[0] if alone.ndim else 0
    if batch.ndim and batch.shape[1:] == alone.shape[1:] and batch.shape[0] == samples * rows and _near(batch[-rows:], alone):
        return "batched"
    return "unknown"


def _near(one: Tensor, other: Tensor) -> bool:
    if not one.is_floating_point():
        return torch.equal(one, other)
    if not other.numel():
        return True
    largest = float(other.abs().max())
    difference = float((one.detach() - other).abs().max())
    # What is not finite is for the gradients to find.
    return not isfinite(largest) or difference <= TOLERANCE.get(other.dtype, 0.1) * largest
