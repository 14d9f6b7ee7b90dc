"""The sources of a fusion, opened and checked against one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergekit3d.architectures import NetworkSpec, network_of
from mergekit3d.checkpoints import FISHER, Checkpoint, TaskSpec, check_weights, open_checkpoint
from mergekit3d.errors import InputError, MergeKit3DError, ProblemCollector, RecipeError
from mergekit3d.merging.methods import MergeMethod
from mergekit3d.plan.target import task_of_target
from mergekit3d.recipe.load import LoadedRecipe
from mergekit3d.recipe.models import SourceModel


@dataclass(frozen=True)
class Source:
    """One trained network.

    Args:
        name: its name in the recipe.
        checkpoint: its weights.
        fisher: its Fisher diagonal, where the method needs one.
        network: its architecture, where known.
        task: what it was trained to do, where its checkpoint or the recipe tells.
    """

    name: str
    checkpoint: Checkpoint
    fisher: Checkpoint | None
    network: NetworkSpec | None
    task: TaskSpec | None


def open_source(loaded: LoadedRecipe, model: SourceModel, *, with_fisher: bool, verify: bool = True) -> Source:
    """Open a source's checkpoint and Fisher diagonal and check them.

    Args:
        loaded: the recipe.
        model: the source.
        with_fisher: whether its Fisher diagonal is needed.
        verify: read every value; else only what names, shapes and metadata tell is checked.

    Raises:
        MergeKit3DError: every problem found: missing or damaged files, NaN, a Fisher diagonal of other weights.
    """
    problems = ProblemCollector()
    checkpoint = fisher = None
    try:
        checkpoint = open_checkpoint(loaded.checkpoint_path(model), verify=verify)
        _check(checkpoint, verify=verify)
    except MergeKit3DError as error:
        problems.add(error)
    if with_fisher:
        try:
            fisher = open_fisher(loaded, model, checkpoint, verify=verify)
        except MergeKit3DError as error:
            problems.add(error)
    problems.raise_if_any()
    assert checkpoint is not None
    task = _task_of(checkpoint)
    if task is None and model.target is not None and model.target.modalities is not None:
        task = task_of_target(loaded, model.target)  # a bare state dict: the recipe tells what its channels are
    return Source(model.name, checkpoint, fisher, network_of(checkpoint), task)


def open_fisher(loaded: LoadedRecipe, model: SourceModel, checkpoint: Checkpoint | None, *, verify: bool = True) -> Checkpoint:
    """Open a source's Fisher diagonal and compare it with its checkpoint.

    Raises:
        InputError: missing, damaged, negative, not finite, or of other weights.
    """
    path = loaded.fisher_path(model)
    if not path.exists():
        todo = f"run: mergekit3d fisher {loaded.checkpoint_path(model).name} --data <its data set>"
        raise InputError("no Fisher diagonal", where=f"source {model.name!r}: {path}", todo=todo)
    fisher = open_checkpoint(path, verify=verify)
    if fisher.metadata is not None and fisher.metadata.kind != FISHER:
        raise InputError("a checkpoint stands where a Fisher diagonal is wanted", where=path)
    if verify:
        fisher.check_finite()
        negative = next((name for name in fisher.stored if np.any(fisher.read(name) < 0)), None)
        if negative is not None:
            raise negative_fisher(path, negative)
    if checkpoint is None:
        return fisher
    digest = checkpoint.digest if verify else claimed_digest(checkpoint)
    if digest is not None:
        check_same_weights(fisher, checkpoint, digest)
    for name, entry in checkpoint.owners.items():
        if entry.is_float and name.rpartition(".")[2] not in ("running_mean", "running_var") and fisher.shapes.get(name) != entry.shape:
            found = fisher.shapes.get(name)
            wanted = f"{name} {list(entry.shape)}"
            raise InputError(
                "the Fisher diagonal does not fit the checkpoint", where=path, wanted=wanted, found="none" if found is None else list(found)
            )
    return fisher


def claimed_digest(checkpoint: Checkpoint) -> str | None:
    """The digest that a file's seal tells, without reading its values; None where there is no seal."""
    seal = None if checkpoint.metadata is None else checkpoint.metadata.seal
    return None if seal is None else seal.get("tensors")


def check_same_weights(fisher: Checkpoint, checkpoint: Checkpoint, digest: str) -> None:
    """Refuse a Fisher diagonal that was computed for other weights than those of this digest; one that does not say passes.

    Raises:
        InputError: it says of other weights.
    """
    of = None if fisher.metadata is None else fisher.metadata.provenance.get("checkpoint")
    if of is not None and of != digest:
        raise InputError(
            "the Fisher diagonal is of other weights",
            where=fisher.path,
            wanted=f"of {checkpoint.path.name} ({digest[:12]})",
            found=f"of {str(of)[:12]}",
            todo=f"run: mergekit3d fisher {checkpoint.path.name} --data <its data set> --force",
        )


def negative_fisher(path: object, name: str) -> InputError:
    """The error of a Fisher diagonal with an entry below 0."""
    return InputError("a Fisher diagonal cannot be negative", where=f"{path}: {name}", todo="compute it again")


def open_base(loaded: LoadedRecipe, sources: Sequence[Source], method: MergeMethod, *, verify: bool = True) -> Source | None:
    """Open what the differences of a method are taken from; None where it takes none.

    Raises:
        RecipeError: the method needs a base and the recipe names none.
        InputError: it cannot be read, or is of another network.
    """
    given = loaded.recipe.merge.base
    if not method.uses_base:
        if given is not None:
            raise RecipeError(f"{method.name} takes no base", where="merge.base", found=given, todo="leave it out")
        return None
    if given is None:
        todo = "name the source or checkpoint that the others were trained from"
        raise RecipeError(f"{method.name} needs a base", where="merge.base", todo=todo)
    for source in sources:
        if source.name == given:
            return source
    checkpoint = open_checkpoint(loaded.input_path(given), verify=verify)
    _check(checkpoint, verify=verify)
    base = Source("base", checkpoint, None, network_of(checkpoint), _task_of(checkpoint))
    if sources:
        check_one_network([sources[0], base])
    return base


def open_sources(loaded: LoadedRecipe, *, with_fisher: bool, verify: bool = True) -> list[Source]:
    """Open all sources of a recipe.

    Raises:
        MergeKit3DError: all problems of all sources at once.
    """
    if not loaded.recipe.sources:
        raise RecipeError("the recipe has no sources", where=loaded.path, todo="list the checkpoints to fuse under sources")
    problems, sources = ProblemCollector(), []
    for model in loaded.recipe.sources:
        try:
            sources.append(open_source(loaded, model, with_fisher=with_fisher, verify=verify))
        except MergeKit3DError as error:
            problems.add(error)
    problems.raise_if_any()
    check_one_network(sources)
    return sources


def check_one_network(sources: Sequence[Source]) -> None:
    """Refuse sources whose tensors do not go by the same names.

    Raises:
        InputError: a tensor is missing on one side; all such sources at once.
    """
    problems, first = ProblemCollector(), sources[0]
    for source in sources[1:]:
        missing = [name for name in first.checkpoint.entries if name not in source.checkpoint.entries]
        unknown = [name for name in source.checkpoint.entries if name not in first.checkpoint.entries]
        if missing or unknown:
            odd = (missing or unknown)[0]
            problems.add(
                InputError(
                    "the sources are of different networks",
                    where=source.checkpoint.path,
                    wanted=f"the {len(first.checkpoint.entries)} tensors of {first.name!r}",
                    found=f"{'no ' if missing else 'also '}{odd}"
                    + (f" ({len(missing) + len(unknown)} names differ)" if len(missing) + len(unknown) > 1 else ""),
                    todo="fuse checkpoints of one architecture, each trained from the one before",
                )
            )
    problems.raise_if_any()


def _check(checkpoint: Checkpoint, *, verify: bool) -> None:
    if verify:
        check_weights(checkpoint)
    elif checkpoint.metadata is not None and checkpoint.metadata.kind == FISHER:
        raise InputError("a Fisher diagonal stands where a checkpoint is wanted", where=checkpoint.path)


def _task_of(checkpoint: Checkpoint) -> TaskSpec | None:
    return None if checkpoint.metadata is None else checkpoint.metadata.task
