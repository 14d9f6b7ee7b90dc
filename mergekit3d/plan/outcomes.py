"""The outcome of every tensor of a fusion: fused, copied, expanded, random or zero, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mergekit3d.architectures import NetworkSpec, stems_of
from mergekit3d.checkpoints import Checkpoint, TaskSpec, TensorEntry
from mergekit3d.checkpoints.checkpoint import FLOATS
from mergekit3d.errors import InputError, ProblemCollector, RecipeError
from mergekit3d.merging.methods import MergeMethod
from mergekit3d.merging.partitions import BUFFERS, PRIVATE, SHARED, check_groups, ratio_groups
from mergekit3d.plan.sources import Source
from mergekit3d.recipe.models import MergeModel
from mergekit3d.registry import did_you_mean

FUSED, COPIED, EXPANDED, RANDOM, ZERO = "fused", "copied", "expanded", "random", "zero"
ADAPTED = "adapted"
DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class TensorPlan:
    """What becomes of one tensor.

    Args:
        entry: name, dtype and shape in the output.
        partition: shared or private.
        outcome: fused, copied, expanded (input channels matched by modality), random or zero.
        group: whose ratios it uses; None where it is not fused.
        origin: where a copied tensor comes from: a source's name or ``adapted``.
        detail: one line for the report where there is something to explain.
        has_fisher: whether its entries are weighed by Fisher information; else F = 1.
        alias_of: the name that owns the storage, where this is one more name of another tensor; None for an owner.
    """

    entry: TensorEntry
    partition: str
    outcome: str
    group: str | None = None
    origin: str | None = None
    detail: str | None = None
    has_fisher: bool = False
    alias_of: str | None = None


def modalities_of(source: Source) -> tuple[str, ...]:
    """Modalities of a source's input channels, in order; empty where unknown."""
    return () if source.task is None else source.task.modalities


def shared_storages(sources: Sequence[Source], names: Sequence[str]) -> dict[str, str]:
    """Names that are one tensor in every source, each with the first such name; names that own their tensor are left out."""
    owners: dict[tuple[str, ...], str] = {}
    found = {name: owners.setdefault(tuple(source.checkpoint.aliases.get(name, name) for source in sources), name) for name in names}
    return {name: owner for name, owner in found.items() if name != owner}


@dataclass(frozen=True)
class Outcomes:
    """Decides the outcome of every tensor.

    Args:
        merge: the recipe's ``merge``.
        method: the method that it names.
        sources: the opened sources.
        base: what the method takes differences from, where it does.
        shapes: shape of every tensor of the output, in the order of the first source.
        partition_of: shared or private for every name.
        network: architecture of the output, where known.
        task: task of the output, where known.
        has_target: whether the recipe has a target, for which tensors may be new.
        adapted: what ``adapt`` wrote, where private tensors are carried over from it.
    """

    merge: MergeModel
    method: MergeMethod
    sources: Sequence[Source]
    base: Source | None
    shapes: Mapping[str, tuple[int, ...]]
    partition_of: Mapping[str, str]
    network: NetworkSpec | None
    task: TaskSpec | None
    has_target: bool
    adapted: Checkpoint | None

    def all(self, problems: ProblemCollector) -> tuple[TensorPlan, ...]:
        """The plan of every tensor, in the order of the first source; what cannot be planned is added to the problems."""
        names = [source.name for source in self.sources]
        for key, given, known in (
            ("private", self.merge.private, [*names, ADAPTED, RANDOM, ZERO]),
            ("buffers", self.merge.buffers, names),
        ):
            if given is not None and given not in known:
                what = "origin of the private tensors" if key == "private" else "source of the integer tensors"
                problems.add(RecipeError(f"unknown {what}", where=f"merge.{key}", found=given, todo=did_you_mean(given, known)))
        plans: dict[str, TensorPlan] = {}
        conflicts: list[str] = []
        for name in self.shapes:
            owner = self.aliases.get(name)
            if owner is not None:
                plans[name] = replace(plans[owner], entry=replace(plans[owner].entry, name=name), alias_of=owner)
                continue
            plan = self._one(name)
            if plan is None:
                conflicts.append(name)
            else:
                plans[name] = plan
        if conflicts:
            problems.add(self._conflict(conflicts))
        grouped = [plan.entry.name for plan in plans.values() if plan.outcome in (FUSED, EXPANDED)]
        for problem in check_groups(self.merge.granularity, grouped):
            problems.add(problem)
        return tuple(plans.values()) if not conflicts else ()

    @cached_property
    def aliases(self) -> Mapping[str, str]:
        """Further names of tensors, with their owners."""
        found = shared_storages(self.sources, list(self.shapes))
        return {name: owner for name, owner in found.items() if self.shapes[name] == self.shapes[owner]}

    @cached_property
    def _groups(self) -> Mapping[str, str]:
        return ratio_groups([name for name in self.shapes if name not in self.aliases], self.merge.granularity)

    @cached_property
    def _stems(self) -> frozenset[str]:
        return frozenset() if self.network is None else frozenset(stems_of(self.network, self.shapes))

    def _one(self, name: str) -> TensorPlan | None:
        """The plan of an owner; None where the sources' shapes rule a fusion out."""
        found = [source.checkpoint.entries[name] for source in self.sources]
        if not all(entry.is_float for entry in found):
            return self._integer(name, found)
        entry = TensorEntry(name, self._dtype(found), self.shapes[name])
        if self.partition_of[name] != SHARED:
            return self._private(entry)
        involved = found if self.base is None else [*found, self.base.checkpoint.entries[name]]
        fits = all(other.shape == entry.shape for other in involved)
        is_input = name in self._stems
        if fits and not (is_input and self._modalities_differ()):
            return self._fused(entry)
        shapes = f"{' / '.join(str(list(other.shape)) for other in found)} in the sources, {list(entry.shape)} in the target"
        if is_input and self.task is not None and self.merge.input_channels == "match" and self._channels_known(entry):
            missing = [
                modality for modality in self.task.modalities if not any(modality in modalities_of(source) for source in self.sources)
            ]
            detail = f"{shapes}; input channels matched by modality" + (f", random for {', '.join(missing)}" if missing else "")
            fused = self._fused(entry)
            return self._adapted(replace(fused, outcome=EXPANDED, detail=detail))
        same = all(other.shape == found[0].shape for other in involved)
        if not same and not (is_input and self.has_target):
            return None
        return self._adapted(TensorPlan(entry, SHARED, RANDOM, detail=f"{shapes}; other modalities" if fits else shapes))

    def _fused(self, entry: TensorEntry) -> TensorPlan:
        statistics = entry.name.rpartition(".")[2] in BUFFERS
        detail = "running statistics have no Fisher information: averaged by the ratios" if statistics and self.method.uses_fisher else None
        has_fisher = self.method.uses_fisher and not statistics
        plan = TensorPlan(entry, SHARED, FUSED, group=self._groups.get(entry.name), detail=detail, has_fisher=has_fisher)
        # An adaptation has gathered the running statistics of its own data.
        return self._adapted(plan) if statistics else plan

    def _integer(self, name: str, found: Sequence[TensorEntry]) -> TensorPlan | None:
        """A counter or another integer tensor: equal in all sources, or taken from one of them; never averaged."""
        if any(entry.shape != found[0].shape for entry in found):
            return None
        values = [source.checkpoint.read(name) for source in self.sources]
        equal = all(np.array_equal(values[0], other) for other in values[1:])
        wanted = self.sources[0].name if equal else self.merge.buffers or self.sources[-1].name
        index = next((index for index, source in enumerate(self.sources) if source.name == wanted), 0)
        detail = "equal in all sources" if equal else f"differs between the sources and is never averaged: taken from {wanted!r}"
        plan = TensorPlan(found[index], self.partition_of[name], COPIED, origin=wanted, detail=f"an integer tensor, {detail}")
        return self._adapted(plan) if name.rpartition(".")[2] in BUFFERS else plan

    def _modalities_differ(self) -> bool:
        """Whether a channel of the first convolution is another modality in a source than in the target: names count, not positions."""
        wanted = None if self.task is None else self.task.modalities
        return wanted is not None and any(source.task is not None and source.task.modalities != wanted for source in self.sources)

    def _channels_known(self, entry: TensorEntry) -> bool:
        """Whether every source says which modality each of its channels is, and differs from the target in their number alone."""

        def known(source: Source) -> bool:
            shape, wanted = source.checkpoint.shapes[entry.name], entry.shape
            fits = len(shape) == len(wanted) and (shape[0], *shape[2:]) == (wanted[0], *wanted[2:])
            return fits and source.task is not None and shape[1] == len(source.task.modalities)

        return all(map(known, self.sources))

    def _private(self, entry: TensorEntry) -> TensorPlan:
        wanted = self.merge.private
        if wanted is None and not self.has_target:
            wanted = self.sources[-1].name
        if wanted == ZERO:
            return TensorPlan(entry, PRIVATE, ZERO)
        for source in self.sources:
            if source.name == wanted:
                shape = source.checkpoint.shapes[entry.name]
                if shape == entry.shape:
                    return TensorPlan(entry, PRIVATE, COPIED, origin=source.name)
                return TensorPlan(entry, PRIVATE, RANDOM, detail=f"{list(shape)} in {source.name}, {list(entry.shape)} in the target")
        return self._adapted(TensorPlan(entry, PRIVATE, RANDOM))

    def _adapted(self, otherwise: TensorPlan) -> TensorPlan:
        """What is trained beside the ratios is carried over from the adaptation, where there was one."""
        entry = otherwise.entry
        if self.adapted is not None and self.adapted.shapes.get(entry.name) == entry.shape:
            return TensorPlan(entry, otherwise.partition, COPIED, origin=ADAPTED, detail=otherwise.detail)
        return otherwise

    def _dtype(self, found: Sequence[TensorEntry]) -> str:
        """The recipe's dtype, or the narrowest that holds every source's values."""
        if self.merge.dtype is not None:
            return DTYPES[self.merge.dtype]
        dtypes = {entry.dtype for entry in found} & FLOATS
        return dtypes.pop() if len(dtypes) == 1 else "F64" if "F64" in dtypes else "F32"

    def _conflict(self, names: Sequence[str]) -> InputError:
        first = next((name for name in names if name not in self._stems), names[0])
        involved = self.sources if self.base is None else (*self.sources, self.base)
        shapes = ", ".join(f"{source.name} {list(source.checkpoint.shapes[first])}" for source in involved)
        more = f" ({len(names)} tensors differ)" if len(names) > 1 else ""
        if first in self._stems:
            todo = "give a target with modalities, or name it in partitions.private"
        else:
            todo = "fuse checkpoints of one architecture, or name it in partitions.private"
        return InputError("the sources' shapes differ", where=first, wanted="one shape to fuse", found=f"{shapes}{more}", todo=todo)
