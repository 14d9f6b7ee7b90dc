"""The training loop of train, adapt and finetune.

An epoch is its optimizer steps, then a validation on whole volumes, then a row in log.csv. Batches and dropout are pure functions of
(seed, epoch, step), so that a training that was interrupted goes on to the same weights, bit for bit on the CPU. Several processes may
share a training: see ``sharing.py``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from mergekit3d.architectures.slabs import fast_cpu_convolutions
from mergekit3d.datasets.prefetch import prefetch
from mergekit3d.datasets.sampling import Batch
from mergekit3d.errors import InputError, Interrupted
from mergekit3d.progress import SILENT, Reporter, Task
from mergekit3d.training.deep_supervision import over_levels
from mergekit3d.training.devices import Runtime, memory_advice
from mergekit3d.training.interruption import Interruption, catch_signals
from mergekit3d.training.keeping import Keeper
from mergekit3d.training.live import LiveLine
from mergekit3d.training.log import Row
from mergekit3d.training.loss import LOSSES
from mergekit3d.training.objective import SUPERVISED, Objective
from mergekit3d.training.optimizers import make_optimizer, set_rate
from mergekit3d.training.processes import ALONE, ProcessGroup
from mergekit3d.training.recompute import recomputed
from mergekit3d.training.schedule import SCHEDULES
from mergekit3d.training.settings import TrainingSettings
from mergekit3d.training.sharing import Sharing
from mergekit3d.training.state import Progress, Trained
from mergekit3d.training.stepping import Stepper, Taken
from mergekit3d.training.trainable import FitResult, Trainable, TrainingData
from mergekit3d.training.validation import Scores, validate

BEST, LAST, RESCUED = "best", "last", "rescued"
PREFETCH_STEPS = 2


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
        MachineError: out of memory, with what to change; or another process ended.
    """
    devices = [runtime.device] if runtime.device.type == "cuda" else []
    further = [] if settings.checkpoint_activations else ["set checkpoint_activations: true"]
    memory = memory_advice(runtime, patch_size=settings.patch_size, batch_size=settings.batch_size, further=further)
    network, recomputing = trainable.network, recomputed(trainable.network, enabled=settings.checkpoint_activations)
    with catch_signals() as signals, fast_cpu_convolutions(network), recomputing, torch.random.fork_rng(devices), memory:
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
        self.loss, self.schedule = LOSSES.get(self.settings.loss), SCHEDULES.get(self.settings.schedule)
        self.sharing = Sharing(self.processes, self.signals, self.network, self.parameters)
        self.stepper = Stepper(
            self.network,
            self.optimizer,
            self.parameters,
            self.settings,
            runtime=self.runtime,
            loss=over_levels(self.objective.of(self.loss)),
            exclusive=self.exclusive,
            seed=self.seed,
            sharing=self.sharing,
            before_forward=self.trainable.before_forward,
            after_backward=self.trainable.after_backward,
            before_step=self.trainable.before_step,
        )
        self.trained = Trained(self.network, self.parameters, self.optimizer, self.stepper.average, self.stepper.scaler)
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
            with self.stepper.average.in_place():
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
        with self.stepper.average.in_place():
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
        batches = self.data.train(progress.epoch, progress.step * settings.accumulate)
        groups = cast("Generator[list[Batch], None, None]", prefetch(_groups(batches, settings.accumulate), PREFETCH_STEPS))
        with closing(groups):
            for group in self.sharing.each(groups):
                taken = self.stepper.step(group, progress.epoch, progress.step)
                if not taken.good:
                    self._give_up(taken, group)
                progress.losses.append(taken.loss)
                progress.step += 1
                task.advance(0, message=self.live.text(self.progress))
                self._stop_if_asked()
                with self.sharing.own_work():
                    self.keeper.save_if_due(progress)
        if not progress.losses:
            error = InputError("nothing to train on", where=f"epoch {progress.epoch + 1}", wanted="at least one batch", found="none")
            self.processes.raise_together(error)

    def _give_up(self, taken: Taken, group: Sequence[Batch]) -> None:
        """The step was not taken: the weights are still good."""
        self.processes.share(self._rescue)
        shares = self.processes.gather((math.isfinite(taken.own), [number for batch in group for number in batch.numbers]))
        suspects = [numbers for is_finite, numbers in shares if not is_finite] or [numbers for _, numbers in shares]
        numbers = ", ".join(str(number) for share in suspects for number in share)
        where = f"epoch {self.progress.epoch + 1}, step {self.progress.step + 1}, subjects {numbers}"
        what = "gradient" if math.isfinite(taken.loss) else "loss"
        todo = "look at the images of these subjects, or lower learning_rate; the last good state is kept"
        self.processes.raise_together(InputError(f"the {what} is not finite", where=where, todo=todo))

    def _rescue(self) -> None:
        self.keeper.save(self.progress)
        with self.stepper.average.in_place():
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
        self.stepper.average.put_back()
        self.processes.share(lambda: self.keeper.save(self.progress))
        failed = f"interrupted in epoch {self.progress.epoch + 1} after step {self.progress.step}; the state is saved"
        self.processes.raise_together(Interrupted(failed, signal_number=number, todo="go on with --resume"))


def _groups(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Batches in groups that make one step; the last group may be smaller."""
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, size)):
        yield group
