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

KINDS = ("conv", "norm", "linear", "activation", "other")
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
    """The kind of every tensor: conv, norm, linear, activation or other, by the layer that owns it.

    Args:
        shapes: shape of every tensor by name.

    Returns:
        A kind for every name. A layer with a weight of 3 or more axes is a convolution, of 2 axes linear, of 1 axis or with
        running statistics a norm; but where it is one number alone, the slope of an activation (PReLU).
    """
    kind_of_layer: dict[str, str] = {}
    for name, shape in shapes.items():
        layer, _, leaf = name.rpartition(".")
        if leaf in BUFFERS:
            kind_of_layer[layer] = "norm"
        elif leaf == "weight":
            by_axes = {1: "norm", 2: "linear"}.get(len(shape), "conv" if len(shape) >= 3 else "other")
            if tuple(shape) == (1,) and f"{layer}.bias" not in shapes:
                by_axes = "activation"
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
    keys = (("private", partitions.private), ("shared", partitions.shared))
    found = [_problem(pattern, shapes, f"partitions.{key}[{index}]") for key, patterns in keys for index, pattern in enumerate(patterns)]
    return [problem for problem in found if problem is not None]


def _problem(pattern: str, shapes: Mapping[str, Sequence[int]], where: str) -> MergeKit3DError | None:
    if pattern.startswith("kind:"):
        kind = pattern.removeprefix("kind:")
        return None if kind in KINDS else RecipeError("unknown kind of tensor", where=where, found=kind, todo=did_you_mean(kind, KINDS))
    if any(fnmatch.fnmatchcase(name, pattern) for name in shapes):
        return None
    guess = did_you_mean(pattern.split(".", maxsplit=1)[0].strip("*"), {name.split(".")[0] for name in shapes})
    return RecipeError("the pattern names no tensor", where=where, found=repr(pattern), todo=guess)


def named_by(pattern: str, partition_of: Mapping[str, str], shapes: Mapping[str, Sequence[int]], where: str) -> list[str]:
    """The tensors that a pattern names, which here may be a whole partition too.

    Args:
        pattern: a glob on names, a kind (``kind:norm``), or ``shared`` or ``private``.
        partition_of: shared or private for every name, as of `assign`.
        shapes: shape of every tensor by name.
        where: the recipe's key, for the error.

    Returns:
        Their names, in order.

    Raises:
        RecipeError: an unknown kind, or nothing goes by that name.
    """
    if pattern in (SHARED, PRIVATE):
        found = [name for name, partition in partition_of.items() if partition == pattern]
        if not found:
            raise RecipeError(f"no tensor is {pattern}", where=where, todo="see partitions")
        return found
    problem = _problem(pattern, shapes, where)
    if problem is not None:
        raise problem
    kind_of = kinds(shapes)
    found = [name for name in shapes if matches(pattern, name, kind_of[name])]
    if not found:
        raise RecipeError("the pattern names no tensor", where=where, found=repr(pattern))
    return found


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
