"""Several processes that share one piece of work, as ``torchrun`` starts them: on one machine or on many, a GPU each or none."""

from __future__ import annotations

import atexit
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from mergekit3d.errors import MachineError, MergeKit3DError
from mergekit3d.progress import SILENT, Reporter

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mergekit3d.options import Options

Item = TypeVar("Item")

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells every process that it starts."""

PATIENCE = timedelta(days=7)
"""One process may have far larger subjects than the next; torchrun itself ends all where one fails."""

TELLING = timedelta(seconds=10)
"""How long the others wait for the process that tells an error to have told it: torchrun ends all of them once one has ended."""

BUCKET_BYTES = 25 * 2**20
"""Tensors are added up in joined pieces of about this size, one message each."""


@dataclass
class Connections:
    """torch's groups; emptied once they are destroyed.

    The thread of a group that is still held when Python ends lets go of its last tensor then, which aborts the process (torch 2.13).

    Args:
        gloo: for tensors on the CPU and everything else.
        nccl: for tensors on the GPU; None: they go through gloo too.
        teller: rank of the process that tells the error that ended the work; None: it has not ended so.
    """

    gloo: Any = None
    nccl: Any = None
    teller: int | None = None


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of one run, seen from one of them.

    Args:
        rank: number of this process, from 0.
        size: number of processes.
        local_rank: number of this process on its machine, from 0.
        connections: to the others; none where this process is alone.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    connections: Connections = field(default_factory=Connections)

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

    def use(self, device: torch.device) -> None:
        """Let tensors on the GPU go through NCCL, where each process has one of its own; called in all processes."""
        import torch

        if self.size == 1:
            return
        import torch.distributed as dist

        places = self.gather((device.type, socket.gethostname(), device.index))
        apart = len(set(places)) == self.size and all(kind == "cuda" for kind, _, _ in places)
        if apart and dist.is_nccl_available():
            torch.cuda.set_device(device)
            self.connections.nccl = dist.new_group(backend="nccl", timeout=PATIENCE)

    def share(self, make: Callable[[], Item]) -> Item:
        """What `make` returns to the first process, in all of them; it is called there alone.

        Raises:
            MergeKit3DError: what `make` raised, in all; or another process ended.
        """
        if self.size == 1:
            return make()
        import torch.distributed as dist

        shared: list[Any] = [None]

        def first() -> None:
            shared[0] = make() if self.is_first else None

        self.agree(first)
        with _telling_of_the_others():
            dist.broadcast_object_list(shared, src=0, group=self.connections.gloo)
        return shared[0]  # type: ignore[no-any-return]

    def agree(self, work: Callable[[], Item]) -> Item:
        """What `work` returns in this process, once it is done in all of them.

        Args:
            work: called in every process; it must not use the group.

        Raises:
            MergeKit3DError: what `work` raised in the first of the processes where it failed, in all; or another process ended.
        """
        if self.size == 1:
            return work()
        try:
            result = work()
        except Exception as error:
            self.raise_together(error)
            raise
        self.raise_together(None)
        return result

    def raise_together(self, error: Exception | None) -> None:
        """Raise an error in all processes, if any of them has one: that of the first of those, which alone tells it.

        Args:
            error: of this process; None: it has none.

        Raises:
            MergeKit3DError: the error.
        """
        if self.size == 1:
            if error is not None:
                raise error
            return
        known = error is None or isinstance(error, MergeKit3DError)
        mine = error if known else MergeKit3DError(f"process {self.rank + 1} of {self.size} has failed", todo="look at what it says")
        errors = self.gather(mine)
        teller = next((rank for rank, found in enumerate(errors) if found is not None), None)
        if teller is None:
            return
        if error is not None and teller == self.rank:
            raise error
        told = errors[teller]
        assert isinstance(told, MergeKit3DError)
        told.told_elsewhere, self.connections.teller = True, teller
        raise told from None

    @contextmanager
    def first_holds(self, make: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
        """A context that the first process enters for all: a lock.

        Raises:
            MergeKit3DError: it could not be entered, in all.
        """
        with ExitStack() as stack:

            def enter() -> None:
                stack.enter_context(make())

            self.share(enter)
            yield

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
            dist.all_gather_object(gathered, item, group=self.connections.gloo)
        return gathered

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors, the same in number, shape and dtype everywhere, by their sums over all processes, the same bits in all.

        They are joined into pieces of about 25 MB; while one is under way, the next is made.

        Args:
            tensors: on the CPU, or on the device that `use` was called with.

        Raises:
            MergeKit3DError: another process ended.
        """
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        under_way = []
        with _telling_of_the_others(), torch.no_grad():
            for bucket in _buckets(tensors):
                on_gpu = bucket[0].device.type != "cpu"
                joined = torch.cat([tensor.reshape(-1) for tensor in bucket])
                by_nccl = on_gpu and self.connections.nccl is not None
                joined = joined if by_nccl else joined.cpu()
                work = dist.all_reduce(joined, group=self.connections.nccl if by_nccl else self.connections.gloo, async_op=True)
                under_way.append((work, joined, bucket))
            for work, joined, bucket in under_way:
                work.wait()
                for tensor, total in zip(bucket, torch.split(joined, [tensor.numel() for tensor in bucket]), strict=True):
                    tensor.copy_(total.view(tensor.shape))

    def wait(self) -> None:
        """Go on once all processes are here.

        Raises:
            MergeKit3DError: another process ended.
        """
        self.gather(None)


ALONE = ProcessGroup()


@contextmanager
def shared_work(options: Options, reporter: Reporter, *, training: bool = False) -> Iterator[tuple[ProcessGroup, Options, Reporter]]:
    """The processes that torchrun started, with the options and the reporter of this one: a device of its own, one precision for all.

    Args:
        options: as all processes were given them.
        reporter: what the first process tells; the others are silent.
        training: a recipe is still to say in which precision.

    Raises:
        MergeKit3DError: the others cannot be reached, or there is no such device.
    """
    with process_group() as group:
        if group.size == 1:
            yield group, options, reporter
            return
        from mergekit3d.training.devices import resolve_runtime

        options = replace(options, device=group.device(options.device))
        runtime = group.agree(lambda: resolve_runtime(options.device, options.precision))
        group.use(runtime.device)
        if not training:
            options = replace(options, precision=group.share(lambda: runtime.precision))
        yield group, options, reporter if group.is_first else SILENT


def is_first_process() -> bool:
    """Whether this process is alone or the first of its group, told without torch."""
    return number_of_processes() == 1 or int(os.environ["RANK"]) == 0


def number_of_processes() -> int:
    """As many as torchrun started together, told without torch; 1: it did not."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in VARIABLES) else 1


@contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """The group that torchrun started this process in, or `ALONE`.

    Where there is an error to tell, it is left at the end of this process, and the others wait for that: torchrun would end this one
    as soon as another is gone.

    Raises:
        MergeKit3DError: the others cannot be reached.
    """
    if number_of_processes() == 1:
        yield ALONE
        return
    group, begun = _connected()
    try:
        yield group
    except BaseException as error:
        if isinstance(error, MergeKit3DError) and error.told_elsewhere and group.connections.teller is not None:
            _wait_for_the_teller(group)
            _leave(group, begun)
        else:
            atexit.register(_leave, group, begun)
        raise
    _leave(group, begun)


def _connected() -> tuple[ProcessGroup, bool]:
    """The group, and whether it had to be begun."""
    import torch.distributed as dist

    begun = not dist.is_initialized()
    try:
        if begun:
            dist.init_process_group("gloo", timeout=PATIENCE)
        # One of its own: the caller's may be of NCCL, which takes no tensor on the CPU; and torch never lets go of the default group,
        # as it stands in default arguments of modules that are imported later.
        gloo = dist.new_group(backend="gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise MachineError("cannot reach the other processes", found=str(error).splitlines()[0], todo="start them by torchrun") from error
    rank = dist.get_rank()
    return ProcessGroup(rank, dist.get_world_size(), int(os.environ.get("LOCAL_RANK", rank)), Connections(gloo)), begun


def _wait_for_the_teller(group: ProcessGroup) -> None:
    """Until the process that tells an error has ended; where that is a notebook, which stays, not much longer."""
    import torch
    import torch.distributed as dist

    # It never sends: what ends this is that its connection closes.
    with suppress(RuntimeError):
        waiting = dist.irecv(torch.zeros(1), group=group.connections.gloo, group_src=group.connections.teller)
        if waiting is not None:
            waiting.wait(TELLING)


def _leave(group: ProcessGroup, begun: bool) -> None:
    import torch.distributed as dist

    group.connections.gloo = group.connections.nccl = None
    if begun and dist.is_initialized():
        dist.destroy_process_group()


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one dtype and device that follow one another, up to about `BUCKET_BYTES`."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        other = bucket and (tensor.dtype, tensor.device) != (bucket[0].dtype, bucket[0].device)
        if other or sum(one.nbytes for one in bucket) >= BUCKET_BYTES:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


@contextmanager
def _telling_of_the_others() -> Iterator[None]:
    """torch tells of a process that is gone as a RuntimeError about a socket."""
    try:
        yield
    except RuntimeError as error:
        raise MachineError("another process of this run has ended", todo="look at what it says") from error
