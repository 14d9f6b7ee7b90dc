"""The slow ways, exact for everything: a module, or the whole network, once for every sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mergekit3d.per_sample.calls import Call, tensors_in, without_fast_path

Autocast = Callable[[], AbstractContextManager[object]]
Gradients = tuple[Tensor | None, ...]


@contextmanager
def asking(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let these parameters need gradients inside the block."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


def replay(call: Call, parameters: Sequence[nn.Parameter], samples: int, autocast: Autocast) -> Iterator[tuple[int, Gradients]]:
    """Call a module again for every sample of a batch.

    Args:
        call: with its inputs and the gradients of its outputs.
        parameters: whose gradients are wanted.
        samples: in the batch.
        autocast: precision of the forward pass.

    Yields:
        Each sample and the gradients of the parameters, None for one that has no part.
    """
    inputs, keywords = call.taken()
    constant = call.constant
    for sample in range(samples):
        arguments, named = _of_sample(inputs, keywords, constant, sample, samples)
        with torch.enable_grad(), asking(parameters):
            with autocast(), without_fast_path():
                output = call.module(*arguments, **named)
            parts = [output] if isinstance(output, Tensor) else list(output)
            wanted = [(parts[place], _rows(gradient, sample, samples)) for place, gradient in call.gradients.items()]
            wanted = [(part, gradient) for part, gradient in wanted if part.requires_grad]
            if wanted:
                outputs, gradients = zip(*wanted, strict=True)
                yield sample, torch.autograd.grad(outputs, parameters, grad_outputs=gradients, allow_unused=True)


def _of_sample(inputs: Any, keywords: Any, constant: Sequence[bool], sample: int, samples: int) -> tuple[Any, Any]:
    flags = iter(constant or [False] * len(tensors_in((inputs, keywords))))

    def part(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value if next(flags) else _rows(value, sample, samples)

    result: tuple[Any, Any] = tree_map(part, (inputs, keywords))
    return result


def _rows(value: Tensor, sample: int, samples: int) -> Tensor:
    if samples == 1:
        return value
    rows = value.shape[0] // samples
    return value[sample * rows : (sample + 1) * rows]


def loop_over_network(
    network: nn.Module, images: Tensor, score: Tensor, parameters: Sequence[nn.Parameter], autocast: Autocast
) -> Iterator[tuple[int, Gradients]]:
    """Run the whole network for every sample of a batch.

    Args:
        network: in evaluation mode.
        images: (samples, ...).
        score: the gradient with respect to the logits, (samples, ...).
        parameters: whose gradients are wanted.
        autocast: precision of the forward pass.

    Yields:
        Each sample and the gradients of the parameters, None for one that has no part.
    """
    for sample in range(len(images)):
        with torch.enable_grad(), asking(parameters):
            with autocast(), without_fast_path():
                logits = network(images[sample : sample + 1])
            if not logits.requires_grad:
                return
            of_logits = score[sample : sample + 1].to(logits.dtype)
            yield sample, torch.autograd.grad(logits, parameters, grad_outputs=of_logits, allow_unused=True)
