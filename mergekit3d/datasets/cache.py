"""Prepared subjects, kept in memory as far as they fit."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from mergekit3d.datasets.prepare import Prepared, prepare
from mergekit3d.datasets.subject import Subject
from mergekit3d.datasets.vocabulary import Vocabulary
from mergekit3d.progress import SILENT, Reporter

if TYPE_CHECKING:
    from mergekit3d.checkpoints.metadata import TaskSpec

DEFAULT_CAPACITY_BYTES = 4 * 2**30


class SubjectStore:
    """Prepares subjects when they are asked for and keeps the first ones that fit; safe to use from several threads.

    Nothing is evicted for a newcomer: epochs sweep over all subjects, and a cache of the most recent ones, once too small for the
    sweep, would miss every time. What comes back never depends on what was kept.

    Args:
        subjects: number (from 1) -> subject.
        task: what to prepare them for.
        vocabulary: label ids that may occur.
        with_target: whether to read label maps.
        capacity_bytes: memory for subjects.
        reporter: is told, once a subject, of resampling.
    """

    def __init__(
        self,
        subjects: Mapping[int, Subject],
        task: TaskSpec,
        *,
        vocabulary: Vocabulary,
        with_target: bool = True,
        capacity_bytes: int = DEFAULT_CAPACITY_BYTES,
        reporter: Reporter = SILENT,
    ) -> None:
        self.subjects = dict(subjects)
        self.task = task
        self.vocabulary = vocabulary
        self.with_target = with_target
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self._reporter = reporter
        self._kept: dict[int, Prepared] = {}
        self._told: set[int] = set()
        self._lock = threading.Lock()
        self._busy = {number: threading.Lock() for number in self.subjects}

    @property
    def numbers(self) -> tuple[int, ...]:
        """The subjects' numbers, in order."""
        return tuple(sorted(self.subjects))

    def get(self, number: int) -> Prepared:
        """One prepared subject; its arrays are shared and read-only.

        Raises:
            InputError: the subject cannot be prepared.
        """
        with self._busy[number]:
            kept = self._kept.get(number)
            return kept if kept is not None else self._prepare(number)

    def __iter__(self) -> Iterator[Prepared]:
        """Every subject, in the order of the numbers."""
        return (self.get(number) for number in self.numbers)

    def _prepare(self, number: int) -> Prepared:
        with self._lock:
            reporter = SILENT if number in self._told else self._reporter
            self._told.add(number)
        prepared = prepare(
            self.subjects[number], number, self.task, vocabulary=self.vocabulary, with_target=self.with_target, reporter=reporter
        )
        for array in (prepared.image, prepared.target):
            if array is not None:
                array.setflags(write=False)
        with self._lock:
            if self.used_bytes + prepared.size_bytes <= self.capacity_bytes:
                self._kept[number] = prepared
                self.used_bytes += prepared.size_bytes
        return prepared
