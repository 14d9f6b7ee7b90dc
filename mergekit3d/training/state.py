"""How far a training has come: what a snapshot holds beside weights and optimizer."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from mergekit3d.errors import InputError
from mergekit3d.training.average import Average
from mergekit3d.training.log import Row
from mergekit3d.training.processes import ALONE, ProcessGroup
from mergekit3d.training.schedule import Convergence
from mergekit3d.training.snapshot import ANEW, read_snapshot, write_snapshot


@dataclass
class Progress:
    """Where a training stands; changed by the loop.

    Args:
        epoch: the one under way, from 0; as many are done.
        step: optimizer steps done in it.
        losses: of those steps.
        seconds: spent on it so far.
        convergence: of the validation loss.
        rows: of log.csv, one a finished epoch.
        best: tensors of the best epoch, on the CPU; None before the first validation.
        best_epoch: from 1; 0 before the first validation.
    """

    epoch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    convergence: Convergence = field(default_factory=Convergence)
    rows: list[Row] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    best_epoch: int = 0


@dataclass(frozen=True)
class Trained:
    """The tensors that training changes.

    Args:
        network: parameters and buffers.
        parameters: what the optimizer changes, some of which may be none of the network's.
        optimizer: its moments and rates.
        average: of the parameters over the steps.
        scaler: of the loss, in fp16.
    """

    network: nn.Module
    parameters: Sequence[Tensor]
    optimizer: Optimizer
    average: Average
    scaler: GradScaler


def save_progress(path: Path, trained: Trained, progress: Progress, *, identity: str) -> None:
    """Write a snapshot; tensors that share memory are in it once.

    Raises:
        OutputError: the file system refused.
    """
    content = {
        "network": dict(trained.network.state_dict()),
        "parameters": [parameter.detach() for parameter in trained.parameters],
        "optimizer": trained.optimizer.state_dict(),
        "average": trained.average.state(),
        "scaler": trained.scaler.state_dict(),
        "progress": {**vars(progress), "convergence": asdict(progress.convergence), "rows": [dict(row) for row in progress.rows]},
    }
    write_snapshot(path, content, identity=identity)


def load_progress(path: Path, trained: Trained, *, identity: str, processes: ProcessGroup = ALONE) -> Progress | None:
    """Put weights and optimizer back as a snapshot has them.

    Args:
        path: the snapshot.
        trained: where to put them.
        identity: what the snapshot must be of.
        processes: whose first one reads the file for all: it may stand on the disk of its machine alone.

    Returns:
        Where the training stood, or None where there is no snapshot.

    Raises:
        InputError: the snapshot is damaged, or of another network.
        UsageError: it is of another recipe or version.
    """
    content = _from_first(lambda: read_snapshot(path, identity=identity), processes)
    if content is None:
        return None
    return processes.agree(lambda: _put_back(content, trained, path))


def _put_back(content: dict[str, Any], trained: Trained, path: Path) -> Progress:
    try:
        trained.network.load_state_dict(content["network"])
        with torch.no_grad():
            for parameter, saved in zip(trained.parameters, content["parameters"], strict=True):
                parameter.copy_(saved)
        trained.optimizer.load_state_dict(content["optimizer"])
        trained.average.load(content["average"])
        if content["scaler"]:
            trained.scaler.load_state_dict(content["scaler"])
        return _progress_of(content["progress"])
    except (RuntimeError, ValueError, LookupError, TypeError) as error:
        raise InputError("cannot go on from the snapshot", where=path, found="tensors of another network", todo=ANEW) from error


def _from_first(read: Callable[[], dict[str, Any] | None], processes: ProcessGroup) -> dict[str, Any] | None:
    """What the first process reads, in all. It travels as a file would: pickled one by one, views would each take their whole buffer."""
    if processes.size == 1:
        return read()

    def packed() -> bytes | None:
        content, file = read(), io.BytesIO()
        if content is None:
            return None
        torch.save(content, file)
        return file.getvalue()

    sent = processes.share(packed)
    if sent is None:
        return None
    content: dict[str, Any] = torch.load(io.BytesIO(sent), map_location="cpu", weights_only=True)
    return content


def _progress_of(content: dict[str, Any]) -> Progress:
    return Progress(**{**content, "convergence": Convergence(**content["convergence"])})
