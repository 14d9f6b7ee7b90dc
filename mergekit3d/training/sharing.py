"""One training shared out among processes: samples and validation subjects are dealt out, gradients added up.

Every process holds the same weights, optimizer and progress, and takes the same decisions, as all that these depend on is added up or
gathered first: between two steps the state says nothing of how many processes there are. What differs from one process is rounding
and dropout, whose masks each process draws for its own samples.

The processes meet once a step, and once for every validation subject, in one small message: there a signal or an error of one becomes
that of all. Then come the gradients of what the optimizer holds, and of nothing else. In an adaptation these are S and delta alone:
the gradient of delta is linear in that of the shared weights (see `mergekit3d.adaptation`), so that the sum over processes may be
taken after it as well, with some thousand times less to send than the weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from mergekit3d.errors import UsageError
from mergekit3d.progress import Reporter
from mergekit3d.training.interruption import SIGNALS, Interruption
from mergekit3d.training.processes import ProcessGroup

Item = TypeVar("Item")


class Sharing:
    """The processes of one training, seen from one of them; alone, nothing is sent and nothing changes.

    Args:
        processes: that share the training.
        signals: what reached this process.
        network: its running statistics, where it has any, become those of all processes, weighted by their samples.
        parameters: what the optimizer holds.
    """

    def __init__(
        self,
        processes: ProcessGroup,
        signals: Interruption,
        network: nn.Module | None = None,
        parameters: Sequence[Tensor] = (),
    ) -> None:
        self.processes = processes
        self.parameters = list(parameters)
        self.statistics = [] if network is None else [buffer for buffer in network.buffers() if buffer.is_floating_point()]
        self._signals = signals
        self._agreed: int | None = None

    @property
    def signal_number(self) -> int | None:
        """The signal that all processes know of; None: none yet."""
        return self._signals.signal_number if self.processes.size == 1 else self._agreed

    @contextmanager
    def own_work(self) -> Iterator[None]:
        """What a process does between two meetings: its error is raised in all of them at the next one."""
        try:
            yield
        except Exception as error:
            if self.processes.size > 1:
                self._meet(error)
            raise

    def each(self, items: Iterable[Item]) -> Iterator[Item]:
        """Items of which every process has as many, made by itself."""
        iterator = iter(items)
        while True:
            with self.own_work():
                item = next(iterator, None)
            if item is None:
                return
            yield item

    def rounds(self, items: Iterable[Item]) -> Iterator[Item | None]:
        """The items of this process, one a meeting, then None for as long as another one has items left."""
        iterator = iter(items)
        while True:
            with self.own_work():
                item = next(iterator, None)
            if not self._meet(None, [float(item is not None)])[0]:
                return
            yield item

    def check(self, identity: str, reporter: Reporter) -> None:
        """Refuse to share what is not the same work everywhere; called before it begins.

        Args:
            identity: digest of recipe, start and subjects.
            reporter: is told where the result cannot be that of one process.

        Raises:
            UsageError: another process found other files.
        """
        if len(set(self.processes.gather(identity))) > 1:
            found, todo = "different recipes, checkpoints or subjects", "let all machines read the same files"
            self.processes.raise_together(UsageError("the processes do not share one training", found=found, todo=todo))
        if self.processes.size > 1 and self.statistics:
            reporter.warn("batch norms see the samples of one process at a time: the result is not that of one process")

    def meet(self) -> None:
        """Meet where nothing is to be added up: an error of one becomes that of all."""
        self._meet(None)

    def add_up(self, loss: float, part: float) -> float:
        """Put the gradients of all processes' samples in the place of this one's.

        Args:
            loss: of this process's samples, already weighted by `part`.
            part: of the samples of the step, from 0 to 1.

        Returns:
            The loss of the step.
        """
        if self.processes.size == 1:
            return loss
        total, *counts = self._meet(None, [loss, *(float(parameter.grad is not None) for parameter in self.parameters)])
        used = [parameter for parameter, count in zip(self.parameters, counts, strict=True) if count]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for statistic in self.statistics:
            statistic.mul_(part)
        self.processes.add_up([*(parameter.grad for parameter in used if parameter.grad is not None), *self.statistics])
        return total

    def _meet(self, error: Exception | None, values: Sequence[float] = ()) -> list[float]:
        """Sums of the values over all processes. The message is of one length, whatever each process comes with."""
        if self.processes.size == 1:
            return list(values)
        message = torch.zeros(2 + len(SIGNALS) + len(self.parameters), dtype=torch.float64)
        message[0] = error is not None
        for place, number in enumerate(SIGNALS, 1):
            message[place] = self._signals.signal_number == number
        start = 1 + len(SIGNALS)
        message[start : start + len(values)] = torch.tensor(values, dtype=torch.float64)
        self.processes.add_up([message])
        failed, *sums = message.tolist()
        if failed:
            self.processes.raise_together(error)
        self._agreed = next((int(number) for number, count in zip(SIGNALS, sums, strict=False) if count), self._agreed)
        return sums[len(SIGNALS) :][: len(values)]


def step_seed(seed: int, epoch: int, step: int, rank: int = 0) -> int:
    """Seed of the dropout of one step, in one process."""
    numbers = [seed, epoch, step, *([rank] if rank else [])]
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def in_turn(shares: Sequence[Sequence[Item]]) -> list[Item]:
    """Items that were dealt out to processes in turn, in their order again."""
    return [item for row in itertools.zip_longest(*shares) for item in row if item is not None]
