"""From source files to a fused file in one pass: every byte is read once, hashed, checked, combined and written, piece by piece.

Tensors are shared out among threads; hashing, reading and numpy's loops release the interpreter lock. What a source's values may
turn out to be (damaged, not finite, of other weights than the Fisher diagonal says) is collected over the whole pass and told at
once, before the output takes its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mergekit3d.checkpoints import Checkpoint, Metadata, TensorEntry
from mergekit3d.checkpoints.checkpoint import ITEM_SIZES, buffer_of, decode, encode
from mergekit3d.checkpoints.safetensors import header_bytes
from mergekit3d.engine import combining
from mergekit3d.engine.combining import Combiner, arithmetic_dtype, combiner, pieces, surveys_of, widened
from mergekit3d.engine.figures import Figures, dot
from mergekit3d.engine.values import tensor_values
from mergekit3d.errors import InputError, ProblemCollector
from mergekit3d.plan.fusion import FusionPlan
from mergekit3d.plan.outcomes import COPIED, FUSED, TensorPlan
from mergekit3d.plan.sources import check_same_weights, negative_fisher
from mergekit3d.progress import SILENT, Reporter
from mergekit3d.storage.atomic import atomic_open, reserve, write_at, written_behind
from mergekit3d.storage.seal import tensor_hash, tensors_digest

MOST_THREADS = 8
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
    source: memoryview = field(init=False)
    hash: Any = field(init=False)
    not_finite: int = 0
    negative: bool = False

    def __post_init__(self) -> None:
        item = ITEM_SIZES[self.entry.dtype]
        if self.checkpoint.read_into is None:
            self.source = memoryview(self.checkpoint.content(self.entry.name))
        else:
            self.source = memoryview(bytearray(min(self.entry.nbytes, combining.PIECE_ENTRIES * item)))
        self.hash = tensor_hash(self.entry.dtype, self.entry.shape)

    def read(self, piece: slice) -> tuple[np.ndarray, float]:
        """A piece's values, float32 or wider (integers as they are), and the sum of their squares (of weights alone)."""
        buffer = self._bytes(piece)
        self.hash.update(buffer)
        values = decode(buffer, self.entry.dtype, (piece.stop - piece.start,))
        return (values, 0.0) if not self.entry.is_float else self._checked(widened(values))

    def _bytes(self, piece: slice) -> memoryview:
        item = ITEM_SIZES[self.entry.dtype]
        if self.checkpoint.read_into is None:
            return self.source[piece.start * item : piece.stop * item]
        buffer = self.source[: (piece.stop - piece.start) * item]
        self.checkpoint.read_into(self.entry.name, piece.start * item, buffer)
        return buffer

    def _checked(self, values: np.ndarray) -> tuple[np.ndarray, float]:
        if self.is_fisher:
            if values.size and not (values.min() >= 0 and np.isfinite(values.max())):
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
    output_digests: dict[str, str] = field(default_factory=dict)
    figures: dict[str, Figures] = field(default_factory=dict)
    input_digests: dict[tuple[int, str], str] = field(default_factory=dict)
    not_finite: dict[tuple[int, str], int] = field(default_factory=dict)
    negative: set[tuple[int, str]] = field(default_factory=set)
    overflowing: list[TensorEntry] = field(default_factory=list)
    is_spoilt: bool = False

    def __post_init__(self) -> None:
        plan = self.plan
        checkpoints = [source.checkpoint for source in plan.sources]
        checkpoints += [plan.base.checkpoint] if plan.base is not None else []
        checkpoints += [plan.adapted] if plan.adapted is not None else []
        fishers = [source.fisher for source in plan.sources if source.fisher is not None]
        self.is_fisher = {id(file): index >= len(checkpoints) for index, file in enumerate([*checkpoints, *fishers])}
        self.files = list({id(file): file for file in [*checkpoints, *fishers]}.values())
        self.names: dict[str, list[str]] = {}
        for tensor in plan.tensors:
            self.names.setdefault(tensor.alias_of or tensor.entry.name, []).append(tensor.entry.name)
        self.values = tensor_values(plan)

    def carry_out(self, reporter: Reporter) -> None:
        """Run every job, the largest first, on a few threads."""
        jobs, read = [], set()
        for tensor in self.plan.owners:
            inputs = self._inputs_of(tensor)
            read |= {(id(file), name) for file, name in inputs}
            work = {FUSED: self._fuse, COPIED: self._copy}.get(tensor.outcome, self._compute)
            jobs.append((sum(file.entries[name].nbytes for file, name in inputs) + tensor.entry.nbytes, partial(work, tensor)))
        for file in self.files:
            jobs += [
                (entry.nbytes, partial(self._check, file, name)) for name, entry in file.owners.items() if (id(file), name) not in read
            ]
        jobs.sort(key=lambda job: -job[0])
        total = sum(size for size, _ in jobs)
        threads = min(MOST_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        with reporter.task(f"fuse {total / 1e6:,.0f} MB", total) as task, ThreadPoolExecutor(threads) as pool:
            sizes = {pool.submit(work): size for size, work in jobs}
            try:
                for future in as_completed(sizes):
                    future.result()
                    task.advance(sizes[future])
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def check(self) -> None:
        """Refuse what the values turned out to be.

        Raises:
            MergeKit3DError: every problem of every file.
        """
        problems = ProblemCollector()
        for file in self.files:
            digests = {name: self.input_digests[id(file), file.stored_as(name)] for name in file.entries}
            # What was hashed on the way is what the property would hash again.
            vars(file).setdefault("digest", tensors_digest(digests))
            problems.attempt(file.check_seal)
            problems.attempt(partial(self._check_values, file))
        for source in self.plan.sources:
            if source.fisher is not None:
                problems.attempt(partial(check_same_weights, source.fisher, source.checkpoint, source.checkpoint.digest))
        for entry in self.overflowing:
            problems.add(
                InputError(
                    "fused weights beyond the range of the dtype", where=entry.name, found=entry.dtype, todo="set merge.dtype: float32"
                )
            )
        problems.raise_if_any()

    def _check_values(self, file: Checkpoint) -> None:
        file.refuse_non_finite([(name, self.not_finite[id(file), name]) for name in file.entries if (id(file), name) in self.not_finite])
        negative = next((name for name in file.entries if (id(file), name) in self.negative), None)
        if negative is not None:
            raise negative_fisher(file.path, negative)

    def _inputs_of(self, tensor: TensorPlan) -> list[tuple[Checkpoint, str]]:
        """The tensors that an owner's job reads from its first to its last byte."""
        name = tensor.entry.name
        if tensor.outcome == COPIED:
            return [(self._origin(tensor), self._origin(tensor).stored_as(name))]
        if tensor.outcome != FUSED:
            return []
        files = [source.checkpoint for source in self.plan.sources]
        files += [self.plan.base.checkpoint] if self.plan.base is not None else []
        files += [source.fisher for source in self.plan.sources if source.fisher is not None] if tensor.has_fisher else []
        return [(file, file.stored_as(name)) for file in {id(file): file for file in files}.values()]

    def _origin(self, tensor: TensorPlan) -> Checkpoint:
        named = next((source.checkpoint for source in self.plan.sources if source.name == tensor.origin), self.plan.adapted)
        assert named is not None
        return named

    def _open(self, file: Checkpoint, name: str) -> _Input:
        return _Input(file, file.entries[name], self.is_fisher[id(file)])

    def _close(self, opened: _Input) -> None:
        key = (id(opened.checkpoint), opened.entry.name)
        self.input_digests[key] = opened.hash.hexdigest()
        if opened.not_finite:
            self.not_finite[key] = opened.not_finite
        if opened.negative:
            self.negative.add(key)
        self.is_spoilt = self.is_spoilt or not opened.is_good

    def _check(self, file: Checkpoint, name: str) -> None:
        """Read a tensor that the output does not need: the seal covers it."""
        opened = self._open(file, name)
        for piece in pieces(_entries(opened.entry)):
            opened.read(piece)
        self._close(opened)

    def _copy(self, tensor: TensorPlan) -> None:
        opened = self._open(*self._inputs_of(tensor)[0])
        writer = _Writer(self, tensor)
        for piece in pieces(_entries(tensor.entry)):
            writer.write(piece, opened.read(piece)[0])
        self._close(opened)
        writer.close()

    def _compute(self, tensor: TensorPlan) -> None:
        """Random, zero and expanded tensors, in memory."""
        values, writer = self.values(tensor.entry).reshape(-1), _Writer(self, tensor)
        for piece in pieces(values.size):
            writer.write(piece, values[piece])
        writer.close()

    def _fuse(self, tensor: TensorPlan) -> None:
        plan, name = self.plan, tensor.entry.name
        opened = {id(file): self._open(file, found) for file, found in self._inputs_of(tensor)}
        of_tensor = self._combiner(tensor, [source.checkpoint for source in plan.sources])
        writer, figures = _Writer(self, tensor), Figures(len(plan.sources))
        for piece in pieces(_entries(tensor.entry)):
            read = {key: one.read(piece) for key, one in opened.items()}
            if self.is_spoilt or not all(one.is_good for one in opened.values()):
                continue
            thetas = [read[id(source.checkpoint)][0] for source in plan.sources]
            fishers = [read[id(plan.sources[index].fisher)][0] for index in of_tensor.active] if tensor.has_fisher else None
            base = None if plan.base is None else read[id(plan.base.checkpoint)][0]
            with np.errstate(over="ignore", invalid="ignore"):  # the writer refuses what comes of it
                combined = of_tensor.combine(piece.start, [thetas[index] for index in of_tensor.active], fishers, base)
            figures.add_piece(thetas, [read[id(source.checkpoint)][1] for source in plan.sources], combined, of_tensor.active)
            writer.write(piece, combined.values)
        for one in opened.values():
            self._close(one)
        writer.close()
        self.figures[name] = figures

    def _combiner(self, tensor: TensorPlan, files: Sequence[Checkpoint]) -> Combiner:
        plan, name = self.plan, tensor.entry.name
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
        self.run, self.entry = run, tensor.entry
        self.places = [run.places[name] for name in run.names[tensor.entry.name]]
        self.hash = tensor_hash(tensor.entry.dtype, tensor.entry.shape)

    def write(self, piece: slice, values: np.ndarray) -> None:
        with np.errstate(over="ignore"):
            content = encode(values, self.entry.dtype)
        looked_at = values if self.entry.dtype == "BF16" else content
        if self.entry.is_float and not np.isfinite(looked_at).all() and self.entry not in self.run.overflowing:
            self.run.overflowing.append(self.entry)
        buffer = buffer_of(content)
        self.hash.update(buffer)
        for place in self.places:
            write_at(self.run.descriptor, buffer, place + piece.start * ITEM_SIZES[self.entry.dtype])

    def close(self) -> None:
        self.run.output_digests[self.entry.name] = self.hash.hexdigest()


def _entries(entry: TensorEntry) -> int:
    return entry.nbytes // ITEM_SIZES[entry.dtype]


def _whole(file: Checkpoint, name: str) -> np.ndarray:
    return widened(file.read(name)).reshape(-1)
