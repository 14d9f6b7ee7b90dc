"""Activation checkpointing: of most activations only the inputs of blocks are kept, and the backward pass computes the rest again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

CONVOLUTIONS = (nn.Conv3d, nn.ConvTranspose3d)
MOST_CONVOLUTIONS = 3
"""Of a block: more save more memory as long as what a block computes again is less than all that is kept between blocks."""


@contextmanager
def recomputed(network: nn.Module, *, enabled: bool = True) -> Iterator[None]:
    """Within the block, the parts of a network compute their activations twice in a training step; names and weights stay.

    Gradients are those of the plain network: dropout draws the same masks again, and running statistics move once.

    Args:
        network: the network.
        enabled: false: nothing changes.
    """
    with ExitStack() as stack:
        for module in recomputable_blocks(network) if enabled else []:
            stack.enter_context(_twice(module))
        yield


def recomputable_blocks(network: nn.Module) -> list[nn.Module]:
    """The largest parts of a network that hold one to three convolutions and something else: levels of Isensee 2017, units of a U-Net."""
    blocks, seen = [], set[int]()

    def descend(module: nn.Module) -> None:
        count = sum(isinstance(part, CONVOLUTIONS) for part in module.modules())
        if id(module) in seen or count == 0 or isinstance(module, CONVOLUTIONS):
            return
        seen.add(id(module))
        if count <= MOST_CONVOLUTIONS and not isinstance(module, nn.ModuleList | nn.ModuleDict):
            blocks.append(module)
            return
        for child in module.children():
            descend(child)

    for child in network.children():
        descend(child)
    return blocks


@contextmanager
def _twice(module: nn.Module) -> Iterator[None]:
    plain: Callable[..., Any] = module.forward

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _unmoved(module)

    def forward(*arguments: Any, **options: Any) -> Any:
        if not (module.training and torch.is_grad_enabled()):
            return plain(*arguments, **options)
        return checkpoint(plain, *arguments, use_reentrant=False, context_fn=contexts, **options)

    module.forward = forward
    try:
        yield
    finally:
        del module.forward


@contextmanager
def _unmoved(module: nn.Module) -> Iterator[None]:
    """Running statistics have moved the first time."""
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
