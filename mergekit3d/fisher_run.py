"""A Fisher estimation under way: subject after subject, with snapshots that it goes on from, shared out among processes."""

from __future__ import annotations

import glob
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from mergekit3d.architectures.slabs import fast_cpu_convolutions
from mergekit3d.datasets.prefetch import prefetch
from mergekit3d.datasets.sampling import Batch, epoch_jobs, whole_volume_batches
from mergekit3d.errors import InputError, Interrupted, MergeKit3DError, UsageError
from mergekit3d.fisher_estimation import WHOLE, Example, FisherSums, add_subjects, batches_of_one_size, empty_sums
from mergekit3d.per_sample.recorder import PerSampleGradients, per_sample_gradients
from mergekit3d.progress import Reporter
from mergekit3d.storage.seal import json_digest
from mergekit3d.training.devices import Runtime, memory_advice
from mergekit3d.training.interruption import Interruption, catch_signals
from mergekit3d.training.processes import ProcessGroup
from mergekit3d.training.snapshot import read_snapshot, write_snapshot

if TYPE_CHECKING:
    from collections.abc import Generator

    from mergekit3d.datasets.cache import SubjectStore
    from mergekit3d.recipe.models import FisherModel

ANEW = "run it without --resume to begin anew"


@dataclass(frozen=True)
class Estimation:
    """What is estimated, and how.

    Args:
        network: in evaluation mode, on the runtime's device.
        store: the subjects of all processes.
        exclusive: softmax in place of sigmoids.
        settings: estimator, draws, patch, subjects at once, time between snapshots.
        multiple_of: what volumes are padded to a multiple of.
        seed: of draws and patches.
        runtime: device and precision.
    """

    network: nn.Module
    store: SubjectStore
    exclusive: bool
    settings: FisherModel
    multiple_of: int
    seed: int
    runtime: Runtime

    def batches(self, numbers: Sequence[int]) -> Iterator[list[Example]]:
        """Subjects, each whole or one patch of it, together as far as they follow one another and have one padded size.

        From the first of any of these batches on, the rest are the same: what they hold depends on order and sizes alone.
        """
        return batches_of_one_size(self._examples(numbers), self.settings.batch_size)

    def image_shapes(self) -> Iterator[Sequence[int]]:
        """(1, modalities, X, Y, Z) of what the network is given of each subject, padding included."""
        return (example.image.shape for example in self._examples(self.store.numbers))

    def _examples(self, numbers: Sequence[int]) -> Iterator[Example]:
        with_labels = self.settings.estimator == "true"
        for number in numbers:
            for batch in self._alone(number):
                yield Example(number, batch.images, batch.targets if with_labels else None, batch.shapes[0])

    def _alone(self, number: int) -> Iterator[Batch]:
        size, multiple = self.settings.patch_size, self.multiple_of
        if size is None:
            return whole_volume_batches(self.store, [number], multiple_of=multiple)
        jobs = epoch_jobs(self.store, [number], batch_size=1, patch_size=size, multiple_of=multiple, seed=self.seed, epoch=number)
        return (job() for job in jobs)

    def add(self, sums: FisherSums, examples: Sequence[Example], recorder: PerSampleGradients) -> list[int]:
        """Add the subjects of a batch to the sums; returns their numbers."""
        add_subjects(
            sums,
            self.network,
            [example.on(self.runtime.device) for example in examples],
            exclusive=self.exclusive,
            draws=self.settings.draws,
            generators=[torch.Generator().manual_seed(self.seed * 1_000_003 + example.number) for example in examples],
            autocast=self.runtime.autocast,
            recorder=recorder,
        )
        return [example.number for example in examples]


@dataclass(frozen=True)
class Snapshots:
    """Where an estimation keeps its state, beside its output, until that is written; one file a process.

    Args:
        out: the output.
        identity: digest of what decides the result.
        group: the processes.
    """

    out: Path
    identity: str
    group: ProcessGroup

    @property
    def path(self) -> Path:
        """Of this process."""
        return self.out.with_name(
            f".{self.out.name}.snapshot{'' if self.group.size == 1 else f'-{self.group.rank + 1}of{self.group.size}'}"
        )

    def found(self) -> list[Path]:
        """Snapshots of any number of processes that are there."""
        return sorted(self.out.parent.glob(f".{glob.escape(self.out.name)}.snapshot*"))

    def save(self, sums: FisherSums, done: Sequence[int]) -> None:
        """Write the state of this process.

        Raises:
            OutputError: the file system refused.
        """
        write_snapshot(self.path, {"sums": dict(vars(sums)), "done": list(done)}, identity=self._own_identity())

    def load(self, sums: FisherSums) -> list[int]:
        """Put the sums of this process back; returns the numbers of the subjects that are in them, none where nothing was saved.

        Raises:
            InputError: the snapshot is damaged.
            UsageError: it is of other settings, weights, subjects or number of processes.
        """
        others = [path for path in self.found() if not self._is_of_this_group(path)]
        if others:
            raise UsageError("cannot go on from the snapshot", where=others[0], found="one of another number of processes", todo=ANEW)
        try:
            content = read_snapshot(self.path, identity=self._own_identity())
            if content is None:
                return []
            for name, values in content["sums"].pop("squares").items():
                sums.squares[name].copy_(values)
            vars(sums).update(content["sums"])
            return [int(number) for number in content["done"]]
        except UsageError as error:
            found = "one of other settings, weights or subjects"
            raise UsageError(error.failed, where=error.where, found=found, todo=ANEW) from error
        except (InputError, RuntimeError, LookupError, TypeError, ValueError) as error:
            raise InputError("cannot read the snapshot", where=self.path, found="a damaged file", todo=ANEW) from error

    def remove(self) -> None:
        """Forget the state of every process; called by the first, once the output is written."""
        for path in self.found():
            path.unlink(missing_ok=True)

    def _own_identity(self) -> str:
        return json_digest([self.identity, self.group.rank, self.group.size])

    def _is_of_this_group(self, path: Path) -> bool:
        ending = path.name.rpartition(".snapshot")[2]
        return not ending if self.group.size == 1 else ending.endswith(f"of{self.group.size}")


def accumulate(estimation: Estimation, snapshots: Snapshots, *, resume: bool, force: bool, reporter: Reporter) -> FisherSums:
    """Add up the squared gradients of all subjects, those of this process and then those of all.

    Subjects are dealt out to the processes in turn. The sums are the same to the bit whether the run was interrupted or not; the
    number of processes changes them by rounding in float64.

    Args:
        estimation: what to do.
        snapshots: where the state is kept.
        resume: go on from the snapshot, where there is one.
        force: begin anew where the snapshot cannot be gone on from.
        reporter: where progress goes.

    Returns:
        The sums over all subjects, on the CPU.

    Raises:
        InputError: a subject that cannot be used, by its number.
        Interrupted: by a signal; the state is saved, and `resume` goes on from it.
        UsageError: the snapshot is of another run.
        MachineError: out of memory, with what to change; or another process ended.
    """
    group, network = snapshots.group, estimation.network
    sums = empty_sums(network)
    done = _begin(sums, snapshots, resume=resume, force=force, reporter=reporter)
    own = estimation.store.numbers[group.rank :: group.size]
    settings = estimation.settings
    with (
        catch_signals() as signals,
        fast_cpu_convolutions(network),
        per_sample_gradients(network, autocast=estimation.runtime.autocast) as recorder,
        memory_advice(estimation.runtime, patch_size=settings.patch_size, batch_size=settings.batch_size),
    ):
        _add_own(estimation, sums, own, done, signals, snapshots, recorder, reporter)
        for line in _slower_ways(recorder):
            reporter.info(line)
        try:
            return _added_up(sums, group)
        except MergeKit3DError as error:
            # The others got the signal as well and left; what this one did stands in its snapshot.
            raise _interrupted(signals, done, own) if signals.signal_number is not None else error from None


def _begin(sums: FisherSums, snapshots: Snapshots, *, resume: bool, force: bool, reporter: Reporter) -> list[int]:
    """The subjects that a snapshot has in its sums, which are put back."""
    if not resume:
        if snapshots.found():
            reporter.warn("the snapshot of an interrupted run is there and will be replaced; --resume goes on from it")
        return []
    try:
        done = snapshots.load(sums)
    except (UsageError, InputError) as error:
        if not force:
            raise
        reporter.warn(f"{error.failed}, found {error.found}: it will be replaced")
        return []
    if done:
        reporter.info(f"going on after {len(done)} subjects")
    return done


def _add_own(
    estimation: Estimation,
    sums: FisherSums,
    own: Sequence[int],
    done: list[int],
    signals: Interruption,
    snapshots: Snapshots,
    recorder: PerSampleGradients,
    reporter: Reporter,
) -> None:
    saved = time.monotonic()
    left = [number for number in own if number not in done]
    batches = cast("Generator[list[Example], None, None]", prefetch(estimation.batches(left)))
    with closing(batches), reporter.task("fisher", len(own)) as progress:
        progress.advance(len(done))
        for batch in batches:
            added = estimation.add(sums, batch, recorder)
            done.extend(added)
            progress.advance(len(added), message=_told(sums, done[-1]))
            stopping = signals.signal_number is not None
            if stopping or time.monotonic() - saved >= 60 * estimation.settings.snapshot_minutes:
                snapshots.save(sums, done)
                saved = time.monotonic()
            if stopping:
                raise _interrupted(signals, done, own)
    if snapshots.group.size > 1 and left:
        # The others may take long, and may fail.
        snapshots.save(sums, done)


def _slower_ways(recorder: PerSampleGradients) -> list[str]:
    """A line on what had no fast rule, and on what takes no part: nothing is left out silently."""
    lines = [
        f"no fast rule for {name or 'the network itself'}: its gradients were computed one subject at a time" for name in recorder.replayed
    ]
    if recorder.looped:
        lines.append(f"computed by a pass of the whole network for each subject: {_folded(recorder.looped)}")
    if recorder.unused:
        lines.append(f"0, since they take no part in the output: {_folded(recorder.unused)}")
    return lines


def _folded(names: Sequence[str]) -> str:
    """Names that differ in the number of a block alone as one, with how many they are: networks have dozens of blocks."""
    by_pattern: dict[str, list[str]] = {}
    for name in names:
        by_pattern.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), []).append(name)
    return ", ".join(several[0] if len(several) == 1 else f"{pattern} ({len(several)})" for pattern, several in sorted(by_pattern.items()))


def _interrupted(signals: Interruption, done: Sequence[int], own: Sequence[int]) -> Interrupted:
    assert signals.signal_number is not None
    failed = f"interrupted after {len(done)} of {len(own)} subjects; the state is saved"
    return Interrupted(failed, signal_number=signals.signal_number, todo="go on with --resume")


def _told(sums: FisherSums, number: int) -> str:
    """The live figure: how much is known so far, and how well."""
    trace, error = sums.traces[WHOLE] / sums.subjects, sums.standard_errors().get(WHOLE)
    spread = "" if error is None or trace <= 0 else f" +- {100 * error / trace:.2g} %"
    return f"subject {number}, trace {trace:.3g}{spread}"


def _added_up(sums: FisherSums, group: ProcessGroup) -> FisherSums:
    """The sums of all processes."""
    squares = {name: values.cpu().contiguous() for name, values in sums.squares.items()}
    group.add_up(squares.values())
    whole = FisherSums(squares)
    figures: list[dict[str, Any]] = group.gather({name: value for name, value in vars(sums).items() if name != "squares"})
    for one in figures:
        whole.subjects += one["subjects"]
        whole.voxels += one["voxels"]
        for mine, theirs in ((whole.traces, one["traces"]), (whole.squared_traces, one["squared_traces"])):
            for layer, figure in theirs.items():
                mine[layer] = mine.get(layer, 0.0) + figure
    return whole
