"""An exponential moving average of what is trained, which is validated and kept in the place of the last step's values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Average:
    """a <- d a + (1 - d) theta after every step, with d = min(decay, (1 + n) / (10 + n)) at step n, so that the start is soon forgotten.

    Args:
        parameters: theta; as they are now is where the average starts.
        decay: None: no average is kept, and nothing happens.

    Source: Tarvainen and Valpola, NeurIPS 2017 (weights averaged over steps); the rise of d is that of TensorFlow's
    ExponentialMovingAverage.
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float | None) -> None:
        self.decay = decay
        self.steps = 0
        self._parameters = list(parameters)
        self._tensors = [] if decay is None else [parameter.detach().clone() for parameter in parameters]
        self._kept: list[Tensor] | None = None

    @torch.no_grad()
    def update(self) -> None:
        """Follow the parameters after a step."""
        if self.decay is None:
            return
        self.steps += 1
        weight = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self._tensors, [parameter.detach() for parameter in self._parameters], weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block, the parameters have the average's values."""
        if self.decay is not None:
            self._kept = [parameter.detach().clone() for parameter in self._parameters]
            self._put(self._tensors)
        try:
            yield
        finally:
            self.put_back()

    def put_back(self) -> None:
        """Give the parameters their own values again, where the average's are in their place."""
        if self._kept is not None:
            self._put(self._kept)
            self._kept = None

    def state(self) -> dict[str, Any]:
        """What a snapshot holds."""
        return {"steps": self.steps, "tensors": list(self._tensors)}

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises:
            ValueError: it is of other parameters.
        """
        self.steps = int(state["steps"])
        for tensor, saved in zip(self._tensors, state["tensors"], strict=True):
            tensor.copy_(saved)

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)
