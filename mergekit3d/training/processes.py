"""Several processes that share one piece of work, as ``torchrun`` starts them: on one machine or on many, a GPU each or none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from mergekit3d.errors import MergeKit3DError

Item = TypeVar("Item")

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells every process that it starts."""

PATIENCE = timedelta(days=7)
"""One process may have far larger subjects than the next; torchrun itself ends all where one fails."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of one run, seen from one of them.

    Args:
        rank: number of this process, from 0.
        size: number of processes.
        local_rank: number of this process on its machine, from 0.
        handle: torch's group, of gloo; None where this process is alone.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    handle: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this is the process that reports, locks and writes."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device that this process takes where all were given the same flag: a GPU each, in turn."""
        import torch

        if self.size == 1 or name not in ("auto", "cuda") or not torch.cuda.is_available():
            return name
        return f"cuda:{self.local_rank % torch.cuda.device_count()}"

    def share(self, make: Callable[[], Item]) -> Item:
        """What `make` returns to the first process, in all of them; it is called there alone.

        Raises:
            MergeKit3DError: another process ended.
        """
        if self.size == 1:
            return make()
        import torch.distributed as dist

        shared: list[Any] = [make() if self.is_first else None]
        with _telling_of_the_others():
            dist.broadcast_object_list(shared, src=0, group=self.handle)
        return shared[0]  # type: ignore[no-any-return]

    def gather(self, item: Item) -> list[Item]:
        """The items of all processes, by rank.

        Raises:
            MergeKit3DError: another process ended.
        """
        if self.size == 1:
            return [item]
        import torch.distributed as dist

        gathered: list[Any] = [None] * self.size
        with _telling_of_the_others():
            dist.all_gather_object(gathered, item, group=self.handle)
        return gathered

    def add_up(self, tensors: Iterable[Any]) -> None:
        """Replace tensors on the CPU, the same in number and shape everywhere, by their sums over all processes.

        Raises:
            MergeKit3DError: another process ended.
        """
        if self.size == 1:
            return
        import torch.distributed as dist

        with _telling_of_the_others():
            for tensor in tensors:
                dist.all_reduce(tensor, group=self.handle)

    def wait(self) -> None:
        """Go on once all processes are here.

        Raises:
            MergeKit3DError: another process ended.
        """
        self.gather(None)


ALONE = ProcessGroup()


def is_first_process() -> bool:
    """Whether this process is alone or the first of its group, told without torch."""
    return not _started_by_torchrun() or int(os.environ["RANK"]) == 0


@contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """The group that torchrun started this process in, or `ALONE`.

    Raises:
        MergeKit3DError: the others cannot be reached.
    """
    if not _started_by_torchrun():
        yield ALONE
        return
    import torch.distributed as dist

    begun = not dist.is_initialized()
    try:
        if begun:
            dist.init_process_group("gloo", timeout=PATIENCE)
        # Of its own where the caller has one already: that may be of NCCL, which takes no tensor on the CPU.
        handle = dist.group.WORLD if begun else dist.new_group(backend="gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise MergeKit3DError(
            "cannot reach the other processes", found=str(error).splitlines()[0], todo="start them by torchrun"
        ) from error
    try:
        yield ProcessGroup(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", dist.get_rank())), handle)
    finally:
        if begun:
            dist.destroy_process_group()


def _started_by_torchrun() -> bool:
    return all(name in os.environ for name in VARIABLES) and int(os.environ["WORLD_SIZE"]) > 1


@contextmanager
def _telling_of_the_others() -> Iterator[None]:
    """torch tells of a process that is gone as a RuntimeError about a socket."""
    try:
        yield
    except RuntimeError as error:
        raise MergeKit3DError("another process of this run has ended", todo="look at what it says") from error
