"""A run over a data set: one pass, or a first one to learn a scale of intensities and a second one to map onto it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from mergekit3d.errors import InputError, Interrupted
from mergekit3d.preprocessing.ledger import REPLACED, Ledger
from mergekit3d.preprocessing.placing import Place
from mergekit3d.preprocessing.pool import Work, carry_out, worker_count
from mergekit3d.preprocessing.scales import Landmarks, learn
from mergekit3d.preprocessing.settings import LEARNED, Settings
from mergekit3d.preprocessing.subject import DONE_BEFORE, Job, finish, measure
from mergekit3d.progress import Reporter
from mergekit3d.training.interruption import Interruption, catch_signals

RESUME = "run it again with --resume"


@dataclass
class Run:
    """A run under way.

    Args:
        ledger: the output folder.
        places: where every subject belongs.
        jobs: one a subject.
        workers: processes; None: one a processor.
        reporter: where progress goes.
        records: of the subjects that are done.
        failed: number of the subject -> why it cannot be used.
    """

    ledger: Ledger
    places: Sequence[Place]
    jobs: Sequence[Job]
    workers: int | None
    reporter: Reporter
    records: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[int, InputError] = field(default_factory=dict)

    @property
    def done_before(self) -> int:
        """Subjects that an earlier run did."""
        return sum(bool(record[DONE_BEFORE]) for record in self.records)

    def through(self, settings: Settings, landmarks: Landmarks | None, reference: int | None) -> Landmarks | None:
        """Do all subjects.

        Args:
            settings: what to do.
            landmarks: a scale that was learned before.
            reference: number of the subject whose histogram is the scale.

        Returns:
            The scale, where the intensities have one.

        Raises:
            InputError: the scale cannot be learned.
            Interrupted: a signal came.
            MergeKit3DError: the output cannot be written, or a process was killed.
        """
        with catch_signals() as interruption:
            if landmarks is None and settings.intensity in LEARNED:
                landmarks = self._learned(settings.intensity, reference, interruption)
            jobs = [replace(job, landmarks=landmarks) for job in self.jobs if job.number not in self.failed]
            self._each(finish, jobs, "preprocess", interruption, self._place)
        return landmarks

    def _place(self, job: Job, record: dict[str, Any]) -> None:
        """Put a subject's finished files into their place; its note comes first, so that they are known whatever happens in between."""
        if not record[DONE_BEFORE]:
            self.ledger.note(record)
            place = next(place for place in self.places if place.number == job.number)
            place.fill(job.folder, self.ledger.out, self.ledger.work / REPLACED / str(job.number))
        moved = record["grid"]["resampled_to_it"]
        if moved and not record[DONE_BEFORE]:
            self.reporter.info(f"subject {job.number}: {', '.join(moved)} resampled onto the grid of the subject")
        self.records.append(record)

    def _learned(self, kind: str, reference: int | None, interruption: Interruption) -> Landmarks:
        jobs = [job for job in self.jobs if reference is None or job.number == reference]
        measured: dict[int, Mapping[str, Any]] = {}
        self._each(measure, jobs, f"learn the {kind} scale", interruption, lambda job, value: measured.update({job.number: value}))
        if not measured:
            raise next(iter(self.failed.values()))
        return learn(kind, [measured[number]["percentiles"] for number in sorted(measured)])

    def _each(self, work: Work, jobs: Sequence[Job], what: str, interruption: Interruption, then: Callable[[Job, Any], None]) -> None:
        """Do the jobs and hand on what comes of them; a subject that cannot be used is noted."""
        workers = worker_count(self.workers, len(jobs))
        ended = 0
        with (
            self.reporter.task(what, len(jobs)) as progress,
            closing(carry_out(work, jobs, workers=workers, interruption=interruption)) as outcomes,
        ):
            for outcome in outcomes:
                ended += 1
                if outcome.error is None:
                    then(outcome.job, outcome.value)
                else:
                    self.failed[outcome.job.number] = outcome.error
                    self.reporter.info(f"left out: {outcome.error}")
                progress.advance(1, message=f"subject {outcome.job.number}")
            if interruption.signal_number is not None and ended < len(jobs):
                failed = f"{what}: stopped by a signal after {ended} of {len(jobs)} subjects"
                raise Interrupted(failed, signal_number=interruption.signal_number, todo=RESUME)
