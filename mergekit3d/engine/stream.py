"""From source files to a fused file in one pass: every byte is read once, hashed, checked, combined and written, piece by piece.

Tensors are shared out among a few workers. What a source's values may turn out to be (damaged, not finite, of other weights than the
Fisher diagonal says) is collected over the whole pass and told at once, before the output takes its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from mergekit3d.checkpoints import Checkpoint, Metadata, TensorEntry
from mergekit3d.checkpoints.checkpoint import ITEM_SIZES, buffer_of, encode
from mergekit3d.checkpoints.safetensors import header_bytes
from mergekit3d.engine.combining import PIECE_ENTRIES, Combiner, arithmetic_dtype, combiner, cuts, surveys_of, widened
from mergekit3d.engine.figures import Figures, dot
from mergekit3d.engine.values import tensor_values
from mergekit3d.engine.workers import Job, carry_out
from mergekit3d.errors import InputError, ProblemCollector
from mergekit3d.plan.fusion import FusionPlan
from mergekit3d.plan.outcomes import COPIED, FUSED, TensorPlan
from mergekit3d.plan.sources import check_same_weights, negative_fisher
from mergekit3d.progress import SILENT, Reporter
from mergekit3d.storage.atomic import atomic_open, reserve, write_at, written_behind
from mergekit3d.storage.seal import tensor_hash, tensors_digest

PLACEHOLDER = "0" * 64
DigestOf = Callable[[Checkpoint], str]


@dataclass(frozen=True)
class Streamed:
    """What a pass found.

    Args:
        metadata: of the file written, with its seal.
        figures: of every fused tensor, in the order of the output.
    """

    metadata: Metadata
    figures: Mapping[str, Figures]


def write_fused(plan: FusionPlan, out: Path, describe: Callable[[DigestOf], Metadata], *, reporter: Reporter = SILENT) -> Streamed:
    """Carry out a plan and write the fused weights as a safetensors file, atomically.

    Args:
        plan: made with ``verify=False``: this pass checks the values.
        out: the file to write.
        describe: the output's metadata, from a function that tells the digest of an input.
        reporter: where progress goes.

    Returns:
        The metadata as it was sealed, and figures on every fused tensor.

    Raises:
        InputError: damaged or unfit sources, all at once; nothing is written then.
        OutputError: the file system refused; the previous file stays.
    """
    entries = [tensor.entry for tensor in plan.tensors]
    placeholder, places, size = header_bytes(entries, describe(lambda _: PLACEHOLDER).sealed(PLACEHOLDER))
    with atomic_open(out) as file:
        reserve(file.fileno(), size)
        run = _Pass(plan, file.fileno(), places)
        with written_behind(file.fileno()):
            run.carry_out(reporter)
        run.check()
        digests = run.output_digests
        sealed = describe(lambda checkpoint: checkpoint.digest).sealed(
            tensors_digest({tensor.entry.name: digests[tensor.alias_of or tensor.entry.name] for tensor in plan.tensors})
        )
        header, _, _ = header_bytes(entries, sealed)
        assert len(header) == len(placeholder)
        write_at(file.fileno(), memoryview(header), 0)
    return Streamed(
        sealed, {tensor.entry.name: run.figures[tensor.entry.name] for tensor in plan.owners if tensor.entry.name in run.figures}
    )


@dataclass
class _Input:
    """One tensor of one input file, hashed and checked while it is read from its first to its last byte."""

    checkpoint: Checkpoint
    entry: TensorEntry
    is_fisher: bool
    not_finite: int = 0
    negative: bool = False

    def __post_init__(self) -> None:
        self.hash = tensor_hash(self.entry.dtype, self.entry.shape)
        if self.checkpoint.read_into is None:
            self._content = memoryview(self.checkpoint.content(self.entry.name))
        else:
            self._content = memoryview(bytearray(min(self.entry.nbytes, PIECE_ENTRIES * ITEM_SIZES[self.entry.dtype])))

    def read(self, piece: slice) -> tuple[np.ndarray, float]:
        """The next piece, flat, in float32 or wider (integers as they are), and the sum of its squares (of weights alone).

        It is valid until the next call.
        """
        item = ITEM_SIZES[self.entry.dtype]
        if self.checkpoint.read_into is None:
            buffer = self._content[piece.start * item : piece.stop * item]
        else:
            buffer = self._content[: (piece.stop - piece.start) * item]
            self.checkpoint.read_into(self.entry.name, piece.start * item, buffer)
        self.hash.update(buffer)
        return self._checked(self.checkpoint.decoded(self.entry.name, buffer, (piece.stop - piece.start,)))

    def _checked(self, values: np.ndarray) -> tuple[np.ndarray, float]:
        if not self.entry.is_float:
            return values, 0.0
        values = widened(values)
        if self.is_fisher:
            if not (np.minimum.reduce(values) >= 0 and np.maximum.reduce(values) < np.inf):
                self.not_finite += values.size - int(np.count_nonzero(np.isfinite(values)))
                self.negative = self.negative or bool(np.any(values < 0))
            return values, 0.0
        square = dot(values, values)
        if not np.isfinite(square):
            self.not_finite += values.size - int(np.count_nonzero(np.isfinite(values)))
            square = float(np.sum(np.square(values, dtype=np.float64)))
        return values, square

    @property
    def is_good(self) -> bool:
        """Whether all values so far can be fused."""
        return not self.not_finite and not self.negative


@dataclass
class _Found:
    """What one job found, in a form that another process can send.

    Args:
        digests: of the input tensors that were read to their end, by number of the file and name.
        not_finite: number of NaN and Inf, where there were any.
        negative: Fisher tensors with an entry below 0.
        written: digest of the output tensor, where the job writes one.
        overflows: whether fused weights were beyond the range of the output's dtype.
        figures: of a fused tensor.
    """

    name: str | None = None
    digests: dict[tuple[int, str], str] = field(default_factory=dict)
    not_finite: dict[tuple[int, str], int] = field(default_factory=dict)
    negative: set[tuple[int, str]] = field(default_factory=set)
    written: str | None = None
    overflows: bool = False
    figures: Figures | None = None


@dataclass
class _Pass:
    """One pass over all files of a plan.

    Args:
        plan: what to do.
        descriptor: the output, open for writing.
        places: where in it each tensor begins, by name.
    """

    plan: FusionPlan
    descriptor: int
    places: Mapping[str, int]
    found: _Found = field(default_factory=_Found)
    output_digests: dict[str, str] = field(default_factory=dict)
    figures: dict[str, Figures] = field(default_factory=dict)
    overflowing: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        plan = self.plan
        checkpoints = [source.checkpoint for source in plan.sources]
        checkpoints += [plan.base.checkpoint] if plan.base is not None else []
        checkpoints += [plan.adapted] if plan.adapted is not None else []
        fishers = [source.fisher for source in plan.sources if source.fisher is not None]
        self.files = list({id(file): file for file in [*checkpoints, *fishers]}.values())
        self.number_of = {id(file): number for number, file in enumerate(self.files)}
        self.fishers = {self.number_of[id(file)] for file in fishers}
        self.names: dict[str, list[str]] = {}
        for tensor in plan.tensors:
            self.names.setdefault(tensor.alias_of or tensor.entry.name, []).append(tensor.entry.name)
        self.values = tensor_values(plan)

    def carry_out(self, reporter: Reporter) -> None:
        """Do every job and gather what they found."""
        jobs: list[Job] = []
        read = set()
        for tensor in self.plan.owners:
            inputs = self._inputs_of(tensor)
            read |= set(inputs)
            work = {FUSED: self._fuse, COPIED: self._copy}.get(tensor.outcome, self._compute)
            jobs.append(
                (sum(self.files[number].entries[name].nbytes for number, name in inputs) + tensor.entry.nbytes, partial(work, tensor))
            )
        for number, file in enumerate(self.files):
            jobs += [
                (entry.nbytes, partial(self._check, number, name)) for name, entry in file.stored.items() if (number, name) not in read
            ]
        megabytes = sum(size for size, _ in jobs) / 1e6
        with reporter.task("fuse, MB read and written", megabytes) as task, closing(carry_out(jobs)) as results:
            for size, found in results:
                self._gather(found)
                task.advance(size / 1e6)

    def _gather(self, found: _Found) -> None:
        self.found.digests.update(found.digests)
        self.found.not_finite.update(found.not_finite)
        self.found.negative |= found.negative
        if found.name is not None and found.written is not None:
            self.output_digests[found.name] = found.written
            self.overflowing |= {found.name} if found.overflows else set()
            if found.figures is not None:
                self.figures[found.name] = found.figures

    def check(self) -> None:
        """Refuse what the values turned out to be.

        Raises:
            MergeKit3DError: every problem of every file.
        """
        problems = ProblemCollector()
        for number, file in enumerate(self.files):
            digests = {name: self.found.digests[number, file.stored_as(name)] for name in file.entries}
            # What was hashed on the way is what the property would hash again.
            vars(file).setdefault("digest", tensors_digest(digests))
            problems.attempt(file.check_steady)
            problems.attempt(file.check_seal)
            problems.attempt(partial(self._check_values, number))
        for source in self.plan.sources:
            if source.fisher is not None:
                problems.attempt(partial(check_same_weights, source.fisher, source.checkpoint, source.checkpoint.digest))
        for tensor in self.plan.owners:
            if tensor.entry.name in self.overflowing:
                what, todo = "fused weights beyond the range of the dtype", "set a wider merge.dtype"
                problems.add(InputError(what, where=tensor.entry.name, found=tensor.entry.dtype, todo=todo))
        problems.raise_if_any()

    def _check_values(self, number: int) -> None:
        file, counts = self.files[number], self.found.not_finite
        file.refuse_non_finite([(name, counts[number, name]) for name in file.entries if (number, name) in counts])
        negative = next((name for name in file.entries if (number, name) in self.found.negative), None)
        if negative is not None:
            raise negative_fisher(file.path, negative)

    def _inputs_of(self, tensor: TensorPlan) -> list[tuple[int, str]]:
        """The tensors that an owner's job reads from their first to their last byte, by number of the file and name."""
        plan = self.plan
        if tensor.outcome == COPIED:
            files = [next((source.checkpoint for source in plan.sources if source.name == tensor.origin), plan.adapted)]
        elif tensor.outcome == FUSED:
            files = [source.checkpoint for source in plan.sources]
            files += [plan.base.checkpoint] if plan.base is not None else []
            files += [source.fisher for source in plan.sources] if tensor.has_fisher else []
        else:
            files = []
        numbers = dict.fromkeys(self.number_of[id(file)] for file in files)
        return [(number, self.files[number].stored_as(tensor.entry.name)) for number in numbers]

    def _open(self, number: int, name: str) -> _Input:
        return _Input(self.files[number], self.files[number].entries[name], number in self.fishers)

    def _close(self, number: int, opened: _Input, found: _Found) -> None:
        key = (number, opened.entry.name)
        found.digests[key] = opened.hash.hexdigest()
        if opened.not_finite:
            found.not_finite[key] = opened.not_finite
        if opened.negative:
            found.negative.add(key)

    def _check(self, number: int, name: str) -> _Found:
        """Read a tensor that the output does not need: the seal covers it."""
        opened, found = self._open(number, name), _Found()
        with np.errstate(over="ignore", invalid="ignore"):  # what is read is checked
            for piece in _pieces(opened.entry):
                opened.read(piece)
        self._close(number, opened, found)
        return found

    def _copy(self, tensor: TensorPlan) -> _Found:
        ((number, name),) = self._inputs_of(tensor)
        opened, writer, found = self._open(number, name), _Writer(self, tensor), _Found()
        with np.errstate(over="ignore", invalid="ignore"):  # what is read is checked
            for piece in _pieces(tensor.entry):
                writer.write(piece.start, opened.read(piece)[0])
        self._close(number, opened, found)
        return writer.told(found)

    def _compute(self, tensor: TensorPlan) -> _Found:
        """Random, zero and expanded tensors, in memory."""
        writer = _Writer(self, tensor)
        writer.write(0, self.values(tensor.entry).reshape(-1))
        return writer.told(_Found())

    def _fuse(self, tensor: TensorPlan) -> _Found:
        plan, found = self.plan, _Found()
        opened = {number: self._open(number, name) for number, name in self._inputs_of(tensor)}
        sources = [self.number_of[id(source.checkpoint)] for source in plan.sources]
        base = None if plan.base is None else self.number_of[id(plan.base.checkpoint)]
        of_tensor = self._combiner(tensor)
        known = [self.number_of[id(plan.sources[index].fisher)] for index in of_tensor.active] if tensor.has_fisher else None
        writer, found.figures = _Writer(self, tensor), Figures(len(plan.sources))
        with np.errstate(over="ignore", invalid="ignore"):  # the writer tells what comes of it
            for piece in _pieces(tensor.entry):
                read = {number: one.read(piece) for number, one in opened.items()}
                if not all(one.is_good for one in opened.values()):
                    continue
                thetas = [read[number][0] for number in sources]
                combined = of_tensor.combine(
                    piece.start,
                    [thetas[index] for index in of_tensor.active],
                    None if known is None else [read[number][0] for number in known],
                    None if base is None else read[base][0],
                )
                found.figures.add_piece(thetas, [read[number][1] for number in sources], combined, of_tensor.active)
                writer.write(piece.start, combined.values)
        for number, one in opened.items():
            self._close(number, one, found)
        return writer.told(found)

    def _combiner(self, tensor: TensorPlan) -> Combiner:
        plan, name = self.plan, tensor.entry.name
        files = [source.checkpoint for source in plan.sources]
        assert tensor.group is not None
        dtype = arithmetic_dtype([file.entries[name].dtype for file in files])
        of_tensor = combiner(plan, name, tensor.entry.shape, dtype, plan.ratios.layers[tensor.group])
        if plan.method.survey is None:
            return of_tensor
        reads = [partial(_whole, files[index], name) for index in of_tensor.active]
        base = None if plan.base is None else partial(_whole, plan.base.checkpoint, name)
        return replace(of_tensor, surveys=surveys_of(plan, reads, base))


class _Writer:
    """One output tensor, under all its names, hashed while it is written."""

    def __init__(self, run: _Pass, tensor: TensorPlan) -> None:
        self.descriptor, self.entry = run.descriptor, tensor.entry
        self.places = [run.places[name] for name in run.names[tensor.entry.name]]
        self.hash = tensor_hash(tensor.entry.dtype, tensor.entry.shape)
        self.overflows = False

    def write(self, start: int, values: np.ndarray) -> None:
        """Write the entries that begin at `start`."""
        with np.errstate(over="ignore"):
            content = encode(values, self.entry.dtype)
        if self.entry.is_float:
            self.overflows = self.overflows or not np.isfinite(values if self.entry.dtype == "BF16" else content).all()
        buffer = buffer_of(content)
        self.hash.update(buffer)
        for place in self.places:
            write_at(self.descriptor, buffer, place + start * ITEM_SIZES[self.entry.dtype])

    def told(self, found: _Found) -> _Found:
        """What a job found, with what was written."""
        found.name, found.written, found.overflows = self.entry.name, self.hash.hexdigest(), self.overflows
        return found


def _pieces(entry: TensorEntry) -> Iterator[slice]:
    return cuts(entry.nbytes // ITEM_SIZES[entry.dtype], PIECE_ENTRIES)


def _whole(file: Checkpoint, name: str) -> np.ndarray:
    return widened(file.read(name)).reshape(-1)
