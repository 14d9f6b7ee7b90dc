"""Which tensors are fused (shared) and which belong to a task (private), told from names and shapes alone.

Patterns are globs on parameter names (``segmentation.*``) or kinds (``kind:norm``); private wins over shared. A layer is what
owns a weight and its bias: the name up to the last dot.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mergekit3d.errors import MergeKit3DError, RecipeError
from mergekit3d.registry import did_you_mean

KINDS = ("conv", "norm", "linear", "other")
SHARED = "shared"
PRIVATE = "private"
BUFFERS = frozenset({"running_mean", "running_var", "num_batches_tracked"})


@dataclass(frozen=True)
class Partitions:
    """Patterns of the two sets.

    Args:
        private: patterns of task-specific tensors (S of the paper); they win.
        shared: patterns of fused tensors (P of the paper). What neither names stays out of the fusion.
    """

    private: tuple[str, ...] = ("kind:norm", "segmentation.*")
    shared: tuple[str, ...] = ("*",)


def layer_of(name: str) -> str:
    """The layer that owns a tensor: ``encoder.0.input.conv`` for ``encoder.0.input.conv.weight``."""
    return name.rpartition(".")[0] or name


def kinds(shapes: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """The kind of every tensor: conv, norm, linear or other, by the layer that owns it.

    Args:
        shapes: shape of every tensor by name.

    Returns:
        A kind for every name. A layer with a weight of 3 or more axes is a convolution, of 2 axes linear, of 1 axis or with
        running statistics a norm.
    """
    kind_of_layer: dict[str, str] = {}
    for name, shape in shapes.items():
        layer, _, leaf = name.rpartition(".")
        if leaf in BUFFERS:
            kind_of_layer[layer] = "norm"
        elif leaf == "weight":
            by_axes = {1: "norm", 2: "linear"}.get(len(shape), "conv" if len(shape) >= 3 else "other")
            kind_of_layer.setdefault(layer, by_axes)
    return {name: kind_of_layer.get(name.rpartition(".")[0], "other") for name in shapes}


def matches(pattern: str, name: str, kind: str) -> bool:
    """Whether a pattern names a tensor of that name and kind."""
    return kind == pattern.removeprefix("kind:") if pattern.startswith("kind:") else fnmatch.fnmatchcase(name, pattern)


def assign(partitions: Partitions, shapes: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """The partition of every tensor.

    Args:
        partitions: the patterns.
        shapes: shape of every tensor by name.

    Returns:
        ``shared`` or ``private`` for every name; what no pattern names is private.
    """
    kind_of = kinds(shapes)

    def partition(name: str) -> str:
        named = [any(matches(pattern, name, kind_of[name]) for pattern in patterns) for patterns in (partitions.private, partitions.shared)]
        return SHARED if named == [False, True] else PRIVATE

    return {name: partition(name) for name in shapes}


def unmatched(partitions: Partitions, shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """Names of the tensors that no pattern names, in order; `assign` makes them private."""
    kind_of, patterns = kinds(shapes), (*partitions.private, *partitions.shared)
    return [name for name in shapes if not any(matches(pattern, name, kind_of[name]) for pattern in patterns)]


def check_patterns(partitions: Partitions, shapes: Mapping[str, Sequence[int]]) -> list[MergeKit3DError]:
    """Problems of the patterns: unknown kinds, and globs that name no tensor (a misspelling, most likely)."""
    problems: list[MergeKit3DError] = []
    for key, patterns in (("private", partitions.private), ("shared", partitions.shared)):
        for index, pattern in enumerate(patterns):
            where = f"partitions.{key}[{index}]"
            if pattern.startswith("kind:"):
                kind = pattern.removeprefix("kind:")
                if kind not in KINDS:
                    problems.append(RecipeError("unknown kind of tensor", where=where, found=kind, todo=did_you_mean(kind, KINDS)))
            elif not any(fnmatch.fnmatchcase(name, pattern) for name in shapes):
                guess = did_you_mean(pattern.split(".")[0].strip("*"), {name.split(".")[0] for name in shapes})
                problems.append(RecipeError("the pattern names no tensor", where=where, found=repr(pattern), todo=guess))
    return problems


Granularity = str | Mapping[str, Sequence[str]]
"""What shares a mixing ratio: model, layer, tensor or kernel; or groups by name, each with its globs on parameter names."""


def check_groups(granularity: Granularity, names: Sequence[str]) -> list[MergeKit3DError]:
    """Problems of groups by glob: globs that name no tensor, and tensors that no group names.

    Args:
        granularity: what shares a mixing ratio; one of the four words has no such problem.
        names: of the fused tensors.
    """
    if isinstance(granularity, str):
        return []
    problems: list[MergeKit3DError] = []
    for group, globs in granularity.items():
        for glob in globs:
            if not any(fnmatch.fnmatchcase(name, glob) for name in names):
                where, todo = (
                    f"merge.granularity.{group}",
                    did_you_mean(glob.split(".")[0].strip("*"), {name.split(".")[0] for name in names}),
                )
                problems.append(RecipeError("the pattern names no fused tensor", where=where, found=repr(glob), todo=todo))
    grouped = ratio_groups(names, granularity)
    missing = [name for name in names if name not in grouped]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        todo = 'add a group for them, such as rest: "*"'
        problems.append(RecipeError("fused tensors are in no group", where="merge.granularity", found=f"{missing[0]}{more}", todo=todo))
    return problems


def ratio_groups(names: Iterable[str], granularity: Granularity) -> dict[str, str]:
    """The group whose ratio a tensor uses.

    Args:
        names: names of the shared tensors.
        granularity: model (one group), layer (a weight shares with its bias), tensor, or kernel (as layer; the group then
            has one ratio an output channel); or groups by globs, of which the first that fits decides.

    Returns:
        Name of the group for every tensor, in the order given; a tensor that no group names is left out.
    """
    if not isinstance(granularity, str):
        named = {
            name: [group for group, globs in granularity.items() if any(fnmatch.fnmatchcase(name, glob) for glob in globs)]
            for name in names
        }
        return {name: fitting[0] for name, fitting in named.items() if fitting}
    by_granularity: Mapping[str, Callable[[str], str]] = {"model": lambda _: "model", "layer": layer_of, "tensor": str, "kernel": layer_of}
    group = by_granularity[granularity]
    return {name: group(name) for name in names}
