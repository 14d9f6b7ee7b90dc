"""The training loop of train, adapt and finetune.

An epoch is its optimizer steps, then a validation on whole volumes, then a row in log.csv. Batches and dropout are pure functions of
(seed, epoch, step), so that a training that was interrupted goes on to the same weights, bit for bit on the CPU. Several processes may
share a training: see ``sharing.py``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mergekit3d.architectures.slabs import fast_cpu_convolutions
from mergekit3d.datasets.prefetch import prefetch
from mergekit3d.datasets.sampling import Batch
from mergekit3d.errors import InputError, Interrupted
from mergekit3d.progress import SILENT, Reporter, Task
from mergekit3d.training.devices import Runtime, memory_advice
from mergekit3d.training.interruption import Interruption, catch_signals
from mergekit3d.training.keeping import Keeper
from mergekit3d.training.live import LiveLine
from mergekit3d.training.log import Row
from mergekit3d.training.loss import LOSSES
from mergekit3d.training.objective import SUPERVISED, Objective
from mergekit3d.training.optimizers import make_optimizer, set_rate
from mergekit3d.training.processes import ALONE, ProcessGroup
from mergekit3d.training.schedule import SCHEDULES
from mergekit3d.training.settings import TrainingSettings
from mergekit3d.training.sharing import Sharing, step_seed
from mergekit3d.training.state import Progress, Trained
from mergekit3d.training.validation import Scores, validate

BEST, LAST, RESCUED = "best", "last", "rescued"
PREFETCH_STEPS = 2


@dataclass(frozen=True)
class TrainingData:
    """Where batches come from.

    Args:
        train: the batches of an epoch (from 0), a pure function of it.
        validation: one whole subject a batch; none at all: no validation, and training runs its full length.
        region_names: names of the regions or classes, without the background.
    """

    train: Callable[[int], Iterable[Batch]]
    validation: Callable[[], Iterable[Batch]]
    region_names: tuple[str, ...]


@dataclass(frozen=True)
class Trainable:
    """What is trained, and how it gets its gradient.

    Args:
        network: on the runtime's device.
        parameter_groups: for the optimizer; a group may carry its own ``lr``. Gradients of these alone are cleared by the loop.
        state: what best and last keep, as tensors on the CPU that nothing changes any more.
        before_forward: called before the forward pass of every step.
        after_backward: called once a step, when the gradients of all batches of this process are summed. Where several processes share
            the step, theirs are added up after it: what it makes of them must be linear in them.
        before_step: called once a step, when the gradients are those of the whole step: penalties belong here.
        before_validation: called before validation; None: `before_forward` is.
        columns: further columns of log.csv.
    """

    network: nn.Module
    parameter_groups: Sequence[dict[str, Any]]
    state: Callable[[], dict[str, Tensor]]
    before_forward: Callable[[], None] = lambda: None
    after_backward: Callable[[], None] = lambda: None
    before_step: Callable[[], None] = lambda: None
    before_validation: Callable[[], None] | None = None
    columns: Callable[[], Mapping[str, float]] = dict


@dataclass(frozen=True)
class FitResult:
    """How a training ended.

    Args:
        epochs: trained.
        best_epoch: the one whose weights are kept as best, from 1.
        best_validation_loss: at that epoch; None without validation.
        best_validation_dice: mean over regions, at that epoch; None without validation.
        stopped: why, for people.
    """

    epochs: int
    best_epoch: int
    best_validation_loss: float | None
    best_validation_dice: float | None
    stopped: str


def fit(
    trainable: Trainable,
    data: TrainingData,
    settings: TrainingSettings,
    *,
    runtime: Runtime,
    folder: Path,
    exclusive: bool,
    seed: int,
    save: Callable[[str, dict[str, Tensor]], None],
    identity: str = "",
    resume: bool = False,
    reporter: Reporter = SILENT,
    draw: Callable[[Path], None] | None = None,
    objective: Objective = SUPERVISED,
    processes: ProcessGroup = ALONE,
) -> FitResult:
    """Train until the validation loss has converged, or for all epochs.

    Nothing is saved under a final name before the end, but log.csv and what `draw` draws; until then the snapshot holds everything.

    Args:
        trainable: network, parameters and gradients.
        data: batches; of several processes, each gets its own share of them.
        settings: how to train.
        runtime: device and precision.
        folder: of log.csv and the snapshot.
        exclusive: softmax in place of sigmoids.
        seed: of the dropout, 0 or more.
        save: called at the end with "best" and "last" and their tensors; with "rescued" where a loss was not finite.
        identity: digest of what decides the result; a snapshot of another one is refused.
        resume: go on from the snapshot, where there is one.
        reporter: where progress goes.
        draw: draws progress.png into the folder, from its log.csv; called every few minutes and at the end.
        objective: what the steps minimise; the validation loss is always that of the labels.
        processes: that share the training; the first of them writes and saves.

    Returns:
        How it ended.

    Raises:
        InputError: a loss or gradient that is not finite; it names the subjects by number. The state before it is kept.
        Interrupted: by a signal; the state is saved, and `resume` goes on from it.
        UsageError: the snapshot is of another identity.
        OutputError: the file system refused.
        MergeKit3DError: out of memory, with what to change; or another process ended.
    """
    devices = [runtime.device] if runtime.device.type == "cuda" else []
    memory = memory_advice(runtime, patch_size=settings.patch_size, batch_size=settings.batch_size)
    with catch_signals() as signals, fast_cpu_convolutions(trainable.network), torch.random.fork_rng(devices), memory:
        loop = _Loop(
            trainable=trainable,
            data=data,
            settings=settings,
            runtime=runtime,
            folder=folder,
            exclusive=exclusive,
            seed=seed,
            save=save,
            identity=identity,
            reporter=reporter,
            draw=draw,
            objective=objective,
            processes=processes,
            signals=signals,
        )
        loop.begin(resume=resume)
        with reporter.task(folder.name, settings.epochs) as task:
            stopped = loop.run(task)
        return loop.end(stopped)


@dataclass
class _Loop:
    """One training under way."""

    trainable: Trainable
    data: TrainingData
    settings: TrainingSettings
    runtime: Runtime
    folder: Path
    exclusive: bool
    seed: int
    save: Callable[[str, dict[str, Tensor]], None]
    identity: str
    reporter: Reporter
    draw: Callable[[Path], None] | None
    objective: Objective
    processes: ProcessGroup
    signals: Interruption

    def __post_init__(self) -> None:
        self.network = self.trainable.network
        self.optimizer = make_optimizer(self.trainable.parameter_groups, self.settings)
        self.parameters: list[Tensor] = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.trained = Trained(self.network, self.parameters, self.optimizer)
        self.loss, self.schedule = LOSSES.get(self.settings.loss), SCHEDULES.get(self.settings.schedule)
        self.step_loss = self.objective.of(self.loss)
        self.sharing = Sharing(self.processes, self.signals, self.network, self.parameters)
        minutes = self.settings.snapshot_minutes
        self.keeper = Keeper(self.folder, self.trained, self.identity, minutes, self.draw, self.reporter, self.processes)
        self.progress = Progress()
        self.live = LiveLine(self.data.region_names, self.settings.epochs)

    def begin(self, *, resume: bool) -> None:
        """Go on from the snapshot, or start anew and forget it."""
        self.sharing.check(self.identity, self.reporter)
        found = self.keeper.load() if resume else None
        if found is None:
            self.keeper.forget()
            return
        self.progress = found
        self.reporter.info(f"going on from epoch {found.epoch + 1}, step {found.step + 1}")

    def run(self, task: Task) -> str:
        """Train the epochs that are left; returns why training stopped."""
        settings, progress = self.settings, self.progress
        task.advance(progress.epoch)
        self.live.start(progress.epoch)
        while progress.epoch < settings.epochs:
            self._train(task)
            self._finish_epoch(self._validate())
            task.advance(1, message=self.live.text(self.progress))
            if progress.convergence.converged(settings):
                return f"no better validation loss for {settings.patience} epochs"
            if progress.epoch < settings.epochs:
                self._stop_if_asked()
                with self.sharing.own_work():
                    self.keeper.save_if_due(progress)
            with self.sharing.own_work():
                self.keeper.draw_if_due()
        return f"all {settings.epochs} epochs done"

    def end(self, stopped: str) -> FitResult:
        """Save best and last, draw, and forget the snapshot."""
        progress = self.progress
        self.sharing.meet()
        last = self.trainable.state()
        if progress.best is None:
            progress.best, progress.best_epoch = last, progress.epoch
        self.processes.share(lambda: self._save_all(last))
        row = progress.rows[progress.best_epoch - 1]
        loss, dice = (None if math.isnan(row[name]) else row[name] for name in ("validation_loss", "validation_dice"))
        return FitResult(progress.epoch, progress.best_epoch, loss, dice, stopped)

    def _save_all(self, last: dict[str, Tensor]) -> None:
        self.save(LAST, last)
        self.save(BEST, last if self.progress.best is None else self.progress.best)
        self.keeper.draw_now()
        self.keeper.forget()
        for leftover in self.folder.glob(f"{RESCUED}.*"):
            leftover.unlink(missing_ok=True)

    def _train(self, task: Task) -> None:
        progress, settings = self.progress, self.settings
        self.network.train()
        set_rate(self.optimizer, self.schedule(progress.epoch, settings, progress.convergence))
        batches = itertools.islice(self.data.train(progress.epoch), progress.step * settings.accumulate, None)
        groups = cast("Generator[list[Batch], None, None]", prefetch(_groups(batches, settings.accumulate), PREFETCH_STEPS))
        with closing(groups):
            for group in self.sharing.each(groups):
                progress.losses.append(self._step(group))
                progress.step += 1
                task.advance(0, message=self.live.text(self.progress))
                self._stop_if_asked()
                with self.sharing.own_work():
                    self.keeper.save_if_due(progress)
        if not progress.losses:
            error = InputError("nothing to train on", where=f"epoch {progress.epoch + 1}", wanted="at least one batch", found="none")
            self.processes.raise_together(error)

    def _step(self, group: Sequence[Batch]) -> float:
        """One optimizer step; returns the mean loss of its batches before it."""
        with self.sharing.own_work():
            own = self._backward(group)
        value = self.sharing.add_up(own, sum(batch.part for batch in group) / len(group))
        self.trainable.before_step()
        norm = nn.utils.get_total_norm([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        if not (math.isfinite(value) and torch.isfinite(norm)):
            self._give_up(value, own, group)
        if self.settings.gradient_clip is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.settings.gradient_clip, norm)
        self.optimizer.step()
        return value

    def _backward(self, group: Sequence[Batch]) -> float:
        """Gradients of the mean loss of a step, as far as it is of this process's samples; returns that part of the mean loss."""
        position = self.seed, self.progress.epoch, self.progress.step
        torch.manual_seed(step_seed(*position))
        self.trainable.before_forward()
        if not self.processes.is_first:
            torch.manual_seed(step_seed(*position, self.processes.rank))
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for batch in group:
            if not batch.numbers:
                continue
            images = batch.images.to(self.runtime.device, non_blocking=True)
            targets = None if batch.targets is None else batch.targets.to(self.runtime.device, non_blocking=True)
            with self.runtime.autocast():
                logits = self.network(images)
            loss = self.step_loss(logits, targets, self.exclusive)
            torch.autograd.backward(loss / (len(group) / batch.part))
            losses.append(loss.detach() * batch.part)
        self.trainable.after_backward()
        return float(torch.stack(losses).mean()) * len(losses) / len(group) if losses else 0.0

    def _give_up(self, value: float, own: float, group: Sequence[Batch]) -> None:
        """The step was not taken: the weights are still good."""
        self.processes.share(self._rescue)
        shares = self.processes.gather((math.isfinite(own), [number for batch in group for number in batch.numbers]))
        suspects = [numbers for is_finite, numbers in shares if not is_finite] or [numbers for _, numbers in shares]
        numbers = ", ".join(str(number) for share in suspects for number in share)
        where = f"epoch {self.progress.epoch + 1}, step {self.progress.step + 1}, subjects {numbers}"
        what = "gradient" if math.isfinite(value) else "loss"
        todo = "look at the images of these subjects, or lower learning_rate; the last good state is kept"
        self.processes.raise_together(InputError(f"the {what} is not finite", where=where, todo=todo))

    def _rescue(self) -> None:
        self.keeper.save(self.progress)
        self.save(RESCUED, self.trainable.state() if self.progress.best is None else self.progress.best)

    def _validate(self) -> Scores | None:
        (self.trainable.before_validation or self.trainable.before_forward)()
        scores = validate(
            self.network,
            self.data.validation(),
            self.loss,
            runtime=self.runtime,
            exclusive=self.exclusive,
            patch_size=self.settings.patch_size,
            after_subject=self._stop_if_asked,
            sharing=self.sharing,
        )
        if scores is None and not self.progress.rows:
            self.reporter.info(f"no validation subjects: all {self.settings.epochs} epochs are trained, and the last is kept")
        return scores

    def _finish_epoch(self, scores: Scores | None) -> None:
        progress = self.progress
        self.keeper.count_seconds(progress)
        regions = {f"validation_dice_{name}": math.nan for name in self.data.region_names}
        if scores is not None:
            regions = dict(zip(regions, scores.dice, strict=True))
        earlier = progress.rows[-1]["step"] if progress.rows else 0
        row: Row = {
            "epoch": progress.epoch + 1,
            "step": earlier + progress.step,
            "seconds": round(progress.seconds, 3),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "train_loss": math.fsum(progress.losses) / len(progress.losses),
            "validation_loss": math.nan if scores is None else scores.loss,
            "validation_dice": math.nan if scores is None else scores.mean_dice,
            **regions,
            **self.trainable.columns(),
        }
        progress.rows.append(row)
        if scores is not None:
            progress.convergence = progress.convergence.after(scores.loss, self.settings)
            if progress.convergence.waited == 0:
                progress.best, progress.best_epoch = self.trainable.state(), progress.epoch + 1
        progress.epoch, progress.step, progress.losses, progress.seconds = progress.epoch + 1, 0, [], 0.0
        self.processes.share(lambda: self.keeper.write_log(progress))

    def _stop_if_asked(self) -> None:
        number = self.sharing.signal_number
        if number is None:
            return
        self.processes.share(lambda: self.keeper.save(self.progress))
        failed = f"interrupted in epoch {self.progress.epoch + 1} after step {self.progress.step}; the state is saved"
        self.processes.raise_together(Interrupted(failed, signal_number=number, todo="go on with --resume"))


def _groups(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Batches in groups that make one step; the last group may be smaller."""
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, size)):
        yield group
