"""Prepared subjects, kept in memory as far as they fit, or mapped from a folder where there is one."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mergekit3d.datasets.prepare import Prepared, prepare
from mergekit3d.datasets.stored import stored, stored_key
from mergekit3d.datasets.subject import Subject
from mergekit3d.datasets.vocabulary import Vocabulary
from mergekit3d.errors import InputError, OutputError
from mergekit3d.progress import SILENT, Reporter
from mergekit3d.storage.steady import AFTER_A_CHANGE, Stamp

if TYPE_CHECKING:
    from mergekit3d.checkpoints.metadata import TaskSpec

DEFAULT_CAPACITY_BYTES = 4 * 2**30
MOST_MAPPED = 256
"""Mapped files; each takes one of the file descriptors that a process may have."""


class SubjectStore:
    """Prepares subjects when they are asked for and keeps the first ones that fit; safe to use from several threads.

    Nothing is evicted for a newcomer: epochs sweep over all subjects, and a cache of the most recent ones, once too small for the
    sweep, would miss every time. What comes back never depends on what was kept.

    With a folder, each subject is prepared once for all runs and processes that share it (see `stored.py`), and what is kept in memory
    is the system's business. Where the folder cannot be written, that is told once, and things are as without it.

    The files of a subject must stay as they were when they were first looked at: what is prepared of them later would be of another
    content than what was learned from before, and than its hash says.

    Args:
        subjects: number (from 1) -> subject.
        task: what to prepare them for.
        vocabulary: label ids that may occur.
        with_target: whether to read label maps.
        capacity_bytes: memory for subjects.
        folder: where prepared subjects are stored; None: nowhere.
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
        folder: Path | None = None,
        reporter: Reporter = SILENT,
    ) -> None:
        self.subjects = dict(subjects)
        self.task = task
        self.vocabulary = vocabulary
        self.with_target = with_target
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self.folder = folder
        self._reporter = reporter
        self._kept: dict[int, Prepared] = {}
        self._mapped: dict[int, Prepared] = {}
        self._told: set[int] = set()
        self._stamps: dict[int, list[Stamp] | None] = {}
        self._keys: dict[int, str] = {}
        self._lock = threading.Lock()
        self._busy = {number: threading.Lock() for number in self.subjects}

    @property
    def numbers(self) -> tuple[int, ...]:
        """The subjects' numbers, in order."""
        return tuple(sorted(self.subjects))

    def get(self, number: int) -> Prepared:
        """One prepared subject; its arrays are shared and read-only.

        Raises:
            InputError: the subject cannot be prepared, or a file of it changed since it was first looked at.
        """
        with self._busy[number]:
            kept = self._kept.get(number) or self._mapped.get(number)
            return kept if kept is not None else self._load(number)

    def __iter__(self) -> Iterator[Prepared]:
        """Every subject, in the order of the numbers."""
        return (self.get(number) for number in self.numbers)

    def note_files(self) -> None:
        """Look at the files of all subjects, so that a change after this is told."""
        for number in self.numbers:
            self.check_files(number)

    def check_files(self, number: int) -> None:
        """Refuse a subject whose files are not what they were.

        Raises:
            InputError: one was changed, replaced or removed.
        """
        subject = self.subjects[number]
        files = dict.fromkeys([*(subject.images[name] for name in self.task.modalities if name in subject.images), subject.label])
        try:
            now = [Stamp.of(path) for path in files if path is not None and (self.with_target or path != subject.label)]
        except (OSError, ValueError):
            now = None  # preparing it tells
        with self._lock:
            before = self._stamps.setdefault(number, now)
        if before is None or now == before:
            return
        known = self._keys.get(number)
        if known is not None and known == self._key(number):  # the same content: touched, or copied to another disk
            with self._lock:
                self._stamps[number] = now
        else:
            raise InputError("a file changed while it was used", where=f"subject {number}", todo=AFTER_A_CHANGE)

    def _load(self, number: int) -> Prepared:
        self.check_files(number)
        folder, key = self.folder, self._key(number)
        if key is not None:
            self._keys.setdefault(number, key)
        if folder is None or key is None:
            return self._keep(self._prepare(number))
        try:
            mapped = stored(folder, key, number, lambda: self._prepare(number))
        except OutputError as error:
            with self._lock:
                failed, self.folder = self.folder is not None, None
            if failed:
                self._reporter.warn(f"prepared subjects are not stored: {error}")
            return self._keep(self._prepare(number))
        with self._lock:
            while len(self._mapped) >= MOST_MAPPED:
                del self._mapped[next(iter(self._mapped))]
            self._mapped[number] = mapped
        return mapped

    def _key(self, number: int) -> str | None:
        """The subject's name in the folder; None where there is no folder, or a file that cannot be read, which preparing it tells."""
        if self.folder is None:
            return None
        try:
            return stored_key(self.subjects[number], self.task, self.vocabulary, with_target=self.with_target)
        except OSError:
            return None

    def _prepare(self, number: int) -> Prepared:
        with self._lock:
            reporter = SILENT if number in self._told else self._reporter
            self._told.add(number)
        subject = self.subjects[number]
        prepared = prepare(subject, number, self.task, vocabulary=self.vocabulary, with_target=self.with_target, reporter=reporter)
        self.check_files(number)
        return prepared

    def _keep(self, prepared: Prepared) -> Prepared:
        for array in (prepared.image, prepared.target):
            if array is not None:
                array.setflags(write=False)
        with self._lock:
            if self.used_bytes + prepared.size_bytes <= self.capacity_bytes:
                self._kept[prepared.number] = prepared
                self.used_bytes += prepared.size_bytes
        return prepared
